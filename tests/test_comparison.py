"""Cells side by side: what is computed of them, what is refused, and that the same cells give the same bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from cruxtune.cells import Cell, Sampled, read_cell, write_cell
from cruxtune.comparison import compare_cells, scores
from cruxtune.comparison_page import page
from cruxtune.errors import DataError
from cruxtune.stage_settings import CompareSettings
from cruxtune.stages.compare import compare
from cruxtune.trainings import Training


def cell(
    method: str, seed: int | None, *, benchmark: str = "sums", rate: float = 0.5, number: int = 40, **changes: Any
) -> Cell:
    """A made-up cell: `rate` of the problems right, four samples of each of the first ten, a curve of two steps."""
    draw = random.Random(f"{method} {seed} {benchmark}")
    names = [f"p{place}" for place in range(number)]
    answers = [[draw.choice([0, 0, 1, 2, -1]) for _ in range(4)] for _ in range(10)]
    sampled = Sampled(
        problems=names[:10],
        answers=answers,
        distinct_paths=[min(1, labels.count(0)) for labels in answers],
        distinct_texts=[labels.count(0) for labels in answers],
        distinct_1=[0.5] * 10,
        distinct_2=[0.75] * 10,
        entropy=[draw.random() for _ in range(10)],
        answer_entropy=[1.0] * 10,
        length=[20.0] * 10,
        truncated=[1] * 10,
        time_out=[0] * 10,
    )
    training = Training(
        steps=4,
        tokens_trained=100,
        share_trained=0.25,
        tokens_computed=3000,
        respond_tokens=500,
        annotate_tokens=1500,
        seconds=60.0,
        curves={
            "eval_loss_critical": [(0, 1.0), (4, 0.5 + draw.random() / 9)],
            "eval_loss_other": [(0, 0.4), (4, 0.3)],
        },
    )
    values = {
        "method": method,
        "seed": seed,
        "benchmark": benchmark,
        "conditions": {"problems": benchmark, "samples": 4},
        "settings": {},
        "training": None if seed is None else training,
        "seconds": {"evaluate": 9.0},
        "problems": names,
        "greedy": [int(draw.random() < rate) for _ in names],
        "length": [30] * number,
        "truncated": [0] * number,
        "time_out": [0] * number,
        "greedy_entropy": [0.1] * number,
        "greedy_logprob": [-3.0] * number,
        "sampled": sampled,
    }
    return Cell(**{**values, **changes})


def test_cells_come_back_as_they_were_written(tmp_path: Path) -> None:
    """The same cell, and the same bytes again; lists stay on a line each."""
    made = cell("cft", 1)
    path = write_cell(tmp_path / "deep" / "cell.json", made)
    assert read_cell(path) == made
    before = path.read_bytes()
    write_cell(path, read_cell(path))
    assert path.read_bytes() == before
    assert len(before.splitlines()) < 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"greedy": [1]}, "greedy has 1 entries for 40 problems"),
        ({"typo": 1}, "typo: Extra inputs"),
        ({"problems": []}, "there are no problems"),
    ],
)
def test_what_is_no_cell_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """One line that names the file and what is wrong in it; a missing file is told as such."""
    path = tmp_path / "cell.json"
    path.write_text(json.dumps({**cell("cft", 1).model_dump(mode="json"), **change}))
    with pytest.raises(DataError, match=message):
        read_cell(path)
    with pytest.raises(DataError, match="does not exist"):
        read_cell(tmp_path / "nowhere.json")


def test_scores_by_hand() -> None:
    """Two problems with four samples: 2 and 1 right; majorities of a tie and of none."""
    one = cell("cft", 1, number=10)
    assert one.sampled
    both = one.sampled.model_copy(update={name: getattr(one.sampled, name)[:2] for name in Sampled.model_fields})
    both = both.model_copy(update={"answers": [[0, 0, 1, 1], [1, 1, 0, -1]]})
    found = scores(one.model_copy(update={"sampled": both}))
    assert found["pass@1_sampled"] == [0.5, 0.25]
    assert found["pass@2"] == pytest.approx([5 / 6, 1 / 2])
    assert found["any@4"] == [1.0, 1.0]
    assert found["majority@4"] == [0.5, 0.0]
    assert found["pass^2"] == pytest.approx([1 / 6, 0.0])
    assert found["truncated_sampled"] == [0.25, 0.25]


def test_the_first_problems_alone() -> None:
    """Greedy responses and samples of the first problems; without samples among them there are none."""
    part = cell("cft", 1).first(3)
    assert part.problems == ["p0", "p1", "p2"]
    assert part.sampled
    assert part.sampled.problems == part.problems
    assert len(scores(part)["any@4"]) == len(scores(part)["pass@1"]) == 3


def grid() -> list[Cell]:
    """Three methods on two benchmarks; cft is far better on sums."""
    cells = [cell("start", None, benchmark=name) for name in ("sums", "words")]
    cells += [cell("sft", seed, benchmark=name) for name in ("sums", "words") for seed in (1, 2)]
    cells += [
        cell("cft", seed, rate=1.0 if name == "sums" else 0.5, benchmark=name)
        for name in ("sums", "words")
        for seed in range(1, 7)
    ]
    return cells


def test_methods_pairs_and_benchmarks() -> None:
    """Means over seeds with intervals, averages over benchmarks, each pair, and the counts of each seed."""
    cells = grid()
    result = compare_cells(cells)
    assert list(result["methods"]) == ["start", "sft", "cft"]
    part = result["methods"]["sft"]["benchmarks"]["sums"]
    shares = [sum(one.greedy) / 40 for one in cells if one.method == "sft" and one.benchmark == "sums"]
    assert part["metrics"]["pass@1"]["value"] == pytest.approx(sum(shares) / 2)
    low, high = part["metrics"]["pass@1"]["interval"]
    assert low < sum(shares) / 2 < high
    assert [each["metrics"]["pass@1"] for each in part["by_seed"]] == shares
    assert part["by_seed"][0]["counts"] == {
        "problems": 40,
        "correct": round(40 * shares[0]),
        "sampled_problems": 10,
        "samples": 40,
        "correct_samples": sum(cells[2].sampled.correct) if cells[2].sampled else 0,
    }
    assert (part["cost"]["annotation_tokens"], part["cost"]["compute"]) == (2000, 5000)
    assert part["curves"]["eval_loss_other"] == [[0, 0.4, 0.4, 0.4], [4, 0.3, 0.3, 0.3]]
    assert part["curve_ends"]["eval_loss_other"] == {"step": 4, "value": 0.3, "interval": [0.3, 0.3]}
    step, mean, lowest, highest = part["curves"]["eval_loss_critical"][-1]
    end = part["curve_ends"]["eval_loss_critical"]
    assert (end["step"], end["value"]) == (step, mean)
    # Two seeds: t with one degree of freedom is 12.706, and s ÷ √2 half their distance.
    assert end["interval"][1] == pytest.approx(mean + 12.7062 * (highest - lowest) / 2, abs=1e-4)
    assert f"1.000 → {mean:.3f} [{end['interval'][0]:.3f}, {end['interval'][1]:.3f}]" in page(result)
    assert list(result["pairs"]) == ["sft - start", "cft - start", "cft - sft"]
    difference = result["pairs"]["cft - start"]["benchmarks"]["sums"]["pass@1"]
    assert difference["significant"]
    assert difference["interval"][0] > 0
    assert difference["p_holm"] > difference["p"]
    assert difference["told_apart"]
    both = [result["methods"]["cft"]["benchmarks"][name]["metrics"]["pass@1"]["value"] for name in ("sums", "words")]
    assert result["methods"]["cft"]["average"]["pass@1"]["value"] == pytest.approx(sum(both) / 2, abs=1e-6)


def test_the_page_marks_what_is_significant() -> None:
    """Cft stands above the start on sums, marked; sft, which is like the start, is not."""
    result = compare_cells(grid())
    rows = {line.split(" |")[0][2:]: line for line in page(result).split("## pass@2")[0].splitlines()}
    assert rows["cft"].count("▲") >= 1
    assert "▲" not in rows["sft"] + rows["start"]
    assert rows["cft"].startswith("| cft | 6 | 100.0 % [")


def test_the_page_says_what_is_of_one_model_and_what_an_interval_alone_tells() -> None:
    """A single seed beside several has a dagger, but for the start's; three seeds are too few for a filled mark."""
    few = [cell for cell in grid() if cell.seed is None or cell.seed <= (1 if cell.method == "sft" else 3)]
    shown = page(compare_cells(few))
    rows = {line.split(" |")[0][2:]: line for line in shown.split("## pass@2")[0].splitlines()}
    assert "△" in rows["cft"]
    assert "▲" not in rows["cft"]
    assert {"sft †", "start"} <= rows.keys()
    assert "| sft † - start | sums |" in shown
    assert "| cft - start | sums |" in shown
    alone = page(compare_cells([cell for cell in few if cell.seed in (None, 1)]))
    assert "†" not in alone
    # The only difference there is needs no more than its interval.
    only = [cell for cell in few if cell.benchmark == "sums" and cell.method in ("start", "cft")]
    assert "▲" in page(compare_cells(only))


