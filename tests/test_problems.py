from __future__ import annotations

import gzip
import json
import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cruxtune.errors import ConfigError, CruxtuneError, DataError
from cruxtune.problems import ProblemSource, fingerprint, load_problems, split_problems, without_overlap
from cruxtune.records import KINDS, Problem
from cruxtune.rows import RECORD_FIELDS, normalised

# Before anything imports datasets, which reads it once.
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

BENCHMARKS = Path(__file__).parents[2] / "shared" / "benchmarks"

GOOD = {"question": "What is 1 + 1?", "answer": "2"}


def write(path: Path, *rows: Any) -> str:
    """Write rows as JSON Lines, texts as they are, and return the path."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def load(
    problems: str, *, seed: int = 0, limit: int | None = None, skip_bad: bool = False, **options: Any
) -> list[Problem]:
    """Return the problems of a source with these options."""
    return load_problems(ProblemSource(problems=problems, **options), seed=seed, limit=limit, skip_bad=skip_bad)


def one(tmp_path: Path, row: Any, **options: Any) -> Problem:
    """Return the problem of a file with one row."""
    return load(write(tmp_path / "one.jsonl", row), **options)[0]


def problem(question: str, identity: str = "p") -> Problem:
    """Return a problem of which only the question matters."""
    return Problem(id=identity, question=question, answer="1")


# Files


def test_a_row_keeps_what_the_schema_names_and_ignores_the_rest(tmp_path: Path) -> None:
    """Fields of the schema arrive in the problem or its metadata; other columns do not."""
    row = {
        **GOOD,
        "id": "set/test/0",
        "solution": "1 + 1 = 2",
        "unit": "apples",
        "tolerance": "0.1",
        "is_multiple_answer": False,
        "level": None,
        "table": "ignored",
    }
    path = write(tmp_path / "a.jsonl", row)
    assert load(path) == [
        Problem(
            id="set/test/0",
            question="What is 1 + 1?",
            answer="2",
            kind="math",
            solution="1 + 1 = 2",
            source=path,
            metadata={"unit": "apples", "tolerance": "0.1", "is_multiple_answer": False},
        )
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet", "lines.json"])
def test_every_file_type_gives_the_same_problems(tmp_path: Path, name: str) -> None:
    """JSON Lines, a JSON array, gzip and Parquet hold the same; rows without ids are numbered from 0."""
    rows = [{"question": f"What is {n} + 1, naïvely?", "answer": n + 1, "note": None} for n in range(3)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = json.dumps(rows) if name.startswith("a.json") and "jsonl" not in name else lines
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    problems = load(str(path))
    assert [(p.id, p.question, p.answer) for p in problems] == [
        (f"{path}/{n}", f"What is {n} + 1, naïvely?", str(n + 1)) for n in range(3)
    ]
    assert all(p.source == str(path) and p.metadata == {} for p in problems)


def test_blank_lines_line_separators_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    """Only line feeds end rows; a byte order mark and blank lines are passed over."""
    path = tmp_path / "a.jsonl"
    row = json.dumps({"question": "one\u2028two", "answer": "1"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n\r\n{row.replace('two', 'three')}".encode())
    assert [p.question for p in load(str(path))] == ["one\u2028two", "one\u2028three"]


@pytest.mark.parametrize(
    ("given", "text"), [(2, "2"), (2.0, "2.0"), (True, "True"), (0, "0"), (" 2 ", " 2 "), (-1.5, "-1.5")]
)
def test_numbers_and_booleans_become_text(tmp_path: Path, given: Any, text: str) -> None:
    """A gold answer that is a number or a boolean becomes its text; text stays as it is."""
    assert one(tmp_path, {"question": "?", "answer": given}).answer == text


@pytest.mark.parametrize(
    ("row", "answer", "solution"),
    [
        ({"answer": "48/2 = <<48/2=24>>24 clips.\nSo 72.\n#### 72"}, "72", "48/2 = 24 clips.\nSo 72."),
        ({"answer": "so\n#### 72", "solution": "mine <<1+1=2>>"}, "72", "mine "),
        ({"answer": "#### 72"}, "72", None),
        ({"answer": "#### 1 #### 2,125"}, "2,125", "#### 1"),
        ({"answer": "7", "solution": "see <<f1703>> and 1 << 2"}, "7", "see <<f1703>> and 1 << 2"),
    ],
)
def test_gsm8k_answers_are_taken_apart(tmp_path: Path, row: Any, answer: str, solution: str | None) -> None:
    """The last #### separates solution and answer; calculator marks go, other angle brackets stay."""
    found = one(tmp_path, {"question": "?", **row})
    assert (found.answer, found.solution) == (answer, solution)


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    """A mapping takes a field from another column, also where a column of the field's name exists."""
    row = {"problem": "What is 2?", "answer": "long text", "final": 2, "key": 17}
    found = one(tmp_path, row, fields={"question": "problem", "answer": "final", "id": "key"})
    assert (found.question, found.answer, found.id) == ("What is 2?", "2", "17")


