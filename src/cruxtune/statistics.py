"""Uncertainty of evaluations. The unit is the problem: problems are resampled, never responses."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import scipy.stats


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
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
    a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return a confidence interval of mean(a) - mean(b), both over the same problems in the same order.

    What is resampled is the problems' differences, so that how hard a problem is cancels out (Efron and Tibshirani
    1993, "An Introduction to the Bootstrap", ch. 8). Where all differences are equal, so are both ends.

    Raises:
        ValueError: there are no values, or not as many in `a` as in `b`.

    >>> paired_interval([1, 1, 0, 1], [1, 1, 0, 1])
    (0.0, 0.0)
    """
    if len(a) != len(b):
        raise ValueError(f"values must be paired by problem, but there are {len(a)} and {len(b)}")
    _require(a)
    differences = np.subtract(a, b, dtype=float)
    if np.all(differences == differences[0]):
        return float(differences[0]), float(differences[0])
    return bootstrap_interval(differences.tolist(), confidence=confidence, resamples=resamples, seed=seed)


def _require(values: Sequence[object]) -> None:
    if not len(values):
        raise ValueError("a mean needs at least one problem")
