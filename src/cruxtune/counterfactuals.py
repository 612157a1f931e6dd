"""Asking the counterfactuals of some responses: an engine decodes them, a verifier judges them, inquiries want more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cruxtune.criticality import Inquiry
from cruxtune.engines.base import Branches, Decoding, Fork, Generation, Scores
from cruxtune.errors import DataError
from cruxtune.models import Policy
from cruxtune.records import Annotation, Response, Rollout, Verdict
from cruxtune.store import read_rows
from cruxtune.verifiers import Verifier


class Counterfactuals:
    """Some responses annotated together: one continuous batch of all their counterfactuals.

    Finished rollouts are verified while the next pass runs, and their verdicts are taken after it: never sooner or
    later, so that what is asked when does not depend on how fast either is.
    """

    def __init__(
        self, group: Sequence[Response], positions: Sequence[Sequence[int]], *, alternatives: int, every: bool
    ) -> None:
        self._group = group
        self._alternatives = alternatives
        self._every = every
        self._inquiries = [
            Inquiry(len(response.response_ids), alternatives, every=every, positions=asked)
            for response, asked in zip(group, positions, strict=True)
        ]
        self._scores: dict[int, Scores] = {}
        self._place_of: dict[int, int] = {}
        self._ranks: dict[Fork, int] = {}
        self.rollouts: list[Rollout] = []

    def run(
        self,
        policy: Policy,
        verifier: Verifier,
        decoding: Decoding,
        limit: int,
        *,
        progress: Callable[[int], None],
        watch: Callable[[int], None] | None = None,
    ) -> None:
        """Ask until every position is settled.

        `progress` hears of every rollout that was made or is not needed, `watch` after each pass how many rollouts are
        under way or wait for it.
        """
        branches = policy.engine.branches(max_tokens=limit, decoding=decoding)
        unopened = deque(range(len(self._group)))

        def judge(ended: list[tuple[Fork, Generation]]) -> list[tuple[Fork, Generation, Verdict]]:
            texts = [policy.renderer.decode(rollout.ids) for _, rollout in ended]
            problems = [self._group[self._place_of[fork.context]].problem for fork, _ in ended]
            verdicts = verifier.verify_many(list(zip(texts, problems, strict=True)))
            return [(fork, rollout, verdict) for (fork, rollout), verdict in zip(ended, verdicts, strict=True)]

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="verification") as desk:
            judged: Future[list[tuple[Fork, Generation, Verdict]]] | None = None
            while unopened or branches.waiting or judged is not None:
                while unopened and branches.room:
                    self._open(branches, unopened.popleft(), progress)
                ended = branches.step()
                for fork, rollout, verdict in judged.result() if judged else ():
                    progress(self._take(branches, fork, rollout, verdict))
                judged = desk.submit(judge, ended) if ended else None
                if watch:
                    watch(branches.waiting)

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

    def _open(self, branches: Branches, place: int, progress: Callable[[int], None]) -> None:
        response, inquiry = self._group[place], self._inquiries[place]
        context, self._scores[place] = branches.open(
            response.prompt_ids, response.response_ids, alternatives=self._alternatives
        )
        self._place_of[context] = place
        asks = inquiry.begin()
        progress((len(response.response_ids) - len({position for position, _ in asks})) * self._alternatives)
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
        self.rollouts.append(Rollout(identifier, fork.position, rank, rollout.ids, rollout.finish_reason, verdict))
        more = inquiry.record(fork.position, rank, correct=verdict.correct)
        self._ask(branches, fork.context, more)
        if inquiry.settled:
            branches.close(fork.context)
        skipped = 0 if more or self._every else self._alternatives - 1 - rank
        return 1 + skipped


def correct_responses(path: Path, limit: int | None) -> list[Response]:
    """Return the correct responses, at most `limit` of them.

    Raises:
        DataError: there is none.
    """
    rows = [Response.from_row(row) for row in read_rows(path)]
    responses = [response for response in rows if response.verdict.correct]
    if not responses:
        raise DataError(
            f"--responses {path}: 0 of {len(rows)} responses are correct, so there is nothing to annotate; "
            "use easier problems, a stronger model, or a cold start first (cruxtune train --method gold)"
        )
    return responses[:limit]
