"""The numbers of a study of reinforcement learning: bands over seeds, and accuracies at equal total compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cruxtune.cells import Cell
from cruxtune.comparison import scores
from cruxtune.rl_study import RlStudy, runs

FORMAT = 1
ACCURACY, SAMPLED, COMPUTE = "eval_accuracy", "eval_accuracy_sampled", "tokens_computed"
PARTS = ("annotation", "training", "rl")

Result = Mapping[str, Any]
"""The JSON of a cell."""
Validations = Sequence[tuple[int, Mapping[str, float]]]
"""What was measured, by the name that logs have, after so many tokens from the start on."""


def summarise(study: RlStudy, found: Mapping[str, Result], origins: Mapping[str, Result]) -> dict[str, Any]:
    """Return what the runs that there are come to.

    Args:
        study: says which runs there are to be.
        found: results by the run's name.
        origins: the cell of the model that each run goes on from, by the run's name.
    """
    done = [run for run in runs(study) if run.name in found]
    arms = {name: [run for run in done if run.arm == name] for name in study.arms}
    arms = {name: some for name, some in arms.items() if some}
    return {
        "format": FORMAT,
        "task": study.task,
        "done": [run.name for run in done],
        "missing": [run.name for run in runs(study) if run.name not in found],
        "from_remade": [run.name for run in done if _is_remade(origins.get(run.name))],
        "arms": {
            name: _arm(study, name, [found[run.name] for run in some], [origins.get(run.name) for run in some])
            for name, some in arms.items()
        },
        "equal_compute": equal_compute(
            {name: {run.seed: _spent(found[run.name]) for run in some} for name, some in arms.items()}
        ),
    }


def _is_remade(cell: Result | None) -> bool:
    """Return whether a model was made again with other bits than those that its study evaluated."""
    return cell is not None and "instead_of" in cell["settings"]["study"]


def band(values: Sequence[float]) -> dict[str, float]:
    """Return mean, lowest and highest over seeds, and how many there are: a band, no interval.

    >>> band([0.5, 0.25])
    {'mean': 0.375, 'low': 0.25, 'high': 0.5, 'seeds': 2}
    """
    mean = sum(values) / len(values)
    return {"mean": round(mean, 6), "low": min(values), "high": max(values), "seeds": len(values)}


def heldout(cells: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Return the bands of greedy pass@1, of pass@N and of the entropy of samples on the held-out problems."""
    found = [scores(Cell.model_validate(cell)) for cell in cells]
    names = [name for name in found[0] if name.startswith("pass@") or name in ("entropy", "length")]
    return {name: band([round(sum(one[name]) / len(one[name]), 6) for one in found]) for name in names}


def bands(curves: Sequence[Mapping[str, Sequence[Sequence[float]]]]) -> dict[str, list[list[float]]]:
    """Return (step, mean, lowest, highest) of each curve, at the steps that all seeds have."""
    found = {}
    for name in curves[0]:
        points = [_by_step(curve.get(name, ())) for curve in curves]
        steps = sorted(set.intersection(*(set(one) for one in points)))
        rows = [(step, band([one[step] for one in points])) for step in steps]
        found[name] = [[step, over["mean"], over["low"], over["high"]] for step, over in rows]
    return {name: rows for name, rows in found.items() if rows}


def equal_compute(spent: Mapping[str, Mapping[int, Validations]]) -> list[dict[str, Any]]:
    """Return for the total compute that each arm ends at, seed by seed, what every arm had come to by then.

    A value is that of the last validation at or below the total: nothing is interpolated. An arm whose annotation and
    training take more than the total has not begun (in one seed at least); one whose runs all ended before keeps its
    last value. Where two arms have no seed in common, one is missing.

    Args:
        spent: for each arm and seed, (tokens from the start on, validation) in order.

    >>> plain = {0: [(0, {"eval_accuracy": 0.25}), (100, {"eval_accuracy": 0.5})]}
    >>> dear = {0: [(80, {"eval_accuracy": 0.375}), (150, {"eval_accuracy": 0.75})]}
    >>> for row in equal_compute({"plain": plain, "dear": dear}):
    ...     values = [(arm["state"], arm["eval_accuracy"]["mean"]) for arm in row["arms"].values()]
    ...     print(row["end_of"], row["tokens"], *values)
    plain 100 ('running', 0.5) ('running', 0.375)
    dear 150 ('ended', 0.5) ('running', 0.75)
    """
    rows = []
    for name, seeds in spent.items():
        totals = {seed: validations[-1][0] for seed, validations in seeds.items()}
        arms = {
            other: _at([(totals[seed], some[seed]) for seed in totals if seed in some])
            for other, some in spent.items()
            if totals.keys() & some.keys()
        }
        rows.append({"end_of": name, "tokens": _mean(list(totals.values())), "arms": arms})
    return sorted(rows, key=lambda row: row["tokens"])


def _at(spent: Sequence[tuple[int, Validations]]) -> dict[str, Any]:
    """Return the bands of the last validations at or below a total, of (total, validations) of each seed."""
    reached = [[one for tokens, one in validations if tokens <= total] for total, validations in spent]
    if not all(reached):
        return {"state": "not begun"}
    ended = all(validations[-1][0] < total for total, validations in spent)
    values = {name: band([some[-1][name] for some in reached]) for name in reached[0][-1]}
    return {"state": "ended" if ended else "running", **values}


def _arm(study: RlStudy, name: str, results: Sequence[Result], before: Sequence[Result | None]) -> dict[str, Any]:
    """Return an arm's numbers, and those of what its runs went on from where all of that was evaluated."""
    took = [result["settings"]["study"] for result in results]
    return {
        "from": study.arms[name].origin,
        "seeds": [result["seed"] for result in results],
        "from_weights": [one["from_weights"] for one in took],
        "steps": [one["steps"] for one in took],
        **({"steps_bought": [one["steps_bought"] for one in took]} if study.arms[name].compute_of else {}),
        "compute": _parts([one["compute"] for one in took]),
        "seconds": _parts([one["seconds"] for one in took]),
        "minutes": [round(sum(result["seconds"][part] for part in ("rl", "evaluate")) / 60) for result in results],
        "threads": sorted({one["threads"] for one in took if one["threads"]}),
        "before": heldout([cell for cell in before if cell]) if all(before) else {},
        "heldout": heldout(results),
        "curves": bands([result["training"]["curves"] for result in results]),
    }


def _parts(costs: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """Return the means over seeds of each part, and of their sum."""
    total = [sum(cost[part] for part in PARTS) for cost in costs]
    return {**{part: _mean([cost[part] for cost in costs]) for part in PARTS}, "total": _mean(total)}


def _spent(result: Result) -> list[tuple[int, dict[str, float]]]:
    """Return the validations of a run, each with the tokens of annotation, training and GRPO until then."""
    curves, cost = result["training"]["curves"], result["settings"]["study"]["compute"]
    tokens, before = _by_step(curves[COMPUTE]), cost["annotation"] + cost["training"]
    measured = {
        name: _by_step(points)
        for name, points in curves.items()
        if name in (ACCURACY, SAMPLED, "eval_entropy") or name.startswith("eval_pass@")
    }
    return [
        (before + int(tokens[step]), {name: points[step] for name, points in measured.items()})
        for step in sorted(measured[ACCURACY])
    ]


def _by_step(points: Sequence[Sequence[float]]) -> dict[int, float]:
    return {int(step): value for step, value in points}


def _mean(values: Sequence[float]) -> int:
    return round(sum(values) / len(values))
