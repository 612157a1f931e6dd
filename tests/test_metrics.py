from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cruxtune.metrics import pass_at_k
from cruxtune.statistics import bootstrap_interval, paired_interval


@st.composite
def counts(draw: st.DrawFn, largest: int = 60) -> tuple[int, int, int]:
    """Draw n, c and k that fit together."""
    n = draw(st.integers(1, largest))
    return n, draw(st.integers(0, n)), draw(st.integers(1, n))


# pass@k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (1, 0, 1, 0.0),
        (1, 1, 1, 1.0),
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),
        (5, 2, 2, 7 / 10),  # 1 - C(3, 2) / C(5, 2) = 1 - 3 / 10
        (10, 3, 5, 11 / 12),  # 1 - C(7, 5) / C(10, 5) = 1 - 21 / 252
        (8, 8, 3, 1.0),
        (8, 7, 2, 1.0),
        (100, 0, 100, 0.0),
    ],
)
def test_pass_at_k_of_hand_worked_cases(n: int, c: int, k: int, expected: float) -> None:
    """The estimator gives what the formula does by hand."""
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(counts(largest=9))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(drawn: tuple[int, int, int]) -> None:
    """Over all subsets of k of the n samples, the share that contains one of the c correct ones."""
    n, c, k = drawn
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@given(counts())
def test_pass_at_k_grows_with_k_and_with_c(drawn: tuple[int, int, int]) -> None:
    """More tries or more correct samples never lower it, and it stays a probability."""
    n, c, k = drawn
    value = pass_at_k(n, c, k)
    assert 0 <= value <= 1
    if k < n:
        assert pass_at_k(n, c, k + 1) >= value - 1e-12
    if c < n:
        assert pass_at_k(n, c + 1, k) >= value - 1e-12


@given(counts())
def test_pass_at_1_is_the_share_and_pass_at_n_whether_there_is_any(drawn: tuple[int, int, int]) -> None:
    """The two ends of k are the plain estimates."""
    n, c, _ = drawn
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert pass_at_k(n, c, n) == float(c > 0)


def test_pass_at_k_is_stable_where_binomials_overflow() -> None:
    """For n in the thousands it agrees with exact integer arithmetic, which floats could not hold."""
    n, c, k = 5000, 3, 2000
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert pass_at_k(n, c, k) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_pass_at_k_refuses_what_cannot_be(n: int, c: int, k: int) -> None:
    """More correct than samples, or more tries than samples, is a mistake of the caller."""
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize("call", [lambda: bootstrap_interval([]), lambda: paired_interval([], [])])
def test_no_problems_have_no_mean(call: Callable[[], object]) -> None:
    """An empty evaluation is an error, not a nan."""
    with pytest.raises(ValueError, match="at least one problem"):
        call()


# Intervals


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(0, 99))
def test_an_interval_contains_the_mean_and_stays_among_the_values(values: list[float], seed: int) -> None:
    """Low is no more than the mean and high no less, neither is beyond the values, and nothing is nan."""
    assume(len(set(values)) > 1)
    low, high = bootstrap_interval(values, resamples=500, seed=seed)
    assert low <= np.mean(values) + 1e-9
    assert high >= np.mean(values) - 1e-9
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values", [[0.0, 1.0], [0.0] * 99 + [1.0], [0.0] + [1.0] * 99, [0.0, 1e-300], [0.5, 0.5 + 1e-16]]
)
def test_extreme_samples_give_finite_intervals_without_warnings(values: list[float]) -> None:
    """Two problems, a single success, or values that hardly differ are no reason for nan."""
    low, high = bootstrap_interval(values)
    assert math.isfinite(low)
    assert low <= high


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [1, 5, 40])
def test_all_right_or_all_wrong_is_not_certain(n: int) -> None:
    """The exact interval of a proportion takes over: n failures leave up to 1 - 0.025^(1/n)."""
    low, high = bootstrap_interval([0.0] * n)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / n))
    assert bootstrap_interval([1.0] * n)[0] == pytest.approx(1 - high)
    assert bootstrap_interval([1.0] * n)[1] == 1
    assert bootstrap_interval([0] * n, confidence=0.9)[1] == pytest.approx(1 - 0.05 ** (1 / n))


@pytest.mark.filterwarnings("error")
def test_other_equal_values_have_no_width() -> None:
    """Equal values that are no proportion leave nothing to estimate a spread from."""
    assert bootstrap_interval([0.25] * 7) == (0.25, 0.25)
    assert bootstrap_interval([0.25]) == (0.25, 0.25)


def test_intervals_depend_on_the_seed_alone() -> None:
    """The same seed gives the same interval; another seed moves it a little."""
    values = np.random.default_rng(0).random(50).tolist()
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert bootstrap_interval(values, seed=1) == pytest.approx(bootstrap_interval(values, seed=2), abs=0.03)


def test_more_confidence_is_wider() -> None:
    """A 99 % interval contains the 80 % one."""
    values = np.random.default_rng(0).random(50).tolist()
    wide, narrow = bootstrap_interval(values, confidence=0.99), bootstrap_interval(values, confidence=0.8)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_95_percent_intervals_cover_about_95_percent() -> None:
    """Over 300 simulated evaluations of 80 problems the interval holds the truth in 90 to 98 %."""
    generator = np.random.default_rng(20)
    truth = 0.3
    held = 0
    for seed in range(300):
        values = (generator.random(80) < truth).astype(float).tolist()
        low, high = bootstrap_interval(values, resamples=300, seed=seed)
        held += low <= truth <= high
    assert 270 <= held <= 294


def test_pairing_removes_what_problems_have_in_common() -> None:
    """For models that differ by little on problems that differ a lot, the paired interval is far narrower."""
    generator = np.random.default_rng(1)
    hardness = generator.random(100)
    a, b = hardness + 0.02 + 0.005 * generator.standard_normal(100), hardness
    low, high = paired_interval(a.tolist(), b.tolist())
    assert 0 < low < 0.02 < high
    alone = bootstrap_interval(a.tolist())
    assert (high - low) * 10 < alone[1] - alone[0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_paired_intervals_contain_the_difference_and_change_sign_with_the_order(
    pairs: list[tuple[bool, bool]],
) -> None:
    """The interval holds the difference of the means; b against a is about the mirror image."""
    a, b = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    difference = float(np.mean(a) - np.mean(b))
    low, high = paired_interval(a, b)
    assert low - 1e-9 <= difference <= high + 1e-9
    other_low, other_high = paired_interval(b, a)
    width = max(high - low, other_high - other_low)
    assert abs(low + other_high) <= width / 2 + 1e-9
    assert abs(high + other_low) <= width / 2 + 1e-9


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([1, 0, 1], [1, 0, 1], (0.0, 0.0)), ([1, 1, 1], [0, 0, 0], (1.0, 1.0)), ([0.5], [0.25], (0.25, 0.25))],
)
def test_equal_differences_have_no_width(a: list[float], b: list[float], expected: tuple[float, float]) -> None:
    """Models that differ alike on every problem differ by just that."""
    assert paired_interval(a, b) == expected


def test_values_must_be_paired() -> None:
    """Evaluations of different problems cannot be paired."""
    with pytest.raises(ValueError, match="paired by problem, but there are 2 and 3"):
        paired_interval([1, 0], [1, 0, 1])
