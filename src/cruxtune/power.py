"""The smallest difference that a study can detect, from its sizes alone: to be stated before it is run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations_with_replacement

from scipy.stats import norm


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

    (z_{1-alpha/2m} + z_power) sqrt((omega^2 + sigma^2/S_a + sigma^2/S_b) / N + tau^2 (1/S_a + 1/S_b)): the sample-size
    formula of Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640, section on power), solved for the
    difference, with a method's seeds in the place of a problem's samples, and with what all problems of a run share
    (tau). Of two verdicts on one problem that disagree with probability q between methods and r between seeds of a
    method, sigma^2 = r/2 and omega^2 = q - r: for one seed each that is q/N, the variance of McNemar's test at a small
    difference. m is the number of pairs that Holm's procedure (1979, Scandinavian Journal of Statistics 6) corrects
    for, whose first step is alpha/m; its last is alpha.

    Normal quantiles: how much seeds differ is taken as known. A test that estimates it from few seeds, as that of
    `cruxtune.statistics.difference` does, detects less.

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
    """
    if between_seeds > disagreement:
        raise ValueError(
            f"seeds disagree on {between_seeds} of the problems, methods on {disagreement}: no smaller share"
        )
    inverse = sum(1 / number for number in seeds)
    variance = (disagreement - between_seeds + between_seeds / 2 * inverse) / problems + seed_deviation**2 * inverse
    return float((norm.ppf(1 - alpha / pairs / 2) + norm.ppf(power)) * math.sqrt(variance))


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
            lines.append(f"| {text} | {names} | {100 * alone:.1f} | {100 * first:.1f} |")
    return "\n".join(lines)


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
