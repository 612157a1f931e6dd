"""Tokens that all rows begin with: computed once, with the loss and the gradients of every row by itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cruxtune.masks import TrainingRow, training_row

PREFIX = [7, 99, 7, 7, 31, 200, 5, 18]


def rows_of(count: int = 6) -> list[TrainingRow]:
    """Random rows of different lengths that begin alike, each with some weighted tokens."""
    draw = random.Random(0)
    rows = []
    for first in range(count):
        prompt = [*PREFIX, first, *(draw.randrange(256) for _ in range(draw.randrange(6)))]
        response = [draw.randrange(256) for _ in range(draw.randrange(4, 16))]
        weights = [draw.choice((0.0, 0.0, 1.0, 0.25)) for _ in response]
        rows.append(training_row(prompt, response, [*weights[:-1], 1.0]))
    return rows


@pytest.fixture
def prepared(tiny_tokenizer: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A function that returns a trainer of the rows and their batch."""

    def prepare(model: Any, rows: list[TrainingRow], **leaves: Any) -> tuple[Any, Any]:
        from cruxtune.settings import ModelSettings, build
        from cruxtune.stage_settings import TrainSettings
        from cruxtune.trainer import build_trainer

        defaults = {"method": "cft", "annotations": "a", "output": str(tmp_path), "batch_size": len(rows)}
        asked = ModelSettings(model="tiny", dtype="float64", device="cpu")
        settings = build(TrainSettings, {**defaults, **leaves})
        trainer = build_trainer(model, tiny_tokenizer("chatml"), rows, settings, asked, tmp_path / "trainer")
        return trainer, trainer.data_collator([trainer.train_dataset[place] for place in range(len(rows))])

    return prepare


def widths(model: Any, work: Callable[[], Any]) -> list[tuple[int, ...]]:
    """Return the shapes of the ids of all passes through the model while `work` is done."""
    seen = []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    work()
    hook.remove()
    return seen


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "olmo2"])
def test_shared_tokens_change_neither_loss_nor_gradients(
    architecture: str, tiny_model: Callable[..., Any], prepared: Callable[..., Any]
) -> None:
    """Both are those of one plain pass per row, to 1e-6 relative in float64, every parameter."""
    import torch

    rows, model, reference = rows_of(), tiny_model(architecture), tiny_model(architecture)
    total = sum(sum(row.weights) for row in rows)
    losses = []
    for row in rows:
        logprobs = reference(torch.tensor([row.input_ids])).logits[0, :-1].log_softmax(-1)
        picked = logprobs.gather(1, torch.tensor(row.input_ids[1:])[:, None])[:, 0]
        losses.append(-(torch.tensor(row.weights[1:]).double() * picked).sum() / total)
    sum(losses).backward()  # type: ignore[union-attr]
    trainer, batch = prepared(model, rows)
    found: list[Any] = []
    passes = widths(model, lambda: found.append(trainer.compute_loss(model, batch)))
    assert passes == [(1, len(PREFIX)), (len(rows), batch["input_ids"].shape[1] - len(PREFIX))]
    found[0].backward()
    assert found[0].item() == pytest.approx(sum(loss.item() for loss in losses), rel=1e-9)
    for (name, one), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-6, atol=1e-6 * other.grad.abs().max().item()), name


@pytest.mark.parametrize(
    ("leaves", "shared"),
    [
        ({}, True),
        ({"lora": True}, True),
        ({"lora": True, "lora_dropout": 0.1}, False),
        ({"padding_free": True}, False),
        ({"trainer": {"neftune_noise_alpha": 5.0}}, False),
        ({"trainer": {"activation_checkpointing": True}}, False),
    ],
)
def test_what_rows_must_have_of_their_own_is_not_shared(
    leaves: dict[str, Any], shared: bool, tiny_model: Callable[..., Any], prepared: Callable[..., Any]
) -> None:
    """Noise is drawn for each row; a cache is not for recomputed activations, nor for rows one behind the other."""
    model = tiny_model()
    trainer, _ = prepared(model, rows_of(), epochs=1, **leaves)
    assert len(widths(model, trainer.train)) == (2 if shared else 1)


def test_how_much_is_shared() -> None:
    """All rows agree, none is padding, nothing is predicted from there; and it is worth a pass of its own."""
    import torch

    from cruxtune.prefix import shared_length

    def length(ids: list[list[int]], kept: list[list[int]], tokens: list[int] | None = None) -> int:
        mask = torch.tensor([[place < count for place in range(len(ids[0]))] for count in tokens or [99] * len(ids)])
        return shared_length({"input_ids": torch.tensor(ids), "attention_mask": mask.long()}, torch.tensor(kept) > 0)

    end = [0, 0, 0, 1]
    assert length([[1, 2, 3, 4], [1, 2, 3, 5]], [end, end]) == 3
    assert length([[1, 2, 3, 4], [1, 2, 9, 4]], [end, end]) == 2
    assert length([[1, 2, 3, 4], [2, 2, 3, 4]], [end, end]) == 0
    assert length([[1, 2, 3, 4], [1, 2, 3, 4]], [end, [0, 0, 1, 0]]) == 2
    assert length([[1, 2, 0, 0], [1, 2, 0, 4]], [[0, 0, 0, 0], end], [2, 4]) == 2
    assert length([[1, 2, 3, 4]], [end]) == 0
    long = [[1, *range(first, first + 40)] for first in (2, 50)]
    assert length(long, [[0] * 40 + [1]] * 2) == 0
