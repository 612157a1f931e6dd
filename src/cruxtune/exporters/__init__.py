"""The chosen tokens in the forms that other trainers take; only here are masks shifted, turned round or left out.

`labels` and `weights` write and read rows (`rows`) for one family of consumers each, `preferences` pairs; `advice` says
what to set there. CONSUMERS is all of them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cruxtune.exporters import advice
from cruxtune.exporters.labels import (
    read_labels,
    read_saved_labels,
    save_labels,
    write_labels,
)
from cruxtune.exporters.weights import (
    read_swift,
    read_tinker,
    read_torchtune,
    read_verl,
    write_swift,
    write_tinker,
    write_torchtune,
    write_verl,
)
from cruxtune.masks import TrainingRow


@dataclass(frozen=True)
class Consumer:
    """How rows are written for one trainer and read back, and whether it has room for weights other than 0 and 1."""

    write: Callable[[Path, Iterable[TrainingRow]], None]
    read: Callable[[Path], Iterator[TrainingRow]]
    advise: Callable[[Path, advice.Facts], advice.Advice]
    fractional: bool = False


CONSUMERS = {
    "trl": Consumer(write_labels, read_labels, advice.trl),
    "axolotl": Consumer(write_labels, read_labels, advice.axolotl),
    "llamafactory": Consumer(save_labels, read_saved_labels, advice.llamafactory),
    "unsloth": Consumer(write_labels, read_labels, advice.unsloth),
    "torchtune": Consumer(write_torchtune, read_torchtune, advice.torchtune),
    "verl": Consumer(write_verl, read_verl, advice.verl, fractional=True),
    "ms-swift": Consumer(write_swift, read_swift, advice.swift, fractional=True),
    "tinker": Consumer(write_tinker, read_tinker, advice.tinker, fractional=True),
}
"""Every consumer of rows; `dpo` takes pairs (see `preferences`)."""
