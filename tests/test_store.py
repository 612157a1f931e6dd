"""The store: what a crash, a resume, another process and another setting do to a dataset directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cruxtune.errors import StoreError
from cruxtune.records import (
    ANNOTATION_SCHEMA,
    PROBLEM_SCHEMA,
    RESPONSE_SCHEMA,
    ROLLOUT_SCHEMA,
    Annotation,
    Problem,
    Response,
    Rollout,
    Verdict,
)
from cruxtune.store import (
    DatasetWriter,
    Workspace,
    finished_manifest,
    groups_of,
    read_manifest,
    read_rows,
    write_atomic,
)

SCHEMA = pa.schema({"id": pa.string(), "n": pa.int32()})
IDENTITY = {"model": "m", "seed": 0}


def writer(
    path: Path, *, groups: int = 3, overwrite: bool = False, side: bool = False, **identity: Any
) -> DatasetWriter:
    """Return a writer of three groups of one row, the identity changed as asked."""
    tables = {"data": SCHEMA, **({"rollouts": SCHEMA} if side else {})}
    return DatasetWriter(path, "respond", {**IDENTITY, **identity}, groups=groups, tables=tables, overwrite=overwrite)


def rows(group: int) -> list[dict[str, Any]]:
    """Return the row of a group."""
    return [{"id": f"p{group}", "n": group}]


def write_all(path: Path, *, seconds: float = 1.0, **more: Any) -> dict[str, Any]:
    """Write what is pending, and return the manifest."""
    with writer(path, **more) as out:
        for group in out.pending():
            out.write(group, {"data": rows(group), "rollouts": rows(group)}, {"seconds": seconds, "tokens": group})
        return out.close()


def files(path: Path) -> set[str]:
    """Return the paths of all files below a directory."""
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


# Shards, resume and the manifest


def test_a_dataset_holds_its_rows_in_order_and_says_it_is_complete(tmp_path: Path) -> None:
    """All groups written: the rows come back in order, with number, sums and completeness in the manifest."""
    manifest = write_all(tmp_path / "d")
    assert [row["n"] for row in read_rows(tmp_path / "d")] == [0, 1, 2]
    assert (manifest["rows"], manifest["complete"]) == (3, True)
    assert manifest == read_manifest(tmp_path / "d") == finished_manifest(tmp_path / "d", "respond", "--responses")


def test_a_resume_does_only_what_is_not_finished(tmp_path: Path) -> None:
    """Groups with a shard are not pending, in whatever order they were finished."""
    with writer(tmp_path / "d") as out:
        assert out.pending() == [0, 1, 2]
        out.write(1, {"data": rows(1)}, {})
    with writer(tmp_path / "d") as out:
        assert out.pending() == [0, 2]


def test_the_sums_are_over_all_groups_whichever_run_finished_them(tmp_path: Path) -> None:
    """Accounting adds up over an interruption; a number that only some groups have counts where it is."""
    with writer(tmp_path / "d") as out:
        out.write(0, {"data": rows(0)}, {"seconds": 0.1, "tokens": 5})
    with writer(tmp_path / "d") as out:
        out.write(1, {"data": rows(1)}, {"seconds": 0.2, "tokens": 6})
        out.write(2, {"data": rows(2)}, {"seconds": 0.4, "tokens": 7, "loops": 1})
        assert out.close()["accounting"] == {"seconds": 0.7, "tokens": 18, "loops": 1}


def test_unfinished_groups_keep_a_dataset_from_being_closed(tmp_path: Path) -> None:
    """Closing early is refused and leaves the manifest incomplete."""
    with writer(tmp_path / "d") as out:
        out.write(0, {"data": rows(0)}, {})
        with pytest.raises(StoreError, match="2 of 3 groups are not finished"):
            out.close()
    assert read_manifest(tmp_path / "d")["complete"] is False


def test_a_group_counts_as_done_only_when_its_side_table_is_there_too(tmp_path: Path, monkeypatch: Any) -> None:
    """The main shard is written last: a crash between the two leaves the group pending."""
    import cruxtune.store as store

    written: list[str] = []
    original = store._write_parquet

    def crash_after_first(table: pa.Table, path: Path) -> None:
        if written:
            raise KeyboardInterrupt
        original(table, path)
        written.append(path.parent.name)

    monkeypatch.setattr(store, "_write_parquet", crash_after_first)
    with writer(tmp_path / "d", side=True) as out:
        with pytest.raises(KeyboardInterrupt):
            out.write(0, {"data": rows(0), "rollouts": rows(0)}, {})
        assert written == ["rollouts"]
        assert out.pending() == [0, 1, 2]


def test_temporary_files_of_a_crash_vanish_and_are_never_read(tmp_path: Path) -> None:
    """Half-written shards are neither rows nor finished groups, and are gone after the next start."""
    with writer(tmp_path / "d", side=True) as out:
        out.write(0, {"data": rows(0), "rollouts": rows(0)}, {})
    for table in ("data", "rollouts"):
        (tmp_path / "d" / table / ".part-00001.parquet.tmp").write_bytes(b"PAR1 half")
    assert [row["n"] for row in read_rows(tmp_path / "d")] == [0]
    with writer(tmp_path / "d", side=True) as out:
        assert out.pending() == [1, 2]
    assert not [name for name in files(tmp_path / "d") if name.endswith(".tmp")]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: Any) -> None:
    """`write_atomic` replaces a file whole or not at all."""
    target = tmp_path / "file"
    write_atomic(target, b"old")

    def fail(_: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space"):
            write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    write_atomic(target, b"new")
    assert target.read_bytes() == b"new"
    assert files(tmp_path) == {"file"}


def test_what_a_crash_leaves_before_the_first_manifest_is_no_obstacle(tmp_path: Path) -> None:
    """A directory with nothing but our lock and the temporary manifest can be written."""
    (tmp_path / "d").mkdir()
    for name in (".lock", ".manifest.json.tmp"):
        (tmp_path / "d" / name).touch()
    assert write_all(tmp_path / "d")["complete"]


def test_a_finished_dataset_opened_again_has_nothing_to_do(tmp_path: Path) -> None:
    """Opening a complete dataset changes no file of it."""
    write_all(tmp_path / "d")
    before = {name: (tmp_path / "d" / name).read_bytes() for name in files(tmp_path / "d")}
    with writer(tmp_path / "d") as out:
        assert out.complete
        assert out.pending() == []
    assert before == {name: (tmp_path / "d" / name).read_bytes() for name in files(tmp_path / "d")}


# Other settings


@pytest.mark.parametrize(
    ("change", "field", "before", "now"),
    [
        ({"seed": 7}, "seed", "0", "7"),
        ({"model": "other"}, "model", '"m"', '"other"'),
        ({"limit": 3}, "limit", "null", "3"),
        ({"groups": 4}, "groups", "3", "4"),
    ],
)
def test_rows_of_other_settings_are_refused_by_field_and_values(
    tmp_path: Path, change: dict[str, Any], field: str, before: str, now: str
) -> None:
    """A directory with rows of another identity is refused; the message has the field, both values and what to do."""
    with writer(tmp_path / "d") as out:
        out.write(0, {"data": rows(0)}, {})
    with pytest.raises(StoreError) as caught, writer(tmp_path / "d", **change):
        pass
    message = str(caught.value)
    assert f"{field} = {before}, and this run has {now}" in message
    assert "--overwrite" in message
    assert "another --output" in message


def test_long_values_are_cut_in_messages(tmp_path: Path) -> None:
    """A message stays readable whatever the values are."""
    with writer(tmp_path / "d", system="a" * 500) as out:
        out.write(0, {"data": rows(0)}, {})
    with pytest.raises(StoreError, match=r"system = .a{100}") as caught, writer(tmp_path / "d", system="b" * 500):
        pass
    assert len(str(caught.value)) < 700


def test_a_run_that_failed_before_its_first_row_does_not_hold_its_directory(tmp_path: Path) -> None:
    """After a mistyped model, the corrected command may use the same --output: there is nothing to mix with."""
    with writer(tmp_path / "d", model="mistyped") as out:
        assert not out.complete
    manifest = write_all(tmp_path / "d")
    assert manifest["identity"]["model"] == "m"


def test_the_same_settings_written_differently_are_the_same(tmp_path: Path) -> None:
    """Identity is compared as JSON: a tuple is the list that it was stored as, and None is what was not there."""
    with writer(tmp_path / "d", stop=(1, 2)) as out:
        out.write(0, {"data": rows(0)}, {})
    with writer(tmp_path / "d", stop=[1, 2], revision=None) as out:
        assert out.pending() == [1, 2]


def test_facts_of_the_model_must_be_those_of_the_earlier_run(tmp_path: Path) -> None:
    """A model whose facts changed under the same name is refused on resume."""
    with writer(tmp_path / "d") as out:
        out.describe({"tokenizer": "sha256:1", "eos_ids": (2, 3)})
        out.write(0, {"data": rows(0)}, {})
    with writer(tmp_path / "d") as out:
        out.describe({"tokenizer": "sha256:1", "eos_ids": [2, 3]})
        with pytest.raises(StoreError, match=r'tokenizer = "sha256:1", and this run has "sha256:2"'):
            out.describe({"tokenizer": "sha256:2", "eos_ids": [2, 3]})
    assert read_manifest(tmp_path / "d")["facts"]["tokenizer"] == "sha256:1"


def test_another_stage_is_refused(tmp_path: Path) -> None:
    """A directory of one stage is no output of another, even an empty one."""
    write_all(tmp_path / "d")
    with (
        pytest.raises(StoreError, match="holds the output of `respond`, not of `train`"),
        Workspace(tmp_path / "d", "train", IDENTITY),
    ):
        pass


def test_overwrite_starts_again(tmp_path: Path) -> None:
    """--overwrite deletes the old rows, of whatever settings, and nothing outside of the directory."""
    write_all(tmp_path / "d", groups=3)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (tmp_path / "d" / "link").symlink_to(outside)
    with writer(tmp_path / "d", groups=2, seed=9, overwrite=True) as out:
        assert not out.complete
        assert out.pending() == [0, 1]
    assert list(read_rows(tmp_path / "d")) == []
    assert (outside / "kept").exists()
    assert not (tmp_path / "d" / "link").exists()


# Directories that are not ours


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_someone_else_is_refused_and_left_as_it_is(tmp_path: Path, overwrite: bool) -> None:
    """Without a manifest of ours nothing is written or deleted, not even a lock file."""
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with (
        pytest.raises(StoreError, match=r"no manifest\.json, so it is not ours"),
        writer(tmp_path, overwrite=overwrite),
    ):
        pass
    assert files(tmp_path) == {"thesis.tex"}


@pytest.mark.parametrize("manifest", ['{"name": "a web app", "start_url": "/"}', "[]", "// JSON5\n{}"])
def test_overwrite_never_deletes_behind_a_manifest_of_another_program(tmp_path: Path, manifest: str) -> None:
    """Other programs have a manifest.json too; their directories are refused with and without --overwrite."""
    (tmp_path / "manifest.json").write_text(manifest)
    (tmp_path / "index.html").touch()
    for overwrite in (False, True):
        with pytest.raises(StoreError, match=r"manifest\.json is"), writer(tmp_path, overwrite=overwrite):
            pass
    assert files(tmp_path) - {".lock"} == {"manifest.json", "index.html"}


def test_an_output_that_cannot_be_written_is_a_users_error(tmp_path: Path) -> None:
    """A file in the way, at the end of the path or within it, is said in one sentence."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is a file; name a directory"), writer(tmp_path / "file"):
        pass
    with (
        pytest.raises(StoreError, match=r"--output .* cannot be written \(Not a directory\)"),
        writer(tmp_path / "file" / "below"),
    ):
        pass


