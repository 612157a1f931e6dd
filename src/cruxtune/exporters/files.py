"""Files that hold rows: written so that they are there whole or not at all, read back row by row."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cruxtune.store import atomic_file, write_atomic

JSONL = "train.jsonl"
PARQUET = "train.parquet"
SAVED = "dataset"
"""The directory of a dataset as `datasets.Dataset.save_to_disk` makes it."""

_BATCH = 1000
_SHIPPED = Path(__file__).with_name("shipped")

Columns = Mapping[str, Any]
"""One row, by the names of the consumer's columns."""


def write_jsonl(directory: Path, rows: Iterable[Columns]) -> None:
    """Write one JSON object per row to train.jsonl."""
    with atomic_file(directory / JSONL) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def read_jsonl(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of train.jsonl."""
    with (directory / JSONL).open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_parquet(directory: Path, rows: Iterable[Columns], schema: pa.Schema) -> None:
    """Write train.parquet, a thousand rows in memory at a time."""
    with atomic_file(directory / PARQUET) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in _batches(rows):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def read_parquet(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of train.parquet."""
    for batch in pq.ParquetFile(directory / PARQUET).iter_batches():
        yield from batch.to_pylist()


def save_dataset(directory: Path, rows: Iterable[Columns], schema: pa.Schema) -> None:
    """Write the directory `dataset` as `Dataset.save_to_disk` does."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    tables = [pa.Table.from_pylist(batch, schema=schema) for batch in _batches(rows)]
    temporary, final = directory / f".{SAVED}.tmp", directory / SAVED
    for stale in (temporary, final):
        shutil.rmtree(stale, ignore_errors=True)
    Dataset(pa.concat_tables(tables)).save_to_disk(temporary)
    os.replace(temporary, final)


def read_dataset(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of the directory `dataset`."""
    from datasets import load_from_disk

    yield from load_from_disk(directory / SAVED)


def ship(directory: Path, name: str) -> None:
    """Put a module of ours that the consumer imports beside its rows."""
    write_atomic(directory / name, (_SHIPPED / name).read_bytes())


def _batches(rows: Iterable[Columns]) -> Iterator[list[Columns]]:
    waiting = iter(rows)
    while batch := list(islice(waiting, _BATCH)):
        yield batch
