"""What is exported: whole sequences with a weight per token, and the pairs that preferences are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cruxtune.masks import IGNORE_INDEX


@dataclass(frozen=True)
class WeightedRow:
    """One sequence: `input_ids`, and as many `weights`, unshifted, 0 where there is no loss (all of the prompt)."""

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


def weighted_row(prompt_ids: Sequence[int], response_ids: Sequence[int], weights: Sequence[float]) -> WeightedRow:
    """Return the row of a response whose tokens have these weights.

    Raises:
        ValueError: not one weight per response token.

    >>> weighted_row([5, 6], [7, 8], [0, 0.5])
    WeightedRow(input_ids=[5, 6, 7, 8], weights=[0.0, 0.0, 0.0, 0.5])
    """
    if len(weights) != len(response_ids):
        raise ValueError(f"there are {len(weights)} weights for {len(response_ids)} response tokens")
    return WeightedRow([*prompt_ids, *response_ids], [0.0] * len(prompt_ids) + [float(weight) for weight in weights])


def critical_rows(annotations: Iterable[Mapping[str, Any]], *, unknown: float) -> Iterator[WeightedRow]:
    """Yield the row of each annotation: weight 1 for critical tokens, `unknown` where that is not known.

    Like training, it leaves out responses without a critical token.
    """
    for row in annotations:
        critical = row["critical"]
        if any(critical):
            weights = [unknown if mark is None else float(mark) for mark in critical]
            yield weighted_row(row["prompt_ids"], row["response_ids"], weights)
