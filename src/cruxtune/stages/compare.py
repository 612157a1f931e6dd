"""Stage 6: evaluations of the same problems side by side, with intervals; whichever way they fall."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cruxtune.errors import DataError, StoreError
from cruxtune.metrics import pass_at_k
from cruxtune.stage_settings import CompareSettings
from cruxtune.statistics import bootstrap_interval, paired_interval
from cruxtune.store import finished_manifest, read_rows, write_atomic

_CONDITIONS = (
    "problems",
    "samples",
    "sampled_problems",
    "temperature",
    "top_k",
    "top_p",
    "max_new_tokens",
    "seed",
    "strict_answers",
    "list_order",
    "percent",
    "units",
    "relative_tolerance",
    "loop_stop",
)
"""What must be the same for scores to be comparable."""


@dataclass(frozen=True)
class Scores:
    """One model's scores, an entry per problem in the order of the evaluation."""

    greedy: list[float]
    """1 where the greedy response is correct."""
    pass_at_n: list[float]
    """The unbiased estimate of pass@N with N the number of samples: 1 where any sample is correct."""
    pass_at_1_sampled: list[float]
    """The share of samples that are correct."""
    entropy: list[float]
    """Mean token entropy of the samples of each problem that has some (of greedy responses if none has), in nats."""
    length: list[float]
    """Tokens of the greedy response."""


def compare(settings: CompareSettings) -> dict[str, Any]:
    """Write comparison.md and comparison.json and return the latter's content.

    Intervals are 95 % bootstrap intervals over problems; differences are paired by problem.

    Raises:
        StoreError: an evaluation is missing or unfinished.
        DataError: the evaluations are not of the same problems under the same settings.
    """
    manifests = {
        name: finished_manifest(path, "evaluate", f"--evaluation {name}=")
        for name, path in settings.evaluations.items()
    }
    _check_conditions(settings.evaluations, manifests)
    scores = {name: read_scores(path, settings.limit) for name, path in settings.evaluations.items()}
    samples = next(iter(manifests.values()))["identity"]["samples"]
    baseline = next(iter(scores))
    result: dict[str, Any] = {
        "problems": len(scores[baseline].greedy),
        "samples": samples,
        "baseline": baseline,
        "models": {name: summarise_scores(score, samples, settings.seed) for name, score in scores.items()},
        "differences": {
            f"{name} - {other}": _difference(scores[name], scores[other], samples, settings.seed)
            for index, name in enumerate(scores)
            for other in list(scores)[:index]
        },
    }
    settings.output.mkdir(parents=True, exist_ok=True)
    write_atomic(settings.output / "comparison.json", (json.dumps(result, indent=2) + "\n").encode())
    write_atomic(settings.output / "comparison.md", markdown(result).encode())
    return result


def markdown(result: Mapping[str, Any]) -> str:
    """Return the comparison as a Markdown page."""
    n = result["samples"]
    lines = [
        f"# Comparison on {result['problems']} problems",
        "",
        "95 % intervals: bootstrap over problems. Differences are paired by problem.",
        "",
        f"| model | pass@1 (greedy) | {f'pass@{n} ({n} samples) | ' if n else ''}entropy (nats) | tokens a response |",
        f"| --- | --- | {'--- | ' if n else ''}--- | --- |",
    ]
    for name, model in result["models"].items():
        sampled = f"{percent(model['pass@N'], model['pass@N_interval'])} | " if n else ""
        lines.append(
            f"| {name} | {percent(model['pass@1'], model['pass@1_interval'])} | {sampled}"
            f"{model['entropy']:.3f} | {model['length']:.1f} |"
        )
    lines += [
        "",
        f"| difference | pass@1 | {f'pass@{n} | ' if n else ''}told apart |",
        f"| --- | --- | {'--- | ' if n else ''}--- |",
    ]
    for name, difference in result["differences"].items():
        parts = [difference["pass@1"], *([difference["pass@N"]] if n else [])]
        cells = " | ".join(points(part["difference"], part["interval"]) for part in parts)
        apart = [metric for metric, part in zip(("pass@1", f"pass@{n}"), parts, strict=False) if part["told_apart"]]
        lines.append(f"| {name} | {cells} | {', '.join(apart) or 'no'} |")
    return "\n".join(lines) + "\n"


