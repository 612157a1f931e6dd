"""Before stage 2: what annotation will cost on this machine, from a trial of a minute or less."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import Any

from cruxtune.budget import choose_positions, expected_tokens, groups_by_work
from cruxtune.counterfactuals import Counterfactuals, correct_responses
from cruxtune.criticality import sample_positions
from cruxtune.models import Policy, load_policy
from cruxtune.progress import bar
from cruxtune.runner import greedy, open_verifier
from cruxtune.settings import recorded
from cruxtune.stage_settings import EstimateSettings, RespondSettings
from cruxtune.store import finished_manifest

_MOST_RESPONSES = 12
_RESAMPLES = 1000
_SPEED_SPREAD = 0.15
"""How far the speed of the trial and of the run differ on machines that do other things, too."""


@dataclass(frozen=True)
class Estimate:
    """What a run of `annotate` will take: totals, and seconds from low to high (90 %)."""

    responses: int
    positions: int
    rollouts_wanted: int
    rollouts: int
    tokens: int
    tokens_low: int
    tokens_high: int
    tokens_per_second: float
    seconds: float
    seconds_low: float
    seconds_high: float
    trial_seconds: float


@dataclass(frozen=True)
class _Trial:
    """What some responses took: per response (expected tokens, emitted tokens, first rollouts, rollouts)."""

    cases: list[tuple[int, int, int, int]]
    rate: float
    tail: float
    seconds: float


def estimate(settings: EstimateSettings, *, policy: Policy | None = None) -> Estimate:
    """Return what `annotate` with these settings will cost, without writing anything.

    A seeded sample of responses and positions is annotated for at most about `trial_seconds`. The rate is taken while
    the batch is full; what the last long rollouts of a group take alone is added once per group.

    Raises:
        DataError: no response is correct.
        StoreError: the responses are unfinished.
    """
    manifest = finished_manifest(settings.responses, "respond", "--responses")
    past = recorded(RespondSettings, manifest["settings"], settings.responses)
    responses = correct_responses(settings.responses, settings.limit)
    lengths = [len(response.response_ids) for response in responses]
    policy = policy or load_policy(settings.model or past.model, past.prompt, settings.engine)
    groups = groups_by_work(lengths, settings.alternatives, most=settings.group_size)
    asked = [
        positions
        for group in groups
        for positions in choose_positions(
            lengths,
            group,
            alternatives=settings.alternatives,
            seed=settings.seed,
            positions=settings.positions,
        )
    ]
    trial = _try(settings, past, policy, responses, asked)
    ratio = sum(case[1] for case in trial.cases) / max(1, sum(case[0] for case in trial.cases))
    everything = sum(
        expected_tokens(length, positions, settings.alternatives)
        for length, positions in zip(lengths, asked, strict=True)
    )
    if settings.token_budget is not None and settings.token_budget < ratio * everything:
        share = settings.token_budget / (ratio * everything)
    else:
        share = 1.0
    expected = share * everything
    ratios = _resampled(trial.cases, settings.seed)
    low, high = ratios[round(0.05 * _RESAMPLES)], ratios[round(0.95 * _RESAMPLES)]
    made = sum(case[3] for case in trial.cases) / max(1, sum(case[2] for case in trial.cases))
    positions = round(share * sum(map(len, asked)))
    tail = trial.tail * len(groups)
    return Estimate(
        responses=len(responses),
        positions=positions,
        rollouts_wanted=positions * settings.alternatives,
        rollouts=round(made * positions),
        tokens=round(ratio * expected),
        tokens_low=round(low * expected),
        tokens_high=round(high * expected),
        tokens_per_second=trial.rate,
        seconds=ratio * expected / trial.rate + tail,
        seconds_low=(low * expected / trial.rate + tail) / (1 + _SPEED_SPREAD),
        seconds_high=(high * expected / trial.rate + tail) * (1 + _SPEED_SPREAD),
        trial_seconds=trial.seconds,
    )


def _try(
    settings: EstimateSettings, past: RespondSettings, policy: Policy, responses: list[Any], asked: list[list[int]]
) -> _Trial:
    """Annotate a seeded sample for about the time allowed, and watch how fast it goes."""
    tuning = policy.engine.tune()
    order = list(range(len(responses)))
    random.Random(settings.seed).shuffle(order)
    chosen = order[:_MOST_RESPONSES]
    # A first guess of the speed says how many positions fit into the trial; without one, a few hundred tokens a second.
    speed = tuning["branches"] / _pass_seconds(tuning) if tuning else 300.0
    allowed = settings.trial_seconds * speed / 2
    whole = sum(
        expected_tokens(len(responses[index].response_ids), asked[index], settings.alternatives) for index in chosen
    )
    share = min(1.0, allowed / max(1, whole))
    drawn = [
        sorted(asked[index][place] for place in sample_positions(len(asked[index]), share * len(asked[index]), index))
        if asked[index]
        else []
        for index in chosen
    ]
    work = Counterfactuals(
        [responses[index] for index in chosen],
        drawn,
        alternatives=settings.alternatives,
        every=settings.every_alternative,
    )
    usage = policy.engine.usage
    start, before = time.monotonic(), replace(usage)
    timeline: list[tuple[float, int, int]] = []

    def watch(waiting: int) -> None:
        timeline.append((time.monotonic() - start, usage.tokens_emitted - before.tokens_emitted, waiting))

    total = sum(len(responses[index].response_ids) for index in chosen) * settings.alternatives
    with open_verifier(past.verifier) as verifier, bar("estimate", total, "rollouts") as advance:
        work.run(
            policy,
            verifier,
            greedy(past.decoding.loop_stop),
            past.decoding.max_new_tokens,
            progress=advance,
            watch=watch,
        )
    seconds, emitted, _ = timeline[-1]
    fullest = max(waiting for *_, waiting in timeline)
    full = max((point for point in timeline if point[2] >= fullest / 2), default=timeline[-1])
    rate = full[1] / full[0] if full[1] else emitted / seconds
    tail = max(0.0, seconds - full[0] - (emitted - full[1]) / rate)
    cases = []
    for index, positions in zip(chosen, drawn, strict=True):
        rollouts = [rollout for rollout in work.rollouts if rollout.id == responses[index].problem.id]
        length = len(responses[index].response_ids)
        own = sum(len(rollout.ids) - rollout.position - 1 for rollout in rollouts)
        cases.append((expected_tokens(length, positions, settings.alternatives), own, len(positions), len(rollouts)))
    return _Trial(cases, rate, tail, seconds)


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
