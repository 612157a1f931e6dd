"""Evaluation on several benchmarks: one result each and an overview, resumed where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cruxtune.suite as suite
from cruxtune.errors import ConfigError, StoreError
from cruxtune.settings import build
from cruxtune.stage_settings import EvaluateSettings
from cruxtune.stages.evaluate import evaluate
from cruxtune.store import read_manifest, read_rows
from cruxtune.suite import evaluate_benchmarks


@pytest.fixture
def leaves(tmp_path: Path, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings for two small benchmarks and a tiny base model."""
    monkeypatch.chdir(tmp_path)
    for name, row in (("svamp", {"answer": "2"}), ("medqa", {"answer": "B", "choices": ["w", "x", "y", "z"]})):
        (tmp_path / "files" / name).mkdir(parents=True)
        rows = [{"id": f"{name}/test/{n}", "question": f"What is {n}?", **row} for n in range(5)]
        (tmp_path / "files" / name / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(tiny_checkpoint(tmp_path / "model", context=8192)),
        "dtype": "float64",
        "benchmarks": "medqa,svamp",
        "benchmarks_dir": str(tmp_path / "files"),
        "output": str(tmp_path / "out"),
        "shots": 1,
        "limit": 3,
        "samples": 2,
        "max_new_tokens": 8,
        "batch_size": 8,
        "draft_length": 0,
    }


def settings(leaves: dict[str, Any], **more: Any) -> EvaluateSettings:
    """Return the settings of a suite."""
    return build(EvaluateSettings, {**leaves, **more})


def test_each_benchmark_has_a_result_and_all_an_overview(leaves: dict[str, Any], tmp_path: Path) -> None:
    """The evaluate stage wrote each directory; the overview has their scores and mean, in the order asked for."""
    overview = evaluate_benchmarks(settings(leaves))
    assert list(overview["benchmarks"]) == ["medqa", "svamp"]
    assert json.loads((tmp_path / "out" / "overview.json").read_text())["mean"] == overview["mean"]
    for name, examples in (("medqa", "medical"), ("svamp", "word")):
        manifest = read_manifest(tmp_path / "out" / name)
        assert (manifest["stage"], manifest["complete"], manifest["rows"]) == ("evaluate", True, 9)
        assert manifest["identity"]["examples"] == overview["benchmarks"][name]["examples"] == examples
        greedy = [row["correct"] for row in read_rows(tmp_path / "out" / name) if row["temperature"] == 0]
        assert overview["benchmarks"][name]["pass@1"] == sum(greedy) / 3
    shares = [result["pass@1"] for result in overview["benchmarks"].values()]
    assert overview["mean"]["pass@1"] == sum(shares) / 2
    text = (tmp_path / "out" / "overview.md").read_text()
    assert "| MedQA (USMLE, 4 options) | 3 |" in text
    assert "first 3 problems" in text


def test_what_is_finished_is_not_done_again(
    leaves: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished suite loads no model; one that lacks a benchmark does that one only, and gives the same overview."""
    first = evaluate_benchmarks(settings(leaves))
    loads: list[Any] = []
    load_policy = suite.load_policy
    monkeypatch.setattr(suite, "load_policy", lambda *args: loads.append(args) or load_policy(*args))
    assert json.loads(json.dumps(evaluate_benchmarks(settings(leaves)))) == json.loads(json.dumps(first))
    assert loads == []
    shutil.rmtree(tmp_path / "out" / "svamp")
    before = (tmp_path / "out" / "medqa" / "manifest.json").stat().st_mtime_ns
    assert evaluate_benchmarks(settings(leaves))["benchmarks"] == first["benchmarks"]
    assert len(loads) == 1
    assert (tmp_path / "out" / "medqa" / "manifest.json").stat().st_mtime_ns == before


def test_other_settings_are_refused(leaves: dict[str, Any]) -> None:
    """As for any evaluation; another place of the same files is no other setting."""
    evaluate_benchmarks(settings(leaves, benchmarks="svamp"))
    shutil.move(leaves["benchmarks_dir"], "elsewhere")
    evaluate_benchmarks(settings(leaves, benchmarks="svamp", benchmarks_dir="elsewhere"))
    with pytest.raises(StoreError, match="max_new_tokens"):
        evaluate_benchmarks(settings(leaves, benchmarks="svamp", benchmarks_dir="elsewhere", max_new_tokens=9))


def test_what_is_missing_is_told_before_a_model_is_loaded(leaves: dict[str, Any], tmp_path: Path) -> None:
    """Files, and an output that another stage has written."""
    with pytest.raises(ConfigError, match=r"has no gsm8k/test.jsonl"):
        evaluate_benchmarks(settings(leaves, benchmarks="svamp,gsm8k", model="nowhere"))
    assert not (tmp_path / "out").exists()
    evaluate_benchmarks(settings(leaves, benchmarks="svamp"))
    with pytest.raises(StoreError, match="holds one stage's output"):
        evaluate_benchmarks(settings(leaves, output=str(tmp_path / "out" / "svamp"), model="nowhere"))


def test_the_stage_and_the_suite_keep_apart(leaves: dict[str, Any]) -> None:
    """Each says whose business the settings are; without either of the two there is nothing to do."""
    with pytest.raises(ConfigError, match="call evaluate_benchmarks"):
        evaluate(settings(leaves))
    alone = {name: value for name, value in leaves.items() if name not in ("benchmarks", "benchmarks_dir")}
    with pytest.raises(ConfigError, match="needs --benchmarks"):
        evaluate_benchmarks(settings(alone, problems="p.jsonl"))
    with pytest.raises(ConfigError, match="--benchmarks: either this or --problems"):
        settings(leaves, problems="p.jsonl")
    with pytest.raises(ConfigError, match="--benchmarks: There is no benchmark 'svmap'"):
        settings(leaves, benchmarks="svmap")
