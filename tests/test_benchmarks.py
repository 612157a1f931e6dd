"""The registry: names, and what rows of each source become."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cruxtune.benchmarks import BENCHMARKS, GROUPS, benchmark_names, last_boxed, one_benchmark
from cruxtune.errors import ConfigError
from cruxtune.shots import own_examples

# One made-up row in the layout of each source, and what matters of the problem that it becomes.
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gsm8k": ({"question": "q", "answer": "so\n#### 4"}, {"question": "q", "answer": "so\n#### 4"}),
    "math": (
        {"problem": "q", "solution": r"it is \boxed{1} or \boxed{\frac{1}{2}}", "type": "Algebra", "level": "Level 1"},
        {"question": "q", "answer": r"\frac{1}{2}", "subject": "Algebra", "level": "Level 1"},
    ),
    "math500": (
        {"problem": "q", "answer": "4", "solution": "s", "subject": "Algebra", "level": 2, "unique_id": "test/1.json"},
        {"question": "q", "answer": "4", "solution": "s", "source_id": "test/1.json"},
    ),
    "svamp": (
        {"Body": "Two hens ", "Question": "How many? ", "Answer": 2.0, "Type": "Addition", "ID": "chal-1"},
        {"question": "Two hens. How many?", "answer": 2.0, "source_id": "chal-1"},
    ),
    "asdiv": (
        {"body": "Two hens.", "question": "How many?", "answer": "2 (hens)", "solution_type": "Addition"},
        {"question": "Two hens. How many?", "answer": "2 (hens)", "answer_value": "2", "unit": "hens"},
    ),
    "mawps": ({"input": "q", "target": 2.0, "type": "addsub"}, {"question": "q", "answer": 2.0, "subject": "addsub"}),
    "carp_en": (
        {"content": "q", "answer": "x ^ 2", "steps": "s"},
        {"question": "q", "answer": "x ^ 2", "solution": "s"},
    ),
    "tabmwp": (
        {
            "table_title": "Hens",
            "table": "a | 1\nb | 2",
            "question": "Which has more?",
            "answer": "b",
            "solution": "s",
            "choices": ["a", "b"],
            "unit": None,
            "ans_type": "extractive_text",
        },
        {"question": "Table: Hens\na | 1\nb | 2\n\nQuestion: Which has more?", "answer_index": 1},
    ),
    "minerva_math": (
        {"problem": "q", "solution": r"\boxed{4.5e33} erg", "type": "Astronomy"},
        {"question": "q", "answer": "4.5e33", "subject": "Astronomy"},
    ),
    "gaokao2023en": (
        {"question": "q", "answer": "$4$", "source": "part1/2"},
        {"question": "q", "answer": "$4$", "source_id": "part1/2"},
    ),
    "olympiadbench": (
        {
            "id": 7,
            "subfield": "Algebra",
            "question": "q",
            "solution": ["s", "another"],
            "final_answer": ["1,2"],
            "is_multiple_answer": True,
            "unit": None,
            "answer_type": "Numerical",
            "error": "1e-2",
        },
        {"answer": "1,2", "solution": "s", "is_multiple_answer": True, "tolerance": "1e-2", "source_id": 7},
    ),
    "college_math": (
        {
            "data_source": "college_math.Calculus",
            "question_number": "exercise.1",
            "question": "q",
            "answer": "$x+C$",
            "license": "CC",
            "data_topic": "college_math.calculus",
        },
        {"answer": "$x+C$", "subject": "calculus", "source_id": "Calculus/exercise.1", "license": "CC"},
    ),
    "medqa": (
        {
            "question": "q",
            "options": {"A": "w", "B": "x", "C": "y", "D": "z"},
            "answer": "x",
            "answer_idx": "B",
            "meta_info": "step1",
        },
        {"choices": ["w", "x", "y", "z"], "answer": "B", "answer_text": "x"},
    ),
    "mmlu_medical": (
        {"question": "q", "choices": ["w", "x", "y", "z"], "answer": 0, "subject": "anatomy"},
        {"choices": ["w", "x", "y", "z"], "answer_index": 0, "subject": "anatomy"},
    ),
    "pubmedqa": (
        {
            "pubid": 17,
            "question": "Does it?",
            "context": {"contexts": ["One.", "Two."], "labels": [], "meshes": []},
            "long_answer": "It does.",
            "final_decision": "yes",
        },
        {"question": "One.\nTwo.\n\nQuestion: Does it?", "answer": "yes", "choices": ["yes", "no", "maybe"]},
    ),
}


def test_the_paper_has_eleven_and_every_benchmark_is_complete() -> None:
    """Each has a licence, a test split with its number of rows, and a set of examples that exists."""
    assert len(GROUPS["paper"]) == 11
    assert set(BENCHMARKS) == {*GROUPS["paper"], *GROUPS["medical"], "math500"} == set(ROWS)
    for benchmark in BENCHMARKS.values():
        assert benchmark.licence
        assert benchmark.splits["test"].rows > 0
        assert benchmark.examples in own_examples()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_row_of_the_source_becomes_a_record(name: str) -> None:
    """The fields of a problem come from the columns that the source has."""
    row, expected = ROWS[name]
    record = BENCHMARKS[name].record(row)
    assert {key: record[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("given_", "names"),
    [
        ("gsm8k", ("gsm8k",)),
        ("GSM8K, MATH-500,gsm8k", ("gsm8k", "math500")),
        ("carp-en,Minerva Math", ("carp_en", "minerva_math")),
        ("medical,gsm8k", ("medqa", "mmlu_medical", "pubmedqa", "gsm8k")),
        ("paper", GROUPS["paper"]),
    ],
)
def test_names_are_found_however_they_are_written(given_: str, names: tuple[str, ...]) -> None:
    """Case, hyphens, spaces and repetition do not matter; groups stand for their members."""
    assert benchmark_names(given_) == names


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ("gsm8", "no benchmark 'gsm8'. Did you mean 'gsm8k'"),
        ("math,svmap", "no benchmark 'svmap'. Did you mean 'svamp'"),
        ("papers", "'paper'"),
        (" , ", "names no benchmark"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(given_: str, told: str) -> None:
    """So is a list without any."""
    with pytest.raises(ConfigError) as caught:
        benchmark_names(given_)
    assert told in str(caught.value)


def test_problems_come_from_one_benchmark() -> None:
    """A group cannot be a problem source."""
    with pytest.raises(ConfigError, match="stands for 11 benchmarks"):
        one_benchmark("benchmark:paper")


@given(st.text(st.characters(exclude_characters="{}\\")), st.text(st.characters(exclude_characters="\\")))
def test_the_last_box_is_found_with_its_braces(inner: str, before: str) -> None:
    """Whatever precedes it, balanced content comes back as it is."""
    assert last_boxed(f"{before}\\boxed{{{{{inner}}}x}} end") == f"{{{inner}}}x"


@pytest.mark.parametrize("text", ["", "no box", r"\boxed{never closed", r"\boxed"])
def test_without_a_box_there_is_no_answer(text: str) -> None:
    """Such rows are left out, or told, like any without an answer."""
    assert last_boxed(text) == ""
