"""Loading benchmarks from files and from their sources, and the guard that keeps tests out of training."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import cruxtune.benchmark_rows as rows_module
from cruxtune.benchmark_rows import count_rows, refuse_test_problems, require_files, test_problems
from cruxtune.benchmarks import BENCHMARKS
from cruxtune.errors import ConfigError, DataError
from cruxtune.problems import ProblemSource, load_problems
from cruxtune.records import Problem

ROOT = Path(__file__).parents[2] / "shared" / "benchmarks"
needs_benchmarks = pytest.mark.skipif(not ROOT.is_dir(), reason="no shared/benchmarks beside the repository")

# pytest would collect what is called test_problems.
of_tests = test_problems
del test_problems


def load(name: str, split: str = "train", directory: Path | None = None, **options: Any) -> list[Problem]:
    """Return the problems of a benchmark's split."""
    source = ProblemSource(problems=f"benchmark:{name}", split=split, **options)
    return load_problems(source, benchmarks_dir=directory)


def write(path: Path, *rows: dict[str, Any]) -> None:
    """Write a benchmark file, packed where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None, str, str | None], list[dict[str, Any]]]:
    """A Hub of our own: rows by (name, configuration, split, file); what is not there cannot be loaded."""
    datasets = pytest.importorskip("datasets")
    held: dict[tuple[str, str | None, str, str | None], list[dict[str, Any]]] = {}

    def fake(name: str, config: str | None = None, *, split: str, data_files: str | None = None) -> Any:
        try:
            return datasets.Dataset.from_list(held[name, config, split, data_files])
        except KeyError:
            raise ConnectionError("the Hub is far away") from None

    monkeypatch.setattr(datasets, "load_dataset", fake)
    return held


# Sources


def test_a_hub_dataset_is_read_in_its_own_layout(hub: Any) -> None:
    """GSM8K's answer is taken apart as in any source, and ids say benchmark, split and row."""
    hub["openai/gsm8k", "main", "test", None] = [{"question": "q", "answer": "so\n#### 4"}]
    (problem,) = load("gsm8k", "test")
    assert (problem.id, problem.answer, problem.solution) == ("gsm8k/test/0", "4", "so")
    assert problem.source == "benchmark:gsm8k/test"


def test_a_file_of_a_repository_is_read_through_datasets(hub: Any) -> None:
    """Benchmarks that the Hub has not as the paper does come from a JSON Lines file."""
    address = BENCHMARKS["mawps"].source
    hub["json", None, "train", address] = [{"input": "q", "target": 2.0, "type": "addsub", "idx": 0}]
    assert [(p.id, p.answer) for p in load("mawps", "test")] == [("mawps/test/0", "2.0")]


def test_the_subjects_of_mmlu_follow_one_another(hub: Any) -> None:
    """Six configurations are one benchmark, numbered through; positions become letters."""
    for number, subject in enumerate(BENCHMARKS["mmlu_medical"].configs):
        row = {"question": f"q{number}?", "choices": ["w", "x", "y", "z"], "answer": number % 4, "subject": subject}
        hub["cais/mmlu", subject, "test", None] = [row]
    problems = load("mmlu_medical", "test")
    assert [p.id for p in problems] == [f"mmlu_medical/test/{n}" for n in range(6)]
    assert [p.answer for p in problems] == list("ABCDAB")
    assert {p.kind for p in problems} == {"choice"}


