"""Stage 2: which tokens of the correct responses are critical (DESIGN §2.2–2.4; the paper's method section).

Beside the annotations, every rollout made is kept, so that other selections need no new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cruxtune.accounting import Meter
from cruxtune.criticality import Inquiry
from cruxtune.engines.base import Fork, Progress
from cruxtune.errors import ConfigError, DataError
from cruxtune.models import Policy, fingerprint, load_policy
from cruxtune.records import ANNOTATION_SCHEMA, ROLLOUT_SCHEMA, Annotation, Response, Rollout
from cruxtune.runner import greedy, open_verifier, run_groups
from cruxtune.settings import AnnotateSettings, RespondSettings, identity_of
from cruxtune.store import Rows, finished_manifest, read_rows
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
    past = RespondSettings.model_validate(manifest["settings"])
    model = settings.model or past.model
    settings = settings.model_copy(update={"model": model})
    responses = correct_responses(settings, manifest["rows"])
    decoding = greedy(past.decoding.loop_stop)
    limit = past.decoding.max_new_tokens

    def load() -> Policy:
        loaded = policy or load_policy(model, past.prompt, batch_size=settings.batch_size)
        if loaded.facts["tokenizer"] != manifest["facts"]["tokenizer"]:
            raise ConfigError(
                f"--model {model.model} has another tokenizer than the model that made --responses "
                f"{settings.responses}, so that its ids mean other text; annotate with a model of the same tokenizer"
            )
        return loaded

    with open_verifier(past.verifier) as verifier:

        def work(policy: Policy, part: range, meter: Meter, progress: Progress) -> Mapping[str, Rows]:
            group = [responses[index] for index in part]
            return _annotate_group(group, policy, verifier, settings, decoding, limit, meter, progress)

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
                strict_answers=past.verifier.strict_answers,
            ),
            tables={"data": ANNOTATION_SCHEMA, "rollouts": ROLLOUT_SCHEMA},
            items=len(responses),
            group_size=settings.group_size,
            steps=lambda part: sum(len(responses[index].response_ids) for index in part) * settings.alternatives,
            unit="rollouts",
            load=load,
            work=work,
        )


def correct_responses(settings: AnnotateSettings, rows: int) -> list[Response]:
    """Return the correct responses, at most `limit` of them.

    Raises:
        DataError: there is none.
    """
    responses = [Response.from_row(row) for row in read_rows(settings.responses) if row["correct"]]
    if not responses:
        raise DataError(
            f"--responses {settings.responses}: 0 of {rows} responses are correct, so there is nothing to annotate; "
            "use easier problems, a stronger model, or a cold start first (cruxtune train --method gold)"
        )
    return responses[: settings.output.limit]


def _annotate_group(
    group: list[Response],
    policy: Policy,
    verifier: Verifier,
    settings: AnnotateSettings,
    decoding: Any,
    limit: int,
    meter: Meter,
    progress: Progress,
) -> Mapping[str, Rows]:
    """Annotate some responses together: each round asks what all of them still want, in one batch."""
    engine = policy.engine
    contexts = [(response.prompt_ids, response.response_ids) for response in group]
    scores = [engine.score(prompt, ids, alternatives=settings.alternatives) for prompt, ids in contexts]
    inquiries = [Inquiry(len(ids), settings.alternatives, every=settings.every_alternative) for _, ids in contexts]
    rollouts: list[Rollout] = []
    while asks := [(place, *ask) for place, inquiry in enumerate(inquiries) for ask in inquiry.wanted()]:
        forks = [Fork(place, position, scores[place].alternatives[position][rank]) for place, position, rank in asks]
        ended = engine.rollouts(contexts, forks, max_tokens=limit, decoding=decoding, progress=progress)
        texts = [policy.renderer.decode(rollout.ids) for rollout in ended]
        verdicts = verifier.verify_many(
            [(text, group[place].problem) for text, (place, _, _) in zip(texts, asks, strict=True)]
        )
        meter.count(verdicts)
        for (place, position, rank), rollout, verdict in zip(asks, ended, verdicts, strict=True):
            inquiries[place].record(position, rank, correct=verdict.correct)
            rollouts.append(
                Rollout(group[place].problem.id, position, rank, rollout.ids, rollout.finish_reason, verdict)
            )
    annotations = [
        Annotation(
            response=response,
            alternatives=score.alternatives,
            alternative_logprobs=score.alternative_logprobs,
            alternative_correct=inquiry.verdicts,
            logprobs=score.logprobs,
            entropies=score.entropies,
            critical=inquiry.critical(),
        )
        for response, score, inquiry in zip(group, scores, inquiries, strict=True)
    ]
    tokens = sum(len(ids) for _, ids in contexts)
    wanted = tokens * settings.alternatives
    progress(wanted - len(rollouts))
    meter.add(
        responses=len(group),
        response_tokens=tokens,
        critical_tokens=sum(sum(annotation.critical) for annotation in annotations),
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