def test_the_limit_takes_the_first_good_rows(tmp_path: Path) -> None:
    """A limit counts problems, not rows, and a limit beyond the end is no error."""
    path = write(tmp_path / "a.jsonl", {"question": "a", "answer": ""}, *({"question": q, "answer": 1} for q in "bcd"))
    assert [p.question for p in load(path, limit=2, skip_bad=True)] == ["b", "c"]
    assert len(load(path, limit=9, skip_bad=True)) == 3


def test_bad_rows_can_be_left_out_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """skip_bad drops rows without question or answer, keeps the others' ids, and warns once with the number."""
    rows = [GOOD, {"question": "x", "answer": None}, {"answer": "3"}, {"question": "y", "answer": "w ####  "}, {**GOOD}]
    path = write(tmp_path / "a.jsonl", *rows)
    with caplog.at_level(logging.WARNING, logger="cruxtune"):
        assert [p.id for p in load(path, skip_bad=True)] == [f"{path}/0", f"{path}/4"]
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        f"Left out 3 rows of {path} (--skip-bad)"
    ]


# Multiple choice

FOUR = ["red", "green", "blue", "7"]


@pytest.mark.parametrize(
    ("row", "kind", "answer"),
    [
        ({"choices": FOUR, "answer": "B"}, "choice", "B"),
        ({"choices": FOUR, "answer": "(c)"}, "choice", "C"),
        ({"choices": FOUR, "answer": "Green "}, "choice", "B"),
        ({"choices": FOUR, "answer_index": 2}, "choice", "C"),
        ({"choices": FOUR, "answer_index": 2.0, "answer": None}, "choice", "C"),
        ({"choices": FOUR, "answer_index": 0, "answer": "red"}, "choice", "A"),
        ({"choices": FOUR, "answer_index": 0, "answer": "a long reason"}, "choice", "A"),
        ({"choices": FOUR, "answer": 0}, "choice", "A"),
        ({"choices": FOUR, "answer": "7"}, "choice", "D"),
        ({"choices": FOUR, "answer": "see\n#### B"}, "choice", "B"),
        ({"choices": [10, 20], "answer": "20"}, "choice", "B"),
        ({"choices": FOUR, "answer": "x + 1"}, "math", "x + 1"),
        ({"choices": FOUR, "answer": "E"}, "math", "E"),
        ({"choices": [], "answer": "B"}, "math", "B"),
        ({"choices": None, "answer": "B"}, "math", "B"),
        ({"choices": ["C", "B", "A"], "answer": "A", "answer_index": 2}, "choice", "A"),
    ],
)
def test_gold_options_become_letters(tmp_path: Path, row: Any, kind: str, answer: str) -> None:
    """Letter, option text, index and integer answers name the gold option; anything else is mathematics."""
    found = one(tmp_path, {"question": "Which?", **row})
    assert (found.kind, found.answer) == (kind, answer)


def test_the_text_of_a_lettered_answer_is_kept(tmp_path: Path) -> None:
    """Where a letter replaces the option's text, the text is in the metadata, unless the row has one already."""
    assert one(tmp_path, {"question": "?", "choices": FOUR, "answer": "blue"}).metadata == {"answer_text": "blue"}
    row = {"question": "?", "choices": FOUR, "answer": "blue", "answer_text": "Blue!"}
    assert one(tmp_path, row).metadata == {"answer_text": "Blue!"}
    assert one(tmp_path, {"question": "?", "choices": FOUR, "answer": "C"}).metadata == {}


@pytest.mark.parametrize("kind", ["math", "exact", "custom"])
def test_another_kind_leaves_the_answer_of_a_choice_alone(tmp_path: Path, kind: str) -> None:
    """A kind that was asked for holds; an answer that is only an index becomes the option's text."""
    found = one(tmp_path, {"question": "?", "choices": FOUR, "answer": "B"}, kind=kind)
    assert (found.kind, found.answer, found.choices) == (kind, "B", FOUR)
    assert one(tmp_path, {"question": "?", "choices": FOUR, "answer_index": 1}, kind=kind).answer == "green"