def test_an_average_takes_the_seeds_of_each_task_or_the_models_that_all_benchmarks_share() -> None:
    """Trained apart, all six and two models count; of models evaluated on both, those that both have."""
    cells = [one for one in grid() if one.method != "cft" or one.benchmark == "sums" or (one.seed or 0) <= 2]
    apart = [
        one.model_copy(update={"training": one.training.model_copy(update={"seconds": 9.5})})
        if one.training and one.benchmark == "words"
        else one
        for one in cells
    ]

    def averaged(some: list[Cell], seeds: dict[str, int]) -> float:
        values = {
            name: [sum(one.greedy) / 40 for one in some if one.method == "cft" and one.benchmark == name]
            for name in seeds
        }
        return sum(sum(values[name][:number]) / number for name, number in seeds.items()) / len(seeds)

    # What annotation took is unknown for one of them: it is the same model all the same.
    cells = [
        one.model_copy(update={"training": one.training.model_copy(update={"annotate_tokens": None})})
        if one.training and (one.benchmark, one.seed) == ("words", 1)
        else one
        for one in cells
    ]
    shared, separate = (compare_cells(some)["methods"]["cft"]["average"]["pass@1"]["value"] for some in (cells, apart))
    assert shared == pytest.approx(averaged(cells, {"sums": 2, "words": 2}), abs=1e-6)
    assert separate == pytest.approx(averaged(apart, {"sums": 6, "words": 2}), abs=1e-6)


