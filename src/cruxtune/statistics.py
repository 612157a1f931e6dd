"""Uncertainty of evaluations: intervals, tests, and what several training seeds add.

The unit is the problem: problems are resampled, never responses. Training seeds are a second unit above it. Coverage is
measured by `benchmarks/coverage.py`; docs/evaluation.md says what it found.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

Values = Sequence[Sequence[float]] | np.ndarray[Any, Any]
"""Of one method on one benchmark: an entry per training seed, of an entry per problem."""

RESAMPLES = 2000


class Estimate(NamedTuple):
    """A mean with its interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A difference of two means with its interval, and the two-sided p-values of there being none.

    `p` goes with the interval; `p_strict` holds far below 5 % too, where corrections for many comparisons look.
    """

    value: float
    low: float
    high: float
    p: float
    p_strict: float


class Spread(NamedTuple):
    """A mean, its standard error, and the degrees of freedom of Student's t: of its interval, and far out."""

    value: float
    error: float
    freedom: float
    freedom_strict: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return value ± t · error."""
        half = float(scipy.stats.t.ppf((1 + confidence) / 2, self.freedom)) * self.error if self.error else 0.0
        return self.value - half, self.value + half

    def p(self, freedom: float) -> float:
        """Return the two-sided p-value of a value of 0."""
        if not self.error:
            return float(self.value == 0)
        return float(2 * scipy.stats.t.sf(abs(self.value) / self.error, freedom))


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return a confidence interval of the mean over problems, by the bootstrap.

    Bias-corrected and accelerated (BCa; Efron 1987, "Better Bootstrap Confidence Intervals", JASA 82), as
    `scipy.stats.bootstrap` has it. Where BCa is undefined, the percentile interval of the same resamples stands in.

    Equal values tell a bootstrap nothing: it would give an interval of width 0. For values that are all 0 or all 1 the
    interval is therefore the exact one of a proportion (Clopper and Pearson 1934, Biometrika 26): after n failures
    [0, 1 - (alpha/2)^(1/n)]. Any other equal values v give (v, v).

    Args:
        values: one per problem.
        confidence: the interval's coverage.
        resamples: how often the problems are drawn again.
        seed: seed of the draws.

    Raises:
        ValueError: there are no values.

    >>> low, high = bootstrap_interval([0.0] * 40 + [1.0] * 60)
    >>> round(low, 2), round(high, 2)
    (0.5, 0.69)
    >>> low, high = bootstrap_interval([0.0] * 10)
    >>> low, round(high, 4), round(1 - 0.025 ** (1 / 10), 4)
    (0.0, 0.3085, 0.3085)
    """
    _require(values)
    sample = np.asarray(values, dtype=float)
    if np.all(sample == sample[0]):
        if sample[0] not in (0.0, 1.0):
            return float(sample[0]), float(sample[0])
        exact = scipy.stats.binomtest(int(sample.sum()), len(sample)).proportion_ci(confidence, method="exact")
        return float(exact.low), float(exact.high)
    options = {"n_resamples": resamples, "confidence_level": confidence, "batch": 200}
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        # What scipy warns of, BCa without a value, is what the second method is for.
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        for method in ("BCa", "percentile"):
            found = scipy.stats.bootstrap((sample,), np.mean, method=method, rng=seed, **options).confidence_interval
            if np.isfinite([found.low, found.high]).all():
                break
    return float(found.low), float(found.high)


