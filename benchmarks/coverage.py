"""How often 95 % intervals hold the truth, and tests find what is not there, in simulated evaluations.

    python benchmarks/coverage.py [--simulations 2000]

A response is right with probability sigmoid(skill + problem + seed + both), normal effects of which the problems are
shared by all seeds and methods. Two methods of equal skill differ by their seeds and by chance alone. `plain` is the
percentile interval of the ordinary hierarchical bootstrap, for comparison: what `cruxtune compare` would show without
the two corrections of `cruxtune.statistics.spread`. Widths are in percentage points.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cruxtune.statistics import Difference, difference, estimate

Array = npt.NDArray[np.float64]


def main() -> None:
    """Print a table of each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=1000, help="simulated evaluations of each row")
    simulations = parser.parse_args().simulations
    print("One model, one seed: BCa over problems, or the exact interval of all right and all wrong\n")
    print("| problems | share right | coverage | width |\n| ---: | ---: | ---: | ---: |")
    for problems in (50, 200, 1000):
        for share in (0.02, 0.2, 0.5):
            held, width = one_model(problems, share, simulations)
            print(f"| {problems} | {share} | {100 * held:.1f} % | {100 * width:.1f} |")
    print("\nTwo methods of equal skill, several seeds each\n")
    print("| seeds | problems | sd of seeds | coverage | width | plain coverage | plain width |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for seeds in (1, 2, 3, 5):
        for problems in (200, 1000):
            for spread in (0.0, 0.1, 0.3):
                found, plain = two_methods(seeds, problems, spread, simulations)
                shown = " | ".join(f"{100 * held:.1f} % | {100 * width:.1f}" for held, width in (found, plain))
                print(f"| {seeds} | {problems} | {spread} | {shown} |", flush=True)


def one_model(problems: int, share: float, simulations: int) -> tuple[float, float]:
    """Return the coverage and mean width of the interval of a share."""
    generator = np.random.default_rng([problems, int(100 * share)])
    intervals = []
    for number in range(simulations):
        values = (generator.random(problems) < share).astype(float)
        intervals.append(estimate([values[None]], resamples=500, seed=number)[1:])
    return _held(intervals, share)


def two_methods(seeds: int, problems: int, spread: float, simulations: int) -> tuple[tuple[float, float], ...]:
    """Return coverage and width of the difference of two methods: ours, and the plain bootstrap's."""
    generator = np.random.default_rng([seeds, problems, int(100 * spread)])
    ours, plain = [], []
    for number in range(simulations):
        hardness = generator.normal(0, 1.5, problems)
        a, b = (_method(generator, hardness, seeds, spread) for _ in range(2))
        found: Difference = difference([a], [b], resamples=500, seed=number % 4)
        ours.append((found.low, found.high))
        replicates = np.fromiter(_plain(generator, a, b, 500), dtype=float)
        plain.append(tuple(np.quantile(replicates, [0.025, 0.975])))
    return _held(ours, 0.0), _held(plain, 0.0)


def _method(generator: np.random.Generator, hardness: Array, seeds: int, spread: float) -> Array:
    effects = generator.normal(0, spread, (seeds, 1)) + generator.normal(0, 1, (seeds, len(hardness)))
    return (generator.random(effects.shape) < 1 / (1 + np.exp(-hardness - effects))).astype(float)


def _plain(generator: np.random.Generator, a: Array, b: Array, resamples: int) -> Iterator[float]:
    seeds, problems = a.shape
    for _ in range(resamples):
        drawn = generator.integers(0, problems, problems)
        mine, theirs = (side[generator.integers(0, seeds, seeds)].mean(axis=0)[drawn] for side in (a, b))
        yield float((mine - theirs).mean())


def _held(intervals: list[tuple[float, float]], truth: float) -> tuple[float, float]:
    lows, highs = np.array(intervals).T
    return float(np.mean((lows <= truth) & (truth <= highs))), float(np.mean(highs - lows))


if __name__ == "__main__":
    main()