def test_kind_choice_works_without_choices(tmp_path: Path) -> None:
    """Questions that have their options in the text keep their letter."""
    assert one(tmp_path, {"question": "(A) 1 (B) 2", "answer": "B"}, kind="choice").kind == "choice"


# Errors


@pytest.mark.parametrize(
    ("rows", "options", "kind", "parts"),
    [
        (
            [GOOD, '{"question": }'],
            {},
            DataError,
            ["Line 2 of", "a.jsonl is not JSON: Expecting value (column 14)", "remove"],
        ),
        (["", "[" * 100_000], {}, DataError, ["Line 2 of", "not JSON"]),
        (["1" * 5000], {}, DataError, ["Line 1 of", "not JSON", "4300 digits"]),
        ([GOOD, "[1, 2]"], {}, DataError, ["Line 2 of", "'[1, 2]'", "must be an object"]),
        (["3"], {}, DataError, ["Line 1 of", "'3'", "must be an object"]),
        (
            [GOOD, {"q": "a", "answer": "1"}],
            {},
            DataError,
            [
                "Line 2 of",
                "'question', the question of the problem, is missing",
                "columns are q, answer",
                "--field question=COLUMN",
            ],
        ),
        (
            [{"question": "a"}],
            {},
            DataError,
            ["Line 1", "'answer'", "is missing", "--field answer=COLUMN", "--skip-bad"],
        ),
        (
            [GOOD, {"question": "a", "answer": " "}],
            {},
            DataError,
            ["Line 2", "'answer', the answer of the problem, is empty"],
        ),
        ([{"question": "a", "answer": None}], {}, DataError, ["Line 1", "is empty"]),
        ([{"question": "a", "answer": math.nan}], {}, DataError, ["Line 1", "is empty"]),
        ([{"question": "a", "answer": "so ####"}], {}, DataError, ["Line 1", "is empty"]),
        ([{"question": "a", "choices": [], "answer_index": 0}], {}, DataError, ["Line 1", "'answer'"]),
        (
            [GOOD, {"question": "b", "answer": "1", "final": ""}],
            {"fields": {"answer": "final"}},
            DataError,
            ["Line 1", "'final', the answer of the problem, is missing"],
        ),
        (
            [{"question": "a", "answer": ""}],
            {"skip_bad": True},
            DataError,
            ["holds no problems", "left out all 1 rows", "Line 1"],
        ),
        (
            [{"question": ["a"], "answer": "1"}],
            {},
            DataError,
            ["Line 1", "question is \"['a']\", of type list, but must be text", "--field question=COLUMN"],
        ),
        (
            [{"question": "a", "answer": {"x": 1}}],
            {},
            DataError,
            ["answer is", "of type dict", "text, a number or a boolean"],
        ),
        ([{"question": "a", "answer": "1", "solution": 3}], {}, DataError, ["solution is '3', of type int"]),
        ([{"question": "a", "answer": "1", "id": []}], {}, DataError, ["id is '[]', of type list"]),
        (
            [{"question": "a", "answer": "A", "choices": "A B"}],
            {},
            DataError,
            ["choices is 'A B', of type str", "a list of texts"],
        ),
        ([{"question": "a", "answer": "A", "choices": [None]}], {}, DataError, ["choices is '[None]'"]),
        ([{"question": "a", "answer": "A", "choices": ["x"] * 27}], {}, DataError, ["27 choices", "26"]),
        ([{"question": "a", "answer_index": 4, "choices": FOUR}], {}, DataError, ["position 4", "4 choices", "from 0"]),
        ([{"question": "a", "answer_index": -1, "choices": FOUR}], {}, DataError, ["position -1"]),
        (
            [{"question": "a", "answer_index": "1", "choices": FOUR}],
            {},
            DataError,
            ["answer_index is '1', of type str"],
        ),
        (
            [{"question": "a", "answer_index": 0.5, "choices": FOUR}],
            {},
            DataError,
            ["answer_index is '0.5'", "an integer"],
        ),
        ([{"question": "a", "answer_index": math.inf, "choices": FOUR}], {}, DataError, ["answer_index is 'inf'"]),
        (
            [{"question": "a", "answer": "B", "answer_index": 2, "choices": FOUR}],
            {},
            DataError,
            ["'B' and answer_index 2 ('blue') name different options"],
        ),
        (
            [{"question": "a", "answer": 2, "choices": ["1", "2", "3"]}],
            {},
            DataError,
            ["the answer 2 may be the option '2' or the option at position 2", "--field answer_index=answer"],
        ),
        (
            [{"question": "a", "answer": "x", "choices": FOUR}],
            {"kind": "choice"},
            DataError,
            ["'x' is none of the 4 choices", "--kind"],
        ),
        (
            [GOOD, "", {**GOOD, "id": "k"}, {**GOOD, "id": "k"}],
            {},
            DataError,
            ["Line 4 of", "has the id 'k'", "which Line 3 of", "--field id=COLUMN"],
        ),
        ([{"question": "\ud800", "answer": "1"}], {}, DataError, ["Line 1", "not Unicode", "surrogates"]),
        ([], {}, DataError, ["a.jsonl (--problems) holds no problems", "it is empty"]),
        (
            [GOOD],
            {"fields": {"question": "questoin"}},
            ConfigError,
            [
                "no column 'questoin'",
                "--field question=questoin",
                "Did you mean 'question'",
                "columns are question, answer",
            ],
        ),
        (
            [GOOD],
            {"fields": {"anser": "answer"}},
            ConfigError,
            ["--field anser=answer", "'anser'", "Did you mean 'answer'", "The fields are id, question"],
        ),
        ([GOOD], {"limit": 0}, ConfigError, ["limit is 0", "--limit 1"]),
        (
            [GOOD],
            {"split": "test"},
            ConfigError,
            ["--split is for Hugging Face datasets", "is a file", "leave --split out"],
        ),
        ([GOOD], {"config": "main"}, ConfigError, ["--config is for Hugging Face datasets", "is a file"]),
        ([GOOD], {"gym": {"max_terms": 3}}, ConfigError, ["--gym is for reasoning-gym tasks", "is a file"]),
        ([GOOD], {"size": 3}, ConfigError, ["--size is for reasoning-gym tasks"]),
        ([GOOD], {"kind": "gym"}, ConfigError, ["--kind gym is for reasoning-gym tasks"]),
    ],
)
def test_bad_rows_and_options_are_explained(
    tmp_path: Path, rows: list[Any], options: dict[str, Any], kind: type[CruxtuneError], parts: list[str]
) -> None:
    """Every message says where, what value, why, and what to do."""
    path = write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(kind) as caught:
        load(path, **options)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "kind", "parts"),
    [
        ("gone.jsonl", None, ConfigError, ["There is no file", "gone.jsonl (--problems)", "Check the path"]),
        (
            "a.csv",
            b"question,answer\n",
            ConfigError,
            ["a.csv (--problems) is a file of unknown type", ".jsonl.gz, .json"],
        ),
        (
            "a.jsonl.gz",
            b"no gzip",
            DataError,
            ["a.jsonl.gz (--problems) cannot be read", "Not a gzipped file", "whole"],
        ),
        ("a.jsonl.gz", gzip.compress(b'{"question": 1}' * 99, mtime=0)[:-20], DataError, ["cannot be read", "whole"]),
        ("a.parquet", b"no parquet", DataError, ["a.parquet (--problems) cannot be read", "Parquet", "whole"]),
        ("a.jsonl", b'{"question": "\xff"}', DataError, ["Line 1 of", "not JSON", "utf-8"]),
        ("a.json", b'[{"question": "a", "answer": 1},\n {]', DataError, ["Line 2 of", "not JSON"]),
        (
            "a.json",
            b'[{"question": "a", "answer": 1}, {"question": "b"}]',
            DataError,
            ["Row 1 of", "(counted from 0)", "'answer'"],
        ),
        ("a.json", b"[1]", DataError, ["Row 0 of", "must be an object"]),
        ("a.json", b"", DataError, ["it is empty"]),
    ],
)
def test_bad_files_are_explained(
    tmp_path: Path, name: str, content: bytes | None, kind: type[CruxtuneError], parts: list[str]
) -> None:
    """A missing, damaged or unknown file is named with what is wrong."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind) as caught:
        load(str(tmp_path / name))
    for part in parts:
        assert part in str(caught.value)


def test_a_parquet_file_without_rows_is_empty(tmp_path: Path) -> None:
    """Columns alone are no problems."""
    pq.write_table(
        pa.table({"question": pa.array([], pa.string()), "answer": pa.array([], pa.string())}), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match="it is empty"):
        load(str(tmp_path / "a.parquet"))


def test_a_damaged_parquet_page_is_an_error_of_the_file(tmp_path: Path) -> None:
    """Damage behind an intact footer is found when rows are read, and named all the same."""
    path = tmp_path / "a.parquet"
    rows = [{"question": f"q{n}", "answer": "1"} for n in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="snappy")
    data = bytearray(path.read_bytes())
    data[4:3000] = b"\xff" * 2996
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet \(--problems\) cannot be read"):
        load(str(path))


def test_options_have_help_and_unknown_ones_are_refused() -> None:
    """Every field has a description for the command line; a misspelt one is an error."""
    assert all(field.description for field in ProblemSource.model_fields.values())
    assert all(name in (ProblemSource.model_fields["fields"].description or "") for name in RECORD_FIELDS)
    with pytest.raises(ValidationError):
        ProblemSource.model_validate({"problems": "a.jsonl", "spilt": "test"})


# Problems that were written before


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_written_problems_are_read_as_they_were(tmp_path: Path, as_text: bool, suffix: str) -> None:
    """A file of rows as Problem.to_row gives them (metadata as JSON or as an object) gives the same problems."""
    problems = [*load("gym:chain_sum", size=3), one(tmp_path, {**GOOD, "unit": "m", "choices": ["2", "3"]})]
    rows = [{**p.to_row(), **({} if as_text else {"metadata": p.metadata})} for p in problems]
    path = tmp_path / f"own{suffix}"
    if suffix == ".jsonl":
        write(path, *rows)
    else:
        pq.write_table(pa.Table.from_pylist([p.to_row() for p in problems]), path)
    again = load(str(path))
    assert again == problems
    assert fingerprint(again) == fingerprint(problems)
    assert {p.kind for p in load(str(path), kind="exact")} == {"exact"}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"answer": 2}, "answer is '2', of type int, but must be text"),
        ({"kind": "maths"}, f"kind is 'maths', of type str, but must be one of {', '.join(KINDS)}"),
        ({"metadata": "{"}, "metadata is '{', of type str, but must be an object"),
        ({"metadata": [1]}, "metadata is '[1]', of type list"),
        ({"solution": 1}, "solution is '1'"),
        ({"choices": "x"}, "choices is 'x'"),
    ],
)
def test_written_problems_that_were_edited_wrongly_are_explained(tmp_path: Path, change: Any, part: str) -> None:
    """Rows with the fields of a problem are checked like any other."""
    with pytest.raises(DataError, match=re.escape(part)):
        one(tmp_path, {**problem("?").to_row(), **change})


# Datasets


@pytest.fixture(scope="module")
def datasets_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved datasets (one, several splits, empty) and a folder of Parquet files."""
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("datasets")
    os.environ["HF_DATASETS_CACHE"] = str(root / "cache")
    datasets.config.HF_DATASETS_CACHE = root / "cache"

    def rows(tag: str) -> Any:
        return datasets.Dataset.from_list(
            [{"problem": f"{tag} {n}?", "final": n, "image": b"x", "choices": None} for n in range(3)]
        )

    rows("alone").save_to_disk(root / "single")
    datasets.DatasetDict({"train": rows("train"), "test": rows("test")}).save_to_disk(root / "several")
    (root / "parquet").mkdir()
    (root / "empty").mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "state.json").write_text("{}")
    (root / "broken" / "dataset_info.json").write_text("{}")
    rows("none").select([]).to_parquet(root / "empty" / "train.parquet")
    rows("train").to_parquet(root / "parquet" / "train.parquet")
    rows("test").to_parquet(root / "parquet" / "test.parquet")
    (root / "nothing").mkdir()
    return root


