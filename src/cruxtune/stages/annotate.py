"""Stage 2: which tokens of the correct responses are critical (DESIGN §2.2–2.4; the paper's method section).

Beside the annotations, every rollout made is kept, so that other selections need no new ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cruxtune.accounting import Meter
from cruxtune.budget import choose_positions, expected_tokens, groups_by_work
from cruxtune.criticality import Inquiry
from cruxtune.engines.base import Branches, Decoding, Fork, Generation, Progress, Scores
from cruxtune.errors import ConfigError, DataError
from cruxtune.models import Policy, fingerprint, load_policy
from cruxtune.records import ANNOTATION_SCHEMA, ROLLOUT_SCHEMA, Annotation, Response, Rollout, Verdict
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
    lengths = [len(response.response_ids) for response in responses]

    def load() -> Policy:
        loaded = policy or load_policy(model, past.prompt, settings.engine)
        if loaded.facts["tokenizer"] != manifest["facts"]["tokenizer"]:
            raise ConfigError(
                f"--model {model.model} has another tokenizer than the model that made --responses "
                f"{settings.responses}, so that its ids mean other text; annotate with a model of the same tokenizer"
            )
        return loaded

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
            return _annotate_group(group, asked, policy, verifier, settings, decoding, limit, meter, progress)

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
            groups=groups_by_work(lengths, settings.alternatives, most=settings.group_size),
            steps=lambda part: sum(lengths[index] for index in part) * settings.alternatives,
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


class _Group:
    """Some responses annotated together: one continuous batch of all their counterfactuals.

    Finished rollouts are verified while the next pass runs, and their verdicts are taken after it: never sooner or
    later, so that what is asked when does not depend on how fast either is.
    """

    def __init__(
        self, group: Sequence[Response], positions: Sequence[Sequence[int]], settings: AnnotateSettings
    ) -> None:
        self._group = group
        self._settings = settings
        self._inquiries = [
            Inquiry(len(response.response_ids), settings.alternatives, every=settings.every_alternative, positions=asked)
            for response, asked in zip(group, positions, strict=True)
        ]
        self._scores: dict[int, Scores] = {}
        self._place_of: dict[int, int] = {}
        self._ranks: dict[Fork, int] = {}
        self.rollouts: list[Rollout] = []

    def run(
        self, policy: Policy, verifier: Verifier, decoding: Decoding, limit: int, meter: Meter, progress: Progress
    ) -> None:
        """Ask until every position is settled."""
        branches = policy.engine.branches(max_tokens=limit, decoding=decoding)
        unopened = deque(range(len(self._group)))

        def judge(ended: list[tuple[Fork, Generation]]) -> list[tuple[Fork, Generation, Verdict]]:
            texts = [policy.renderer.decode(rollout.ids) for _, rollout in ended]
            problems = [self._group[self._place_of[fork.context]].problem for fork, _ in ended]
            verdicts = verifier.verify_many(list(zip(texts, problems, strict=True)))
            return [(fork, rollout, verdict) for (fork, rollout), verdict in zip(ended, verdicts, strict=True)]

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="verification") as desk:
            judged = desk.submit(judge, [])
            while unopened or branches.waiting or judged is not None:
                while unopened and branches.room:
                    self._open(branches, unopened.popleft(), progress)
                ended = branches.step()
                for fork, rollout, verdict in judged.result() if judged else ():
                    meter.count([verdict])
                    progress(self._take(branches, fork, rollout, verdict))
                judged = desk.submit(judge, ended) if ended else None

    def annotations(self) -> list[Annotation]:
        """Return the responses with what is known of each of their tokens."""
        return [
            Annotation(
                response=response,
                alternatives=self._scores[place].alternatives,
                alternative_logprobs=self._scores[place].alternative_logprobs,
                alternative_correct=inquiry.verdicts,
                logprobs=self._scores[place].logprobs,
                entropies=self._scores[place].entropies,
                critical=inquiry.critical(),
            )
            for place, (response, inquiry) in enumerate(zip(self._group, self._inquiries, strict=True))
        ]

    def _open(self, branches: Branches, place: int, progress: Progress) -> None:
        response, inquiry = self._group[place], self._inquiries[place]
        context, self._scores[place] = branches.open(
            response.prompt_ids, response.response_ids, alternatives=self._settings.alternatives
        )
        self._place_of[context] = place
        asks = inquiry.begin()
        progress((len(response.response_ids) - len({position for position, _ in asks})) * self._settings.alternatives)
        self._ask(branches, context, asks)
        if inquiry.settled:
            branches.close(context)

    def _ask(self, branches: Branches, context: int, asks: Sequence[tuple[int, int]]) -> None:
        alternatives = self._scores[self._place_of[context]].alternatives
        forks = [Fork(context, position, alternatives[position][rank]) for position, rank in asks]
        self._ranks.update(zip(forks, (rank for _, rank in asks), strict=True))
        branches.add(forks)

    def _take(self, branches: Branches, fork: Fork, rollout: Generation, verdict: Verdict) -> int:
        """Record a verdict and ask what follows from it; return how many rollouts are settled by it."""
        place, rank = self._place_of[fork.context], self._ranks.pop(fork)
        inquiry, identifier = self._inquiries[place], self._group[place].problem.id
        self.rollouts.append(
            Rollout(identifier, fork.position, rank, rollout.ids, rollout.finish_reason, verdict)
        )
        more = inquiry.record(fork.position, rank, correct=verdict.correct)
        self._ask(branches, fork.context, more)
        if inquiry.settled:
            branches.close(fork.context)
        skipped = 0 if more or self._settings.every_alternative else self._settings.alternatives - 1 - rank
        return 1 + skipped


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
    work = _Group(group, positions, settings)
    work.run(policy, verifier, decoding, limit, meter, progress)
    annotations, rollouts = work.annotations(), work.rollouts
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
