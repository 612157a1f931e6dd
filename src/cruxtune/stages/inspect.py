"""What is trained, as text: rows as they are made or exported, and as they leave TRL's collator."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cruxtune.errors import ConfigError, DataError
from cruxtune.exporters import CONSUMERS
from cruxtune.exporters.rows import WeightedRow, critical_rows
from cruxtune.exporters.settings import InspectSettings
from cruxtune.masks import IGNORE_INDEX, TrainingRow
from cruxtune.models import load_tokenizer, quiet_libraries
from cruxtune.prompts import Renderer, tokenizer_hash
from cruxtune.settings import ModelSettings, PromptSettings, TrainSettings, build, recorded
from cruxtune.store import finished_manifest, read_rows
from cruxtune.trainer import build_trainer

Piece = tuple[str, float]
"""What a token adds to the text, and its weight."""


@dataclass(frozen=True)
class Shown:
    """One row: its tokens before and after the collator, and how many padding tokens came to it there."""

    before: list[Piece]
    after: list[Piece]
    padding: int


def inspect(settings: InspectSettings) -> list[Shown]:
    """Return the first rows, decoded, before and after the collator of TRL's SFTTrainer.

    The trainer is built with a tiny model in the place of the policy, which its data path does not look at.

    Raises:
        DataError: no row, or preference pairs.
        ConfigError: the tokenizer is no longer the annotations'.
        StoreError: the source is missing or unfinished.
    """
    rows, manifest, source = _rows(settings)
    model = recorded(ModelSettings, manifest["settings"]["model"], source)
    tokenizer = load_tokenizer(model)
    if tokenizer_hash(tokenizer) != manifest["facts"]["tokenizer"]:
        raise ConfigError(f"the tokenizer of {model.model} is no longer the one that made {source}; annotate again")
    decode = Renderer(tokenizer, PromptSettings(template="plain")).pieces
    collated = _collated(rows, tokenizer)
    return [
        Shown(
            before=_pieces(decode, row.input_ids, row.weights),
            after=_pieces(decode, ids, [float(label != IGNORE_INDEX) for label in labels]),
            padding=padding,
        )
        for row, (ids, labels, padding) in zip(rows, collated, strict=True)
    ]


def _rows(settings: InspectSettings) -> tuple[list[WeightedRow], dict[str, Any], Path]:
    if settings.exported is not None:
        source = settings.exported
        manifest = finished_manifest(source, "export", "--exported")
        if manifest["settings"]["to"] == "dpo":
            raise DataError(f"--exported {source} holds preference pairs, all of whose continuations are trained")
        rows = CONSUMERS[manifest["settings"]["to"]].read(source)
    else:
        assert settings.annotations is not None
        source = settings.annotations
        manifest = finished_manifest(source, "annotate", "--annotations")
        rows = critical_rows(read_rows(source), unknown=float(settings.unknown == "train"))
    if not (first := list(islice(rows, settings.limit))):
        raise DataError(f"{source}: no response has a critical token, so nothing is trained; annotate more responses")
    return first, manifest, source


def _collated(rows: Sequence[WeightedRow], tokenizer: Any) -> list[tuple[list[int], list[int], int]]:
    """Return (ids, labels, number of padding tokens) of each row of the batch that the trainer makes of them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    stand_in = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    training = [TrainingRow(row.input_ids, row.labels) for row in rows]
    settings = build(TrainSettings, {"method": "cft", "annotations": "", "output": ""})
    asked = ModelSettings(model="stand-in", device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as work, quiet_libraries():
        trainer = build_trainer(stand_in, tokenizer, training, settings, asked, Path(work))
        batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(rows))])
    found = []
    for ids, labels, real in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        kept = real.bool()
        found.append((ids[kept].tolist(), labels[kept].tolist(), int((~kept).sum())))
    return found


def _pieces(decode: Callable[[Sequence[int]], list[str]], ids: list[int], weights: Sequence[float]) -> list[Piece]:
    return list(zip(decode(ids), weights, strict=True))
