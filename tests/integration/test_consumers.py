"""Exports through the consumers' own code: which tokens carry loss there, one by one.

Each consumer runs in the environment that `scripts/consumers` makes (`make test-integration`), in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cruxtune.exporters import CONSUMERS
from cruxtune.masks import TrainingRow, training_row
from cruxtune.stages.export import write_rows

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("CONSUMERS", ROOT / ".consumers")) / "bin" / "python"
END = 258

pytestmark = pytest.mark.integration


def sequence(prompt: str, response: str, weights: list[float]) -> TrainingRow:
    """A row of byte ids; the response ends with <|end|>, whose weight is the last."""
    return training_row(list(prompt.encode()), [*response.encode(), END], weights)


ROWS = [
    sequence("Question: 1 + 1?\nAnswer:", " It is 2.", [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]),
    # A trained token right before an end of sequence that is not: ms-swift's own templates would train that one too.
    sequence("Q: 7?", " 7", [1, 1, 0]),
    sequence("Q: and the end?", " é", [0, 1, 0, 1]),
]
FRACTIONS = [sequence("Q: 1 + 1?", " It is 2.", [0, 0.25, 0, 0, 1, 0, 0, 0.5, 0, 1]), *ROWS]


def consumed(name: str, rows: list[TrainingRow], directory: Path, model: Path) -> list[TrainingRow]:
    """What the consumer makes of the rows."""
    if not PYTHON.exists():
        pytest.skip("the consumers' environment is not there; `make test-integration` makes it")
    output = directory / "export"
    output.mkdir()
    write_rows(name, output, rows)
    found = directory / "found.jsonl"
    script = Path(__file__).with_name("consume.py")
    outside = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(directory / "hub"),
        "CUDA_VISIBLE_DEVICES": "",
        "DISABLE_VERSION_CHECK": "1",
        "PYTHONPATH": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [PYTHON, script, name, output, model, found],
        env={**os.environ, **outside},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [TrainingRow(ids, weights) for ids, weights in map(json.loads, found.read_text().splitlines())]


def ordered(rows: list[TrainingRow]) -> list[TrainingRow]:
    """Rows in an order of their own: some consumers shuffle or sort."""
    return sorted(rows, key=lambda row: row.input_ids)


@pytest.mark.parametrize("name", [name for name in CONSUMERS if name != "trl"])
def test_the_consumer_trains_exactly_the_chosen_tokens(
    name: str, tmp_path: Path, tiny_checkpoint: Callable[..., Path]
) -> None:
    """Token by token, its data path gives the rows' ids with loss where the weights say, and only there."""
    model = tiny_checkpoint(tmp_path / "model", template="chatml")
    found = consumed(name, ROWS, tmp_path, model)
    assert ordered(found) == ordered(ROWS)
    assert sum(row.trained for row in found) == 5


@pytest.mark.parametrize("name", [name for name, consumer in CONSUMERS.items() if consumer.fractional])
def test_fractions_reach_the_loss(name: str, tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    """Where there is room for weights, they arrive as they are."""
    model = tiny_checkpoint(tmp_path / "model", template="chatml")
    assert ordered(consumed(name, FRACTIONS, tmp_path, model)) == ordered(FRACTIONS)
