"""The attention that a response's tokens receive from the later ones, read in one pass without keeping any of it whole.

The scores of a few queries at a time become weights, and only their sums over queries, heads and layers are kept:
memory is linear in the length, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cruxtune.engines.base import Usage
from cruxtune.engines.logits import at_least_float32
from cruxtune.engines.passes import Passes

_CHUNK = 64
"""Queries whose scores are made together."""


class AttentionReader:
    """Reads how much attention tokens receive under a model; what it reads is not changed by reading.

    Raises:
        Unservable: the model's attention is not one that packed passes know.
    """

    def __init__(self, model: Any) -> None:
        self._passes = Passes(model, Usage())

    def received(self, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        """Return Σ_{s>t} a_{s,t} ÷ (T − 1 − t) for each of the response's T tokens, 0 for the last.

        a_{s,t} is the weight with which response token s attends to t, averaged over heads and layers.
        """
        plan = Received(len(prompt), len(response), self._passes.windows, self._passes.device)
        self._passes.read([*prompt, *response], plan)
        later = range(len(response) - 1, -1, -1)
        sums = (plan.sums / plan.calls).tolist()
        return [total / count if count else 0.0 for total, count in zip(sums, later, strict=True)]


class Received:
    """The plan of a pass over one context. `sums` adds up, over the layers, what each response token receives."""

    def __init__(self, prompt: int, response: int, windows: Sequence[int | None], device: Any) -> None:
        self.calls = 0
        self.windows = windows
        self.positions = torch.arange(prompt + response, device=device)
        self.sums = torch.zeros(response, device=device)
        self._prompt = prompt

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Return what every token attends to, (tokens, heads, value width), and add up the response's weights."""
        heads, places = query.shape[0], self.positions
        parts = []
        for start in range(0, query.shape[1], _CHUNK):
            chunk = at_least_float32(query[:, start : start + _CHUNK]) * scaling
            asking = places[start : start + chunk.shape[1], None]
            stop = start + chunk.shape[1]
            seen = places[:stop]
            scores = chunk.reshape(len(key), -1, key.shape[2]) @ key[:, :stop].to(chunk.dtype).transpose(1, 2)
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            hidden = (seen > asking) | (seen <= asking - window if window else False)
            weights = torch.softmax(scores.view(heads, -1, stop).masked_fill(hidden, -torch.inf), dim=-1)
            out = weights.view(len(key), -1, stop) @ value[:, :stop].to(chunk.dtype)
            parts.append(out.view(heads, -1, value.shape[2]).transpose(0, 1))
            later = (asking >= self._prompt) & (seen < asking)
            given = (weights.mean(dim=0) * later).sum(dim=0)[self._prompt :]
            self.sums[: len(given)] += given.to(self.sums.dtype)
        return torch.cat(parts).to(query.dtype)
