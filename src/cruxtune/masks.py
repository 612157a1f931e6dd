"""Training rows from weights per token.

Weights are aligned with the response's tokens and unshifted: weight[t] > 0 means "learn to predict token t", that much.
The model shifts labels itself; only exporters know other conventions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

IGNORE_INDEX = -100


@dataclass(frozen=True)
class TrainingRow:
    """One sequence for a trainer: `input_ids`, and as many `weights`, 0 where there is no loss."""

    input_ids: list[int]
    weights: list[float]

    @property
    def labels(self) -> list[int]:
        """The ids that carry loss, IGNORE_INDEX elsewhere."""
        return [token if weight else IGNORE_INDEX for token, weight in zip(self.input_ids, self.weights, strict=True)]

    @property
    def trained(self) -> int:
        """How many tokens carry loss."""
        return sum(weight > 0 for weight in self.weights)

    @property
    def fraction(self) -> float | None:
        """A weight that is neither 0 nor 1; None where there is none."""
        return next((weight for weight in self.weights if weight not in (0.0, 1.0)), None)


def training_row(prompt_ids: Sequence[int], response_ids: Sequence[int], weights: Sequence[float]) -> TrainingRow:
    """Return the row that trains on the response tokens by their weights, with everything else as context.

    Nothing is added or cut: a final end-of-sequence token is trained exactly if its weight says so.

    Raises:
        ValueError: not one weight per response token, or one that is negative or no number.

    >>> row = training_row([5, 6], [7, 8], [False, 0.5])
    >>> row, row.labels
    (TrainingRow(input_ids=[5, 6, 7, 8], weights=[0.0, 0.0, 0.0, 0.5]), [-100, -100, -100, 8])
    """
    if len(weights) != len(response_ids):
        raise ValueError(f"there are {len(weights)} weights for {len(response_ids)} response tokens")
    if wrong := [weight for weight in weights if not (weight >= 0 and math.isfinite(weight))]:
        raise ValueError(f"a weight is {wrong[0]}; weights are finite and not negative")
    return TrainingRow([*prompt_ids, *response_ids], [0.0] * len(prompt_ids) + [float(weight) for weight in weights])
