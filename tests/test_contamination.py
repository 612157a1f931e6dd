"""Problems that occur in a benchmark: what counts as one, and that they can be left out."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cruxtune.contamination import NGRAM, TrainingProblemsSettings, find_contaminated, training_problems, words
from cruxtune.errors import DataError
from cruxtune.problems import ProblemSource
from cruxtune.records import Problem

LONG = "A farmer has twelve hens and each of them lays three eggs every day of the long week. How many eggs?"


def hits(question: str, other: str) -> bool:
    """Return whether a question occurs in a benchmark of one other question."""
    found = find_contaminated([Problem("p", question, "1")], {"b": [Problem("b/0", other, "1")]})
    assert [finding.like for finding in found] in ([], ["b/0"])
    return bool(found)


@pytest.mark.parametrize(
    ("question", "other", "same"),
    [
        (LONG, LONG, True),
        (f"Read this. {LONG} Explain.", LONG.upper(), True),
        (LONG, LONG.replace("hens", "ducks"), True),
        (LONG, LONG.replace("hens", "ducks").replace("day", "evening"), False),
        ("What is 1 + 1?", "what is  1+1", True),
        ("What is 1 + 1?", "What is 1 - 1?", False),
        ("What is 1.5 + 1?", "What is 15 + 1?", False),
        ("What is $x$?", "What is x?", True),
        ("What is 1 + 1?", f"What is 1 + 1? {LONG}", False),
        ("Find it. [asy] " + "draw(a--b); " * 20 + "[/asy]", "Where? [asy] " + "draw(a--b); " * 20 + "[/asy]", False),
        ("", LONG, False),
    ],
)
def test_what_counts_as_the_same_problem(question: str, other: str, same: bool) -> None:
    """13 words in a row, however they are written; short questions as a whole; code of figures does not count."""
    assert hits(question, other) is same
    assert hits(other, question) is same


WORDS = st.lists(st.text("ab", min_size=1, max_size=2), max_size=40)


@given(WORDS, WORDS)
def test_findings_equal_those_of_the_definition(a: list[str], b: list[str]) -> None:
    """Compared with sets of word sequences; questions short of 13 words with equality."""

    def grams(tokens: list[str]) -> set[tuple[str, ...]]:
        return {tuple(tokens[i : i + NGRAM]) for i in range(len(tokens) - NGRAM + 1)}

    short = len(a) < NGRAM and len(b) < NGRAM
    expected = "".join(a) == "".join(b) if short else bool(grams(a) & grams(b))
    assert hits(" ".join(a), " ".join(b)) is expected


def test_a_finding_says_where_and_how_much() -> None:
    """The share of the problem's 13-grams, the benchmark's problem, and shared words."""
    half = " ".join(f"w{chr(97 + n)}" for n in range(20))
    problem = Problem("p", f"{half} " + " ".join(f"v{chr(97 + n)}" for n in range(20)), "1")
    (found,) = find_contaminated([problem], {"a": [Problem("a/0", LONG, "1")], "b": [Problem("b/7", half, "1")]})
    assert (found.id, found.benchmark, found.like) == ("p", "b", "b/7")
    assert found.overlap == pytest.approx(8 / 28, abs=1e-3)
    assert found.shared == " ".join(words(half)[:NGRAM])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A training set of three problems, of which one is in a benchmark of one problem."""
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps({"question": LONG, "answer": "1", "id": "gsm8k/test/0"}))
    rows = [{"id": f"p{n}", "question": LONG if n == 0 else f"What is {n} + 1?", "answer": "1"} for n in range(3)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_contaminated_problems_are_left_out_and_counted(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The limit counts what is left; the notes are for the manifest."""
    settings = TrainingProblemsSettings(decontaminate="gsm8k", benchmarks_dir=files)
    with caplog.at_level(logging.WARNING, logger="cruxtune"):
        problems, notes = training_problems(
            ProblemSource(problems=str(files / "mine.jsonl")), settings, seed=0, limit=1
        )
    assert [p.id for p in problems] == ["p1"]
    assert notes == {"contamination": {"problems": 3, "left_out": 1, "by_benchmark": {"gsm8k": 1}}}
    assert "left out 1 of 3 problems" in caplog.text


def test_if_all_are_contaminated_there_is_nothing_to_train_on(files: Path) -> None:
    """The message names the benchmark's problem."""
    (files / "mine.jsonl").write_text(json.dumps({"question": LONG, "answer": "1"}))
    settings = TrainingProblemsSettings(decontaminate="gsm8k", benchmarks_dir=files)
    with pytest.raises(DataError, match=r"all 1 problems occur.*gsm8k/test/0"):
        training_problems(ProblemSource(problems=str(files / "mine.jsonl")), settings, seed=0)
