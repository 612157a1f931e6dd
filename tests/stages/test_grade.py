"""Grading a file: every row gets its verdict, bad rows lose nothing, an interrupted run goes on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cruxtune.errors import ConfigError, StoreError
from cruxtune.settings import build
from cruxtune.stage_settings import GradeSettings
from cruxtune.stages import grade as module
from cruxtune.stages.grade import grade

ROWS: list[tuple[dict[str, Any], bool, str | None, str]] = [
    ({"gold": "18", "prediction": "18.0"}, True, "18.0", "bare"),
    ({"gold": "18", "prediction": "<think>#### 18</think>So it is\n#### 19"}, False, "19", "hash"),
    ({"gold": 18, "prediction": 18}, True, "18", "bare"),
    ({"gold": "5 m", "prediction": "\\boxed{500\\text{ cm}}"}, True, "500", "boxed"),
    ({"gold": "1, -2", "prediction": "x = -2 or x = 1"}, True, "x = -2 or x = 1", "bare"),
    ({"gold": "B", "prediction": "The answer is heparin.", "choices": ["aspirin", "heparin"]}, True, "B", "phrase"),
    ({"gold": "heparin", "prediction": "A", "choices": ["aspirin", "heparin"]}, False, "A", "line"),
    ({"gold": "maybe", "prediction": "Maybe.", "kind": "choice"}, True, "maybe", "line"),
    ({"gold": "New York", "prediction": "\\boxed{new york}", "kind": "exact"}, True, "new york", "boxed"),
    ({"gold": "2.71", "prediction": "2.72", "tolerance": "0.02"}, True, "2.72", "bare"),
    ({"gold": "10", "prediction": "10.05", "metadata": {"relative_tolerance": 0.01}}, True, "10.05", "bare"),
    ({"gold": "… #### 7", "prediction": "It is 7."}, True, "7", "last-number"),
    ({"gold": "7", "prediction": None}, False, None, "no-answer"),
    ({"gold": "7", "prediction": "<think>7, I guess"}, False, None, "no-answer"),
    ({"gold": "ü", "prediction": "ü", "other": "\ud800"}, True, "ü", "bare"),
]
BAD = [
    ("{", "is not JSON"),
    ("[1]", "must be an object"),
    ('{"gold": "1"}', "'prediction', the prediction, is missing"),
    ('{"gold": "", "prediction": "1"}', "the gold answer is empty"),
    ('{"gold": "1", "prediction": ["1"]}', "the prediction is of type list"),
    ('{"gold": "1", "prediction": "1", "kind": "essay"}', "the kind 'essay' is none of"),
    ('{"gold": "1", "prediction": "1", "kind": "custom"}', "--verifier"),
    ('{"gold": "1", "prediction": "1", "kind": "gym"}', "`dataset` and `entry`"),
    ('{"gold": "E", "prediction": "1", "kind": "choice", "choices": ["x", "y"]}', "none of the 2 choices"),
    ('{"gold": "1", "prediction": "1", "choices": "xy"}', "a list of texts"),
    ('{"gold": ' + "1" * 5000 + ', "prediction": "1"}', "is not JSON"),
    ("[" * 100_000, "is not JSON"),
]


def written(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def file_of(tmp_path: Path, lines: list[str]) -> Path:
    """Return a file of these lines."""
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_rows_get_their_verdicts(tmp_path: Path) -> None:
    """Every row comes back in its place, with all that it had and the three fields."""
    path = file_of(tmp_path, [json.dumps(row) for row, *_ in ROWS])
    done = grade(build(GradeSettings, {"file": path}))
    rows = written(tmp_path / "answers.graded.jsonl")
    expected = [
        {**row, "correct": correct, "extracted": answer, "reason": reason} for row, correct, answer, reason in ROWS
    ]
    assert rows == expected
    assert (done["rows"], done["correct"], done["bad"]) == (len(ROWS), sum(row[1] for row in ROWS), 0)
    assert done["reasons"]["no-answer"] == {"count": 2, "correct": 0}
    assert sum(counts["count"] for counts in done["reasons"].values()) == len(ROWS)


def test_bad_rows_are_told_and_cost_no_other(tmp_path: Path) -> None:
    """A row that cannot be graded says why, and those around it have their verdicts."""
    good = '{"gold": "1", "prediction": "1"}'
    path = file_of(tmp_path, [part for line, _ in BAD for part in (good, line)] + ["", good])
    done = grade(build(GradeSettings, {"file": path, "output": tmp_path / "out.jsonl"}))
    rows = written(tmp_path / "out.jsonl")
    assert [row["correct"] for row in rows] == [True, None] * len(BAD) + [True]
    for row, (_, told) in zip(rows[1::2], BAD, strict=True):
        assert row["reason"] == "bad-line"
        assert told in row["error"]
    assert rows[3]["line"] == 4
    assert done["bad"] == len(BAD)
    assert done["first_error"] == rows[1]["error"]
    assert "Line 2 of" in done["first_error"]


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was graded before the interruption is not graded again, and a torn last line is."""
    monkeypatch.setattr(module, "_CHUNK", 4)
    path = file_of(tmp_path, [json.dumps({"gold": str(n), "prediction": str(n % 7)}) for n in range(20)])
    calls = 0
    judge_chunk = module._graded

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return judge_chunk(*arguments)

    monkeypatch.setattr(module, "_graded", failing)
    with pytest.raises(KeyboardInterrupt):
        grade(build(GradeSettings, {"file": path}))
    (part,) = tmp_path.glob(".*.part")
    assert len(written(part)) == 8
    assert not (tmp_path / "answers.graded.jsonl").exists()
    part.write_text(part.read_text() + '{"gold": "torn')

    # Other settings do not take over what was decided by these.
    strict = grade(build(GradeSettings, {"file": path, "output": tmp_path / "s.jsonl", "list_order": "same"}))
    assert strict["rows"] == 20
    calls = 10
    done = grade(build(GradeSettings, {"file": path}))
    assert calls == 13
    assert (done["rows"], done["correct"]) == (20, 7)
    assert [row["gold"] for row in written(tmp_path / "answers.graded.jsonl")] == [str(n) for n in range(20)]
    assert not list(tmp_path.glob(".*.part"))