# What other stages read


def test_a_stage_reads_finished_output_of_the_right_stage_only(tmp_path: Path) -> None:
    """Missing, foreign and unfinished sources are refused, with the flag, the path and what to run."""
    with pytest.raises(StoreError, match=r"--responses .*nowhere does not exist; run `cruxtune respond` first"):
        finished_manifest(tmp_path / "nowhere", "respond", "--responses")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"has no manifest\.json"):
        finished_manifest(tmp_path / "empty", "respond", "--responses")
    with writer(tmp_path / "d") as out:
        out.write(0, {"data": rows(0)}, {})
    with pytest.raises(
        StoreError, match=r"--annotations .* holds the output of `respond`; expected that of `annotate`"
    ):
        finished_manifest(tmp_path / "d", "annotate", "--annotations")
    with pytest.raises(StoreError, match=r"is unfinished; run the same `cruxtune respond` command again"):
        finished_manifest(tmp_path / "d", "respond", "--responses")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"format": 1, "sta', "is not valid JSON"),
        ("[1]", "is not one of cruxtune's"),
        ('{"version": 2}', "is not one of cruxtune's"),
        ('{"format": 99, "stage": "respond", "identity": {}}', "has format 99, this version reads 1"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_named(tmp_path: Path, content: str, complaint: str) -> None:
    """A corrupt, foreign or newer manifest is an error that names the file."""
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match=complaint) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path / "manifest.json") in str(caught.value)


