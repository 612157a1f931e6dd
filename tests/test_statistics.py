from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cruxtune.statistics import (
    bootstrap_interval,
    difference,
    estimate,
    holm,
    mcnemar,
    paired_interval,
    sign_flip,
    spread,
)

ROOT = Path(__file__).parent.parent
Array = np.ndarray[Any, np.dtype[np.float64]]


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_interval([]),
        lambda: paired_interval([], []),
        lambda: mcnemar([], []),
        lambda: estimate([]),
        lambda: estimate([[[]]]),
    ],
)
def test_no_problems_have_no_mean(call: Callable[[], object]) -> None:
    """An empty evaluation is an error, not a nan."""
    with pytest.raises(ValueError, match="at least one problem"):
        call()


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


# Tests


@pytest.mark.parametrize(
    ("only_a", "only_b", "expected"), [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (8, 2, 112 / 1024), (3, 3, 1.0)]
)
def test_mcnemar_is_the_binomial_of_the_problems_that_one_model_solves(
    only_a: int, only_b: int, expected: float
) -> None:
    """8 against 2 of 10: 2 · (1 + 10 + 45) / 1024; problems that both solve, or neither, do not count."""
    a = [1] * only_a + [0] * only_b + [1, 0]
    b = [0] * only_a + [1] * only_b + [1, 0]
    assert mcnemar(a, b) == pytest.approx(expected)


def test_sign_flips_of_few_problems_are_all_of_them() -> None:
    """With n differences, the share of the 2^n choices of signs whose mean is at least as far from 0."""
    differences = [0.5, -0.25, 1.0, 0.75, 0.0]
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in itertools.product((1, -1), repeat=5)
    ]
    expected = sum(abs(total) >= 2.0 - 1e-9 for total in sums) / len(sums)
    assert sign_flip(differences, [0.0] * 5) == pytest.approx(expected)
    assert sign_flip([0.5, 1.0, 0.0], [0.0, 1.0, 0.0]) == 1.0


def test_holm_by_hand() -> None:
    """The smallest times 4, the next times 3 …, none smaller than one before; in the order given."""
    assert holm([0.02, 0.01, 0.5, 0.015]) == pytest.approx([0.045, 0.04, 0.5, 0.045])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_values_and_bonferroni(values: list[float]) -> None:
    """Corrected values keep the order, are no smaller than given, and no larger than m times as large."""
    corrected = holm(values)
    for value, more in zip(values, corrected, strict=True):
        assert value <= more <= min(1.0, len(values) * value) + 1e-12
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(np.array(corrected)[order]) >= 0)


# Training seeds


def test_the_error_over_seeds_is_that_of_seeds_and_problems() -> None:
    """Seeds that differ by a constant and problems that differ by another: both variances add up."""
    problems = np.random.default_rng(3).normal(size=400)
    seeds = np.array([-0.3, 0.1, 0.2])
    found = spread([problems + seeds[:, None]], resamples=20_000)
    expected = problems.var(ddof=1) / 400 + seeds.var(ddof=1) / 3
    assert found.value == pytest.approx(problems.mean())
    assert found.error**2 == pytest.approx(expected, rel=0.04)
    assert 2 < found.freedom < 4
    assert found.freedom_strict == 2


def test_what_seeds_and_methods_share_cancels_out_of_differences() -> None:
    """Problems that are as hard for both methods leave the seeds' variance alone."""
    problems = np.random.default_rng(3).normal(size=400)
    a, b = np.array([0.0, 0.1, 0.2]), np.array([0.0, 0.3])
    found = spread([problems + a[:, None]], [problems + b[:, None]], resamples=20_000)
    assert found.value == pytest.approx(-0.05)
    assert found.error**2 == pytest.approx(0.01 / 3 + 0.045 / 2, rel=0.04)


def test_the_degrees_of_freedom_are_no_fewer_than_those_of_the_seeds() -> None:
    """Seeds whose successes are each other's failures leave the problems no variance; the interval stays finite."""
    first = np.tile([1.0, 0.0], 20)
    found = spread([np.array([first, 1 - first, np.roll(first, 1) * first + 0.5])])
    assert found.freedom >= 2
    assert spread([np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]])]).freedom >= 1


def test_one_seed_is_taken_as_given() -> None:
    """Without a second seed the interval is that over problems, and the test is McNemar's."""
    a, b = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert estimate([[a]])[1:] == bootstrap_interval(a)
    assert difference([[a]], [[b]])[1:3] == paired_interval(a, b)
    assert difference([[a]], [[b]]).p == mcnemar(a, b)


def test_the_average_counts_benchmarks_alike() -> None:
    """100 problems of one weigh as much as 10 of another; its error is less than that of the small one alone."""
    generator = np.random.default_rng(5)
    large, small = generator.random((2, 100)), generator.random((2, 10))
    found = spread([large, small])
    assert found.value == pytest.approx((large.mean() + small.mean()) / 2)
    assert found.error < spread([small]).error


def test_all_right_with_every_seed_is_not_certain() -> None:
    """Where nothing varies, the exact interval over problems is left."""
    found = estimate([np.ones((3, 40))])
    assert found.low == pytest.approx(0.025 ** (1 / 40))
    assert difference([np.ones((3, 40))], [np.ones((2, 40))]) == (0.0, 0.0, 0.0, 1.0, 1.0)


def test_methods_are_paired_by_problem_and_seeds_by_benchmark() -> None:
    """Other problems, or other numbers of seeds on two benchmarks, are a mistake of the caller."""
    with pytest.raises(ValueError, match="paired by problem"):
        difference([[[1, 0]]], [[[1, 0, 1]]])
    with pytest.raises(ValueError, match="same seeds"):
        estimate([[[1, 0]], [[1, 0], [0, 1]]])


