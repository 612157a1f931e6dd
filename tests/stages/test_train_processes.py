"""Two processes train as one does: the same rows in every step, the same losses and weights. On the CPU, by gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cruxtune.stage_settings import AnnotateSettings, RespondSettings, SelectSettings, TrainSettings
from cruxtune.store import read_manifest, read_rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LAUNCHER = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu-2.yaml")
COMMON: dict[str, Any] = {"device": "cpu", "dtype": "float64", "epochs": 2, "batch_size": 4, "learning_rate": 3e-3}
COMMON["limit"] = 11
SAVING = {"save_steps": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "small": {"micro_batch_size": 1},
    "grouped": {"trainer": {"train_sampling_strategy": "group_by_length"}, "micro_batch_size": 1},
    "packed": {"packing": 160},
    "adapter": {"lora": True, "lora_rank": 4, "padding_free": True},
    "validated": {"validation": 5, "evaluate_every": 2, "probe": 3},
    "one-problem": {"validation": 1, "patience": 2, "evaluate_every": 1, "learning_rate": 1e-12},
    "resumed": {"validation": 0.25, "evaluate_every": 1, "probe": 2, "trainer": SAVING, "fails": "save"},
}
"""What is trained by one process and by two."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_world: Callable[[Path], Any]) -> Any:
    """A world with a selection of fractional weights, whose rows two processes cannot share evenly."""
    from cruxtune.stages.annotate import annotate
    from cruxtune.stages.respond import respond
    from cruxtune.stages.select import select

    root = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        world = make_world(root)
        respond(world.settings(RespondSettings, output=root / "responses"))
        more = {"responses": root / "responses", "every_alternative": True}
        annotate(world.settings(AnnotateSettings, output=root / "annotations", **more))
        more = {"annotations": root / "annotations", "method": "criticality"}
        select(world.settings(SelectSettings, output=root / "selection", **more))
    rows = list(read_rows(root / "selection"))
    assert len(rows) > COMMON["limit"]
    assert {weight for row in rows for weight in row["weights"]} == {0.0, 0.5, 1.0}
    return world


def launched(made: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start two processes in the world's directory, and wait for them."""
    paths = os.pathsep.join([str(ROOT / "src"), str(made.root)])
    command = [*LAUNCHER[:-1], str(ROOT / LAUNCHER[-1]), *arguments]
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, cwd=made.root, env=environment, capture_output=True, text=True, timeout=240)


def leaves_of(made: Any, output: Path, variant: dict[str, Any]) -> dict[str, Any]:
    """The settings of a training."""
    return {
        "selection": str(made.root / "selection"),
        "model": str(made.model),
        "output": str(output),
        **COMMON,
        **variant,
    }


def alone(made: Any, output: Path, variant: dict[str, Any]) -> dict[str, Any]:
    """Train in this process."""
    from cruxtune.settings import build
    from cruxtune.stages.train import train

    leaves = leaves_of(made, output, variant)
    leaves.pop("fails", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.root)
        return train(build(TrainSettings, leaves))


def log_of(output: Path) -> list[dict[str, float]]:
    """Every entry of a training log, but for the part of an epoch, in which blank rows count."""
    entries = [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "epoch"} for entry in entries]


def same_training(one: Path, two: Path, name: str) -> None:
    """The logs agree to 1e-4, the weights to 1e-6 of their largest.

    Parts of the model compute in float32 whatever its dtype, and round otherwise with other threads and batches; Adam
    magnifies that. A row lost or counted twice moves a gradient by more than 1e-2 and a weight by about 1e-3.
    """
    from safetensors.torch import load_file

    logs = log_of(one), log_of(two)
    assert len(logs[0]) == len(logs[1]) > 3, name
    for mine, theirs in zip(*logs, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4), name
    file = next(one.glob("*.safetensors")).name
    weights = load_file(one / file), load_file(two / file)
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert (value - weights[1][key]).abs().max() <= 1e-6 * value.abs().max(), (name, key)


