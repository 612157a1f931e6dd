"""Asking the counterfactuals of some responses: an engine decodes them, a verifier judges them, inquiries want more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from cruxtune.criticality import KEPT, Inquiry, Sampling
from cruxtune.engines.base import Branches, Decoding, Fork, Generation, Scores
from cruxtune.engines.sampling import seed_of
from cruxtune.models import Policy
from cruxtune.records import Annotation, JointSet, Response, Rollout, Verdict
from cruxtune.verifiers import Verifier

Span = tuple[int, int]
"""Start and end of neighbouring tokens in a response."""


Questions = Inquiry | Sampling
"""What is asked about one response; an ask is (number of the position or set, rank), and a draw where sampled."""


class Counterfactuals:
    """Some responses annotated together: one continuous batch of all that is asked about them.

    Finished rollouts are verified while the next pass runs, and their verdicts are taken after it: never sooner or
    later, so that what is asked when does not depend on how fast either is.

    `sets` are the tokens that each number of an inquiry stands for, where that is no position. `seed` is that of
    sampled rollouts, whose own seeds depend on it, the response, and what is asked.
    """

    def __init__(
        self,
        group: Sequence[Response],
        inquiries: Sequence[Questions],
        *,
        alternatives: int,
        sets: Sequence[Sequence[Span]] | None = None,
        seed: int = 0,
    ) -> None:
        self._group = group
        self._alternatives = alternatives
        self._inquiries = inquiries
        self._sets = sets
        self._seed = seed
        self._place_of: dict[int, int] = {}
        self._asks: dict[Fork, tuple[int, ...]] = {}
        self.scores: dict[int, Scores] = {}
        """What the policy says of each response, by its place in the group."""
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
        """Ask until everything is settled.

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
                    self._open(branches, unopened.popleft(), decoding, progress)
                ended = branches.step()
                for fork, rollout, verdict in judged.result() if judged else ():
                    progress(self._take(branches, fork, rollout, verdict, decoding))
                judged = desk.submit(judge, ended) if ended else None
                if watch:
                    watch(branches.waiting)
        place_of = {response.key: place for place, response in enumerate(self._group)}
        self.rollouts.sort(key=lambda one: (place_of[one.id, one.sample], one.position, one.length, one.rank, one.draw))

    def _open(self, branches: Branches, place: int, decoding: Decoding, progress: Callable[[int], None]) -> None:
        response, inquiry = self._group[place], self._inquiries[place]
        context, self.scores[place] = branches.open(
            response.prompt_ids, response.response_ids, alternatives=self._alternatives
        )
        self._place_of[context] = place
        progress(inquiry.most - inquiry.left)
        first = inquiry.begin(_same(self.scores[place])) if isinstance(inquiry, Inquiry) else inquiry.begin()
        self._ask(branches, context, first, decoding)
        if inquiry.settled:
            branches.close(context)

    def _ask(self, branches: Branches, context: int, asks: Sequence[tuple[int, ...]], decoding: Decoding) -> None:
        forks = [self._fork(context, ask, sampled=decoding.temperature > 0) for ask in asks]
        self._asks.update(zip(forks, asks, strict=True))
        branches.add(forks)

    def _fork(self, context: int, ask: tuple[int, ...], *, sampled: bool) -> Fork:
        place, rank = self._place_of[context], ask[1]
        start, end = self._span(place, ask)
        response = self._group[place]
        own = response.response_ids[start:end]
        token = own[0] if rank == KEPT else self.scores[place].alternatives[start][rank]
        seed = seed_of(self._seed, "rollout", *response.key, *ask) if sampled else 0
        return Fork(context, start, token, tuple(own[1:]), seed)

    def _span(self, place: int, ask: tuple[int, ...]) -> Span:
        return self._sets[place][ask[0]] if self._sets else (ask[0], ask[0] + 1)

    def _take(self, branches: Branches, fork: Fork, rollout: Generation, verdict: Verdict, decoding: Decoding) -> int:
        """Record a verdict and ask what follows from it; return how many rollouts are settled by it."""
        place, ask = self._place_of[fork.context], self._asks.pop(fork)
        inquiry, (start, end) = self._inquiries[place], self._span(place, ask)
        identifier, sample = self._group[place].key
        self.rollouts.append(
            Rollout(
                id=identifier,
                sample=sample,
                position=start,
                length=end - start,
                rank=ask[1],
                draw=ask[2] if len(ask) > 2 else 0,
                ids=rollout.ids,
                finish_reason=rollout.finish_reason,
                verdict=verdict,
            )
        )
        before = inquiry.left
        more: Sequence[tuple[int, ...]]
        if isinstance(inquiry, Inquiry):
            but = _looping(inquiry.members(start), rollout.ids, decoding) if ask[1] == KEPT else []
            more = inquiry.record(ask[0], ask[1], correct=verdict.correct, but=but)
        else:
            more = inquiry.record(*ask, correct=verdict.correct)
        self._ask(branches, fork.context, more, decoding)
        if inquiry.settled:
            branches.close(fork.context)
        return before - inquiry.left


