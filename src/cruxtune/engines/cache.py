"""Keys and values: of contexts, which all their branches read, and of what the branches said themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cruxtune.engines.memory import give_back

_FREED = 16 << 20
"""Bytes that may be freed before they are handed back: else allocators keep the old storage of many layers."""


class Prefix:
    """Keys and values of one context, layer by layer, each (key heads, tokens, width), in the model's precision."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def nbytes(self) -> int:
        """Return the memory it holds."""
        return sum(kept.nbytes for part in (self.keys, self.values) for kept in part.values())


class Slots:
    """Keys and values of what branches said themselves: per layer (slots, key heads, capacity, width).

    Rejected drafts are not removed: the next tokens overwrite them.
    """

    def __init__(self) -> None:
        self.count = 0
        self.capacity = 0
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def resize(self, count: int, capacity: int, *, used: tuple[int, int] = (0, 0)) -> None:
        """Make room for `count` branches of `capacity` tokens; the first `used` (branches, tokens) stay."""
        freed = 0
        for part in (self.keys, self.values):
            for layer, old in part.items():
                new = _zeros((count, old.shape[1], capacity, old.shape[3]), old.dtype, old.device)
                rows, columns = min(used[0], count, self.count), min(used[1], capacity, self.capacity)
                new[:rows, :, :columns] = old[:rows, :, :columns]
                part[layer] = new
                freed += old.nbytes
                if freed > _FREED:
                    device, freed = old.device, 0
                    del old
                    give_back(device)
        self.count, self.capacity = count, capacity

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot to another."""
        for part in (self.keys, self.values):
            for kept in part.values():
                kept[target, :, :length] = kept[source, :, :length]

    def write(
        self, layer: int, slots: torch.Tensor, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values of shape (key heads, tokens, width); return the layer's whole storage."""
        kept = self._layer(layer, keys, values)
        for storage, new in zip(kept, (keys, values), strict=True):
            storage[slots, :, places] = new.transpose(0, 1).to(storage.dtype)
        return kept

    def _layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self.keys:
            for part, new in ((self.keys, keys), (self.values, values)):
                shape = (self.count, new.shape[0], self.capacity, new.shape[2])
                part[layer] = _zeros(shape, storage_dtype(new.dtype, new.device), new.device)
        return self.keys[layer], self.values[layer]


@dataclass(frozen=True)
class Feed:
    """What one branch puts into a pass: `count` tokens behind the `length` that its slot holds.

    `seen` tokens of `prefix` come before them (none without a prefix).
    """

    slot: int
    length: int
    count: int
    prefix: Prefix | None = None
    seen: int = 0


def storage_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the precision in which branches' own keys are kept: on CPU the one they are multiplied in."""
    return torch.float32 if device.type == "cpu" and dtype.itemsize < 4 else dtype


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros, not empty memory: what nobody may see is multiplied by zero, and NaN would survive that."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # NumPy's zeros come from the system and cost nothing until they are touched; torch's are written at once, which is
    # a quarter of the time of short responses.
    return torch.from_numpy(np.zeros(shape, {torch.float32: np.float32, torch.float64: np.float64}[dtype]))