FIELDS = {"question": "problem", "answer": "final"}


@pytest.mark.parametrize(
    ("name", "split", "question"),
    [
        ("single", "train", "alone 2?"),
        ("several", "train", "train 2?"),
        ("several", "test", "test 2?"),
        ("parquet", "test", "test 2?"),
        ("parquet", "train[1:]", "train 2?"),
    ],
)
def test_local_datasets_load_by_split(datasets_folder: Path, name: str, split: str, question: str) -> None:
    """Saved datasets and folders of data files load; ids name the dataset, the split and the row."""
    problems = load(str(datasets_folder / name), split=split, fields=FIELDS)
    assert problems[-1].question == question
    assert problems[-1].answer == "2"
    assert problems[-1].source == f"{datasets_folder / name}/{split}"
    assert problems[-1].id == f"{problems[-1].source}/{len(problems) - 1}"


@pytest.mark.parametrize(
    ("name", "options", "kind", "parts"),
    [
        ("several", {"split": "dev"}, ConfigError, ["no --split 'dev'", "It has train, test"]),
        ("single", {"split": "dev"}, ConfigError, ["no --split 'dev'", "It has train"]),
        ("parquet", {"split": "dev"}, ConfigError, ["(--problems) cannot be loaded", "--split dev", "train", "test"]),
        ("parquet", {"config": "main"}, ConfigError, ["--config main", "default"]),
        ("nothing", {}, ConfigError, ["cannot be loaded", "doesn't contain any data files"]),
        ("parquet", {"split": "train[:0]"}, ConfigError, ["--split train[:0]", "corresponds to no data"]),
        ("empty", {}, ConfigError, ["cannot be loaded", "corresponds to no data"]),
        ("broken", {}, ConfigError, ["cannot be loaded", "KeyError: '_data_files'"]),
        (
            "single",
            {"fields": {}},
            DataError,
            [
                "Row 0 of",
                "'question'",
                "is missing",
                "columns are problem, final, image, choices",
                "--field question=COLUMN",
            ],
        ),
        (
            "single",
            {"fields": {"question": "problems"}},
            ConfigError,
            ["no column 'problems'", "Did you mean 'problem'"],
        ),
        ("single", {"size": 3}, ConfigError, ["--size is for reasoning-gym tasks", "is a dataset"]),
    ],
)
def test_bad_datasets_are_explained(
    datasets_folder: Path, name: str, options: dict[str, Any], kind: type[CruxtuneError], parts: list[str]
) -> None:
    """Messages name the dataset, the flag, what there is instead, and are one line without a chained traceback."""
    with pytest.raises(kind) as caught:
        load(str(datasets_folder / name), **{"fields": FIELDS, **options})
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_unreachable_hub_is_explained(datasets_folder: Path) -> None:
    """A name that is nothing here and cannot be looked up says both."""
    with pytest.raises(ConfigError) as caught:
        load("someone/no-such-set", config="main")
    assert "The dataset someone/no-such-set (--problems) cannot be loaded with --config main" in str(caught.value)
    assert "no file or directory here" in str(caught.value)
    assert len(str(caught.value)) < 600
    assert caught.value.__suppress_context__


