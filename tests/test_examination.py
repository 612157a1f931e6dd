"""What is asked of a model while it trains: sums that add up over devices, a probe that is drawn once."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from cruxtune.chosen import Entry
from cruxtune.examination import Examination, draw_probe, weights_cast_once
from cruxtune.masks import training_row


def entries_of(seed: int, count: int = 7) -> list[Entry]:
    """Random responses with critical, other and unknown tokens, and fractional weights."""
    draw = random.Random(seed)
    entries = []
    for number in range(count):
        prompt, response = ([draw.randrange(256) for _ in range(length)] for length in (draw.randrange(1, 6), 9))
        critical = [draw.choice([True, False, None]) for _ in response]
        weights = [draw.choice([0.0, 0.5, 2.0]) for _ in response]
        entries.append(Entry(f"p{number}", training_row(prompt, response, weights), critical))
    return entries


@pytest.mark.parametrize("loss", ["nll", "dft"])
def test_parts_add_up_to_the_whole(tiny_model: Callable[..., Any], loss: str) -> None:
    """Devices that share the rows find what one device finds, and the loss is that of its definition."""
    import torch

    entries, model = entries_of(3), tiny_model()
    examination = Examination(rows=[entry.row for entry in entries], probe=entries, loss=loss)
    whole = examination.tallies(model)
    parts = [examination.tallies(model, slice(rank, None, 3)) for rank in range(3)]
    assert whole == pytest.approx({name: sum(part[name] for part in parts) for name in whole}, rel=1e-12)
    found = examination.metrics(whole)
    total = weight = 0.0
    for entry in entries:
        logprobs = model(torch.tensor([entry.row.input_ids])).logits[0, :-1].log_softmax(-1)
        for place, (token, share) in enumerate(zip(entry.row.input_ids[1:], entry.row.weights[1:], strict=True)):
            picked = logprobs[place, token].item()
            total -= share * picked * (2.718281828459045**picked if loss == "dft" else 1)
            weight += share
    assert found["eval_loss"] == pytest.approx(total / weight, rel=1e-9)
    known = sum(mark is not None for entry in entries for mark in entry.critical)
    assert whole["critical_tokens"] + whole["other_tokens"] == known
    assert "eval_accuracy" not in found


def test_the_probe_depends_on_the_seed_alone() -> None:
    """Weights do not decide which responses are read: all methods have the same, in their order."""
    entries = entries_of(0, 20)
    drawn = draw_probe(entries, 5, seed=1)
    assert drawn == draw_probe(entries, 5, seed=1) != draw_probe(entries, 5, seed=2)
    assert [entries.index(entry) for entry in drawn] == sorted(entries.index(entry) for entry in drawn)
    assert draw_probe(entries, 50, seed=1) == entries


@pytest.mark.parametrize(("device", "casts"), [("cpu", 1), ("cuda", 3)])
def test_weights_are_cast_once_on_a_cpu(device: str, casts: int) -> None:
    """Passes in mixed precision share what they cast, inside the context alone, and compute the same."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Casts(TorchDispatchMode):
        """Counts how often the weight is cast."""

        number = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            self.number += function is torch.ops.aten._to_copy.default and found.shape == layer.weight.shape
            return found

    def passes() -> tuple[int, list[torch.Tensor]]:
        with Casts() as seen, torch.no_grad():
            found = []
            for _ in range(3):
                with torch.autocast("cpu", torch.bfloat16):
                    found.append(layer(inputs))
        return seen.number, found

    layer, inputs = torch.nn.Linear(5, 7, bias=False), torch.randn(2, 5)
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(autocast=lambda: torch.autocast("cpu", torch.bfloat16)),
        args=SimpleNamespace(device=torch.device(device)),
    )
    alone = passes()
    with weights_cast_once(trainer):
        together = passes()
    assert (alone[0], together[0]) == (3, casts)
    assert all(torch.equal(one, other) for one, other in zip(alone[1], together[1], strict=True))
    layer.weight.data.zero_()
    assert not any(output.any() for output in passes()[1])