# Fingerprints


def test_the_fingerprint_is_of_the_rows_alone(tmp_path: Path) -> None:
    """Neither an interruption nor timings change it."""
    with writer(tmp_path / "b") as out:
        out.write(2, {"data": rows(2)}, {"seconds": 77.0})
    first = write_all(tmp_path / "a", seconds=1.0)["fingerprint"]
    assert write_all(tmp_path / "b", seconds=2.0)["fingerprint"] == first


@pytest.mark.parametrize("changed", [{"id": "p1", "n": 9}, {"id": "px", "n": 1}, {"id": "p1", "n": None}])
def test_the_fingerprint_changes_with_any_value(tmp_path: Path, changed: dict[str, Any]) -> None:
    """One other value in one row is another dataset."""
    first = write_all(tmp_path / "a")["fingerprint"]
    with writer(tmp_path / "b") as out:
        for group in out.pending():
            out.write(group, {"data": [changed] if group == 1 else rows(group)}, {})
        assert out.close()["fingerprint"] != first


# Other processes

HOLDER = """
import sys, time
from pathlib import Path
from cruxtune.store import Workspace
with Workspace(Path(sys.argv[1]), "respond", {"model": "m", "seed": 0, "groups": 3}):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield another process that has the directory open for writing."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def test_two_processes_never_write_one_directory_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    """While another process writes, this one is refused (also with --overwrite); SIGKILL of the other frees it."""
    with held(tmp_path / "d") as process:
        for overwrite in (False, True):
            with (
                pytest.raises(StoreError, match="is being written by another process"),
                writer(tmp_path / "d", overwrite=overwrite),
            ):
                pass
        assert read_manifest(tmp_path / "d")["complete"] is False
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert write_all(tmp_path / "d")["complete"]


def test_a_directory_is_free_after_an_error(tmp_path: Path) -> None:
    """A refused or failed run releases the lock in its own process too."""
    write_all(tmp_path / "d")
    with pytest.raises(StoreError), writer(tmp_path / "d", seed=1):
        pass
    with pytest.raises(ZeroDivisionError), writer(tmp_path / "d"):
        raise ZeroDivisionError
    with writer(tmp_path / "d") as out:
        assert out.complete


# Readers of others


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Annotation], list[Rollout]]:
    """A dataset as `annotate` writes it, in two groups, with what was put into it."""
    path = tmp_path_factory.mktemp("store") / "annotations"
    made = [annotation(str(number), choices=["2", "3"] if number else None) for number in range(3)]
    rollouts = [
        Rollout(one.response.problem.id, 0, 1, [7, 9], "stop", Verdict(False, None, "no-answer")) for one in made
    ]
    with DatasetWriter(
        path, "annotate", {}, groups=2, tables={"data": ANNOTATION_SCHEMA, "rollouts": ROLLOUT_SCHEMA}
    ) as out:
        for group, part in enumerate(groups_of(3, 2)):
            out.write(
                group,
                {
                    "data": [made[index].to_row() for index in part],
                    "rollouts": [rollouts[index].to_row() for index in part],
                },
                {"seconds": 0.5},
            )
        out.close()
    return path, made, rollouts


def annotation(name: str, choices: list[str] | None = None) -> Annotation:
    """Return an annotation of two tokens."""
    problem = Problem(name, "1 + 1?", "2", choices=choices, source="test", metadata={"entry": {"x": [1, "é"]}})
    return Annotation(
        response=Response(problem, [1], [5, 6], "2", "stop", Verdict(True, "2", "boxed")),
        alternatives=[[7, 8], [9, 10]],
        alternative_logprobs=[[-1.5, -2.0], [-0.25, -8.0]],
        alternative_correct=[[True, None], [False, False]],
        logprobs=[-0.5, -0.125],
        entropies=[1.0, 0.5],
        critical=[False, True],
    )


def test_datasets_opens_both_tables_as_they_are(
    annotations: tuple[Path, list[Annotation], list[Rollout]], tmp_path: Path
) -> None:
    """`load_dataset(DIR)` is the main table, `load_dataset(DIR, "rollouts")` the other, with the schemas' types."""
    import datasets

    path, made, rollouts = annotations
    data = datasets.load_dataset(str(path), split="train", cache_dir=str(tmp_path))
    assert data.features.arrow_schema.remove_metadata() == ANNOTATION_SCHEMA
    assert data.to_list() == [one.to_row() for one in made]
    side = datasets.load_dataset(str(path), "rollouts", split="train", cache_dir=str(tmp_path))
    assert side.features.arrow_schema.remove_metadata() == ROLLOUT_SCHEMA
    assert side.to_list() == [one.to_row() for one in rollouts]


