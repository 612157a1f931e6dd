"""Labels from masks.

Masks are aligned with the response's tokens and unshifted: mask[t] = 1 means "learn to predict token t". The model
shifts labels itself; only exporters know other conventions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

IGNORE_INDEX = -100


@dataclass(frozen=True)
class TrainingRow:
    """One sequence for a trainer: `input_ids` and `labels` of the same length, IGNORE_INDEX where there is no loss."""

    input_ids: list[int]
    labels: list[int]

    @property
    def trained(self) -> int:
        """How many tokens carry loss."""
        return sum(label != IGNORE_INDEX for label in self.labels)


def training_row(prompt_ids: Sequence[int], response_ids: Sequence[int], mask: Sequence[bool]) -> TrainingRow:
    """Return the row that trains on the response tokens whose mask is set, with everything else as context.

    Nothing is added or cut: a final end-of-sequence token is trained exactly if the mask says so.

    Raises:
        ValueError: the mask has not one entry per response token.

    >>> training_row([5, 6], [7, 8], [False, True])
    TrainingRow(input_ids=[5, 6, 7, 8], labels=[-100, -100, -100, 8])
    """
    if len(mask) != len(response_ids):
        raise ValueError(f"the mask has {len(mask)} entries for {len(response_ids)} response tokens")
    labels = [token if kept else IGNORE_INDEX for token, kept in zip(response_ids, mask, strict=True)]
    return TrainingRow([*prompt_ids, *response_ids], [IGNORE_INDEX] * len(prompt_ids) + labels)