def _verdicts(generator: np.random.Generator, hardness: Array, seeds: int, deviation: float) -> Array:
    """Return verdicts (seeds, problems) of a method whose seeds shift the log-odds; half are right on average."""
    noise = generator.normal(0, deviation, (seeds, 1)) + generator.normal(0, 1, (seeds, len(hardness)))
    return np.asarray(generator.random(noise.shape) < 1 / (1 + np.exp(-hardness - noise)), dtype=float)


@pytest.mark.parametrize(("seeds", "least", "most"), [((2, 2), 0.91, 1), ((5, 5), 0.91, 0.985), ((5, 2), 0.88, 0.98)])
def test_intervals_over_seeds_cover_the_difference_of_methods(
    seeds: tuple[int, int], least: float, most: float
) -> None:
    """Over 300 simulated pairs of methods with no difference, few intervals leave 0 out."""
    generator = np.random.default_rng(seeds)
    held = 0
    for number in range(300):
        hardness = generator.normal(0, 1.5, 200)
        sides = ([_verdicts(generator, hardness, some, 0.3)] for some in seeds)
        found = difference(*sides, resamples=300, seed=number % 3)
        held += found.low <= 0 <= found.high
        assert (found.low <= 0 <= found.high) == (found.p >= 0.05)
        assert found.p_strict >= found.p
    assert least <= held / 300 <= most


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.86), (3, 0.89), (5, 0.91)])
def test_intervals_over_seeds_cover_the_mean_of_a_method(seeds: int, least: float) -> None:
    """With few seeds that matter a little too few hold it, as docs/evaluation.md says, and never nearly all."""
    generator = np.random.default_rng(seeds)
    held = 0
    for number in range(300):
        found = estimate([_verdicts(generator, generator.normal(0, 1.5, 500), seeds, 0.3)], seed=number % 3)
        held += found.low <= 0.5 <= found.high
    assert least <= held / 300 <= 0.985


def test_the_page_has_the_simulations_that_are_committed(benchmark_script: Callable[[str], ModuleType]) -> None:
    """Every row of benchmarks/results/coverage.json is in docs/evaluation.md, which has no others of that kind."""
    script = benchmark_script("coverage")
    results = json.loads((ROOT / "benchmarks" / "results" / "coverage.json").read_text())
    page = (ROOT / "docs" / "evaluation.md").read_text()
    assert f"coverage.py --simulations {results['simulations']}`" in page
    rows = []
    for part, (_, columns, _) in script.parts(results["simulations"]).items():
        assert results[part]
        for row in results[part]:
            rows.append(f"| {' | '.join(map(script.shown, columns.values(), row.values()))} |")
    lines = page[page.index("**Coverage.**") :].splitlines()
    bodies = [line for line, below in itertools.pairwise([*lines, ""]) if line[:1] == "|" and "---" not in line + below]
    assert bodies == rows


def test_few_comparisons_of_many_equal_methods_find_anything() -> None:
    """Of 60 comparisons of eight equal methods with 2 seeds that matter, at most 6 call any of 28 pairs significant."""
    # By the p-values of the intervals about 15 would.
    generator = np.random.default_rng(8)
    false = 0
    for number in range(60):
        hardness = generator.normal(0, 1.5, 500)
        methods = [_verdicts(generator, hardness, 2, 0.3) for _ in range(8)]
        pairs = itertools.combinations(methods, 2)
        false += min(holm([difference([a], [b], resamples=300, seed=number % 3).p_strict for a, b in pairs])) < 0.05
    assert false <= 6


def test_models_of_each_benchmark_may_have_other_seeds() -> None:
    """Trained apart, their seeds' variances add up, each by its own number of seeds; the same models vary together."""
    generator = np.random.default_rng(6)
    problems = generator.normal(size=400)
    a, b = np.array([-0.3, 0.1, 0.2]), np.array([0.0, 0.4])
    blocks = [problems + a[:, None], problems + b[:, None]]
    found = spread(blocks, same_models=False, resamples=20_000)
    apart = (2 * problems.var(ddof=1) / 400 + a.var(ddof=1) / 3 + b.var(ddof=1) / 2) / 4
    assert found.error**2 == pytest.approx(apart, rel=0.04)
    assert found.freedom_strict <= 3
    together = spread([blocks[0], blocks[0]], resamples=20_000)
    assert together.error**2 == pytest.approx(problems.var(ddof=1) / 400 / 2 + a.var(ddof=1) / 3, rel=0.04)


def test_a_large_table_can_have_a_significant_difference_of_single_seeds() -> None:
    """A permutation test's least p-value, times hundreds, would be above 5 % whatever was found."""
    generator = np.random.default_rng(7)
    better = generator.random(200)
    p = sign_flip((better + 0.4).tolist(), generator.random(200).tolist())
    assert p < 1e-9
    assert holm([p] + [0.5] * 299)[0] < 0.05
    # As many problems as a benchmark has, of which no sign can be left out.
    assert sign_flip([0.5 + number / 3000 for number in range(1500)], [0.0] * 1500) < 1e-9
    # Few signs are few: ten can say 2 ÷ 2^10 at the least, and twenty no less than 2 ÷ 2^20.
    assert sign_flip([1 + number / 100 for number in range(10)], [0.0] * 10) == pytest.approx(2 / 2**10)
    assert sign_flip([1 + number / 100 for number in range(20)], [0.0] * 20) == 2 / 2**20


def test_values_that_are_no_number_are_refused() -> None:
    """A nan would make every figure one."""
    with pytest.raises(ValueError, match="no number"):
        estimate([[[math.nan, 1, 0]]])
