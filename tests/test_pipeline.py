"""The whole loop through the command line, uninterrupted and killed in every stage."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cruxtune.store import read_manifest, read_rows

ROOT = Path(__file__).parents[1]
JUDGE = "def judge(text, problem):\n    return sum(text.encode()) % 2 == 0\n"

# Runs the command line in a process that kills itself at a given moment of a given stage: a real SIGKILL, no race.
DRIVER = """
import os, signal, sys
from pathlib import Path

place, moment, *arguments = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "between-groups":
    from cruxtune.store import DatasetWriter
    write = DatasetWriter.write
    def dying(self, group, rows, accounting):
        if self.path.name == place and group == 1:
            die()
        write(self, group, rows, accounting)
    DatasetWriter.write = dying
elif moment == "between-tables":
    import cruxtune.store as store
    write_parquet = store._write_parquet
    def dying(table, path):
        if path.parent.parent.name == place and path.name == "part-00001.parquet" and path.parent.name == "data":
            die()
        write_parquet(table, path)
    store._write_parquet = dying
elif moment in ("after-checkpoint", "inside-checkpoint"):
    from transformers import Trainer, TrainerState
    save, to_json = Trainer._save_checkpoint, TrainerState.save_to_json
    def dying(self, *args, **options):
        here = Path(self.args.output_dir).parent.name == place
        if here and moment == "inside-checkpoint" and self.state.global_step == 2:
            TrainerState.save_to_json = lambda *_: die()
        save(self, *args, **options)
        if here and moment == "after-checkpoint":
            die()
    Trainer._save_checkpoint = dying

