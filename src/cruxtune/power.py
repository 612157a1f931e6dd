"""The smallest difference that a study can detect, from its sizes alone: to be stated before it is run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations_with_replacement

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm, t

_DRAWS = 4000


def detectable_difference(
    problems: int,
    seeds: tuple[int, int],
    *,
    disagreement: float,
    between_seeds: float,
    seed_deviation: float = 0.0,
    pairs: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    r"""Return the smallest difference of accuracy between two methods that a paired test detects with this power.

    The difference of two means varies by V = (omega^2 + sigma^2/S_a + sigma^2/S_b) / N + tau^2 (1/S_a + 1/S_b): the
    variance in the sample-size formula of Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640, section on
    power), with a method's seeds in the place of a problem's samples, and with what all problems of a run share (tau).
    Of two verdicts on one problem that disagree with probability q between methods and r between seeds of a method,
    sigma^2 = r/2 and omega^2 = q - r: for one seed each that is q/N, the variance of McNemar's test at a small
    difference. m is the number of pairs that Holm's procedure (1979, Scandinavian Journal of Statistics 6) corrects
    for, whose first step is alpha/m; its last is alpha.

    With one seed each the result is that formula's, (z_{1-alpha/2m} + z_power) sqrt(V). Where a method has several, the
    test estimates from them how much seeds differ, and few tell little: the result is the d for which the mean of
    Phi((d - t sqrt(V')) / sqrt(V)) over the estimates V' is the power, each with the t of its degrees of freedom
    (`cruxtune.statistics.spread`). More than 1 means that no difference is large enough.

    Args:
        problems: N, the same for both.
        seeds: S_a and S_b.
        disagreement: q, the share of problems on which single runs of two methods disagree.
        between_seeds: r, the same of two seeds of a method.
        seed_deviation: tau, the standard deviation over seeds of the accuracy on endless problems.
        pairs: m.
        alpha: two-sided level.
        power: the chance to detect the difference.

    Raises:
        ValueError: r > q, which would be a negative variance.

    >>> round(detectable_difference(1000, (1, 1), disagreement=0.2, between_seeds=0.2), 4)
    0.0396
    >>> round((1.95996 + 0.84162) * math.sqrt(0.2 / 1000), 4)
    0.0396
    >>> round(detectable_difference(1000, (3, 3), disagreement=0.2, between_seeds=0.12, pairs=57), 3)
    0.114
    """
    if between_seeds > disagreement:
        raise ValueError(
            f"seeds disagree on {between_seeds} of the problems, methods on {disagreement}: no smaller share"
        )
    inverse = sum(1 / number for number in seeds)
    of_problems = (disagreement - between_seeds + between_seeds / 2 * inverse) / problems
    variance = of_problems + seed_deviation**2 * inverse
    several = [number for number in seeds if number > 1]
    if not variance:
        return 0.0
    if not several:
        return float((norm.ppf(1 - alpha / pairs / 2) + norm.ppf(power)) * math.sqrt(variance))
    noise = between_seeds / 2 / problems
    estimated = np.full(_DRAWS, of_problems)
    below = np.full(_DRAWS, of_problems**2 / max(1, problems - 1))
    for place, number in enumerate(several):
        # Quantiles that cover the distribution evenly, those of one method in another order than those of the other.
        order = np.random.default_rng(place).permutation(_DRAWS)
        means = (seed_deviation**2 + noise) * chi2.ppf((order + 0.5) / _DRAWS, number - 1) / (number - 1)
        estimated += np.maximum(means - noise, 0) / number
        below += (means / number) ** 2 / (number - 1)
    degrees = [number - 1 for number in several]
    # A test alone is that of the interval, one of many the strict one.
    freedom = np.clip(estimated**2 / below, min(degrees), sum(degrees) if pairs > 1 else None)
    needed = t.ppf(1 - alpha / pairs / 2, freedom) * np.sqrt(estimated)

    def short(difference: float) -> float:
        return float(norm.cdf((difference - needed) / math.sqrt(variance)).mean()) - power

    return float(brentq(short, 0, float(needed.max()) + 10 * math.sqrt(variance)))


def power_table(
    seeds: Mapping[str, int],
    problems: int,
    *,
    pairs: int,
    disagreement: float,
    between_seeds: float,
    seed_deviation: float,
) -> str:
    """Return what a study of these seeds per method (and the start, a single run) can detect, as a Markdown table."""
    lines = [
        f"| seeds | methods | alone | first of {pairs} pairs (Holm) |",
        "| --- | --- | ---: | ---: |",
    ]
    for few, many in combinations_with_replacement(sorted(set(seeds.values()), reverse=True), 2):
        rows = [(f"{few} and {many}", (few, many), _names(seeds, few, many))]
        if few == many:
            rows.append((f"{few} and the start", (few, 1), _names(seeds, few, few)))
        for text, numbers, names in rows:
            alone, first = (
                detectable_difference(
                    problems,
                    numbers,
                    disagreement=disagreement,
                    between_seeds=between_seeds,
                    seed_deviation=seed_deviation,
                    pairs=count,
                )
                for count in (1, pairs)
            )
            lines.append(f"| {text} | {names} | {points_or_none(alone)} | {points_or_none(first)} |")
    return "\n".join(lines)


def points_or_none(difference: float) -> str:
    """Return a detectable difference in percentage points; none where only one of more than 50 points would do.

    >>> points_or_none(0.0342), points_or_none(0.7)
    ('3.4', 'none')
    """
    return f"{100 * difference:.1f}" if difference <= 0.5 else "none"


def compared_pairs(tasks: Sequence[Collection[str]]) -> int:
    """Return how many differences of a metric a comparison makes of these methods of each task and the start.

    Those of all pairs in each task, and with several tasks those of the averages of methods that are in all.

    >>> compared_pairs([["sft", "cft"]]), compared_pairs([["sft", "cft", "random"], ["sft", "cft"]])
    (3, 12)
    """
    groups = [set(methods) for methods in tasks]
    if len(groups) > 1:
        groups.append(set.intersection(*groups))
    return sum(math.comb(len(methods) + 1, 2) for methods in groups)


def _names(seeds: Mapping[str, int], *numbers: int) -> str:
    return "; ".join(
        ", ".join(name for name, number in seeds.items() if number == wanted) for wanted in dict.fromkeys(numbers)
    )