def equal(one: Path, two: Path, name: str) -> None:
    """Logs and weights agree, what manifests say is the same, and so are the files."""
    same_training(one, two, name)
    manifests = read_manifest(one), read_manifest(two)
    for entry in ("identity", "facts", "base_model"):
        assert manifests[0][entry] == manifests[1][entry], (name, entry)
    found = [{**manifest.get("validation", {}), "loss": None} for manifest in manifests]  # the loss is in the log
    assert found[0] == found[1], name
    counts = [{key: manifest["accounting"][key] for key in ("steps", "tokens_trained")} for manifest in manifests]
    assert counts[0] == counts[1], name
    assert [manifest["accounting"]["processes"] for manifest in manifests] == [1, 2]
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir()), name


def test_the_command_on_two_processes_equals_one(made: Any, tmp_path: Path) -> None:
    """`accelerate launch … -m cruxtune train`: every step has the loss of one process; one of the two prints."""
    alone(made, tmp_path / "one", {})
    flags = f"--selection selection --output {tmp_path / 'two'} --device cpu --dtype float64 --epochs 2"
    flags += f" --model {made.model} --batch-size 4 --learning-rate 3e-3 --limit 11"
    done = launched(made, "-m", "cruxtune", "train", *flags.split())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "two")]
    assert done.stderr.count("trained tokens an epoch") == 1
    equal(tmp_path / "one", tmp_path / "two", "command")


def test_what_is_trained_on_two_processes_equals_one(made: Any, tmp_path: Path) -> None:
    """Accumulation, length groups, packing, adapters, validation, the probe, resuming: all as with one process."""
    asked = [leaves_of(made, tmp_path / "two" / name, variant) for name, variant in VARIANTS.items()]
    broken = leaves_of(made, tmp_path / "two" / "broken", {"fails": "load"})
    moved = leaves_of(made, tmp_path / "two" / "moved", {**VARIANTS["resumed"], "fails": "stop"})
    (tmp_path / "two").mkdir()
    (tmp_path / "asked.json").write_text(json.dumps([broken, moved, *asked]))
    done = launched(made, str(Path(__file__).with_name("many.py")), str(tmp_path / "asked.json"))
    assert done.returncode == 0, done.stderr
    if sys.platform == "linux":
        # Threads of the connection that outlive it abort a process now and then when it ends.
        threads = [json.loads((made.root / f"threads.{process}.json").read_text()) for process in (0, 1)]
        assert all(threads)
        assert not [name for some in threads for name in some if "gloo" in name]
    for name, variant in VARIANTS.items():
        alone(made, tmp_path / "one" / name, variant)
        equal(tmp_path / "one" / name, tmp_path / "two" / name, name)
    assert not read_manifest(tmp_path / "two" / "moved")["complete"]
    alone(made, tmp_path / "two" / "moved", VARIANTS["resumed"])
    same_training(tmp_path / "one" / "resumed", tmp_path / "two" / "moved", "moved")
    notes = [(tmp_path / "two" / f"broken.{process}.txt").read_text() for process in (0, 1)]
    assert notes == ["ElsewhereError: process 1 failed, and says why", "OSError: no room on this disk"]
    for name in ("resumed", "moved"):
        notes = [(tmp_path / "two" / f"{name}.{process}.txt").read_text() for process in (0, 1)]
        assert notes == ["Interrupted: ", "Interrupted: "]


def test_a_process_that_dies_ends_the_training(made: Any, tmp_path: Path) -> None:
    """The other one does not wait for it."""
    (tmp_path / "asked.json").write_text(json.dumps([leaves_of(made, tmp_path / "out", {"fails": "step"})]))
    done = launched(made, str(Path(__file__).with_name("many.py")), str(tmp_path / "asked.json"))
    assert done.returncode != 0
    assert "exitcode  : 7" in done.stderr
    assert not read_manifest(tmp_path / "out")["complete"]
