"""What a study can detect, against simulated studies."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from cruxtune.power import detectable_difference
from cruxtune.statistics import difference
from cruxtune.study import read_study
from cruxtune.study_commands import power_lines

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("seeds", "pairs"), [((1, 1), 1), ((5, 3), 1), ((3, 3), 10), ((3, 3), 45)])
def test_simulated_studies_detect_the_difference_as_often_as_promised(seeds: tuple[int, int], pairs: int) -> None:
    """Comparisons tell methods apart that differ by the smallest detectable difference in 80 % of simulated studies."""
    problems, studies, spread = 1000, 600, 0.3
    rng = np.random.default_rng(1)
    # Each method has its chance on each problem; two runs of a method disagree with probability 2 p (1 - p).
    base, moved = rng.uniform(0.25, 0.7, 200_000), rng.uniform(-spread, spread, 200_000)
    first, second = np.clip(base, 0, 1), np.clip(base + moved, 0, 1)
    same = float(np.mean(2 * first * (1 - first) + 2 * second * (1 - second)) / 2)
    other = float(np.mean(first * (1 - second) + second * (1 - first)))
    wanted = detectable_difference(problems, seeds, disagreement=other, between_seeds=same, pairs=pairs)
    detected = 0
    for number in range(studies):
        chosen = rng.integers(len(base), size=problems)
        better, worse = np.clip(second[chosen] + wanted, 0, 1), first[chosen]
        a, b = (rng.random((some, problems)) < side for some, side in zip(seeds, (better, worse), strict=True))
        found = difference([a], [b], resamples=300, seed=number % 3)
        detected += (found.p if pairs == 1 else found.p_strict * pairs) < 0.05
    assert 0.75 < detected / studies < 0.85


def test_more_seeds_help_up_to_what_problems_leave() -> None:
    """Seeds average out what differs between them, and nothing else."""
    one, five, endless = (
        detectable_difference(1000, (n, n), disagreement=0.2, between_seeds=0.1, seed_deviation=0.01)
        for n in (1, 5, 10**9)
    )
    assert one > five > endless == pytest.approx(2.8016 * math.sqrt(0.1 / 1000), rel=1e-3)
    assert detectable_difference(100, (3, 3), disagreement=0.0, between_seeds=0.0) == 0
    assert detectable_difference(1, (3, 3), disagreement=0.2, between_seeds=0.1) > 1
    with pytest.raises(ValueError, match="no smaller share"):
        detectable_difference(1000, (1, 1), disagreement=0.1, between_seeds=0.2)


def test_the_page_of_the_study_says_what_its_sizes_can_detect() -> None:
    """The tables of docs/results/small.md are those that the study's file gives."""
    page = (ROOT / "docs" / "results" / "small.md").read_text(encoding="utf-8")
    study = read_study(ROOT / "recipes" / "studies" / "small.yaml", {})
    assert "\n".join(power_lines(study)).strip() in page
