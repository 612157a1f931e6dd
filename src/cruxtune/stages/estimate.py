"""Before stage 2: what annotation will cost on this machine, from a trial of a minute or less."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cruxtune.budget import choose_positions, expected_tokens, groups_by_work
from cruxtune.counterfactuals import Counterfactuals, Questions, Span
from cruxtune.criticality import Inquiry, Sampling, sample_positions
from cruxtune.engines.base import Decoding
from cruxtune.joint import choose, sets_of
from cruxtune.models import Policy, load_policy
from cruxtune.progress import bar
from cruxtune.records import Rollout
from cruxtune.responses import Annotatable, annotatable
from cruxtune.runner import greedy, open_verifier
from cruxtune.stage_settings import EstimateSettings
from cruxtune.verifiers import Verifier

_MOST_RESPONSES = 12
_SLOW_PASSES = 4
_RESAMPLES = 1000
_SPEED_SPREAD = 0.15
"""How far the speed of the trial and of the run differ on machines that do other things, too."""


@dataclass(frozen=True)
class Estimate:
    """What a run of `annotate` will take: totals, and seconds from low to high (90 %).

    `sampled` and `joint` are the rollouts among these that are drawn at a temperature, and of tokens replaced together;
    `trial_rollouts` are those that the trial made.
    """

    responses: int
    positions: int
    rollouts_wanted: int
    rollouts: int
    sampled: int
    joint: int
    tokens: int
    tokens_low: int
    tokens_high: int
    tokens_per_second: float
    seconds: float
    seconds_low: float
    seconds_high: float
    trial_rollouts: int
    trial_seconds: float


@dataclass(frozen=True)
class _Trial:
    """What some rollouts took: per response (expected tokens, emitted tokens, numbers asked about, rollouts)."""

    cases: list[tuple[int, int, int, int]]
    rate: float
    opening: float
    """Seconds until a response is read."""
    tail: float
    free: float = 0.0
    """Share of the tokens asked about that are known not to be critical."""

    @property
    def ratio(self) -> float:
        """Tokens emitted for each one expected."""
        return sum(case[1] for case in self.cases) / max(1, sum(case[0] for case in self.cases))

    @property
    def made(self) -> float:
        """Rollouts made for each position or set."""
        return sum(case[3] for case in self.cases) / max(1, sum(case[2] for case in self.cases))


@dataclass(frozen=True)
class _Part:
    """What the rollouts of one kind will take."""

    wanted: int
    made: int
    tokens: float
    low: float
    high: float
    seconds: tuple[float, float, float]
    """Expected, low and high."""


def estimate(settings: EstimateSettings, *, policy: Policy | None = None) -> Estimate:
    """Return what `annotate` with these settings will cost, without writing anything.

    A seeded sample of responses and positions is annotated for at most about `trial_seconds`. The rate is taken while
    the batch is full; what it takes to read a response is added for each, and what the last long rollouts of a group
    take alone once per group. How many sets of tokens can be asked about is taken from the share of tokens that are not
    critical in the trial, as if they were independent.

    Raises:
        DataError: no response is correct.
        StoreError: the responses are unfinished.
    """
    source = annotatable(settings.responses, settings.model, settings.limit, policy=policy)
    responses = source.responses
    lengths = [len(response.response_ids) for response in responses]
    policy = source.check(policy or load_policy(source.model, source.past.prompt, settings.engine))
    groups = groups_by_work(lengths, settings.alternatives, most=settings.group_size)
    kept = source.keep(policy)
    ranks = settings.alternatives + any(kept)
    asked = [
        positions
        for group in groups
        for positions in choose_positions(
            lengths, group, alternatives=ranks, seed=settings.seed, positions=settings.positions
        )
    ]
    with open_verifier(source.past.verifier) as verifier:
        trials = _Trials(settings, source, policy, verifier, kept)
        single = trials.single(asked)
        everything = sum(
            expected_tokens(length, positions, ranks) for length, positions in zip(lengths, asked, strict=True)
        )
        share = 1.0
        if settings.token_budget is not None and settings.token_budget < single.ratio * everything:
            share = settings.token_budget / (single.ratio * everything)
        positions = round(share * sum(map(len, asked)))
        wanted = sum(len(some) * (settings.alternatives + keep) for some, keep in zip(asked, kept, strict=True))
        size = (len(lengths), len(groups))
        parts = [_part(single, share * everything, round(share * wanted), positions, size, settings.seed)]
        sampled = joint = None
        if draws := settings.rollouts_per_alternative:
            trial = trials.sampled(asked)
            expected = (
                draws
                * share
                * sum(
                    expected_tokens(length, some, settings.alternatives + 1)
                    for length, some in zip(lengths, asked, strict=True)
                )
            )
            wanted = positions * (settings.alternatives + 1) * draws
            sampled = _part(trial, expected, wanted, positions * draws, size, settings.seed)
            parts.append(sampled)
        if settings.joint:
            sets = [list(some) for some in sets_of(settings.joint, responses, policy.renderer.tokenizer)]
            trial = trials.joint(sets)
            joint = _joint_part(settings, trial, sets, lengths, single.free, size)
            parts.append(joint)
    return Estimate(
        responses=len(responses),
        positions=positions,
        rollouts_wanted=sum(part.wanted for part in parts),
        rollouts=sum(part.made for part in parts),
        sampled=sampled.made if sampled else 0,
        joint=joint.made if joint else 0,
        tokens=round(sum(part.tokens for part in parts)),
        tokens_low=round(sum(part.low for part in parts)),
        tokens_high=round(sum(part.high for part in parts)),
        tokens_per_second=single.rate,
        seconds=sum(part.seconds[0] for part in parts),
        seconds_low=sum(part.seconds[1] for part in parts) / (1 + _SPEED_SPREAD),
        seconds_high=sum(part.seconds[2] for part in parts) * (1 + _SPEED_SPREAD),
        trial_rollouts=trials.rollouts,
        trial_seconds=trials.seconds,
    )


def _part(trial: _Trial, expected: float, wanted: int, asked: float, size: tuple[int, int], seed: int) -> _Part:
    """Return what a kind of rollouts takes; `size` is how many responses there are, and groups of them."""
    ratios = _resampled(trial.cases, seed)
    low, high = (ratios[round(at * _RESAMPLES)] * expected for at in (0.05, 0.95))
    around = trial.opening * size[0] + trial.tail * size[1]
    tokens = trial.ratio * expected
    seconds = (tokens / trial.rate + around, low / trial.rate + around, high / trial.rate + around)
    return _Part(wanted, round(trial.made * asked), tokens, low, high, seconds)


def _joint_part(
    settings: EstimateSettings,
    trial: _Trial,
    sets: Sequence[Sequence[Span]],
    lengths: Sequence[int],
    free: float,
    size: tuple[int, int],
) -> _Part:
    """Return what sets take whose tokens are all free, each with this chance."""
    count = expected = 0.0
    for length, some in zip(lengths, sets, strict=True):
        for start, end in some:
            chance = free ** (end - start)
            count += chance
            expected += chance * expected_tokens(length, [start], settings.alternatives)
    share = 1.0
    if settings.joint_budget is not None and settings.joint_budget < trial.ratio * expected:
        share = settings.joint_budget / (trial.ratio * expected)
    wanted = round(share * count * settings.alternatives)
    return _part(trial, share * expected, wanted, share * count, size, settings.seed)


class _Trials:
    """Annotates a seeded sample for about the time allowed, and watches how fast it goes."""

    def __init__(
        self,
        settings: EstimateSettings,
        source: Annotatable,
        policy: Policy,
        verifier: Verifier,
        kept: Sequence[bool],
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._verifier = verifier
        self._limit = source.past.decoding.max_new_tokens
        self._greedy = greedy(source.past.decoding.loop_stop)
        order = list(range(len(source.responses)))
        random.Random(settings.seed).shuffle(order)
        self._chosen = order[:_MOST_RESPONSES]
        self._group = [source.responses[index] for index in self._chosen]
        self._lengths = [len(response.response_ids) for response in self._group]
        self._kept = [kept[index] for index in self._chosen]
        tuning = policy.engine.tune()
        # A first guess of the speed says how much fits into the trial; without one, a few hundred tokens a second.
        speed = tuning["branches"] / _pass_seconds(tuning) if tuning else 300.0
        kinds = 1 + (settings.rollouts_per_alternative is not None) + (settings.joint is not None)
        self._allowed = settings.trial_seconds * speed / 2 / kinds
        self.rollouts = 0
        self.seconds = 0.0

    def single(self, asked: Sequence[Sequence[int]]) -> _Trial:
        """Try single tokens at a sample of the positions asked about."""
        settings = self._settings
        drawn = self._draw(asked, settings.alternatives + any(self._kept))
        inquiries = [
            Inquiry(length, settings.alternatives, every=settings.every_alternative, positions=positions, keep=keep)
            for length, positions, keep in zip(self._lengths, drawn, self._kept, strict=True)
        ]
        trial = self._try(inquiries, self._greedy, drawn, settings.alternatives + any(self._kept))
        known = [mask for inquiry in inquiries for mask in inquiry.critical()]
        return replace(trial, free=known.count(False) / max(1, sum(map(len, drawn))))

    def sampled(self, asked: Sequence[Sequence[int]]) -> _Trial:
        """Try one sampled rollout of every alternative, and of the token itself."""
        ranks = self._settings.alternatives + 1
        drawn = self._draw(asked, ranks)
        samplings = [
            Sampling(length, self._settings.alternatives, draws=1, positions=positions)
            for length, positions in zip(self._lengths, drawn, strict=True)
        ]
        decoding = Decoding(temperature=self._settings.temperature or 1.0)
        return self._try(samplings, decoding, drawn, ranks)

    def joint(self, sets: Sequence[Sequence[Span]]) -> _Trial:
        """Try a sample of sets, whether their tokens are critical or not."""
        settings = self._settings
        drawn = choose(
            [sets[index] for index in self._chosen],
            self._lengths,
            alternatives=settings.alternatives,
            allowed=self._allowed,
            seed=settings.seed,
        )
        inquiries = [Inquiry(len(some), settings.alternatives, every=settings.every_alternative) for some in drawn]
        starts = [[start for start, _ in some] for some in drawn]
        return self._try(inquiries, self._greedy, starts, settings.alternatives, sets=drawn)

    def _draw(self, asked: Sequence[Sequence[int]], ranks: int) -> list[list[int]]:
        """Return about as many positions of the responses tried as the time allows."""
        mine = [asked[index] for index in self._chosen]
        whole = sum(expected_tokens(length, some, ranks) for length, some in zip(self._lengths, mine, strict=True))
        share = min(1.0, self._allowed / max(1, whole))
        return [
            sorted(some[place] for place in sample_positions(len(some), share * len(some), index)) if some else []
            for index, some in zip(self._chosen, mine, strict=True)
        ]

    def _try(
        self,
        inquiries: Sequence[Questions],
        decoding: Decoding,
        starts: Sequence[Sequence[int]],
        ranks: int,
        *,
        sets: Sequence[Sequence[Span]] | None = None,
    ) -> _Trial:
        """Ask inquiries about what begins at these positions, and take the time."""
        work = Counterfactuals(
            self._group,
            inquiries,
            alternatives=self._settings.alternatives,
            sets=sets,
            seed=self._settings.seed,
        )
        usage = self._policy.engine.usage
        start, before = time.monotonic(), replace(usage)
        timeline: list[tuple[float, int, int]] = []

        def watch(waiting: int) -> None:
            timeline.append((time.monotonic() - start, usage.tokens_emitted - before.tokens_emitted, waiting))

        with bar("estimate", sum(inquiry.most for inquiry in inquiries), "rollouts") as advance:
            work.run(self._policy, self._verifier, decoding, self._limit, progress=advance, watch=watch)
        self.rollouts += len(work.rollouts)
        self.seconds += timeline[-1][0]
        rate, opening, tail = _rate(timeline)
        by_response: dict[tuple[str, int], list[Rollout]] = {response.key: [] for response in self._group}
        for rollout in work.rollouts:
            by_response[rollout.id, rollout.sample].append(rollout)
        cases = []
        for response, length, positions in zip(self._group, self._lengths, starts, strict=True):
            made = by_response[response.key]
            own = sum(len(rollout.ids) - rollout.position - 1 for rollout in made)
            cases.append((expected_tokens(length, positions, ranks), own, len(positions), len(made)))
        return _Trial(cases, rate, opening / len(self._group), tail)


def _rate(timeline: Sequence[tuple[float, int, int]]) -> tuple[float, float, float]:
    """Return tokens a second while the batch was full, seconds before its first pass, and those of the last rollouts.

    Points are (seconds, tokens emitted, rollouts waiting) after each pass. The first passes are slow: memory is touched
    for the first time. A run makes hundreds, so that the rate is taken behind them.

    >>> _rate([(2.0, 10, 9), (3.0, 20, 8), (4.0, 30, 6), (4.5, 32, 1), (5.0, 34, 0)])
    (10.0, 1.0, 0.6)
    """
    fullest = max(waiting for *_, waiting in timeline)
    last = max(place for place, point in enumerate(timeline) if point[2] >= fullest / 2)
    warm = min(_SLOW_PASSES, last // 2)
    (begun, first, _), (until, emitted, _), (end, whole, _) = timeline[warm], timeline[last], timeline[-1]
    if emitted <= first:
        return whole / max(end, 1e-9) or 1.0, 0.0, 0.0
    rate = (emitted - first) / (until - begun)
    opening = max(0.0, timeline[0][0] - (until - begun) / (last - warm))
    return rate, opening, max(0.0, end - until - (whole - emitted) / rate)


def _pass_seconds(tuning: dict[str, float]) -> float:
    return tuning["fixed"] + tuning["branches"] * (tuning["per_token"] + tuning["per_branch"])


def _resampled(cases: list[tuple[int, int, int, int]], seed: int) -> list[float]:
    """Return sorted ratios of emitted to expected tokens, of responses drawn with replacement."""
    generator = random.Random(seed)
    ratios = []
    for _ in range(_RESAMPLES + 1):
        drawn = generator.choices(cases, k=len(cases))
        ratios.append(sum(case[1] for case in drawn) / max(1, sum(case[0] for case in drawn)))
    return sorted(ratios)
