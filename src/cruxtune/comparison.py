"""Cells side by side: every method on every benchmark, with intervals, and what can be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cruxtune.cells import Cell
from cruxtune.errors import DataError
from cruxtune.metrics import calibration_error, majority_at_k, pass_at_k, pass_hat_k, sizes
from cruxtune.statistics import difference, estimate, holm, seeds_interval
from cruxtune.trainings import Training

FORMAT = 1
CONFIDENCE = 0.95
_CURVES = ("eval_accuracy", "eval_loss_critical", "eval_loss_other", "eval_entropy_critical", "eval_entropy_other")
_COSTS = ("steps", "tokens_trained", "share_trained", "tokens_computed", "annotation_tokens", "compute", "seconds")
_NOT_SHARES = ("length", "entropy", "answer_entropy", "distinct_paths", "distinct_texts")

Scores = dict[str, list[float]]
"""Values of each metric, an entry per problem: of all problems, or of those that were sampled."""


def scores(cell: Cell) -> Scores:
    """Return the metrics of a cell, problem by problem; docs/evaluation.md defines them.

    `pass@1` is that of greedy responses; everything of samples is missing where there are none.
    """
    found: Scores = {"pass@1": list(map(float, cell.greedy))}
    sampled = cell.sampled
    if sampled:
        n = sampled.samples
        counts = [(len(labels), right) for labels, right in zip(sampled.answers, sampled.correct, strict=True)]
        found["pass@1_sampled"] = [right / number for number, right in counts]
        for k in sizes(n)[1:]:
            found[f"pass@{k}"] = [pass_at_k(number, right, k) for number, right in counts]
        if n > 1:
            found[f"any@{n}"] = [pass_at_k(number, right, n) for number, right in counts]
        for k in (*sizes(n)[1:], *([n] if n > 1 else [])):
            found[f"majority@{k}"] = [majority_at_k(labels, k) for labels in sampled.answers]
        for k in sizes(n)[1:]:
            found[f"pass^{k}"] = [pass_hat_k(number, right, k) for number, right in counts]
        for name in ("distinct_paths", "distinct_texts", "distinct_1", "distinct_2", "answer_entropy"):
            found[name] = list(map(float, getattr(sampled, name)))
        found["length_sampled"] = sampled.length
        for name in ("truncated", "time_out"):
            cut = zip(getattr(sampled, name), counts, strict=True)
            found[f"{name}_sampled"] = [times / number for times, (number, _) in cut]
    found["entropy"] = sampled.entropy if sampled else cell.greedy_entropy
    for name in ("length", "truncated", "time_out"):
        found[name] = list(map(float, getattr(cell, name)))
    return found


def paired_metrics(names: Sequence[str]) -> list[str]:
    """Return the metrics of which pairs of methods are compared.

    >>> paired_metrics(["pass@1", "pass@8", "any@16", "majority@8", "pass^8", "entropy", "length"])
    ['pass@1', 'pass@8', 'any@16', 'majority@8', 'entropy']
    """
    return [name for name in names if name.startswith(("pass@", "any@", "majority@")) or name == "entropy"]


def calibration(cell: Cell) -> dict[str, float]:
    """Return the calibration error of the greedy responses' probability, whole and per token (geometric mean)."""
    logprobs, lengths = np.array(cell.greedy_logprob), np.maximum(cell.length, 1)
    return {
        "ece": round(calibration_error(np.exp(np.minimum(logprobs, 0)), cell.greedy), 6),
        "ece_per_token": round(calibration_error(np.exp(np.minimum(logprobs / lengths, 0)), cell.greedy), 6),
    }


def summarise(cell: Cell, seed: int) -> dict[str, Any]:
    """Return the means of one cell's headline metrics with 95 % intervals over its problems; pass@N is any of N."""
    found = scores(cell)
    summary: dict[str, Any] = {}
    names = {"pass@1": "pass@1"}
    if cell.sampled:
        names |= {"pass@N": _any_of(found), "pass@1_sampled": "pass@1_sampled"}
    for name, metric in names.items():
        value, low, high = estimate([[found[metric]]], seed=seed)
        summary |= {name: value, f"{name}_interval": (low, high)}
    return {**summary, "entropy": float(np.mean(found["entropy"])), "length": float(np.mean(found["length"]))}


