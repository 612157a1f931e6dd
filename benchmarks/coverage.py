"""How often 95 % intervals hold the truth, and tests find what is not there, in simulated evaluations.

    python benchmarks/coverage.py [--simulations 2000] [--json benchmarks/results/coverage.json]

A response is right with probability sigmoid(skill + problem + seed + both), normal effects of which the problems are
shared by all seeds and methods. Two methods of equal skill differ by their seeds and by chance alone. `plain` is the
percentile interval of the ordinary hierarchical bootstrap, for comparison: what `cruxtune compare` would show without
the two corrections of `cruxtune.statistics.spread`. Widths are in percentage points.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cruxtune.statistics import Difference, difference, estimate, holm, spread

Array = npt.NDArray[np.float64]
SHARE, POINTS = "{:.1%}", "{:.1f}"
_DEVIATIONS = (0.0, 0.1, 0.3)
_START = 0
"""Seeds of a model that is given: it differs from the methods by nothing but its samples."""
_STATEMENTS = {
    **{f"mean of one method, {seeds} seeds": (seeds,) for seeds in (2, 3, 5)},
    **{f"{seeds} seeds against the start": (seeds, _START) for seeds in (2, 3, 5)},
    **{f"{few} against {many} seeds": (few, many) for few, many in ((5, 3), (5, 2), (3, 2))},
    **{f"{seeds} seeds against one, as methods": (seeds, 1) for seeds in (3, 5)},
}
_FAMILIES = {
    "ten methods of 1": (1,) * 10,
    "ten methods of 2": (2,) * 10,
    "ten methods of 3": (3,) * 10,
    "the start, 5, 5, 3, 3, 3, 3, 2, 2, 2": (_START, 5, 5, 3, 3, 3, 3, 2, 2, 2),
}


def main() -> None:
    """Print a table of each part, row by row, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=1000, help="simulated evaluations of each row")
    parser.add_argument("--json", type=Path, help="where to write the tables as JSON")
    options = parser.parse_args()
    results: dict[str, object] = {"simulations": options.simulations}
    for part, (title, columns, rows) in parts(options.simulations).items():
        print(f"\n{title}\n\n| {' | '.join(columns)} |\n| {' | '.join('---:' for _ in columns)} |")
        kept = []
        for row in rows:
            print(f"| {' | '.join(map(shown, columns.values(), row))} |", flush=True)
            kept.append(dict(zip(columns, row, strict=True)))
        results[part] = kept
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def shown(form: str, value: float | str) -> str:
    """Return a cell as the tables have it."""
    return form.format(value).replace("%", " %")


def parts(simulations: int) -> dict[str, tuple[str, dict[str, str], Iterator[tuple[float | str, ...]]]]:
    """Return what is simulated: title, columns with their formats, and rows, each computed when it is asked for."""
    held = {"coverage": SHARE, "width": POINTS}
    by_deviation = {f"sd of seeds {deviation}": SHARE for deviation in _DEVIATIONS}
    return {
        "one_model": (
            "One model, one seed: BCa over problems, or the exact interval of all right and all wrong",
            {"problems": "{}", "share right": "{}"} | held,
            (
                (problems, share, *one_model(problems, share, simulations))
                for problems in (50, 200, 1000)
                for share in (0.02, 0.2, 0.5)
            ),
        ),
        "two_methods": (
            "Two methods of equal skill, several seeds each",
            {"seeds": "{}", "problems": "{}", "sd of seeds": "{}"}
            | held
            | {f"plain {column}": form for column, form in held.items()},
            (
                (seeds, problems, deviation, *chain(*two_methods(seeds, problems, deviation, simulations)))
                for seeds in (1, 2, 3, 5)
                for problems in (200, 1000)
                for deviation in _DEVIATIONS
            ),
        ),
        "statements": (
            "Other statements, 1,000 problems: coverage",
            {"of": "{}"} | by_deviation,
            (
                (name, *(statement(seeds, deviation, simulations) for deviation in _DEVIATIONS))
                for name, seeds in _STATEMENTS.items()
            ),
        ),
        "families": (
            "Significant after Holm's correction where nothing is: chance of any, all pairs, 1,000 problems",
            {"seeds": "{}", "sd of seeds": "{}", "false": SHARE, "by the intervals' t": SHARE},
            (
                (name, deviation, *family_error(family, deviation, simulations))
                for name, family in _FAMILIES.items()
                for deviation in _DEVIATIONS
            ),
        ),
    }