# reasoning-gym


def test_gym_problems_carry_what_their_scorer_needs() -> None:
    """The metadata names the task and its parameters, and holds the whole entry as JSON has it."""
    found = load("gym:chain_sum", size=5, seed=7, limit=2, gym={"max_terms": 3})
    assert [p.id for p in found] == ["gym:chain_sum/7/0", "gym:chain_sum/7/1"]
    assert found[0].kind == "gym"
    metadata = found[0].metadata
    assert metadata["dataset"] == "chain_sum"
    assert metadata["config"] == {"max_terms": 3, "seed": 7, "size": 5}
    assert metadata["entry"]["question"] == found[0].question
    assert metadata["entry"]["metadata"]["difficulty"]["num_terms"] == [2, 3]
    assert json.loads(json.dumps(metadata)) == metadata


@pytest.mark.parametrize(
    ("task", "parameters"),
    [
        ("chain_sum", {"max_terms": 3}),
        ("gsm_symbolic", {}),
        ("leg_counting", {}),
        ("countdown", {}),
        ("mini_sudoku", {}),
        ("shortest_path", {}),
        ("composite", {"datasets": [{"name": "chain_sum", "config": {"max_terms": 3}}, {"name": "leg_counting"}]}),
    ],
)
def test_gold_answers_of_stored_gym_problems_score_1(task: str, parameters: dict[str, Any]) -> None:
    """After a round trip through a file's row, the entry's own scorer gives the gold answer 1 and nonsense less."""
    import reasoning_gym

    for found in load(f"gym:{task}", size=4, seed=3, gym=parameters):
        stored = Problem.from_row(found.to_row())
        metadata = stored.metadata
        scorer = reasoning_gym.create_dataset(metadata["dataset"], **metadata["config"]).score_answer
        assert scorer(stored.answer, metadata["entry"]) == 1
        assert scorer("no such thing", metadata["entry"]) < 1


