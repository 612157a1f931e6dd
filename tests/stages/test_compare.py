"""Comparison of evaluations on disk: seeds, starts, and greedy and sampled ones of the same model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cruxtune.cells import cell_of
from cruxtune.errors import DataError
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
