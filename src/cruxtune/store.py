"""Dataset directories: Parquet shards and a manifest, written so that a crash loses at most one group.

    DIR/README.md                 dataset card: tells `datasets.load_dataset(DIR)` which files are which table
    DIR/manifest.json             what made these rows (identity, facts), whether they are complete, the accounting
    DIR/data/part-00000.parquet   one shard per group of rows
    DIR/rollouts/part-00000.parquet   a second table, where a stage has one

The unit of work is a group: a fixed slice of the source, the same whatever was finished before, so that a batch never
has another composition after a resume. A shard appears by write-to-temporary, fsync and rename. A group is finished
when its shard in `data` exists; side tables are written before it.

`Workspace` is the lock and the manifest (the train stage uses it alone); `DatasetWriter` adds the shards.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cruxtune.errors import StoreError

FORMAT = 1
MANIFEST = "manifest.json"
CARD = "README.md"
LOCK = ".lock"
MAIN_TABLE = "data"
_GROUP_KEY = b"cruxtune.group"
_LIBRARIES = (
    "cruxtune",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "math-verify",
    "reasoning-gym",
    "pyarrow",
)

Rows = Sequence[Mapping[str, Any]]


class Workspace:
    """A directory that one process at a time may write, and its manifest.

    `identity` holds what determines the content (settings, model, source, seed) as a flat mapping. A directory with
    results of another identity is refused, naming the first field that differs, unless `overwrite`. With `writes` off,
    another process has entered it already: this one holds no lock, and keeps what it is told to itself.

    Raises:
        StoreError: another process holds the directory, it belongs to other settings, it is no dataset of ours, or it
            cannot be written.
    """

    def __init__(
        self, path: Path, stage: str, identity: Mapping[str, Any], *, overwrite: bool = False, writes: bool = True
    ) -> None:
        self.path = path
        self.stage = stage
        self.identity = json.loads(json.dumps(identity))
        self._overwrite = overwrite
        self._writes = writes
        self._lock: int | None = None
        self.manifest: dict[str, Any] = {}

    def __enter__(self) -> Workspace:
        if not self._writes:
            self.manifest = read_manifest(self.path)
            return self
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"--output {self.path} is a file; name a directory")
        try:
            self._refuse_foreign()
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            raise StoreError(
                f"--output {self.path} cannot be written ({error.strerror}); choose another directory"
            ) from error
        try:
            self._open()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    @property
    def complete(self) -> bool:
        """Whether everything was written."""
        return bool(self.manifest["complete"])

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Record what is known once the model is loaded; refuse if an earlier run saw something else."""
        facts = json.loads(json.dumps(facts))
        if self.manifest["facts"]:
            self._compare(self.manifest["facts"], facts)
        self.manifest["facts"] = facts
        self.save()

    def remember(self, **values: Any) -> None:
        """Keep what a resumed run needs to know."""
        self.manifest.update(values)
        self.save()

    def finish(self, **values: Any) -> dict[str, Any]:
        """Mark the directory complete, add `values` to the manifest and return it."""
        self.manifest.update(values, complete=True)
        self.save()
        return self.manifest

    def save(self) -> None:
        """Write the manifest atomically."""
        if not self._writes:
            return
        text = json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n"
        write_atomic(self.path / MANIFEST, text.encode())

    def _acquire(self) -> None:
        # flock is tied to the open file: a process that dies, however it dies, holds nothing.
        self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            self._lock = None
            raise StoreError(
                f"{self.path} is being written by another process; wait for it, or choose another --output"
            ) from error

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self) -> None:
        if self._overwrite:
            self._clear()
        if (self.path / MANIFEST).exists():
            self.manifest = read_manifest(self.path)
            if self.manifest["stage"] != self.stage:
                raise StoreError(
                    f"{self.path} holds the output of `{self.manifest['stage']}`, not of `{self.stage}`; "
                    "choose another --output"
                )
            # A run that failed before its first result (a mistyped model, say) leaves nothing to protect.
            if self.complete or self._has_results():
                self._compare(self.manifest["identity"], self.identity)
                return
        self.manifest = {
            "format": FORMAT,
            "stage": self.stage,
            "complete": False,
            "identity": self.identity,
            "facts": {},
            "versions": library_versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        self.save()

    def _refuse_foreign(self) -> None:
        """Raise for a directory that we did not make, before anything in it is touched."""
        if not self.path.is_dir():
            return
        # The manifest is the first file that we write: a crash may leave its temporary one alone.
        names = {entry.name for entry in self.path.iterdir()} - {LOCK, f".{MANIFEST}.tmp"}
        if names and MANIFEST not in names:
            raise StoreError(
                f"{self.path} is not empty and has no {MANIFEST}, so it is not ours to write; choose another --output"
            )
        if names and self._overwrite and not _is_ours(self.path / MANIFEST):
            raise StoreError(
                f"--overwrite: {self.path / MANIFEST} is not one of cruxtune's, so {self.path} is not ours to delete; "
                "remove it yourself, or choose another --output"
            )

    def _has_results(self) -> bool:
        return any(file.is_file() and file.name not in (LOCK, MANIFEST, CARD) for file in self.path.rglob("*"))

    def _clear(self) -> None:
        entries = [entry for entry in self.path.iterdir() if entry.name != LOCK]
        # The manifest goes last: a crash half-way leaves a directory that --overwrite still recognises.
        for entry in sorted(entries, key=lambda entry: entry.name == MANIFEST):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def _compare(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise StoreError(
                    f"{self.path} was made with {name} = {_show(before.get(name))}, and this run has "
                    f"{_show(now.get(name))}; rows of different settings are not mixed: "
                    f"use the same {name}, another --output, or --overwrite"
                )


class DatasetWriter(Workspace):
    """A workspace of Parquet shards, one per group and table.

    Use as a context manager; `pending()` gives the groups still to do, `write` finishes one. `tables` maps a table's
    name to its schema and must contain "data".

    Raises:
        StoreError: as `Workspace`, or the number of groups differs from that of an earlier run.
    """

    def __init__(
        self,
        path: Path,
        stage: str,
        identity: Mapping[str, Any],
        *,
        groups: int,
        tables: Mapping[str, pa.Schema],
        overwrite: bool = False,
    ) -> None:
        super().__init__(path, stage, {**identity, "groups": groups}, overwrite=overwrite)
        self._groups = groups
        self._tables = {name: tables[name] for name in sorted(tables, key=lambda name: name == MAIN_TABLE)}

    def __enter__(self) -> DatasetWriter:
        super().__enter__()
        for name in self._tables:
            (self.path / name).mkdir(exist_ok=True)
            for stray in (self.path / name).glob(".*.tmp"):
                stray.unlink()
        write_dataset_card(self.path, self.stage, list(self._tables))
        return self

    def pending(self) -> list[int]:
        """Return the groups that are not finished, in order."""
        return [group for group in range(self._groups) if not self._shard(MAIN_TABLE, group).exists()]

    def write(self, group: int, rows: Mapping[str, Rows], accounting: Mapping[str, float]) -> None:
        """Write one group: its rows of every table, and what it cost (numbers that add up over groups)."""
        note = {_GROUP_KEY: json.dumps({"accounting": accounting}).encode()}
        for name, schema in self._tables.items():
            table = pa.Table.from_pylist(list(rows[name]), schema=schema.with_metadata(note))
            _write_parquet(table, self._shard(name, group))

    def close(self, **values: Any) -> dict[str, Any]:
        """Mark the dataset complete, with its rows, accounting and fingerprint, and return the manifest.

        Raises:
            StoreError: some groups are not finished.
        """
        if missing := self.pending():
            raise StoreError(f"{self.path}: {len(missing)} of {self._groups} groups are not finished")
        shards = self._finished()
        rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
        return self.finish(rows=rows, accounting=self.accounting(), fingerprint=table_fingerprint(shards), **values)

    def accounting(self) -> dict[str, float]:
        """Return the sums over the finished groups, whichever process finished them."""
        totals: dict[str, float] = {}
        for shard in self._finished():
            note = json.loads(pq.read_schema(shard).metadata[_GROUP_KEY])
            for name, value in note["accounting"].items():
                totals[name] = round(totals.get(name, 0) + value, 3)
        return totals

    def _finished(self) -> list[Path]:
        shards = (self._shard(MAIN_TABLE, group) for group in range(self._groups))
        return [shard for shard in shards if shard.exists()]

    def _shard(self, table: str, group: int) -> Path:
        return self.path / table / f"part-{group:05d}.parquet"


def write_dataset_card(path: Path, stage: str, tables: Sequence[str]) -> None:
    """Write the dataset card of a directory that a stage wrote: it names these tables, the main one first."""
    configs = "".join(
        f"- config_name: {'default' if name == MAIN_TABLE else name}\n  data_files: {name}/*.parquet\n"
        for name in sorted(tables, key=lambda name: (name != MAIN_TABLE, name))
    )
    text = f"---\nconfigs:\n{configs}---\nWritten by `cruxtune {stage}`; `{MANIFEST}` says with which settings.\n"
    write_atomic(path / CARD, text.encode())


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a dataset or checkpoint directory.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    file = path / MANIFEST
    if not file.exists():
        raise StoreError(f"{path} has no {MANIFEST}: it is no dataset of cruxtune; check the path")
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise StoreError(
            f"{file} is not valid JSON ({error}); restore it, or remove {path} and run the stage again"
        ) from error
    if not isinstance(manifest, dict) or "stage" not in manifest:
        raise StoreError(f"{file} is not one of cruxtune's; check the path")
    if manifest.get("format") != FORMAT:
        raise StoreError(
            f"{file} has format {manifest.get('format')}, this version reads {FORMAT}; "
            "run the stage again with --overwrite"
        )
    return manifest


def finished_manifest(path: Path, stage: str, flag: str) -> dict[str, Any]:
    """Return the manifest of a finished dataset of `stage`, which the user named with `flag`.

    Raises:
        StoreError: it is missing, of another stage, or unfinished.
    """
    if not path.is_dir():
        raise StoreError(f"{flag} {path} does not exist; run `cruxtune {stage}` first, or check the path")
    manifest = read_manifest(path)
    if manifest["stage"] != stage:
        raise StoreError(f"{flag} {path} holds the output of `{manifest['stage']}`; expected that of `{stage}`")
    if not manifest["complete"]:
        raise StoreError(f"{flag} {path} is unfinished; run the same `cruxtune {stage}` command again to complete it")
    return manifest


def read_rows(path: Path, table: str = MAIN_TABLE, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table in order, one shard in memory at a time."""
    for shard in sorted((path / table).glob("part-*.parquet")):
        yield from pq.ParquetFile(shard).read(columns=columns).to_pylist()


def table_fingerprint(shards: Sequence[Path]) -> str:
    """Return a hash of the rows (schema and values, not file bytes, which carry timings)."""
    digest = hashlib.sha256()
    for shard in shards:
        table = pq.ParquetFile(shard).read()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
            writer.write_table(table.replace_schema_metadata(None).combine_chunks())
        digest.update(sink.getvalue())
    return f"sha256:{digest.hexdigest()}"


def groups_of(total: int, size: int) -> list[range]:
    """Return the fixed groups of `total` rows.

    >>> groups_of(5, 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader or a crash sees the old content or the new, never a part."""
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write bit by bit; it takes the place of `path` once it is whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _publish(temporary, path)


def _is_ours(manifest: Path) -> bool:
    try:
        content = json.loads(manifest.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and {"format", "stage", "identity"} <= content.keys()


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that can change a result."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _write_parquet(table: pa.Table, path: Path) -> None:
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd")


def _publish(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    # Without this the rename itself may be lost when the machine (not only the process) goes down.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "…"
