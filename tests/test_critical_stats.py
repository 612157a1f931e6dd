"""Shares of critical tokens and agreement of labels, by hand, and their intervals by simulation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cruxtune.critical_stats import agreement, bin_names, binned, deciles, labels_with, quantile_edges, shares


def test_shares_by_hand() -> None:
    """Groups in the order asked for, without those that have no token; one response gives no interval."""
    group_of = ["b", "a", "a", "b", "c"]
    found = shares("abcd", group_of, [True, True, False, False, True], [0, 0, 1, 1, 1], seed=1)
    assert [(one.group, one.tokens, one.critical, one.share) for one in found] == [
        ("a", 2, 1, 0.5),
        ("b", 2, 1, 0.5),
        ("c", 1, 1, 1.0),
    ]
    # Two responses, 1 and 0: a quarter of resamples has each alone.
    assert [one.interval for one in found] == [(0.0, 1.0), (0.0, 1.0), None]


def test_agreement_by_hand() -> None:
    """Counts, share equal and Cohen's kappa of a worked table; what is not known on both sides does not count."""
    first = [[True] * 3 + [False] * 2, [False] * 5, [None, True]]
    second = [[True, True, False, False, True], [False] * 5, [True, None]]
    found = agreement(first, second)
    assert found is not None
    assert (found.both, found.first, found.second, found.neither, found.tokens) == (2, 1, 1, 6, 10)
    # p_o = 0.8, p_e = 0.3 × 0.3 + 0.7 × 0.7 = 0.58
    assert (found.equal, found.kappa) == (0.8, pytest.approx(0.22 / 0.42))
    assert found.equal_interval == pytest.approx((0.6, 1.0))
    assert agreement([[None]], [[True]]) is None


def test_kappa_is_not_defined_for_one_label() -> None:
    """Where both always say the same one thing, agreement by chance is certain."""
    found = agreement([[False], [False]], [[False], [False]])
    assert found is not None
    assert (found.equal, found.kappa, found.kappa_interval) == (1.0, None, None)


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_intervals_cover(spread: float) -> None:
    """With tokens of a response alike, 95 % intervals cover the true share about as often as they say."""
    generator, covered, runs = np.random.default_rng(0), 0, 150
    for run in range(runs):
        rates = np.clip(0.4 + spread * generator.choice([-1, 1], size=60), 0, 1)
        lengths = generator.integers(5, 15, size=60)
        response_of = np.repeat(np.arange(60), lengths)
        marks = generator.random(len(response_of)) < rates[response_of]
        (one,) = shares(["all"], ["all"] * len(marks), list(marks), list(response_of), seed=run, resamples=300)
        assert one.interval is not None
        covered += one.interval[0] <= 0.4 <= one.interval[1]
    assert 0.88 <= covered / runs <= 0.99


@given(st.lists(st.lists(st.sampled_from([True, False, None]), min_size=4, max_size=4), max_size=6))
def test_more_alternatives_make_no_token_critical(verdicts: list[list[bool | None]]) -> None:
    """A token critical with k alternatives is critical with fewer of them, where all of these were asked."""
    undecided = [False] * len(verdicts)
    masks = [labels_with(verdicts, undecided, count) for count in (1, 2, 4)]
    for fewer, more in pairwise(masks):
        assert all(one is True for one, other in zip(fewer, more, strict=True) if other is True)
    assert labels_with(verdicts, [True] * len(verdicts), 4) == [None] * len(verdicts)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=50), st.integers(2, 8))
def test_every_value_has_a_bin(values: list[float], bins: int) -> None:
    """Bins are named, at most as many as asked for, and each value lies within its borders."""
    edges = quantile_edges(values, bins)
    places = binned(values, edges)
    assert len(bin_names(edges)) == len(edges) + 1 <= bins
    for value, place in zip(values, places, strict=True):
        assert place == len(edges) or value < edges[place]
        assert place == 0 or value >= edges[place - 1]


def test_deciles_are_ordered_and_complete() -> None:
    """Positions of a long response are spread over all ten tenths evenly."""
    assert [deciles(30).count(tenth) for tenth in range(10)] == [3] * 10
