"""Comparison of evaluations on disk: seeds, starts, and greedy and sampled ones of the same model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cruxtune.cells import cell_of
from cruxtune.errors import DataError
from cruxtune.rl_settings import RlSettings
from cruxtune.settings import build
from cruxtune.stage_settings import (
    AnnotateSettings,
    CompareSettings,
    EvaluateSettings,
    RespondSettings,
    TrainSettings,
)
from cruxtune.stages.annotate import annotate
from cruxtune.stages.compare import compare
from cruxtune.stages.evaluate import evaluate
from cruxtune.stages.respond import respond
from cruxtune.stages.train import train
from cruxtune.store import read_rows


def evaluated(world: Any, name: str, model: Path, **leaves: Any) -> Path:
    """Return the directory of an evaluation of a model."""
    path: Path = world.root / name
    evaluate(world.settings(EvaluateSettings, model=str(model), output=str(path), limit=12, **leaves))
    return path


def copies_of(model: Path, root: Path, count: int) -> list[Path]:
    """Return copies of a model."""
    return [Path(shutil.copytree(model, root / f"copy-{number}")) for number in range(count)]


def test_evaluations_of_trained_models(world: Any) -> None:
    """Seeds and costs come from what trained the models; greedy and sampled evaluations of one make one cell."""
    root = world.root
    respond(world.settings(RespondSettings, output=str(root / "responses"), limit=8))
    made = annotate(
        world.settings(AnnotateSettings, responses=str(root / "responses"), output=str(root / "annotations"))
    )
    paths = {"start": [evaluated(world, "start", world.model), evaluated(world, "more", world.model, samples=4)]}
    for seed in (1, 2):
        model = root / f"cft-{seed}"
        leaves = {"annotations": str(root / "annotations"), "output": str(model), "seed": seed, "probe": 2, "epochs": 1}
        done = train(world.settings(TrainSettings, method="cft", model=str(world.model), **leaves))
        assert done["accounting"]["tokens_computed"] >= done["accounting"]["tokens_trained"] > 0
        paths.setdefault("cft", []).append(evaluated(world, f"eval-{seed}", model, samples=4))
    found = cell_of(paths["start"], method="start", seed=None)
    greedy = list(read_rows(paths["start"][0]))
    assert found.greedy == [int(row["correct"]) for row in greedy]
    assert found.benchmark == "problems"
    assert found.training is None
    assert found.sampled
    assert found.sampled.samples == 4
    result = compare(CompareSettings(evaluations=paths, output=root / "out"))
    part = result["methods"]["cft"]["benchmarks"]["problems"]
    assert part["seeds"] == [1, 2]
    assert part["cost"]["annotation_tokens"] > made["accounting"]["tokens_computed"] > 0
    assert part["cost"]["compute"] == part["cost"]["annotation_tokens"] + part["cost"]["tokens_computed"]
    assert "eval_loss_other" in part["curves"]
    assert result["methods"]["start"]["benchmarks"]["problems"]["seeds"] == [None]
    # Of models that something else trained, one has no seed, and several of a name are its seeds.
    copies = [evaluated(world, f"eval-{place.name}", place, samples=4) for place in copies_of(world.model, root, 2)]
    result = compare(CompareSettings(evaluations={**paths, "other": copies}, output=root / "out"))
    assert result["methods"]["other"]["benchmarks"]["problems"]["seeds"] == [0, 1]
    result = compare(CompareSettings(evaluations={**paths, "other": copies[:1]}, output=root / "out"))
    assert result["methods"]["other"]["benchmarks"]["problems"]["seeds"] == [None]
    other = evaluated(world, "short", world.model, max_new_tokens=9, samples=4)
    with pytest.raises(DataError, match="max_new_tokens = 9"):
        compare(CompareSettings(evaluations={**paths, "short": [other]}, output=root / "out"))
    asked = evaluated(world, "asked", world.model, instruction="Be brief.", samples=4)
    with pytest.raises(DataError, match="instruction = Be brief"):
        compare(CompareSettings(evaluations={**paths, "asked": [asked]}, output=root / "out"))
    with pytest.raises(DataError, match="are evaluations of one model on one benchmark"):
        cell_of([paths["start"][1], other], method="start", seed=None)


@pytest.mark.slow
def test_models_of_grpo_have_their_compute(world: Any) -> None:
    """GRPO counts together with the training that it went on from and with its annotation; the start is free."""
    from cruxtune.stages.rl import rl

    root = world.root
    respond(world.settings(RespondSettings, output=str(root / "responses"), limit=8))
    annotate(world.settings(AnnotateSettings, responses=str(root / "responses"), output=str(root / "annotations")))
    leaves = {"annotations": str(root / "annotations"), "output": str(root / "cft"), "seed": 1, "epochs": 1}
    trained = train(world.settings(TrainSettings, method="cft", model=str(world.model), **leaves))["accounting"]
    given = {name: value for name, value in world.leaves.items() if name not in ("batch_size", "draft_length")}
    given |= {"method": "grpo", "generations": 4, "batch_size": 8, "max_new_tokens": 12, "steps": 2, "validation": 4}
    paths, rolled = {"start": [evaluated(world, "start", world.model)]}, {}
    for name, model in (("grpo", world.model), ("cft-grpo", root / "cft")):
        leaves = {"model": str(model), "output": root / name, "learning_rate": 1e-4, "seed": 3}
        rolled[name] = rl(build(RlSettings, {**given, **leaves}))["accounting"]
        paths[name] = [evaluated(world, f"eval-{name}", root / name)]
    result = compare(CompareSettings(evaluations=paths, output=root / "out"))
    parts = {name: method["benchmarks"]["problems"] for name, method in result["methods"].items()}
    assert {name: part["seeds"] for name, part in parts.items()} == {"start": [None], "grpo": [3], "cft-grpo": [3]}
    assert parts["start"]["cost"] is None
    alone, both = parts["grpo"]["cost"], parts["cft-grpo"]["cost"]
    assert alone["compute"] == rolled["grpo"]["tokens_computed"]
    assert both["tokens_computed"] == rolled["cft-grpo"]["tokens_computed"] + trained["tokens_computed"]
    assert both["steps"] == 2 + trained["steps"]
    direct = cell_of(evaluated(world, "eval-cft", root / "cft"), method="cft", seed=1, training_dir=root / "cft")
    assert direct.training
    assert both["annotation_tokens"] == direct.training.annotation_tokens
    assert both["annotation_tokens"]
    # A start that was made by a cold start is free as well, with GRPO from it alone.
    manifest = json.loads((root / "cft" / "manifest.json").read_text())
    manifest["facts"]["method"] = "gold"
    (root / "cft" / "manifest.json").write_text(json.dumps(manifest))
    again = compare(CompareSettings(evaluations={"cft-grpo": paths["cft-grpo"]}, output=root / "out"))
    cost = again["methods"]["cft-grpo"]["benchmarks"]["problems"]["cost"]
    assert cost["compute"] == rolled["cft-grpo"]["tokens_computed"]