def test_fewer_comparisons_are_corrected_for_less() -> None:
    """Against one method alone, p-values are the same and corrected ones smaller; that method comes last."""
    cells = grid()
    every, some = compare_cells(cells), compare_cells(cells, against=["sft"])
    assert list(some["pairs"]) == ["start - sft", "cft - sft"]
    before, after = (result["pairs"]["cft - sft"]["benchmarks"]["sums"]["pass@1"] for result in (every, some))
    assert before["p"] == after["p"]
    assert before["p_holm"] >= after["p_holm"]
    with pytest.raises(DataError, match="--against dft: there is no such method; there are start, sft, cft"):
        compare_cells(cells, against=["dft"])


def test_unknown_compute_is_not_drawn_as_none() -> None:
    """The first method took none if it was given; of another that nothing is known of, there is no point."""
    from matplotlib.figure import Figure

    from cruxtune.comparison_figure import _by_compute

    result = compare_cells(
        [cell("start", None), cell("cft", 1), cell("other", 1).model_copy(update={"training": None})]
    )
    parts = {name: method["benchmarks"]["sums"] for name, method in result["methods"].items()}
    drawn = {}
    for name, part in parts.items():
        axis = Figure().subplots()
        _by_compute(axis, part, 0.0, {"color": "C0"}, given=name == result["baseline"])
        drawn[name] = [float(line.get_xdata()[0]) for container in axis.containers for line in container[:1]]
    assert drawn == {"start": [0.0], "cft": [parts["cft"]["cost"]["compute"] / 1e6], "other": []}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (cell("cft", 1, conditions={"problems": "sums", "samples": 8}), "cft .seed 1. was evaluated on sums with samp"),
        (cell("cft", 1, number=41), "have other problems"),
        (cell("start", None), "start with no seed is given twice on sums"),
    ],
)
def test_what_does_not_compare_is_refused(other: Cell, message: str) -> None:
    """Other conditions, other problems, and one cell twice."""
    with pytest.raises(DataError, match=message):
        compare_cells([cell("start", None), other])


def test_the_same_cells_give_the_same_bytes(tmp_path: Path) -> None:
    """Page, JSON and figure, from a directory of cells, whatever the command is run from."""
    for one in grid():
        write_cell(tmp_path / "cells" / one.benchmark / f"{one.method}-{one.seed}.json", one)
    for name in ("one", "two"):
        compare(CompareSettings(cells=[tmp_path / "cells"], output=tmp_path / name))
    for kind in ("md", "json", "svg"):
        file = f"comparison.{kind}"
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    figure = (tmp_path / "one" / "comparison.svg").read_text()
    assert all(text in figure for text in ("pass@N", "loss on critical tokens", "million tokens", "cft"))


def test_one_cell_alone_has_no_pairs(tmp_path: Path) -> None:
    """A method without rivals is a table of one row; a file may be named instead of its directory."""
    path = write_cell(tmp_path / "cell.json", cell("cft", 1))
    result = compare(CompareSettings(cells=[path], output=tmp_path / "out", limit=5))
    assert result["pairs"] == {}
    assert "## Differences" not in (tmp_path / "out" / "comparison.md").read_text()
    assert result["benchmarks"]["sums"]["problems"] == 5
