"""Cells of evaluations and trainings that were written by hand, every field of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cruxtune.cells import Cell, cell_of
from cruxtune.records import EVALUATION_SCHEMA
from cruxtune.store import FORMAT


def manifest(path: Path, stage: str, **values: Any) -> Path:
    """Write a finished manifest, and return its directory."""
    path.mkdir(parents=True, exist_ok=True)
    content = {
        "format": FORMAT,
        "stage": stage,
        "complete": True,
        "identity": {},
        "settings": {},
        "facts": {},
        **values,
    }
    (path / "manifest.json").write_text(json.dumps(content))
    return path


def row(name: str, sample: int, text: str, answer: str | None, **values: Any) -> dict[str, Any]:
    """Return a response; it is right where the answer is 7, and sample −1 is the greedy one."""
    return {
        "id": name,
        "sample": max(sample, 0),
        "temperature": 0.0 if sample < 0 else 1.0,
        "response_ids": [1],
        "text": text,
        "finish_reason": "stop",
        "correct": answer == "7",
        "extracted": answer,
        "reason": "equal" if answer == "7" else "different",
        "logprob": -1.5,
        "entropy": 0.25,
        "length": 4,
        **values,
    }


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Two problems, each greedily and with four samples."""
    path = manifest(
        tmp_path / "eval",
        "evaluate",
        identity={"samples": 4, "problems": "abc", "temperature": 1.0, "seed": 3},
        settings={"problems": {"problems": "gym:chain_sum"}},
        accounting={"seconds": 2.5},
    )
    rows = [
        row("a", -1, "3 + 4 = 7", "7", logprob=-0.5, entropy=0.125, length=6),
        row("a", 0, "3 + 4 = 7", "7", length=4),
        row("a", 1, "3+4 = 7", "7", length=6, entropy=0.5),
        row("a", 2, "4 + 3 = 7", "7", length=5),
        row("a", 3, "3 + 4 = 8", "8", finish_reason="length", length=9, entropy=1.0),
        row("b", -1, "5", None, finish_reason="loop", reason="time-out", length=2),
        row("b", 0, "9", "9", reason="memory", finish_reason="loop"),
        row("b", 1, "9.0", "9.0", reason="crash"),
        row("b", 2, "none", None, reason="time-out"),
        row("b", 3, "2 + 5 = 7", "7"),
    ]
    (path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=EVALUATION_SCHEMA), path / "data" / "part-00000.parquet")
    return path


def test_a_cell_of_an_evaluation_by_hand(evaluation: Path) -> None:
    """Correct solutions alone count as distinct; a loop is cut off as a limit is; wrong answers have labels."""
    found = cell_of(evaluation, method="start", seed=None)
    assert (found.benchmark, found.problems, found.training) == ("chain_sum", ["a", "b"], None)
    assert (found.greedy, found.length) == ([1, 0], [6, 2])
    assert (found.truncated, found.time_out) == ([0, 1], [0, 1])
    assert (found.greedy_entropy, found.greedy_logprob) == ([0.125, 0.25], [-0.5, -1.5])
    assert found.seconds == {"evaluate": 2.5}
    assert found.conditions["samples"] == 4
    some = found.sampled
    assert some
    assert some.answers == [[0, 0, 0, 1], [1, 1, -1, 0]]
    # "3 + 4" and "3+4" are one path and two texts; the wrong "3 + 4 = 8" and what is no solution of "b" are neither.
    assert (some.distinct_paths, some.distinct_texts) == ([2, 1], [3, 1])
    assert some.entropy == [0.5, 0.25]
    assert some.length == [6.0, 4.0]
    assert (some.truncated, some.time_out) == ([1, 1], [0, 3])
    # a: shares of 3/4 and 1/4; b: 2/4, 1/4 and, without an answer, 1/4.
    assert some.answer_entropy == pytest.approx([0.5623, 1.0397], abs=1e-4)
    assert all(0 < low <= high <= 1 for low, high in zip(some.distinct_1, some.distinct_2, strict=True))


@pytest.mark.parametrize(
    ("method", "selection", "annotated"),
    [
        ("cft", None, 900),
        ("sft", None, 0),
        ("numeric", {"method": "numeric"}, 0),
        ("entropy", {"method": "entropy"}, 900),
        ("all", {"method": "all"}, 0),
        ("random", {"method": "random"}, 900),
        ("attention", {"method": "attention"}, 900),
        ("attention", {"method": "attention", "share": 0.1}, 0),
        ("random", {"method": "random", "share": 0.1}, 0),
        ("entropy", {"method": "entropy", "share": 0.1}, 900),
    ],
)
def test_methods_are_charged_for_the_annotation_that_they_need(
    evaluation: Path, method: str, selection: dict[str, Any] | None, annotated: int
) -> None:
    """Digits need none, nor does a share that is drawn; as many as are critical do, and entropies come from it."""
    root = evaluation.parent
    responses = manifest(root / "responses", "respond", accounting={"tokens_computed": 100, "seconds": 1.0})
    annotations = manifest(
        root / "annotations",
        "annotate",
        settings={"responses": str(responses)},
        accounting={"tokens_computed": 900, "seconds": 9.0},
    )
    given: dict[str, Any] = {"learning_rate": 1e-5, "low_rank": {}, "annotations": str(annotations)}
    if selection:
        given = given | {
            "annotations": None,
            "selection": str(
                manifest(root / "selection", "select", settings={**selection, "annotations": str(annotations)})
            ),
        }
    model = manifest(
        root / "model",
        "train",
        settings=given,
        facts={"method": method, "tokens_per_epoch": 10, "response_tokens_per_epoch": 40},
        accounting={"seconds": 5.0, "steps": 3, "tokens_trained": 20, "tokens_computed": 60},
    )
    (model / "training_log.jsonl").write_text('{"step": 0, "eval_loss_other": 0.5}\n{"step": 3, "loss": 0.25}\n')
    found: Cell = cell_of(evaluation, method=method, seed=1, training_dir=model)
    training = found.training
    assert training
    assert (training.respond_tokens, training.annotate_tokens) == (100, annotated)
    assert training.compute == 100 + annotated + 60
    assert (training.steps, training.tokens_trained, training.share_trained) == (3, 20, 0.25)
    assert training.curves == {"eval_loss_other": [(0, 0.5)]}
    assert ("annotate" in found.seconds) == (annotated > 0)
