"""Which tokens are critical, in numbers: shares of groups of tokens, and agreement of labels. NumPy only.

Tokens of one response are not independent, so that intervals are bootstraps over responses: responses are drawn with
replacement, and the statistic is computed of all their tokens (Davison and Hinkley 1997, "Bootstrap Methods and their
Application", §2.4 and §3.8; percentile intervals of 95 %). Fewer than two responses have no interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from cruxtune.criticality import is_critical

RESAMPLES = 2000
_CHUNK = 200
"""Resamples computed together, which bounds memory."""
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Share:
    """How many of a group's tokens are critical: those known, of which critical, and their share with its interval."""

    group: str
    tokens: int
    critical: int
    share: float
    interval: Interval


@dataclass(frozen=True)
class Agreement:
    """How two labellings agree on the tokens that both know.

    `both`, `first`, `second` and `neither` count tokens critical in both, in one alone, and in none; `equal` is the
    share with the same label, `kappa` Cohen's (1960): (p_o − p_e) ÷ (1 − p_e), None where one label is all there is.
    """

    tokens: int
    both: int
    first: int
    second: int
    neither: int
    equal: float
    equal_interval: Interval
    kappa: float | None
    kappa_interval: Interval


def shares(
    groups: Sequence[str],
    group_of: Sequence[str],
    critical: Sequence[bool],
    response_of: Sequence[int],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Share]:
    """Return the share of critical tokens of each group that has any, in the order of `groups`.

    The last three sequences have one entry per token; `response_of` numbers the responses from 0. A resample without
    any token of a group says nothing of it.

    >>> [(s.group, s.tokens, s.critical) for s in shares("ab", "aabb", [True, False, True, True], [0, 0, 1, 1])]
    [('a', 2, 1), ('b', 2, 2)]
    """
    order = {group: place for place, group in enumerate(groups)}
    count = max(response_of, default=-1) + 1
    known, right = np.zeros((count, len(order))), np.zeros((count, len(order)))
    places = ([*response_of], [order[group] for group in group_of])
    np.add.at(known, places, 1)
    np.add.at(right, places, np.asarray(critical, dtype=float))

    def ratio(sums: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with np.errstate(invalid="ignore"):
            return sums[:, len(order) :] / sums[:, : len(order)]

    support = (known > 0).sum(axis=0)
    intervals = _intervals(np.hstack([known, right]), ratio, support, seed, resamples)
    totals, hits = known.sum(axis=0), right.sum(axis=0)
    return [
        Share(group, int(totals[place]), int(hits[place]), float(hits[place] / totals[place]), intervals[place])
        for group, place in order.items()
        if totals[place]
    ]


def agreement(
    first: Sequence[Sequence[bool | None]],
    second: Sequence[Sequence[bool | None]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Agreement | None:
    """Return how two labellings of the same responses agree, None where no token is known in both.

    >>> found = agreement([[True, True], [False, False]], [[True, False], [False, None]])
    >>> (found.tokens, found.both, found.first, found.second, found.neither), found.equal, round(found.kappa, 3)
    ((3, 1, 1, 0, 1), 0.6666666666666666, 0.4)
    """
    counts = np.zeros((len(first), 4))
    for row, (mine, theirs) in enumerate(zip(first, second, strict=True)):
        for one, other in zip(mine, theirs, strict=True):
            if one is not None and other is not None:
                counts[row, 2 * (not one) + (not other)] += 1
    total = counts.sum(axis=0)
    if not total.sum():
        return None
    both, only_first, only_second, neither = (int(value) for value in total)
    equal, kappa = (float(value) for value in _equal_and_kappa(total[None])[0])
    support = np.full(2, counts.any(axis=1).sum())
    equal_interval, kappa_interval = _intervals(counts, _equal_and_kappa, support, seed, resamples)
    return Agreement(
        tokens=int(total.sum()),
        both=both,
        first=only_first,
        second=only_second,
        neither=neither,
        equal=equal,
        equal_interval=equal_interval,
        kappa=None if np.isnan(kappa) else kappa,
        kappa_interval=None if np.isnan(kappa) else kappa_interval,
    )


def deciles(length: int) -> list[int]:
    """Return for each position of a response the tenth in which it lies: ⌊10 t ÷ T⌋.

    >>> deciles(4)
    [0, 2, 5, 7]
    """
    return [10 * position // length for position in range(length)]


def quantile_edges(values: Sequence[float], bins: int) -> list[float]:
    """Return the borders between bins of about as many values each; equal borders count once.

    >>> quantile_edges([0.0, 1.0, 2.0, 3.0], 2), quantile_edges([0.0, 0.0, 0.0, 3.0], 4)
    ([1.5], [0.75])
    """
    inner = np.quantile(np.asarray(values, dtype=float), np.arange(1, bins) / bins)
    return [float(edge) for edge in np.unique(inner) if edge > min(values)]


def binned(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Return the bin of each value; a bin begins at its lower border.

    >>> binned([0.2, 1.5, 9.0], [1.5])
    [0, 1, 1]
    """
    return [int(place) for place in np.searchsorted(np.asarray(edges), np.asarray(values), side="right")]


def bin_names(edges: Sequence[float]) -> list[str]:
    """Return the bins in words, in nats.

    >>> bin_names([0.5, 1.25])
    ['below 0.5', '0.5 to 1.25', '1.25 and more']
    """
    if not edges:
        return ["all"]
    shown = [f"{edge:.3g}" for edge in edges]
    between = [f"{low} to {high}" for low, high in pairwise(shown)]
    return [f"below {shown[0]}", *between, f"{shown[-1]} and more"]


def labels_with(
    verdicts: Sequence[Sequence[bool | None]], undecided: Sequence[bool], alternatives: int
) -> list[bool | None]:
    """Return the critical mask as it is with the first few alternatives only, None where these do not tell.

    Alternatives are asked in order of probability, so that fewer of them are what annotation with fewer would ask.

    >>> verdicts = [[False, True], [True, None], [False, False], [None, None]]
    >>> labels_with(verdicts, [False] * 4, 1), labels_with(verdicts, [False] * 4, 2)
    ([True, False, True, None], [False, False, True, None])
    """
    return [is_critical(asked[:alternatives], not lost) for asked, lost in zip(verdicts, undecided, strict=True)]


def _equal_and_kappa(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return (n, 2): p_o and kappa of n tables (both, first, second, neither); NaN where they are not defined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        both, first, second, neither = (counts / counts.sum(axis=1, keepdims=True)).T
        equal = both + neither
        chance = (both + first) * (both + second) + (neither + first) * (neither + second)
        return np.stack([equal, np.where(chance < 1, (equal - chance) / (1 - chance), np.nan)], axis=1)


def _intervals(
    per_response: np.ndarray[Any, Any],
    statistic: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
    support: np.ndarray[Any, Any],
    seed: int,
    resamples: int,
) -> list[Interval]:
    """Return percentile intervals of statistics of the column sums; per_response is (responses, columns).

    `support` says how many responses each statistic rests on.
    """
    count = len(per_response)
    generator, found = np.random.default_rng(seed), []
    for start in range(0, resamples, _CHUNK):
        weights = generator.multinomial(count, np.full(count, 1 / max(count, 1)), size=min(_CHUNK, resamples - start))
        found.append(statistic(weights @ per_response))
    values = np.concatenate(found)
    result: list[Interval] = []
    for column, responses in zip(values.T, support, strict=True):
        usable = column[~np.isnan(column)]
        if responses < 2 or not len(usable):
            result.append(None)
        else:
            low, high = np.quantile(usable, [0.025, 0.975])
            result.append((float(low), float(high)))
    return result