def paired_interval(
    a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return a confidence interval of mean(a) - mean(b), both over the same problems in the same order.

    What is resampled is the problems' differences, so that how hard a problem is cancels out (Efron and Tibshirani
    1993, "An Introduction to the Bootstrap", ch. 8). Where all differences are equal, so are both ends.

    Raises:
        ValueError: there are no values, or not as many in `a` as in `b`.

    >>> paired_interval([1, 1, 0, 1], [1, 1, 0, 1])
    (0.0, 0.0)
    """
    differences = _paired(a, b)
    if np.all(differences == differences[0]):
        return float(differences[0]), float(differences[0])
    return bootstrap_interval(differences.tolist(), confidence=confidence, resamples=resamples, seed=seed)


def _require(values: Sequence[object]) -> None:
    if not len(values):
        raise ValueError("a mean needs at least one problem")


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the exact two-sided p-value of McNemar's test: are two models right equally often on the same problems?

    Of the problems that only one of them solves, each has half under the null hypothesis (McNemar 1947, Psychometrika
    12; the binomial form). The values are 0 or 1.

    Raises:
        ValueError: not as many values in `a` as in `b`, or none.

    >>> mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]), mcnemar([1, 0, 1], [0, 1, 1])
    (0.0625, 1.0)
    """
    differences = _paired(a, b)
    only_a, only_b = int((differences > 0).sum()), int((differences < 0).sum())
    return float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def sign_flip(a: Sequence[float], b: Sequence[float], *, resamples: int = 9999, seed: int = 0) -> float:
    """Return the two-sided p-value of the paired permutation test of equal means (Fisher 1935; SciPy's).

    Under the null hypothesis a problem's difference is as likely with the other sign. Where none of the resamples is as
    far from 0 as what was found, they say no more than "below 2 ÷ (resamples + 1)", which in a table with hundreds of
    differences Holm's procedure could not call significant, whatever was found. Below that Student's t of the same
    differences takes over (the distributions agree for many problems), down to the least that signs can give, 2 ÷ 2^n.

    Raises:
        ValueError: not as many values in `a` as in `b`, or none.

    >>> sign_flip([1, 2, 3, 4], [0, 0, 0, 0]), sign_flip([1, 2], [1, 2])
    (0.125, 1.0)
    """
    every = _paired(a, b)
    # Those of 0 are the same with either sign.
    differences = every[every != 0]
    if len(differences) < 2:
        # None, or one, which is as far from 0 with either sign.
        return 1.0
    options = {"permutation_type": "samples", "n_resamples": resamples, "batch": 200, "vectorized": True}
    p = float(scipy.stats.permutation_test((differences,), np.mean, rng=seed, **options).pvalue)
    floor = 2 / (resamples + 1)
    if p > floor or len(differences) <= math.log2(resamples):
        return p
    # Those of 0 count here: they are what the mean's error is small by.
    tail = float(scipy.stats.ttest_1samp(every, 0).pvalue) if np.ptp(every) else 0.0
    return min(floor, max(tail, 2.0 ** (1 - len(differences))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number: below α, the chance of any false finding is at most α.

    The i-th smallest of m is multiplied by m − i + 1, and none is smaller than one before it (Holm 1979, "A Simple
    Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6). SciPy has the false
    discovery rate only.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    corrected = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    result = np.empty(len(order))
    result[order] = np.minimum(np.maximum.accumulate(corrected), 1.0)
    return [float(value) for value in result]


def estimate(
    blocks: Sequence[Values],
    *,
    same_models: bool = True,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return a method's mean, over benchmarks alike, with its interval.

    One seed on one benchmark: `bootstrap_interval`, which says nothing of other seeds. Else: `spread`.

    Raises:
        ValueError: as `spread`.
    """
    arrays = _arrays(blocks, same_models)
    first = arrays[0]
    if (len(arrays) == 1 and len(first) == 1) or (
        all(np.all(array == first[0, 0]) for array in arrays) and first[0, 0] in (0, 1)
    ):
        # Where everything is right (or wrong), so is every seed: what is left is how few problems there are.
        everything = np.concatenate([array[0] for array in arrays]).tolist()
        low, high = bootstrap_interval(everything, confidence=confidence, resamples=resamples, seed=seed)
        return Estimate(float(np.mean(everything)), low, high)
    found = spread(blocks, same_models=same_models, resamples=resamples, seed=seed)
    return Estimate(found.value, *found.interval(confidence))


def difference(
    blocks: Sequence[Values],
    others: Sequence[Values],
    *,
    same_models: bool = True,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Return the difference of two methods' means over the same problems, with its interval and p-value.

    One seed of each on one benchmark: `paired_interval`, and the p-value of `mcnemar` where values are 0 or 1, else of
    `sign_flip`. Else: `spread`, interval and p-values alike.

    Raises:
        ValueError: as `spread`.
    """
    mine, theirs = _arrays(blocks, same_models), _arrays(others, same_models)
    if len(mine) == len(theirs) == 1 and len(mine[0]) == len(theirs[0]) == 1:
        a, b = mine[0][0].tolist(), theirs[0][0].tolist()
        low, high = paired_interval(a, b, confidence=confidence, resamples=resamples, seed=seed)
        p = mcnemar(a, b) if {*a, *b} <= {0, 1} else sign_flip(a, b, seed=seed)
        return Difference(float(np.mean(a) - np.mean(b)), low, high, p, p)
    found = spread(blocks, others, same_models=same_models, resamples=resamples, seed=seed)
    return Difference(found.value, *found.interval(confidence), found.p(found.freedom), found.p(found.freedom_strict))


def seeds_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of the mean of one value per seed: mean ± t · s ÷ √S, with S − 1 degrees of freedom.

    One seed tells nothing of others: both ends are its value.

    >>> low, high = seeds_interval([0.1, 0.2, 0.3])
    >>> round(low, 3), round(high, 3)
    (-0.048, 0.448)
    """
    _require(values)
    mean, seeds = float(np.mean(values)), len(values)
    error = float(np.std(values, ddof=1)) / seeds**0.5 if seeds > 1 else 0.0
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, seeds - 1)) * error if error else 0.0
    return mean - half, mean + half


def spread(
    blocks: Sequence[Values],
    others: Sequence[Values] | None = None,
    *,
    same_models: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Spread:
    r"""Return the mean over benchmarks, seeds and problems (less that of `others`) with its standard error.

    The error is that of a hierarchical bootstrap: seeds are drawn, then problems, the same problems for all seeds and
    for both methods, since they are the same problems (Davison and Hinkley 1997, "Bootstrap Methods and their
    Application", section 3.8). Two things keep it honest with 2 to 5 seeds, for which the percentiles of the plain
    hierarchical bootstrap are too narrow:

    - Of S seeds S − 1 are drawn, which makes the variance right (Rao and Wu 1988, JASA 83), and what is drawn are the
      seeds' deviations, shrunken by the part that is due to the choice of problems:
      (s² − MSE/P)₊ ÷ s², where s² is the variance of the S means and MSE what neither seed nor problem explains.
    - Student's t with Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2) takes the normal's place:
      V² ÷ (V_problems² / (P − 1) + Σ (s²/S)² / (S − 1)), over the methods that have several seeds, but no less than
      the smallest S − 1; for the strict p-value no more than Σ (S − 1) either. Seeds that happen to agree leave the
      problems' many degrees of freedom: intervals of 95 % hardly mind, but p-values as small as Holm's procedure asks
      for come up to ten times too often (docs/evaluation.md).

    A method with one seed adds nothing for seeds: its training is taken as given.

    Args:
        blocks: of each benchmark the values, (seeds, problems).
        others: the same of what is subtracted.
        same_models: whether the n-th seed of all benchmarks is one model, which was evaluated on all of them; else each
            benchmark has models of its own, and may have another number of them.
        resamples: how often seeds and problems are drawn again.
        seed: seed of the draws.

    Raises:
        ValueError: the benchmarks of the same models differ in seeds, or the methods in benchmarks or problems; or
            there are none.

    >>> found = spread([[[1, 0, 1, 1], [1, 0, 0, 1]]])
    >>> round(found.value, 3), found.error > 0
    (0.625, True)
    """
    sides = [_arrays(blocks, same_models), *([_arrays(others, same_models)] if others is not None else [])]
    signs = (1.0, -1.0)
    if others is not None and [array.shape[1] for array in sides[0]] != [array.shape[1] for array in sides[1]]:
        raise ValueError("values must be paired by problem, on the same benchmarks")
    benchmarks = len(sides[0])
    replicates = np.zeros(resamples)
    value = problems_variance = freedom_sum = 0.0
    for place in range(benchmarks):
        column = sum(sign * side[place].mean(axis=0) for sign, side in zip(signs, sides, strict=False)) / benchmarks
        value += float(column.mean())
        replicates += _draws(len(column), resamples, seed + place) @ (column - column.mean())
        if len(column) > 1:
            part = float(column.var(ddof=1)) / len(column)
            problems_variance += part
            freedom_sum += part**2 / (len(column) - 1)
    generator = np.random.default_rng([seed, benchmarks])
    seeds_variance = 0.0
    degrees = []
    # What is trained together varies together: a model on all benchmarks, or the models of one benchmark.
    for together in (group for side in sides for group in ([side] if same_models else [[array] for array in side])):
        seeds = len(together[0])
        if seeds > 1:
            means = np.sum([array.mean(axis=1) for array in together], axis=0) / benchmarks
            total = float(means.var(ddof=1))
            noise = sum(_residual(array) / array.shape[1] for array in together) / benchmarks**2
            shrunken = (means - means.mean()) * (max(0.0, 1 - noise / total) ** 0.5 if total else 0.0)
            replicates += shrunken[generator.integers(0, seeds, (resamples, seeds - 1))].mean(axis=1)
            seeds_variance += float(shrunken.var(ddof=1)) / seeds
            freedom_sum += (total / seeds) ** 2 / (seeds - 1)
            degrees.append(seeds - 1)
    variance = problems_variance + seeds_variance
    error = float(replicates.std()) if variance else 0.0
    freedom = variance**2 / freedom_sum if freedom_sum else float("inf")
    # A variance that is estimated from several parts is known no worse than the worst of them; estimates may say so.
    freedom = max(freedom, float(min(degrees, default=0)))
    return Spread(value, error, freedom, min(freedom, float(sum(degrees))) if degrees else freedom)


def _residual(values: np.ndarray[Any, Any]) -> float:
    """Return the mean square of what neither seed nor problem explains, (seeds, problems)."""
    seeds, problems = values.shape
    if problems < 2:
        return 0.0
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    return float((rest**2).sum()) / ((seeds - 1) * (problems - 1))


@lru_cache(maxsize=4)
def _draws(problems: int, resamples: int, seed: int) -> np.ndarray[Any, Any]:
    """Return how often each problem is drawn ÷ their number, (resamples, problems); the same for every metric."""
    counts = np.random.default_rng([seed, problems]).multinomial(problems, [1 / problems] * problems, size=resamples)
    return (counts / problems).astype(np.float32)


def _arrays(blocks: Sequence[Values], same_models: bool = True) -> list[np.ndarray[Any, Any]]:
    arrays = [np.asarray(block, dtype=float) for block in blocks]
    if not arrays or not all(array.ndim == 2 and array.size for array in arrays):
        raise ValueError("a mean needs at least one problem, and values by seed and problem")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("a value is no number; leave its problem out, with all methods")
    if same_models and len({len(array) for array in arrays}) > 1:
        raise ValueError("all benchmarks need the same seeds")
    return arrays


def _paired(a: Sequence[float], b: Sequence[float]) -> np.ndarray[Any, Any]:
    if len(a) != len(b):
        raise ValueError(f"values must be paired by problem, but there are {len(a)} and {len(b)}")
    _require(a)
    return np.subtract(a, b, dtype=float)