def annotated(
    group: Sequence[Response],
    scores: dict[int, Scores],
    inquiries: Sequence[Inquiry],
    samplings: Sequence[Sampling] | None = None,
) -> list[Annotation]:
    """Return the responses with what is known of each of their tokens."""
    made = []
    for place, (response, inquiry) in enumerate(zip(group, inquiries, strict=True)):
        sampling, found = samplings[place] if samplings else None, scores[place]
        ranks = range(len(found.alternatives[0])) if found.alternatives else range(0)
        made.append(
            Annotation(
                response=response,
                alternatives=found.alternatives,
                alternative_logprobs=found.alternative_logprobs,
                alternative_correct=inquiry.verdicts,
                logprobs=found.logprobs,
                entropies=found.entropies,
                critical=inquiry.critical(),
                kept_correct=inquiry.kept,
                kept_success=sampling.success(KEPT) if sampling else None,
                alternative_success=_columns([sampling.success(rank) for rank in ranks]) if sampling else None,
            )
        )
    return made


def joint_sets(
    group: Sequence[Response],
    sets: Sequence[Mapping[Span, str]],
    inquiries: Sequence[Inquiry],
    rollouts: Sequence[Rollout],
) -> list[JointSet]:
    """Return the sets (with their kinds) that were asked about: the tokens that took their place, and the verdicts."""
    tokens = {
        (one.id, one.sample, one.position, one.length, one.rank): one.ids[one.position : one.position + one.length]
        for one in rollouts
    }
    return [
        JointSet(
            id=response.problem.id,
            sample=response.sample,
            kind=kind,
            position=start,
            length=end - start,
            alternatives=[tokens.get((*response.key, start, end - start, rank)) for rank in range(len(verdicts))],
            alternative_correct=verdicts,
            critical=critical is True,
        )
        for response, kinds, inquiry in zip(group, sets, inquiries, strict=True)
        for ((start, end), kind), verdicts, critical in zip(
            kinds.items(), inquiry.verdicts, inquiry.critical(), strict=True
        )
    ]


def _same(scores: Scores) -> list[int]:
    """Return for each position the last one whose kept rollout is the same.

    It is that of the next position where the policy would choose the next token itself. Where it comes near to that
    (a tie of log-probabilities), each has its own.

    >>> _same(Scores([-9.0, -0.1, -9.0, -0.1], [], [], [[-0.1], [-2.0], [-0.1], [-2.0]]))
    [1, 1, 3, 3]
    """
    same = list(range(len(scores.logprobs)))
    for position in reversed(same[:-1]):
        if scores.logprobs[position + 1] > scores.alternative_logprobs[position + 1][0]:
            same[position] = same[position + 1]
    return same


def _looping(positions: Sequence[int], ids: Sequence[int], decoding: Decoding) -> list[int]:
    """Return those of some positions, in order, whose kept rollout would have ended before this one, as a loop.

    More of it is what the policy chose there, so that the rule for loops looks at more.
    """
    if decoding.loop is None:
        return []
    found: list[int] = []
    for position in positions:
        # What is no loop from an early position on is none from a later one on.
        if not any(decoding.loop.caught(ids[:end], position + 1) for end in range(position + 2, len(ids))):
            break
        found.append(position)
    return found


def _columns(rows: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    return [list(column) for column in zip(*rows, strict=True)]