def test_a_gym_task_without_gold_answers_has_an_empty_one() -> None:
    """Tasks that only their scorer can judge are loaded; another kind of comparison has nothing to compare with."""
    assert [p.answer for p in load("gym:graph_color", size=2)] == ["", ""]
    with pytest.raises(DataError, match="'answer', the answer of the problem, is empty"):
        load("gym:graph_color", size=2, kind="math")


def test_a_gym_task_may_be_compared_as_mathematics() -> None:
    """Kind math holds for gym problems too."""
    assert load("gym:chain_sum", size=1, kind="math")[0].kind == "math"


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), negation=st.booleans(), terms=st.integers(1, 6), digits=st.integers(1, 6))
def test_chain_sum_solutions_are_true_and_end_in_the_gold_answer(
    seed: int, negation: bool, terms: int, digits: int
) -> None:
    """Every equation of a worked solution holds, starts where the last ended, and the last line is the answer."""
    parameters = {"min_terms": terms, "max_terms": terms, "max_digits": digits, "allow_negation": negation}
    for found in load("gym:chain_sum", seed=seed, size=3, gym=parameters):
        assert found.solution is not None
        *equations, last = found.solution.split("\n")
        assert last == f"#### {found.answer}"
        assert len(equations) == terms - 1
        before = None
        for equation in equations:
            match = re.fullmatch(r"(-?\d+) ([+-]) (-?\d+) = (-?\d+)", equation)
            assert match
            left, sign, right, result = int(match[1]), match[2], int(match[3]), int(match[4])
            assert before in (None, left)
            assert left + right * (1 if sign == "+" else -1) == result
            before = result