def test_duckdb_opens_both_tables_as_they_are(annotations: tuple[Path, list[Annotation], list[Rollout]]) -> None:
    """The shards of a table are one table to DuckDB, nested lists and nulls included."""
    path, _, _ = annotations
    found = duckdb.sql(
        "select id, critical, alternative_correct, alternatives[2][1], choices "
        f"from '{path}/data/*.parquet' order by id"
    )
    assert found.fetchall()[0] == ("0", [False, True], [[True, None], [False, False]], 9, None)
    assert [str(kind) for kind in found.types] == ["VARCHAR", "BOOLEAN[]", "BOOLEAN[][]", "INTEGER", "VARCHAR[]"]
    side = duckdb.sql(f"select count(*), any_value(typeof(position)) from '{path}/rollouts/*.parquet'")
    assert side.fetchall() == [(3, "INTEGER")]


def test_annotations_come_back_as_they_were(annotations: tuple[Path, list[Annotation], list[Rollout]]) -> None:
    """Rows read from the shards are the annotations that were written."""
    path, made, _ = annotations
    assert [Annotation.from_row(row) for row in read_rows(path)] == made
    assert list(read_rows(path, "rollouts", ["rank"])) == [{"rank": 1}] * 3


# Records

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
ids = st.lists(st.integers(0, 2**31 - 1), max_size=5)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | texts
)
metadata = st.dictionaries(
    texts, st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=5), max_size=3
)
problems = st.builds(
    Problem,
    id=texts,
    question=texts,
    answer=texts,
    kind=st.sampled_from(["math", "choice", "exact", "custom", "gym"]),
    choices=st.none() | st.lists(texts, min_size=1, max_size=4),
    solution=st.none() | texts,
    source=texts,
    metadata=metadata,
)
verdicts = st.builds(Verdict, st.booleans(), st.none() | texts, texts)
responses = st.builds(Response, problems, ids, ids, texts, texts, verdicts)


