"""Rows of `input_ids`, `attention_mask` and `labels`: what TRL, Axolotl, LLaMA-Factory and Unsloth take ready-made.

`labels` are unshifted and hold IGNORE_INDEX where there is no loss. None of the four has room for a weight per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from cruxtune.exporters.files import read_dataset, read_jsonl, save_dataset, write_jsonl
from cruxtune.masks import IGNORE_INDEX, TrainingRow

# The types that `datasets` gives Python's integers, so that no consumer meets others than it is used to.
_SCHEMA = pa.schema(dict.fromkeys(("input_ids", "attention_mask", "labels"), pa.list_(pa.int64())))


def write_labels(directory: Path, rows: Iterable[TrainingRow]) -> None:
    """Write train.jsonl."""
    write_jsonl(directory, map(_columns, rows))


def write_labels_and_masks(directory: Path, rows: Iterable[TrainingRow]) -> None:
    """Write train.jsonl with `assistant_masks` beside the labels: 1 where there is loss."""
    masked = ({**_columns(row), "assistant_masks": [int(weight > 0) for weight in row.weights]} for row in rows)
    write_jsonl(directory, masked)


def read_labels(directory: Path) -> Iterator[TrainingRow]:
    """Yield what `write_labels` wrote."""
    yield from map(_row, read_jsonl(directory))


def save_labels(directory: Path, rows: Iterable[TrainingRow]) -> None:
    """Write the same rows as a dataset on disk."""
    save_dataset(directory, map(_columns, rows), _SCHEMA)


def read_saved_labels(directory: Path) -> Iterator[TrainingRow]:
    """Yield what `save_labels` wrote."""
    yield from map(_row, read_dataset(directory))


def _columns(row: TrainingRow) -> dict[str, list[int]]:
    return {"input_ids": row.input_ids, "attention_mask": [1] * len(row.input_ids), "labels": row.labels}


def _row(columns: Mapping[str, Any]) -> TrainingRow:
    return TrainingRow(columns["input_ids"], [float(label != IGNORE_INDEX) for label in columns["labels"]])