def test_pubmedqa_is_split_by_the_published_list(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the Hub test and training problems are one split; the list of test ids parts them."""
    monkeypatch.setattr(rows_module, "_pubmedqa_test_ids", lambda: {"11", "13"})
    common = {"context": {"contexts": ["c"]}, "long_answer": "l", "final_decision": "maybe"}
    hub["qiaojin/PubMedQA", "pqa_labeled", "train", None] = [
        {"pubid": n, "question": f"q{n}?", **common} for n in range(10, 15)
    ]
    assert [p.metadata["source_id"] for p in load("pubmedqa", "test")] == [11, 13]
    assert [p.metadata["source_id"] for p in load("pubmedqa")] == [10, 12, 14]
    assert load("pubmedqa")[0].answer == "C"


def test_a_source_out_of_reach_is_told_with_the_way_out(hub: Any) -> None:
    """Local files are the way out."""
    with pytest.raises(ConfigError, match=r"GSM8K .*cannot be loaded.*far away.*--benchmarks-dir"):
        load("gsm8k", "test")


# Local files


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_local_files_are_read_as_they_are(tmp_path: Path, suffix: str) -> None:
    """Rows keep their ids, or get one; those without a gold answer are left out without being asked for."""
    row = {"id": "gsm8k/test/7", "question": "q", "answer": "4"}
    unnamed = {"question": "r", "answer": "5"}
    write(tmp_path / "gsm8k" / f"test{suffix}", row, {**row, "id": "gsm8k/test/1", "answer": ""}, unnamed)
    problems = load("gsm8k", "test", tmp_path)
    assert [p.id for p in problems] == ["gsm8k/test/7", "gsm8k/test/2"]
    assert {p.source for p in problems} == {"benchmark:gsm8k/test"}
    assert count_rows("gsm8k", "test", tmp_path) == 3
    assert count_rows("gsm8k", "train", tmp_path) is None


def test_a_benchmark_of_rounded_golds_allows_as_much(tmp_path: Path) -> None:
    """Minerva-Math's problems have the tolerance with them, wherever they are from; a row's own one wins."""
    row = {"question": "q", "answer": "4.7"}
    write(tmp_path / "minerva_math" / "test.jsonl", row, {**row, "relative_tolerance": 0.05})
    write(tmp_path / "math500" / "test.jsonl", row)
    assert [p.metadata["relative_tolerance"] for p in load("minerva_math", "test", tmp_path)] == [0.01, 0.05]
    assert "relative_tolerance" not in load("math500", "test", tmp_path)[0].metadata


def test_options_of_a_table_question_are_shown_once(tmp_path: Path) -> None:
    """The prompt shows them by letter, so that the question does not."""
    row = {"question": "Table: t\na | 1\n\nQuestion: Which?\nOptions: hens; owls", "answer": "hens"}
    more = {"table": "a | 1", "table_title": "t", "question_only": "Which?", "choices": ["hens", "owls"]}
    write(tmp_path / "tabmwp" / "test.jsonl", {**row, **more})
    (problem,) = load("tabmwp", "test", tmp_path)
    assert problem.question == "Table: t\na | 1\n\nQuestion: Which?"
    assert (problem.answer, problem.choices) == ("A", ["hens", "owls"])


def test_files_that_are_missing_are_all_told(tmp_path: Path) -> None:
    """So is a directory that is none."""
    write(tmp_path / "gsm8k" / "test.jsonl", {"question": "q", "answer": "4"})
    require_files(["gsm8k"], "test", tmp_path)
    with pytest.raises(ConfigError, match=r"has no math/test.jsonl, medqa/test.jsonl .*leave out --benchmarks-dir"):
        require_files(["math", "gsm8k", "medqa"], "test", tmp_path)
    with pytest.raises(ConfigError, match="is no directory"):
        require_files(["gsm8k"], "test", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "local", "told"),
    [
        ("medqa", True, "has no training split in --benchmarks-dir"),
        ("mmlu_medical", True, "it is for evaluation only"),
        ("mmlu_medical", False, "it is for evaluation only"),
        ("svamp", False, "it is for evaluation only"),
    ],
)
def test_without_a_training_split_nothing_takes_its_place(tmp_path: Path, name: str, local: bool, told: str) -> None:
    """The message says that there is none; the test split is not offered."""
    write(tmp_path / name / "test.jsonl", {"question": "q", "answer": "A"})
    with pytest.raises(ConfigError, match=told):
        load(name, directory=tmp_path if local else None)


@pytest.mark.parametrize("options", [{"config": "main"}, {"fields": {"question": "q"}}, {"size": 3}])
def test_options_of_other_sources_are_refused(options: dict[str, Any]) -> None:
    """A benchmark has its configuration and columns."""
    with pytest.raises(ConfigError, match="is a benchmark: leave"):
        load("gsm8k", **options)


# The guard


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        (Problem("gsm8k/test/12", "q", "1"), "gsm8k"),
        (Problem("openai/gsm8k/main/test/0", "q", "1", source="openai/gsm8k/main/test"), "gsm8k"),
        (Problem("x", "q", "1", source="openai/gsm8k/main/train+test[:10]"), "gsm8k"),
        (Problem("x", "q", "1", source="HuggingFaceH4/MATH-500/test"), "math500"),
        (Problem("x", "q", "1", source="cais/mmlu/anatomy/test"), "mmlu_medical"),
        (Problem("x", "q", "1", source="qiaojin/PubMedQA/pqa_labeled/train"), "pubmedqa"),
        (Problem("gsm8k/train/12", "q", "1"), None),
        (Problem("openai/gsm8k/main/train/0", "q", "1", source="openai/gsm8k/main/train"), None),
        (Problem("mmlu_medical/dev/0", "q", "1"), None),
        (Problem("mine/test/0", "q", "1", source="mine/test"), None),
    ],
)
def test_test_problems_are_known_by_id_and_source(problem: Problem, name: str | None) -> None:
    """Training splits and other data are not touched."""
    assert of_tests([problem]) == ({name: [problem.id]} if name else {})


def test_training_on_test_problems_is_refused() -> None:
    """The message names the benchmark and what to do, and offers no way round."""
    with pytest.raises(
        DataError, match=r"--problems f: 1 of the problems .* GSM8K, first gsm8k/test/3.*benchmark:gsm8k"
    ):
        refuse_test_problems([Problem("mine", "q", "1"), Problem("gsm8k/test/3", "q", "1")], "--problems f")
    with pytest.raises(DataError, match="it has no training split") as caught:
        refuse_test_problems([Problem("svamp/test/3", "q", "1")], "--problems f")
    assert "--allow" not in str(caught.value)
    assert "--force" not in str(caught.value)


# The real files


@needs_benchmarks
@pytest.mark.parametrize("name", BENCHMARKS)
def test_real_files_have_as_many_rows_as_the_registry_says(name: str) -> None:
    """Every test problem loads, but for the two of Gaokao2023-En without a gold answer, and each is known as a test."""
    rows = BENCHMARKS[name].splits["test"].rows
    assert count_rows(name, "test", ROOT) == rows
    problems = load(name, "test", ROOT)
    assert len(problems) == rows - 2 * (name == "gaokao2023en")
    assert len(of_tests(problems)[name]) == len(problems)
    for problem in problems:
        assert not problem.choices or "\nOptions:" not in problem.question
