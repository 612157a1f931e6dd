"""What is trained, as text: rows as they are made or exported, and as they leave TRL's collator."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from cruxtune.chosen import Chosen, tokenizer_that_made
from cruxtune.errors import DataError
from cruxtune.exporters import CONSUMERS
from cruxtune.exporters.settings import InspectSettings
from cruxtune.masks import TrainingRow
from cruxtune.models import quiet_libraries
from cruxtune.prompts import Renderer
from cruxtune.selectors import critical
from cruxtune.settings import ModelSettings, PromptSettings, build, recorded
from cruxtune.stage_settings import TrainSettings
from cruxtune.store import finished_manifest
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
    rows, tokenizer = _rows_and_tokenizer(settings)
    decode = Renderer(tokenizer, PromptSettings(template="plain")).pieces
    collated = _collated(rows, tokenizer)
    return [
        Shown(
            before=_pieces(decode, row.input_ids, row.weights),
            after=_pieces(decode, ids, weights),
            padding=padding,
        )
        for row, (ids, weights, padding) in zip(rows, collated, strict=True)
    ]


def _rows_and_tokenizer(settings: InspectSettings) -> tuple[list[TrainingRow], Any]:
    if settings.exported is None:
        chosen = Chosen(settings.annotations, settings.selection)
        rows = chosen.rows(None, partial(critical, unknown=float(settings.unknown == "train")))
        return list(islice(rows, settings.limit)), chosen.tokenizer()
    source = settings.exported
    manifest = finished_manifest(source, "export", "--exported")
    if manifest["settings"]["to"] == "dpo":
        raise DataError(f"--exported {source} holds preference pairs, all of whose continuations are trained")
    model = recorded(ModelSettings, manifest["settings"]["model"], source)
    tokenizer = tokenizer_that_made(str(source), model, manifest["facts"]["tokenizer"])
    return list(islice(CONSUMERS[manifest["settings"]["to"]].read(source), settings.limit)), tokenizer


def _collated(rows: Sequence[TrainingRow], tokenizer: Any) -> list[tuple[list[int], list[float], int]]:
    """Return (ids, weights, number of padding tokens) of each row of the batch that the trainer makes of them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    stand_in = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    settings = build(TrainSettings, {"method": "cft", "annotations": "", "output": ""})
    asked = ModelSettings(model="stand-in", device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as work, quiet_libraries():
        trainer = build_trainer(stand_in, tokenizer, rows, settings, asked, Path(work))
        batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(rows))])
    found = []
    for ids, weights, real in zip(batch["input_ids"], batch["weights"], batch["attention_mask"], strict=True):
        kept = real.bool()
        found.append((ids[kept].tolist(), weights[kept].tolist(), int((~kept).sum())))
    return found


def _pieces(decode: Callable[[Sequence[int]], list[str]], ids: list[int], weights: Sequence[float]) -> list[Piece]:
    return list(zip(decode(ids), weights, strict=True))