def test_other_names_and_compression(tmp_path: Path) -> None:
    """Columns may have other names, and the file may be compressed."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"answer": "1/2", "response": "0.5", "gold": "9"}\n'))
    done = grade(build(GradeSettings, {"file": path, "fields": {"gold": "answer", "prediction": "response"}}))
    assert done["correct"] == 1
    assert written(tmp_path / "a.graded.jsonl")[0]["reason"] == "bare"


def test_what_cannot_be_read_or_written(tmp_path: Path) -> None:
    """A missing or empty file, an unknown field, and an output that exists are the user's to correct."""
    path = file_of(tmp_path, ['{"gold": "1", "prediction": "1"}'])
    with pytest.raises(ConfigError, match=r"nope\.jsonl cannot be read"):
        grade(build(GradeSettings, {"file": tmp_path / "nope.jsonl"}))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="has no rows"):
        grade(build(GradeSettings, {"file": tmp_path / "empty.jsonl"}))
    with pytest.raises(ConfigError, match="--field answer=x: the fields are gold, prediction"):
        grade(build(GradeSettings, {"file": path, "fields": {"answer": "x"}}))
    grade(build(GradeSettings, {"file": path}))
    with pytest.raises(StoreError, match="is there already"):
        grade(build(GradeSettings, {"file": path}))
    assert grade(build(GradeSettings, {"file": path, "overwrite": True}))["correct"] == 1
    with pytest.raises(StoreError, match="cannot be written"):
        grade(build(GradeSettings, {"file": path, "output": tmp_path / "no" / "out.jsonl"}))
