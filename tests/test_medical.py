"""Medical questions with options, from problems to comparison: the recipe on a tiny model."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cruxtune.models import quiet_libraries
from cruxtune.pipeline import run
from cruxtune.recipe import plan, read_recipe
from cruxtune.runner import open_verifier
from cruxtune.stage_settings import EvaluateSettings
from cruxtune.stages import annotate, evaluate, respond
from cruxtune.store import read_manifest, read_rows
from cruxtune.summary import summarise

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "pubmedqa-smollm2.yaml"
FILES = Path(os.environ.get("CRUXTUNE_BENCHMARKS", ROOT.parent / "shared" / "benchmarks"))
WANTED = ("pubmedqa/train", "pubmedqa/test", "medqa/test", "mmlu_medical/test")


def made_up(directory: Path) -> Path:
    """Files of made-up questions in the layout of the real ones."""
    for name in WANTED:
        words = name.startswith("pubmedqa")
        choices = ["yes", "no", "maybe"] if words else ["rest", "water", "light", "heat"]
        path = directory / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "id": f"{name}/{n}",
                "question": f"{name.replace('/', ' ')}: does case {n} need it?",
                "choices": choices,
                "answer": choices[n % 3] if words else string.ascii_uppercase[n % 4],
                "answer_index": n % (3 if words else 4),
            }
            for n in range(24)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture
def model(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any]) -> Path:
    """A tiny model that says little but a letter and what may stand beside it."""
    made = tiny_model("llama", context=8192, eos=[258])
    made.get_output_embeddings().weight.data[list(b"A ()\n")] *= 3
    with quiet_libraries():
        made.save_pretrained(tmp_path / "model")
        tiny_tokenizer("chatml").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True], ids=["made-up", "files"])
def test_the_recipe_runs_from_problems_to_comparisons(
    real: bool, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options are judged by the choice verifier in every stage; each of the three benchmarks has its comparison."""
    if real:
        for name in WANTED:
            if not (FILES / f"{name}.jsonl").is_file():
                pytest.skip(f"{name}.jsonl is not in {FILES} (set CRUXTUNE_BENCHMARKS to the benchmarks' directory)")
    files = FILES if real else made_up(tmp_path / "files")
    overrides = {
        "output": str(tmp_path / "out"),
        "model": {"model": str(model), "dtype": "float64"},
        "benchmarks_dir": str(files),
        "decoding": {"max_new_tokens": 40},
        "engine": {"batch_size": 8, "draft_length": 4},
        "splits": {"train": 12, "heldout": 3},
        "annotate": {"limit": 3},
    }
    recipe = read_recipe(RECIPE, overrides)
    # One verifier for all stages: its processes take longer to start than all the rest.
    with open_verifier(recipe.verifier) as verifier:
        for stage in (annotate, evaluate, respond):
            monkeypatch.setattr(stage, "open_verifier", lambda settings: nullcontext(verifier))
        done = run(recipe, limit=12)
    responses = list(read_rows(recipe.output / "responses"))
    assert {row["kind"] for row in responses} == {"choice"}
    # Nothing but an option's letter is ever extracted, in any stage.
    letters = {*"ABC", None}
    assert {row["extracted"] for row in responses} <= letters
    assert {row["extracted"] for row in read_rows(recipe.output / "annotations", "rollouts")} <= letters
    assert {row["extracted"] for row in read_rows(recipe.output / "evaluations" / "cft")} <= letters
    assert "| cft - sft |" in (recipe.output / "comparison" / "comparison.md").read_text()
    assert 0 < sum(row["correct"] for row in responses) < len(responses)
    assert done.manifests["annotate"]["accounting"]["critical_tokens"] > 0
    summary = summarise(recipe, done.manifests, done.seconds, command="test")
    assert summary["heldout_problems"] == 3
    assert list(summary["benchmarks"]) == ["medqa", "mmlu_medical"]
    for name, found in summary["benchmarks"].items():
        assert list(found["methods"]) == ["start", "sft", "cft"]
        assert found["benchmarks"][name]["problems"] == 12
        where = recipe.output / "benchmarks" / name
        assert "| cft - sft |" in (where / "comparison.md").read_text()
        assert {row["id"].partition("/")[0] for row in read_rows(where / "cft")} == {name}
        assert read_manifest(where / "cft")["identity"]["limit"] == 12


def test_a_benchmark_is_evaluated_as_the_suite_does(tmp_path: Path) -> None:
    """Its own few-shot examples, its test split and its files, after the problems that are held out."""
    recipe = read_recipe(RECIPE, {"prompt": {"template": "plain", "examples": "abstract"}, "benchmarks_dir": "files"})
    steps = {step.name: step.settings for step in plan(recipe)}
    own, other = steps["evaluate cft"], steps["evaluate cft on medqa"]
    assert isinstance(own, EvaluateSettings)
    assert isinstance(other, EvaluateSettings)
    assert other.problems
    assert (other.problems.problems, other.problems.split) == ("benchmark:medqa", "test")
    assert (own.prompt.examples, other.prompt.examples) == ("abstract", "medical")
    assert other.files.benchmarks_dir == Path("files")
    assert other.model == own.model
    assert list(steps)[-3:] == ["compare", "compare on medqa", "compare on mmlu_medical"]