def _any_of(names: Mapping[str, Any]) -> str:
    return next((name for name in names if name.startswith("any@")), "pass@1_sampled")


def compare_cells(cells: Sequence[Cell], *, against: Sequence[str] | None = None, seed: int = 0) -> dict[str, Any]:
    """Return methods, pairs and benchmarks of a comparison; the first method is the baseline.

    `against` names the methods that every other one is compared with, by default all. Where p-values are corrected,
    the family is all pairs on all benchmarks (and their average) for one metric.

    Raises:
        DataError: there are no cells, two of one method, seed and benchmark, cells of one benchmark under different
            conditions or of different problems, or `against` names a method that is not there.
    """
    if not cells:
        raise DataError("nothing to compare; name at least one evaluation as --evaluation NAME=DIR, or --cells")
    grid: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        grid.setdefault(cell.method, {}).setdefault(cell.benchmark, []).append(cell)
    _check(cells, grid)
    benchmarks = list(dict.fromkeys(cell.benchmark for cell in cells))
    for some in grid.values():
        for name in some:
            some[name].sort(key=lambda cell: -1 if cell.seed is None else cell.seed)
    if unknown := [name for name in against or () if name not in grid]:
        raise DataError(f"--against {unknown[0]}: there is no such method; there are {', '.join(grid)}")
    table = {
        method: {name: [scores(cell) for cell in some[name]] for name in benchmarks if name in some}
        for method, some in grid.items()
    }
    return {
        "format": FORMAT,
        "confidence": CONFIDENCE,
        "baseline": next(iter(grid)),
        "benchmarks": {name: _benchmark(next(cell for cell in cells if cell.benchmark == name)) for name in benchmarks},
        "methods": {method: _method(some, table[method], benchmarks, seed) for method, some in grid.items()},
        "pairs": _pairs(grid, table, benchmarks, against, seed),
    }


def _check(cells: Sequence[Cell], grid: Mapping[str, Mapping[str, Sequence[Cell]]]) -> None:
    first: dict[str, Cell] = {}
    for cell in cells:
        other = first.setdefault(cell.benchmark, cell)
        for name in other.conditions.keys() | cell.conditions.keys():
            mine, theirs = cell.conditions.get(name), other.conditions.get(name)
            if mine != theirs:
                raise DataError(
                    f"{_name(cell)} was evaluated on {cell.benchmark} with {name} = {mine}, and {_name(other)} with "
                    f"{theirs}; scores are comparable under the same conditions only: evaluate again with one of them"
                )
        mine_sampled = cell.sampled.problems if cell.sampled else []
        theirs_sampled = other.sampled.problems if other.sampled else []
        if cell.problems != other.problems or mine_sampled != theirs_sampled:
            raise DataError(
                f"{_name(cell)} and {_name(other)} have other problems (or other ones were sampled) on "
                f"{cell.benchmark}; evaluate both on the same"
            )
    for method, some in grid.items():
        for name, group in some.items():
            seeds = [cell.seed for cell in group]
            if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
                which = "no seed" if twice[0] is None else f"seed {twice[0]}"
                raise DataError(f"{method} with {which} is given twice on {name}; leave one of them out")


def _name(cell: Cell) -> str:
    return cell.method if cell.seed is None else f"{cell.method} (seed {cell.seed})"


def _benchmark(cell: Cell) -> dict[str, Any]:
    sampled = cell.sampled
    return {
        "problems": len(cell.problems),
        "sampled_problems": len(sampled.problems) if sampled else 0,
        "samples": sampled.samples if sampled else 0,
        "conditions": cell.conditions,
    }