sys.argv = ["cruxtune", *arguments]
from cruxtune.cli import main
main()
"""

KILLS = [
    ("start", "after-checkpoint"),
    ("start", "inside-checkpoint"),
    ("responses", "between-groups"),
    ("annotations", "between-tables"),
    ("sft", "after-checkpoint"),
    ("cft", "inside-checkpoint"),
    ("cft", "after-checkpoint"),
    ("start", "between-groups"),
    ("cft", "between-groups"),
]


@pytest.fixture
def arguments(tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> list[str]:
    """The small recipe on a tiny model in float64, with a verifier that finds about half of all texts correct."""
    model = tiny_checkpoint(tmp_path / "model")
    (tmp_path / "judge_even.py").write_text(JUDGE)
    overrides = {
        "model.model": model,
        "model.dtype": "float64",
        "problems.kind": "custom",
        "verifier.verifier": "judge_even:judge",
        "splits": "{coldstart: 16, train: 12, heldout: 8}",
        "decoding": "{max_new_tokens: 16}",
        "engine": "{batch_size: 4, draft_length: 2}",
        "coldstart": "{learning_rate: 1.0e-6, batch_size: 4, trainer: {save_steps: 1}}",
        "respond": "{group_size: 4}",
        "annotate": "{group_size: 2}",
        "evaluate": "{group_size: 4}",
        "train.sft.trainer": "{save_steps: 1}",
        "train.cft.trainer": "{save_steps: 1}",
        "train.sft.batch_size": 2,
        "train.cft.batch_size": 2,
    }
    sets = [part for name, value in overrides.items() for part in ("--set", f"{name}={value}")]
    return ["run", str(ROOT / "recipes" / "small.yaml"), *sets]


def run(arguments: list[str], directory: Path, kill: tuple[str, str] = ("", "")) -> subprocess.CompletedProcess[str]:
    """Run the command line in `directory`, killed at the moment that `kill` names."""
    command = [sys.executable, "-c", DRIVER, *kill, *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_run_killed_in_every_stage_equals_one_that_was_not(tmp_path: Path, arguments: list[str]) -> None:
    """SIGKILL in each stage, between the tables of a group and inside a checkpoint: the same datasets and weights."""
    whole = run([*arguments, "--output", "whole"], tmp_path)
    assert whole.returncode == 0, whole.stderr
    for kill in KILLS:
        killed = run([*arguments, "--output", "broken"], tmp_path, kill)
        assert killed.returncode == -signal.SIGKILL, (kill, killed.stderr)
    finished = run([*arguments, "--output", "broken"], tmp_path)
    assert finished.returncode == 0, finished.stderr
    one, other = tmp_path / "whole", tmp_path / "broken"
    tables = [("responses", "data"), ("annotations", "data"), ("annotations", "rollouts")]
    tables += [(f"evaluations/{name}", "data") for name in ("start", "sft", "cft")]
    for dataset, table in tables:
        rows = list(read_rows(one / dataset, table))
        assert rows
        assert rows == list(read_rows(other / dataset, table)), dataset
        manifests = [read_manifest(root / dataset) for root in (one, other)]
        costs = [{**manifest["accounting"], "seconds": 0} for manifest in manifests]
        assert costs[0] == costs[1]
        assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]
    for name in ("start", "sft", "cft"):
        weights = [(root / "models" / name / "model.safetensors").read_bytes() for root in (one, other)]
        assert weights[0] == weights[1], name
        logs = [(root / "models" / name / "training_log.jsonl").read_text() for root in (one, other)]
        assert logs[0] == logs[1]
    comparisons = [json.loads((root / "comparison" / "comparison.json").read_text()) for root in (one, other)]
    assert comparisons[0]["pairs"] == comparisons[1]["pairs"]
    # Seconds differ, and so may other costs of what was interrupted.
    scores = [
        {name: one["benchmarks"]["heldout"]["metrics"] for name, one in found["methods"].items()}
        for found in comparisons
    ]
    assert scores[0] == scores[1]
    assert (other / "report.html").stat().st_size > 1000


def test_a_finished_run_does_nothing_again(tmp_path: Path, arguments: list[str]) -> None:
    """The second run of a finished recipe writes no shard, trains no model and says the same."""
    first = run([*arguments, "--output", "out"], tmp_path)
    assert first.returncode == 0, first.stderr
    watched = [*(tmp_path / "out").rglob("*.parquet"), *(tmp_path / "out").rglob("*.safetensors")]
    assert len(watched) > 10
    before = {path: path.stat().st_mtime_ns for path in watched}
    second = run([*arguments, "--output", "out"], tmp_path)
    assert second.returncode == 0, second.stderr
    assert before == {path: path.stat().st_mtime_ns for path in watched}
    assert first.stdout == second.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["models"]) == {"start", "sft", "cft"}
    assert summary["models"]["cft"]["tokens_trained"] < summary["models"]["sft"]["tokens_trained"]
    assert summary["heldout_problems"] == 8
    assert 0 < summary["critical_share"] < 1


def test_other_settings_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    """A run continued with another setting names it and both values, on one line, and changes nothing."""
    first = run([*arguments, "--output", "out"], tmp_path, ("responses", "between-groups"))
    assert first.returncode == -signal.SIGKILL
    changed = run([*arguments, "--output", "out", "--set", "decoding.max_new_tokens=20"], tmp_path)
    assert changed.returncode == 2
    message = changed.stderr.strip().splitlines()[-1]
    assert "max_new_tokens = 16" in message
    assert "20" in message
    assert "--overwrite" in message
    assert "Traceback" not in changed.stderr


def shares_no_question(root: Path) -> None:
    """No question stands in two splits."""
    seen: dict[str, str] = {}
    for name in ("coldstart", "train", "heldout"):
        for line in (root / "problems" / f"{name}.jsonl").read_text().splitlines():
            question = json.loads(line)["question"]
            assert question not in seen, (name, seen.get(question))
            seen[question] = name


@pytest.mark.parametrize("separate", [False, True])
def test_splits_share_no_question(tmp_path: Path, separate: bool) -> None:
    """Cold start, training and held-out problems are apart, drawn from one source or from two."""
    from cruxtune.options import nested_values
    from cruxtune.pipeline import prepare_problems
    from cruxtune.recipe import read_recipe

    values: dict[str, Any] = {"output": str(tmp_path / "out")}
    if separate:
        values["heldout"] = {"problems": "gym:chain_sum", "size": 300, "gym": {"min_terms": 2, "max_terms": 2}}
    recipe = read_recipe(ROOT / "recipes" / "small.yaml", nested_values([]) | values)
    manifest = prepare_problems(recipe)
    assert manifest["rows"] == {"coldstart": 192, "train": 24, "heldout": 24}
    shares_no_question(tmp_path / "out")


def test_a_recipe_selects_tokens_and_trains_on_them(
    tmp_path: Path, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of `train` with a method of `select` has a step of its own for that, whose output it is trained on."""
    import yaml

    from cruxtune.pipeline import run as run_recipe
    from cruxtune.recipe import read_recipe

    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge_even.py").write_text(JUDGE)
    recipe = {
        "output": "out",
        "model": {"model": str(tiny_checkpoint(tmp_path / "model")), "dtype": "float64"},
        "problems": {"problems": "gym:chain_sum", "size": 60, "kind": "custom"},
        "splits": {"train": 10, "heldout": 3},
        "verifier": {"verifier": "judge_even:judge"},
        "decoding": {"max_new_tokens": 16},
        "engine": {"batch_size": 8, "draft_length": 2},
        "train": {
            "surprising": {"method": "entropy", "share": 0.5, "epochs": 1, "batch_size": 2},
            "cft": {"method": "cft", "epochs": 1, "batch_size": 2},
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    done = run_recipe(read_recipe(tmp_path / "recipe.yaml", {})).manifests
    names = ["problems", "respond", "annotate", "select surprising", "train surprising", "train cft"]
    assert list(done)[:6] == names
    chosen, trained, cft = (done[name] for name in names[3:])
    rows = list(read_rows(tmp_path / "out" / "selections" / "surprising"))
    kept = [sum(weight > 0 for weight in row["weights"]) for row in rows]
    assert kept == [max(1, round(0.5 * len(row["response_ids"]))) for row in rows]
    assert trained["identity"]["selection"] == chosen["fingerprint"]
    assert trained["facts"]["method"] == "entropy"
    assert trained["facts"]["tokens_per_epoch"] == sum(kept)
    assert trained["facts"]["rows"] == cft["facts"]["rows"] == len(rows) > 2
    assert {"start", "surprising", "cft"} == {name.removeprefix("evaluate ") for name in done if "evaluate" in name}
