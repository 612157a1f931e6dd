"""Rows with a mask or weight per token, and a module of ours that hands them on: torchtune, verl, Tinker, ms-swift.

Each has its own convention, and none of them leaves this module:

    torchtune   `mask` True where there is NO loss; torchtune makes the labels
    verl        `loss_mask[i]` is the weight of predicting token i; verl shifts it
    Tinker      `weights[i]` likewise; tinker-cookbook shifts them
    ms-swift    the content of a message: `token_ids`, and a `loss_scale` for each
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from cruxtune.exporters.files import read_jsonl, read_parquet, ship, write_jsonl, write_parquet
from cruxtune.masks import TrainingRow

_VERL = pa.schema({"input_ids": pa.list_(pa.int32()), "loss_mask": pa.list_(pa.float32())})


def write_torchtune(directory: Path, rows: Iterable[TrainingRow]) -> None:
    """Write train.jsonl with `tokens` and `mask`, and the module that makes a torchtune dataset of it."""
    columns = ({"tokens": row.input_ids, "mask": [not weight for weight in row.weights]} for row in rows)
    write_jsonl(directory, columns)
    ship(directory, "cruxtune_torchtune.py")


def read_torchtune(directory: Path) -> Iterator[TrainingRow]:
    """Yield what `write_torchtune` wrote."""
    for row in read_jsonl(directory):
        yield TrainingRow(row["tokens"], [float(not ignored) for ignored in row["mask"]])


def write_verl(directory: Path, rows: Iterable[TrainingRow]) -> None:
    """Write train.parquet with `input_ids` and `loss_mask`, and the dataset class that verl is told to use."""
    columns = ({"input_ids": row.input_ids, "loss_mask": row.weights} for row in rows)
    write_parquet(directory, columns, _VERL)
    ship(directory, "cruxtune_verl.py")


def read_verl(directory: Path) -> Iterator[TrainingRow]:
    """Yield what `write_verl` wrote; weights are rounded to float32."""
    for row in read_parquet(directory):
        yield TrainingRow(row["input_ids"], row["loss_mask"])


def write_tinker(directory: Path, rows: Iterable[TrainingRow]) -> None:
    """Write train.jsonl with `tokens` and `weights`, and the module that makes datums of them."""
    write_jsonl(directory, ({"tokens": row.input_ids, "weights": row.weights} for row in rows))
    ship(directory, "cruxtune_tinker.py")


def read_tinker(directory: Path) -> Iterator[TrainingRow]:
    """Yield what `write_tinker` wrote."""
    for row in read_jsonl(directory):
        yield TrainingRow(row["tokens"], row["weights"])


def write_swift(directory: Path, rows: Iterable[TrainingRow]) -> None:
    """Write train.jsonl with `messages`, and the plugin that registers it and a template that adds nothing.

    A row is one message of the assistant: those that follow each other would be joined, with the loss of the first.
    """
    contents = ({"token_ids": row.input_ids, "loss_scale": row.weights} for row in rows)
    write_jsonl(directory, ({"messages": [{"role": "assistant", "content": content}]} for content in contents))
    ship(directory, "cruxtune_swift.py")


def read_swift(directory: Path) -> Iterator[TrainingRow]:
    """Yield what `write_swift` wrote."""
    for row in read_jsonl(directory):
        (message,) = row["messages"]
        yield TrainingRow(message["content"]["token_ids"], message["content"]["loss_scale"])
