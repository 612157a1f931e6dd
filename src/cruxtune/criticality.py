"""Which tokens are critical: the definition, and what still has to be asked. Knows verdicts only, never models.

A token is critical exactly when the rollout of every one of its alternatives is incorrect (DESIGN §2.4; the paper's
method section). Alternatives are asked in order of probability, and none after the first that is correct.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


class Inquiry:
    """The verdicts on one response's counterfactuals, and which are wanted next.

    Alternatives are asked rank by rank; with `every`, all of them at once, whatever the verdicts. `positions` are those
    to ask about (all by default); the others stay unknown.

    >>> inquiry = Inquiry(length=3, alternatives=2, positions=[0, 1])
    >>> inquiry.begin()
    [(0, 0), (1, 0)]
    >>> inquiry.record(0, 0, correct=True)
    []
    >>> inquiry.record(1, 0, correct=False)
    [(1, 1)]
    >>> inquiry.record(1, 1, correct=False)
    []
    >>> inquiry.verdicts, inquiry.critical()
    ([[True, None], [False, False], [None, None]], [False, True, None])
    """

    def __init__(
        self, length: int, alternatives: int, *, every: bool = False, positions: Sequence[int] | None = None
    ) -> None:
        self.verdicts: list[list[bool | None]] = [[None] * alternatives for _ in range(length)]
        self._alternatives = alternatives
        self._every = every
        self._positions = range(length) if positions is None else positions
        self._open = 0

    @property
    def settled(self) -> bool:
        """Whether everything that was asked is answered, and nothing else is wanted."""
        return self._open == 0

    def begin(self) -> list[tuple[int, int]]:
        """Return the first (position, rank) pairs to roll out."""
        ranks = range(self._alternatives if self._every else 1)
        asks = [(position, rank) for position in self._positions for rank in ranks]
        self._open = len(asks)
        return asks

    def record(self, position: int, rank: int, *, correct: bool) -> list[tuple[int, int]]:
        """Store a verdict; return what is to be rolled out because of it."""
        self.verdicts[position][rank] = correct
        self._open -= 1
        if correct or self._every or rank + 1 == self._alternatives:
            return []
        self._open += 1
        return [(position, rank + 1)]

    def critical(self) -> list[bool | None]:
        """Return the critical mask, None where nothing decides."""
        return [is_critical(verdicts) for verdicts in self.verdicts]


def is_critical(verdicts: Sequence[bool | None]) -> bool | None:
    """Return whether every alternative was asked and failed; None where none succeeded but some were not asked.

    >>> is_critical([False, False]), is_critical([False, True]), is_critical([True, None]), is_critical([False, None])
    (True, False, False, None)
    """
    if True in verdicts:
        return False
    return None if None in verdicts else True


def sample_positions(length: int, count: float, seed: int) -> list[int]:
    """Return about `count` of the positions (one at least), in order.

    What is drawn depends on the seed alone, and a larger sample contains every smaller one.

    >>> sample_positions(6, 2.6, seed=0), sample_positions(6, 4, seed=0), sample_positions(2, 9, seed=0)
    ([1, 2, 4], [0, 1, 2, 4], [0, 1])
    """
    order = list(range(length))
    random.Random(seed).shuffle(order)
    return sorted(order[: max(1, round(count))])
