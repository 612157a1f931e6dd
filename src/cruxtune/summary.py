"""What a whole run came to: summary.json for programs, report.html for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cruxtune.accounting import cut_off
from cruxtune.models import load_tokenizer
from cruxtune.prompts import Renderer
from cruxtune.recipe import Recipe
from cruxtune.records import Annotation
from cruxtune.report.html import write_report
from cruxtune.settings import ModelSettings
from cruxtune.store import library_versions, read_rows, write_atomic


def write_summary(
    recipe: Recipe, manifests: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float], *, command: str
) -> dict[str, Any]:
    """Write summary.json and report.html into the run's directory and return the summary."""
    summary = summarise(recipe, manifests, seconds, command=command)
    write_atomic(recipe.output / "summary.json", (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())
    # The annotations are in the tokens of the model that annotated.
    model = ModelSettings.model_validate(manifests["annotate"]["settings"]["model"])
    renderer = Renderer(load_tokenizer(model), recipe.prompt)
    annotations = [Annotation.from_row(row) for row in read_rows(recipe.output / "annotations")]
    write_report(recipe.output / "report.html", summary, annotations, renderer.pieces)
    return summary


def _curve(model: Path) -> list[dict[str, float]]:
    """Return what was measured while a model trained, evaluation by evaluation."""
    entries = map(json.loads, (model / "training_log.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in entry.items() if name == "step" or name.startswith("eval_")}
        for entry in entries
        if any(name.startswith("eval_") for name in entry)
    ]


def summarise(
    recipe: Recipe, manifests: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float], *, command: str
) -> dict[str, Any]:
    """Return the numbers of a run, from the manifests and the wall-clock seconds of its steps.

    `tokens_trained` counts tokens with loss over all steps, since the common start. `curves` has what was measured of
    each model while it trained, if anything was.
    """
    costs = [manifest["accounting"] for manifest in manifests.values() if "accounting" in manifest]
    annotated, compared = manifests["annotate"]["accounting"], manifests["compare"]
    done = {name: manifests[f"train {name}"] for name in recipe.train}
    done |= {name: manifests[f"rl {name}"] for name in recipe.rl}
    trained = {name: manifest["accounting"]["tokens_trained"] for name, manifest in done.items()}
    (task, facts), *_ = compared["benchmarks"].items()
    models = {name: model["benchmarks"][task]["metrics"] for name, model in compared["methods"].items()}
    differences = compared["pairs"].get("cft - sft")
    benchmarks = {
        name.removeprefix("compare on "): {key: found[key] for key in ("benchmarks", "methods", "pairs")}
        for name, found in manifests.items()
        if name.startswith("compare on ")
    }
    return {
        "model": recipe.model.model,
        "task": recipe.problems.problems,
        "command": command,
        "seed": recipe.seed,
        "annotated_responses": int(annotated["responses"]),
        "critical_share": annotated["critical_tokens"] / max(1, annotated["known_tokens"]),
        **_apart(annotated),
        "rollouts": {name: int(annotated[f"rollouts_{name}"]) for name in ("wanted", "made", "skipped")},
        "heldout_problems": facts["problems"],
        "samples": facts["samples"],
        "models": {
            name: {**_scores(metrics), "tokens_trained": trained.get(name, 0)} for name, metrics in models.items()
        },
        "curves": {name: found for name in done if (found := _curve(recipe.output / "models" / name))},
        **({"benchmarks": benchmarks} if benchmarks else {}),
        **({"cft_minus_sft": _named(differences["benchmarks"][task])} if differences else {}),
        "seconds": round(sum(seconds.values()), 1),
        "seconds_by_stage": dict(seconds),
        "peak_memory_gib": max(manifest.get("peak_memory_gib", 0.0) for manifest in manifests.values()),
        "fallback_share": manifests["respond"]["shares"]["fallback_share"],
        "verdicts": int(sum(cost.get("verdicts", 0) for cost in costs)),
        "verdicts_cut_off": sum(map(cut_off, costs)),
        "versions": library_versions(),
    }


def _scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headline scores of a model; pass@N is any of its N samples."""
    scores: dict[str, Any] = {}
    for name, entry in _named(metrics).items():
        scores |= {name: entry["value"], f"{name}_interval": entry["interval"]}
    return {**scores, "entropy": metrics["entropy"]["value"], "length": metrics["length"]["value"]}


def _named(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of pass@1 (greedy), pass@N and pass@1 of samples by these names."""
    names = {"pass@1": "pass@1", "pass@1_sampled": "pass@1_sampled"}
    names["pass@N"] = next((name for name in metrics if name.startswith("any@")), "pass@1_sampled")
    return {name: metrics[metric] for name, metric in names.items() if metric in metrics}


def _apart(annotated: Mapping[str, float]) -> dict[str, Any]:
    """Return what annotation reports apart: undecided tokens, and tokens that are critical together."""
    found: dict[str, Any] = {}
    if undecided := annotated.get("undecided_tokens"):
        found["undecided_tokens"] = int(undecided)
    if "joint_sets" in annotated:
        names = {"asked": "joint_sets_asked", "critical": "joint_sets_critical"}
        found["joint"] = {name: int(annotated[count]) for name, count in names.items()}
    return found