def test_gsm_symbolic_has_its_worked_solutions() -> None:
    """The solution is reasoning-gym's own, and ends in the gold answer."""
    for found in load("gym:gsm_symbolic", size=8, seed=5):
        assert found.solution is not None
        assert found.solution.split("####")[-1].strip() == found.answer


def test_gym_problems_depend_on_the_seed_alone() -> None:
    """One seed gives one list, another seed another."""
    first, again, other = (load("gym:leg_counting", size=20, seed=seed) for seed in (1, 1, 900))
    assert fingerprint(first) == fingerprint(again)
    assert without_overlap(other, first) == other


@pytest.mark.parametrize(
    ("task", "options", "parts"),
    [
        ("chainsum", {}, ["no task 'chainsum'", "--problems gym:chainsum", "Did you mean 'chain_sum'"]),
        ("", {}, ["no task ''"]),
        (
            "chain_sum",
            {"gym": {"max_term": 3}},
            ["no parameter 'max_term' (--gym)", "'max_terms'", "parameters are min_terms"],
        ),
        (
            "chain_sum",
            {"gym": {"min_terms": 9, "max_terms": 2}},
            ["chain_sum fails with min_terms=9, max_terms=2 (--gym)", "max_terms must be >= min_terms"],
        ),
        ("chain_sum", {"gym": {"min_terms": "two"}}, ["fails with min_terms=two", "'str' and 'int'"]),
        ("chain_sum", {"gym": {"seed": 2}}, ["--gym seed=2 is refused", "--seed"]),
        ("chain_sum", {"gym": {"size": 2}}, ["--gym size=2 is refused", "--size"]),
        ("chain_sum", {"fields": {"question": "x"}}, ["--field is for files and datasets", "is a reasoning-gym task"]),
        ("chain_sum", {"split": "test"}, ["--split is for Hugging Face datasets", "is a reasoning-gym task"]),
        ("composite", {}, ["composite fails with its own parameters (--gym)", "at least one dataset"]),
        ("composite", {"gym": {"datasets": [{"name": "nope"}]}}, ["composite fails with datasets=", "nope"]),
    ],
)
def test_bad_gym_tasks_are_explained(task: str, options: dict[str, Any], parts: list[str]) -> None:
    """An unknown task or parameter comes with the nearest names; a bad value with what the task says of it."""
    with pytest.raises(ConfigError) as caught:
        load(f"gym:{task}", **options)
    for part in parts:
        assert part in str(caught.value)


# Splits

QUESTIONS = st.lists(st.text(alphabet="aAbB ß\n", max_size=4), max_size=30)


@given(questions=QUESTIONS, shares=st.lists(st.integers(0, 6), max_size=4), seed=st.integers())
def test_splits_never_share_a_question(questions: list[str], shares: list[int], seed: int) -> None:
    """Splits have their sizes, no normalised question twice, and only first problems; too few is an error."""
    problems = [problem(question, str(n)) for n, question in enumerate(questions)]
    first: dict[str, Problem] = {}
    for p in problems:
        first.setdefault(normalised(p.question), p)
    if sum(shares) > len(first):
        with pytest.raises(DataError, match=f"{len(first)} distinct questions among {len(problems)}"):
            split_problems(problems, shares, seed=seed)
        return
    splits = split_problems(problems, shares, seed=seed)
    assert [len(part) for part in splits] == shares
    taken = [normalised(p.question) for part in splits for p in part]
    assert len(set(taken)) == len(taken)
    assert all(first[normalised(p.question)] is p for part in splits for p in part)
    assert split_problems(problems, shares, seed=seed) == splits


