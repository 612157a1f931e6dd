"""Attention received, against the weights that eager attention returns whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_received_attention_is_that_of_the_whole_matrices(architecture: str, tiny_model: Callable[..., Any]) -> None:
    """Mean over heads and layers of what later response tokens give, divided by their number; the last has 0."""
    import torch

    from cruxtune.engines.received import AttentionReader

    model = tiny_model(architecture)
    prompt, response = [(5 * n) % 250 for n in range(9)], [(11 * n + 3) % 250 for n in range(80)]
    found = AttentionReader(model).received(prompt, response)
    model.set_attn_implementation("eager")
    whole = model(torch.tensor([prompt + response]), output_attentions=True).attentions
    mean = torch.stack(whole).mean(dim=(0, 1, 2))[len(prompt) :, len(prompt) :]
    for place in range(len(response) - 1):
        assert found[place] == pytest.approx(mean[place + 1 :, place].mean().item(), rel=1e-4)
    assert found[-1] == 0