def through_parquet(row: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """Return a row as it comes back from a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row], schema=schema), sink)
    return pq.read_table(pa.BufferReader(sink.getvalue())).to_pylist()[0]


@settings(max_examples=60, deadline=None)
@given(problems)
def test_a_problem_survives_its_row(problem: Problem) -> None:
    """Writing a problem to Parquet and reading it gives the same problem, whatever its texts and metadata are."""
    assert set(problem.to_row()) == set(PROBLEM_SCHEMA.names)
    assert Problem.from_row(through_parquet(problem.to_row(), PROBLEM_SCHEMA)) == problem


@settings(max_examples=60, deadline=None)
@given(responses)
def test_a_response_survives_its_row(response: Response) -> None:
    """So does a response with its problem and verdict; columns of later stages do not disturb."""
    assert set(response.to_row()) == set(RESPONSE_SCHEMA.names)
    row = through_parquet(response.to_row(), RESPONSE_SCHEMA)
    assert Response.from_row({**row, "critical": [True]}) == response


@settings(max_examples=60, deadline=None)
@given(responses, st.data())
def test_an_annotation_survives_its_row(response: Response, data: st.DataObject) -> None:
    """So does an annotation, "not needed" (null) told apart from wrong."""
    count = len(response.response_ids)
    floats = st.floats(-100, 0, width=32)

    def pairs(values: st.SearchStrategy[Any]) -> list[list[Any]]:
        return data.draw(st.lists(st.lists(values, min_size=2, max_size=2), min_size=count, max_size=count))

    def each(values: st.SearchStrategy[Any]) -> list[Any]:
        return data.draw(st.lists(values, min_size=count, max_size=count))

    annotated = Annotation(
        response,
        alternatives=pairs(st.integers(0, 2**31 - 1)),
        alternative_logprobs=pairs(floats),
        alternative_correct=pairs(st.none() | st.booleans()),
        logprobs=each(floats),
        entropies=each(floats),
        critical=each(st.booleans()),
    )
    assert set(annotated.to_row()) == set(ANNOTATION_SCHEMA.names)
    assert Annotation.from_row(through_parquet(annotated.to_row(), ANNOTATION_SCHEMA)) == annotated


@given(st.integers(0, 60), st.integers(1, 20))
def test_groups_are_a_fixed_partition(total: int, size: int) -> None:
    """Groups cover every row once, in order, and are full but for the last."""
    groups = groups_of(total, size)
    assert [index for group in groups for index in group] == list(range(total))
    assert all(len(group) == size for group in groups[:-1])


def test_the_manifest_names_the_libraries_that_can_change_a_result(tmp_path: Path) -> None:
    """Versions of torch, transformers and of cruxtune itself are recorded."""
    versions = write_all(tmp_path / "d")["versions"]
    assert {"cruxtune", "torch", "transformers", "trl"} <= versions.keys()
    assert json.loads((tmp_path / "d" / "manifest.json").read_text())["versions"] == versions