def test_splits_are_shuffled_by_seed() -> None:
    """Seeds give different splits; the same seed gives a prefix the same whatever the later sizes."""
    problems = [problem(str(n), str(n)) for n in range(50)]
    (train, rest), (other, _) = (split_problems(problems, [20, 30], seed=seed) for seed in (0, 1))
    assert train != other
    assert train != problems[:20]
    assert split_problems(problems, [20], seed=0) == [train]
    assert sorted(p.id for p in train + rest) == sorted(p.id for p in problems)


def test_a_negative_size_is_refused() -> None:
    """A split cannot be smaller than empty."""
    with pytest.raises(DataError, match="no split has fewer than 0"):
        split_problems([problem("a")], [1, -1], seed=0)


def test_splits_of_a_small_gym_task_are_disjoint() -> None:
    """A task that repeats its questions still gives disjoint splits, or says how many questions there are."""
    problems = load("gym:chain_sum", size=300, gym={"max_terms": 2, "max_digits": 1})
    distinct = len({p.question for p in problems})
    assert distinct < 300
    train, test = split_problems(problems, [distinct - 20, 20], seed=0)
    assert not {p.question for p in train} & {p.question for p in test}
    with pytest.raises(DataError, match=rf"{distinct} distinct questions among 300 problems"):
        split_problems(problems, [280, 20], seed=0)


@given(mine=QUESTIONS, others=QUESTIONS)
def test_without_overlap_drops_exactly_the_shared_questions(mine: list[str], others: list[str]) -> None:
    """What stays is in order and shares no normalised question; what goes shares one."""
    taken = {normalised(question) for question in others}
    left = without_overlap(map(problem, mine), map(problem, others))
    assert [p.question for p in left] == [question for question in mine if normalised(question) not in taken]


def test_fingerprints_depend_on_content_and_order() -> None:
    """Same rows, same hash, whatever the order of metadata; another order of rows or any change is another hash."""
    a = Problem(id="a", question="?", answer="1", metadata={"x": 1, "y": 2})
    b = problem("b")
    same = Problem(id="a", question="?", answer="1", metadata={"y": 2, "x": 1})
    assert fingerprint([a, b]) == fingerprint([same, b])
    assert len({fingerprint(rows) for rows in ([a, b], [b, a], [a], [])}) == 4
    assert re.fullmatch(r"[0-9a-f]{64}", fingerprint([a]))


# The real benchmark files

EMPTY_ANSWERS = {
    "gaokao2023en/test.jsonl": ["gaokao2023en/test/167", "gaokao2023en/test/192"],
    "math/train.jsonl.gz": ["math/train/5529", "math/train/5531"],
}
FILES = sorted(str(path.relative_to(BENCHMARKS)) for path in BENCHMARKS.glob("*/*.jsonl*"))
needs_benchmarks = pytest.mark.skipif(not FILES, reason="no shared/benchmarks beside the repository")


@needs_benchmarks
@pytest.mark.parametrize("name", FILES)
def test_benchmarks_load(name: str) -> None:
    """Every row becomes a problem of the right kind, but for the known rows without an answer."""
    path = BENCHMARKS / name
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        rows = [json.loads(line) for line in file]
    empty = EMPTY_ANSWERS.get(name, [])
    if empty:
        with pytest.raises(DataError, match=rf"Line {int(empty[0].split('/')[-1]) + 1} of .*the answer of .* is empty"):
            load(str(path))
    problems = load(str(path), skip_bad=bool(empty))
    kept = [row for row in rows if row["id"] not in empty]
    assert [p.id for p in problems] == [row["id"] for row in kept]
    for found, row in zip(problems, kept, strict=True):
        choices = row.get("choices")
        assert found.kind == ("choice" if choices else "math")
        assert found.answer == ("ABCDEFGHIJ"[row["answer_index"]] if choices else row["answer"])
        assert "<<" not in (found.solution or "") or "olympiad" in name


def test_importing_the_module_is_light() -> None:
    """Neither torch nor datasets nor reasoning-gym is imported before it is needed."""
    code = "import cruxtune.problems, sys; print({'torch', 'datasets', 'reasoning_gym'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