def percent(value: float, interval: tuple[float, float]) -> str:
    """Return a share with its interval.

    >>> percent(0.5, (0.4, 0.6))
    '50.0 % [40.0, 60.0]'
    """
    return f"{100 * value:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def points(value: float, interval: tuple[float, float]) -> str:
    """Return a difference of shares in percentage points with its interval.

    >>> points(-0.02, (-0.05, 0.01))
    '-2.0 [-5.0, +1.0]'
    """
    return f"{100 * value:+.1f} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"


def _check_conditions(paths: Mapping[str, Path], manifests: Mapping[str, Mapping[str, Any]]) -> None:
    if not paths:
        raise DataError("nothing to compare; name at least one evaluation as --evaluation NAME=DIR")
    first = next(iter(manifests))
    for name, manifest in manifests.items():
        for condition in _CONDITIONS:
            mine, theirs = manifest["identity"].get(condition), manifests[first]["identity"].get(condition)
            if mine != theirs:
                raise DataError(
                    f"{name} ({paths[name]}) was evaluated with {condition} = {mine}, and {first} with {theirs}; "
                    "scores are comparable under the same conditions only: evaluate again with one of them"
                )


def read_scores(path: Path, limit: int | None = None) -> Scores:
    """Return the scores of an evaluation's first problems, by default of all.

    Raises:
        StoreError: it holds no rows.
    """
    problems: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(path, columns=["id", "sample", "temperature", "correct", "entropy", "length"]):
        problems.setdefault(row["id"], []).append(row)
    if not problems:
        raise StoreError(f"{path} holds no rows; evaluate at least one problem")
    scores = Scores([], [], [], [], [])
    greedy_entropy: list[float] = []
    for rows in list(problems.values())[:limit]:
        greedy = next(row for row in rows if row["temperature"] == 0)
        samples = [row for row in rows if row["temperature"] > 0]
        right = sum(row["correct"] for row in samples)
        scores.greedy.append(float(greedy["correct"]))
        scores.length.append(float(greedy["length"]))
        greedy_entropy.append(float(greedy["entropy"]))
        if samples:
            scores.entropy.append(float(np.mean([row["entropy"] for row in samples])))
            scores.pass_at_n.append(pass_at_k(len(samples), right, len(samples)))
            scores.pass_at_1_sampled.append(right / len(samples))
    if not scores.entropy:
        scores.entropy.extend(greedy_entropy)
    return scores


def summarise_scores(scores: Scores, samples: int, seed: int) -> dict[str, Any]:
    """Return means over problems, with 95 % bootstrap intervals of what is a share."""
    summary: dict[str, Any] = {
        "pass@1": float(np.mean(scores.greedy)),
        "pass@1_interval": bootstrap_interval(scores.greedy, seed=seed),
        "entropy": float(np.mean(scores.entropy)),
        "length": float(np.mean(scores.length)),
    }
    if samples:
        summary |= {
            "pass@N": float(np.mean(scores.pass_at_n)),
            "pass@N_interval": bootstrap_interval(scores.pass_at_n, seed=seed),
            "pass@1_sampled": float(np.mean(scores.pass_at_1_sampled)),
            "pass@1_sampled_interval": bootstrap_interval(scores.pass_at_1_sampled, seed=seed),
        }
    return summary


def _difference(mine: Scores, other: Scores, samples: int, seed: int) -> dict[str, Any]:
    pairs = {"pass@1": (mine.greedy, other.greedy)}
    if samples:
        pairs["pass@N"] = (mine.pass_at_n, other.pass_at_n)
    result = {}
    for name, (a, b) in pairs.items():
        low, high = paired_interval(a, b, seed=seed)
        result[name] = {
            "difference": float(np.mean(a) - np.mean(b)),
            "interval": (low, high),
            "told_apart": not low <= 0 <= high,
        }
    return result