def _method(
    some: Mapping[str, Sequence[Cell]],
    table: Mapping[str, Sequence[Scores]],
    benchmarks: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    found: dict[str, Any] = {"benchmarks": {}}
    for name, cells in some.items():
        metrics = {}
        for metric in table[name][0]:
            values = [each[metric] for each in table[name]]
            metrics[metric] = _rounded_estimate(metric, [values], seed)
        curves = _mean_curves([cell.training.curves for cell in cells if cell.training])
        found["benchmarks"][name] = {
            "seeds": [cell.seed for cell in cells],
            "settings": cells[0].settings,
            "metrics": metrics,
            "calibration": _means([calibration(cell) for cell in cells]),
            "cost": _means([_cost(cell.training) for cell in cells]) if cells[0].training else None,
            "curves": curves,
            "curve_ends": {curve: _end(curve, points[-1][0], cells) for curve, points in curves.items() if points},
            "by_seed": [_by_seed(cell, each) for cell, each in zip(cells, table[name], strict=True)],
        }
    if len(benchmarks) > 1 and (averaged := _averaged_seeds([some], benchmarks)):
        (seeds,), same = averaged
        shared = [metric for metric in table[benchmarks[0]][0] if all(metric in table[name][0] for name in benchmarks)]
        found["average"] = {
            metric: _rounded_estimate(metric, _blocks(some, table, benchmarks, metric, seeds), seed, same)
            for metric in shared
        }
    return found


def _by_seed(cell: Cell, found: Scores) -> dict[str, Any]:
    counts = {"problems": len(cell.problems), "correct": sum(cell.greedy)}
    if cell.sampled:
        answers = cell.sampled.answers
        counts |= {
            "sampled_problems": len(answers),
            "samples": sum(map(len, answers)),
            "correct_samples": sum(cell.sampled.correct),
        }
    return {
        "seed": cell.seed,
        "counts": counts,
        "metrics": {metric: round(float(np.mean(values)), 6) for metric, values in found.items()},
        "cost": _cost(cell.training),
        "seconds": cell.seconds,
    }


def _cost(training: Training | None) -> dict[str, Any]:
    return {name: getattr(training, name) for name in _COSTS} if training else {}


def _means(parts: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Return the mean of each entry, None where one of them is not known."""
    found: dict[str, float | None] = {}
    for name in parts[0]:
        values = [value for part in parts if (value := part[name]) is not None]
        found[name] = round(sum(values) / len(values), 6) if len(values) == len(parts) else None
    return found


def _mean_curves(curves: Sequence[Mapping[str, Sequence[tuple[int, float]]]]) -> dict[str, list[list[float]]]:
    """Return [step, mean, lowest, highest] over seeds, at the steps that all of them have."""
    found = {}
    for name in _CURVES:
        logs = [dict(curve[name]) for curve in curves if name in curve]
        if not logs or len(logs) < len(curves):
            continue
        steps = sorted(set.intersection(*(set(log) for log in logs)))
        columns = [(step, [log[step] for log in logs]) for step in steps]
        found[name] = [
            [step, round(sum(values) / len(values), 6), min(values), max(values)] for step, values in columns
        ]
    return found


def _end(curve: str, step: float, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return what a curve has come to at a step, with its interval over seeds; none of them is negative."""
    values = [dict(cell.training.curves[curve])[int(step)] for cell in cells if cell.training]
    low, high = seeds_interval(values, confidence=CONFIDENCE)
    return {
        "step": step,
        "value": round(sum(values) / len(values), 6),
        "interval": [round(max(0, low), 6), round(high, 6)],
    }


def _averaged_seeds(
    sides: Sequence[Mapping[str, Sequence[Cell]]], benchmarks: Sequence[str]
) -> tuple[list[list[list[int | None]]], bool] | None:
    """Return the seeds of each side on each benchmark that an average takes, and whether benchmarks share models.

    A model that was evaluated on all benchmarks is right on more of them, or of fewer: there the seeds that all
    benchmarks have are taken, model by model. Models that were trained for each benchmark, as a study's for its tasks,
    have nothing to do with each other, whatever their seeds are called. None where a side lacks a benchmark.
    """
    if any(name not in some for some in sides for name in benchmarks):
        return None
    own = [[[cell.seed for cell in some[name]] for name in benchmarks] for some in sides]
    common = [[seed for seed in first if all(seed in other for other in others)] for first, *others in own]
    if not any(map(_same_models, sides, [benchmarks] * len(sides), common)):
        return own, False
    return ([[seeds] * len(benchmarks) for seeds in common], True) if all(common) else None


def _same_models(some: Mapping[str, Sequence[Cell]], benchmarks: Sequence[str], seeds: Sequence[int | None]) -> bool:
    """Return whether these seeds' models are the same on all benchmarks, by what their training was.

    What annotation took does not count, which is unknown where its directory is gone. Models of which nothing is known
    count as the same where they have a seed: `--evaluation` names one model, on several benchmarks.
    """
    trainings = [{cell.seed: _identity(cell.training) for cell in some[name]} for name in benchmarks]
    trained = [seed for seed in seeds if seed is not None]
    return bool(trained) and all(each[seed] == trainings[0][seed] for each in trainings for seed in trained)


def _identity(training: Training | None) -> tuple[Any, ...] | None:
    return (training.steps, training.tokens_trained, training.seconds, training.curves) if training else None


def _blocks(
    some: Mapping[str, Sequence[Cell]],
    table: Mapping[str, Sequence[Scores]],
    benchmarks: Sequence[str],
    metric: str,
    seeds: Sequence[Sequence[int | None]],
) -> list[np.ndarray[Any, Any]]:
    """Return (seeds, problems) of each benchmark."""
    return [
        np.array([each[metric] for cell, each in zip(some[name], table[name], strict=True) if cell.seed in wanted])
        for name, wanted in zip(benchmarks, seeds, strict=True)
    ]


def _rounded_estimate(metric: str, blocks: Sequence[Any], seed: int, same_models: bool = True) -> dict[str, Any]:
    value, low, high = estimate(blocks, same_models=same_models, confidence=CONFIDENCE, seed=seed)
    # Nothing that is measured here is negative, and a share is no more than 1.
    low = max(low, 0.0)
    if not metric.startswith(_NOT_SHARES):
        high = min(high, 1.0)
    elif all(np.all(block == value) for block in map(np.asarray, blocks)):
        low = high = value  # the exact interval of a proportion, which a constant 0 or 1 gets, is none of a length's
    return {"value": round(value, 6), "interval": [round(low, 6), round(high, 6)]}


def _pairs(
    grid: Mapping[str, Mapping[str, Sequence[Cell]]],
    table: Mapping[str, Mapping[str, Sequence[Scores]]],
    benchmarks: Sequence[str],
    against: Sequence[str] | None,
    seed: int,
) -> dict[str, Any]:
    """Return each pair's differences, later method less earlier one; those `against` names come last."""
    methods = list(grid)
    wanted = [
        (name, other)
        for index, name in enumerate(methods)
        for other in methods[:index]
        if against is None or name in against or other in against
    ]
    if against:
        # What is compared with comes behind the minus sign.
        wanted = [(a, b) if b in against else (b, a) for a, b in wanted]
    found: dict[str, Any] = {f"{a} - {b}": {"benchmarks": {}} for a, b in wanted}
    for a, b in wanted:
        places = [[name] for name in benchmarks] + ([list(benchmarks)] if len(benchmarks) > 1 else [])
        for place in places:
            if (averaged := _averaged_seeds([grid[a], grid[b]], place)) is None:
                continue
            seeds, same = averaged
            metrics = {}
            for metric in paired_metrics([*table[a][place[0]][0]]):
                if all(metric in table[side][name][0] for side in (a, b) for name in place):
                    mine, theirs = (
                        _blocks(grid[side], table[side], place, metric, some)
                        for side, some in zip((a, b), seeds, strict=True)
                    )
                    metrics[metric] = _difference(mine, theirs, seed, same)
            where = found[f"{a} - {b}"]
            if len(place) == 1:
                where["benchmarks"][place[0]] = metrics
            else:
                where["average"] = metrics
    _correct(found)
    return found


def _difference(mine: Sequence[Any], theirs: Sequence[Any], seed: int, same_models: bool) -> dict[str, Any]:
    value, low, high, p, strict = difference(mine, theirs, same_models=same_models, confidence=CONFIDENCE, seed=seed)
    return {
        "difference": round(value, 6),
        "interval": [round(low, 6), round(high, 6)],
        "told_apart": not low <= 0 <= high,
        "p": float(f"{p:.4g}"),
        "p_strict": float(f"{strict:.4g}"),
    }


def _correct(pairs: Mapping[str, Any]) -> None:
    """Put Holm's p-values into all entries, over the family of each metric."""
    families: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs.values():
        for metrics in (*pair["benchmarks"].values(), *([pair["average"]] if "average" in pair else [])):
            for metric, entry in metrics.items():
                families.setdefault(metric, []).append(entry)
    for entries in families.values():
        # A difference alone is judged at 5 %, where the p-value of its interval holds.
        which = "p_strict" if len(entries) > 1 else "p"
        for entry, p in zip(entries, holm([entry[which] for entry in entries]), strict=True):
            entry["p_holm"] = float(f"{p:.4g}")
            entry["significant"] = p < 1 - CONFIDENCE
