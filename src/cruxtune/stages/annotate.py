"""Stage 2: which tokens of the correct responses are critical (DESIGN §2.2–2.4; the paper's method section).

Beside the annotations, every rollout made is kept, so that other selections need no new ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from cruxtune.accounting import Meter
from cruxtune.budget import choose_positions, expected_tokens, groups_by_work
from cruxtune.counterfactuals import Counterfactuals, correct_responses
from cruxtune.engines.base import Decoding, Progress
from cruxtune.errors import ConfigError
from cruxtune.models import Policy, fingerprint, load_policy
from cruxtune.records import ANNOTATION_SCHEMA, ROLLOUT_SCHEMA, Response
from cruxtune.runner import greedy, open_verifier, run_groups
from cruxtune.settings import identity_of, recorded
from cruxtune.stage_settings import AnnotateSettings, RespondSettings
from cruxtune.store import Rows, finished_manifest
from cruxtune.verifiers import Verifier


def annotate(settings: AnnotateSettings, *, policy: Policy | None = None) -> dict[str, Any]:
    """Find the critical tokens of every correct response; return the manifest of the dataset written.

    Verifier, token limit and (unless another is named) model are those of the responses.

    Raises:
        DataError: no response is correct.
        ConfigError: the model's tokenizer is another than the one of the responses.
        StoreError: the responses are unfinished, or the output belongs to other settings.
    """
    manifest = finished_manifest(settings.responses, "respond", "--responses")
    past = recorded(RespondSettings, manifest["settings"], settings.responses)
    model = settings.model or past.model
    settings = settings.model_copy(update={"model": model})
    responses = correct_responses(settings.responses, settings.output.limit)
    decoding = greedy(past.decoding.loop_stop)
    limit = past.decoding.max_new_tokens
    lengths = [len(response.response_ids) for response in responses]

    def load() -> Policy:
        loaded = policy or load_policy(model, past.prompt, settings.engine)
        if loaded.facts["tokenizer"] != manifest["facts"]["tokenizer"]:
            raise ConfigError(
                f"--model {model.model} has another tokenizer than the model that made --responses "
                f"{settings.responses}, so that its ids mean other text; annotate with a model of the same tokenizer"
            )
        return loaded

    settled = Counter[str]()

    with open_verifier(past.verifier) as verifier:

        def work(policy: Policy, part: range, meter: Meter, progress: Progress) -> Mapping[str, Rows]:
            group = [responses[index] for index in part]
            asked = choose_positions(
                lengths,
                part,
                alternatives=settings.alternatives,
                seed=settings.output.seed,
                positions=settings.positions,
                token_budget=settings.token_budget,
                before=meter.before,
            )
            rows = _annotate_group(group, asked, policy, verifier, settings, decoding, limit, meter, progress)
            settled.update(steps=steps(part), made=len(rows["rollouts"]))
            return rows

        def steps(part: range) -> int:
            return sum(lengths[index] for index in part) * settings.alternatives

        return run_groups(
            stage="annotate",
            settings=settings,
            output=settings.output,
            identity=identity_of(
                settings,
                model=fingerprint(model),
                responses=manifest["fingerprint"],
                max_new_tokens=limit,
                loop_stop=past.decoding.loop_stop,
                **past.verifier.model_dump(exclude={"verify_timeout", "verifier"}),
            ),
            tables={"data": ANNOTATION_SCHEMA, "rollouts": ROLLOUT_SCHEMA},
            groups=groups_by_work(lengths, settings.alternatives, most=settings.group_size),
            steps=steps,
            unit="rollouts",
            load=load,
            work=work,
            saved=lambda: settled["steps"] - settled["made"],
        )


def _annotate_group(
    group: list[Response],
    positions: list[list[int]],
    policy: Policy,
    verifier: Verifier,
    settings: AnnotateSettings,
    decoding: Decoding,
    limit: int,
    meter: Meter,
    progress: Progress,
) -> Mapping[str, Rows]:
    """Annotate some responses and count what it took."""
    work = Counterfactuals(group, positions, alternatives=settings.alternatives, every=settings.every_alternative)
    work.run(policy, verifier, decoding, limit, progress=progress)
    annotations, rollouts = work.annotations(), work.rollouts
    meter.count(rollout.verdict for rollout in rollouts)
    known = [mask for annotation in annotations for mask in annotation.critical if mask is not None]
    tokens = sum(len(response.response_ids) for response in group)
    wanted = sum(len(some) for some in positions) * settings.alternatives
    meter.add(
        responses=len(group),
        response_tokens=tokens,
        known_tokens=len(known),
        critical_tokens=sum(known),
        tokens_expected=sum(
            expected_tokens(len(response.response_ids), some, settings.alternatives)
            for response, some in zip(group, positions, strict=True)
        ),
        rollouts_wanted=wanted,
        rollouts_made=len(rollouts),
        rollouts_skipped=wanted - len(rollouts),
        rollouts_looped=sum(rollout.finish_reason == "loop" for rollout in rollouts),
        rollouts_truncated=sum(rollout.finish_reason == "length" for rollout in rollouts),
    )
    place_of = {response.problem.id: place for place, response in enumerate(group)}
    rollouts.sort(key=lambda rollout: (place_of[rollout.id], rollout.position, rollout.rank))
    return {
        "data": [annotation.to_row() for annotation in annotations],
        "rollouts": [rollout.to_row() for rollout in rollouts],
    }
