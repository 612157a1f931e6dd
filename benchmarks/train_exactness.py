"""Whether training at critical tokens has the gradients of the plain loss on the same labels."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from cruxtune.masks import TrainingRow
from cruxtune.models import load_tokenizer
from cruxtune.settings import ModelSettings, build
from cruxtune.stage_settings import TrainSettings
from cruxtune.trainer import build_trainer

Gradients = Mapping[str, torch.Tensor]


def largest(ours: Gradients, theirs: Gradients) -> float:
    """Return the largest difference of two gradients, of each parameter relative to its largest entry.

    Raises:
        ValueError: other parameters have one.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"only one of them has gradients of {sorted(ours.keys() ^ theirs.keys())}")
    return max(
        (ours[name] - gradient).abs().max().item() / gradient.abs().max().clamp(min=1e-30).item()
        for name, gradient in theirs.items()
    )


def of_files(one: Path, other: Path) -> float:
    """Return the largest difference of gradients that were saved."""
    return largest(*(torch.load(path, mmap=True) for path in (other, one)))


def difference(model: Path, rows: list[TrainingRow]) -> float:
    """Return how far our gradients are from those of the plain masked loss, in float64, on a tiny model.

    The plain loss is cross-entropy on the logits of all positions of one row after another. TRL's own loss is no
    measure here: it is computed in float32.
    """
    tokenizer = load_tokenizer(ModelSettings(model=str(model)))
    config = AutoConfig.from_pretrained(model)
    config.update({"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8})
    config.update({"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3})
    torch.manual_seed(0)
    tiny = AutoModelForCausalLM.from_config(config).double()
    total = sum(row.trained for row in rows)
    for row in rows:
        logits = tiny(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        (cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum") / total).backward()
    expected = _gradients(tiny)
    tiny.zero_grad()
    with tempfile.TemporaryDirectory() as directory:
        leaves = {"method": "cft", "annotations": "rows", "output": directory, "batch_size": len(rows)}
        asked = ModelSettings(model=str(model), dtype="float64", device="cpu")
        trainer = build_trainer(tiny, tokenizer, rows, build(TrainSettings, leaves), asked, Path(directory))
        batch = trainer.data_collator([trainer.train_dataset[place] for place in range(len(rows))])
        trainer.compute_loss(tiny, batch).backward()
    return largest(_gradients(tiny), expected)


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = model.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}