def one_model(problems: int, share: float, simulations: int) -> tuple[float, float]:
    """Return the coverage and the mean width, in points, of the interval of a share."""
    generator = np.random.default_rng([problems, int(100 * share)])
    intervals = []
    for number in range(simulations):
        values = (generator.random(problems) < share).astype(float)
        intervals.append(estimate([values[None]], resamples=500, seed=number)[1:])
    return _held(intervals, share)


def two_methods(seeds: int, problems: int, deviation: float, simulations: int) -> tuple[tuple[float, float], ...]:
    """Return coverage and width of the difference of two methods: ours, and the plain bootstrap's."""
    generator = np.random.default_rng([seeds, problems, int(100 * deviation)])
    ours, plain = [], []
    for number in range(simulations):
        hardness = generator.normal(0, 1.5, problems)
        a, b = (_method(generator, hardness, seeds, deviation) for _ in range(2))
        found: Difference = difference([a], [b], resamples=500, seed=number % 4)
        ours.append((found.low, found.high))
        replicates = np.fromiter(_plain(generator, a, b, 500), dtype=float)
        plain.append(tuple(np.quantile(replicates, [0.025, 0.975])))
    return _held(ours, 0.0), _held(plain, 0.0)


def statement(seeds: tuple[int, ...], deviation: float, simulations: int) -> float:
    """Return the coverage of a method's mean, or of the difference of two of equal skill with these seeds."""
    generator = np.random.default_rng([*seeds, int(100 * deviation), 1])
    # What a method with endless seeds has right of endless problems: by symmetry half.
    truth = 0.5 if len(seeds) == 1 else 0.0
    intervals = []
    for number in range(simulations):
        hardness = generator.normal(0, 1.5, 1000)
        sides = [[_method(generator, hardness, some or 1, deviation if some else 0.0)] for some in seeds]
        found = (estimate if len(seeds) == 1 else difference)(*sides, resamples=500, seed=number % 4)
        intervals.append((found.low, found.high))
    return _held(intervals, truth)[0]


def family_error(family: tuple[int, ...], deviation: float, simulations: int) -> tuple[float, float]:
    """Return how often a comparison of methods of equal skill calls any difference significant.

    Ours, and with the degrees of freedom of the intervals, which the number of seeds does not bound.
    """
    generator = np.random.default_rng([len(family), *family, int(100 * deviation)])
    ours = plain = 0
    for number in range(simulations):
        hardness = generator.normal(0, 1.5, 1000)
        methods = [[_method(generator, hardness, seeds or 1, deviation if seeds else 0.0)] for seeds in family]
        found = [spread(*pair, resamples=500, seed=number % 4) for pair in combinations(methods, 2)]
        ours += min(holm([each.p(each.freedom_strict) for each in found])) < 0.05
        plain += min(holm([each.p(each.freedom) for each in found])) < 0.05
    return ours / simulations, plain / simulations


def _method(generator: np.random.Generator, hardness: Array, seeds: int, deviation: float) -> Array:
    effects = generator.normal(0, deviation, (seeds, 1)) + generator.normal(0, 1, (seeds, len(hardness)))
    return (generator.random(effects.shape) < 1 / (1 + np.exp(-hardness - effects))).astype(float)


def _plain(generator: np.random.Generator, a: Array, b: Array, resamples: int) -> Iterator[float]:
    seeds, problems = a.shape
    for _ in range(resamples):
        drawn = generator.integers(0, problems, problems)
        mine, theirs = (side[generator.integers(0, seeds, seeds)].mean(axis=0)[drawn] for side in (a, b))
        yield float((mine - theirs).mean())


def _held(intervals: list[tuple[float, float]], truth: float) -> tuple[float, float]:
    lows, highs = np.array(intervals).T
    return float(np.mean((lows <= truth) & (truth <= highs))), round(100 * float(np.mean(highs - lows)), 4)


if __name__ == "__main__":
    main()
