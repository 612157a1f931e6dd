"""Which tokens are critical: the definition, and what still has to be asked. Knows verdicts only, never models.

A token is critical exactly when the rollout of every one of its alternatives is incorrect (DESIGN §2.4; the paper's
method section). Alternatives are asked in order of probability, and none after the first that is correct.
"""

from __future__ import annotations

from collections.abc import Sequence


class Inquiry:
    """The verdicts on one response's counterfactuals, and which are still wanted.

    Alternatives are asked rank by rank. With `every`, all of them are wanted, whatever the verdicts.

    >>> inquiry = Inquiry(positions=2, alternatives=2)
    >>> inquiry.wanted()
    [(0, 0), (1, 0)]
    >>> inquiry.record(0, 0, correct=True)
    >>> inquiry.record(1, 0, correct=False)
    >>> inquiry.wanted()
    [(1, 1)]
    >>> inquiry.record(1, 1, correct=False)
    >>> inquiry.wanted(), inquiry.verdicts, inquiry.critical()
    ([], [[True, None], [False, False]], [False, True])
    """

    def __init__(self, positions: int, alternatives: int, *, every: bool = False) -> None:
        self.verdicts: list[list[bool | None]] = [[None] * alternatives for _ in range(positions)]
        self._every = every

    def wanted(self) -> list[tuple[int, int]]:
        """Return the next (position, rank) to roll out: at most one rank per position, unless all are wanted."""
        asks: list[tuple[int, int]] = []
        for position, verdicts in enumerate(self.verdicts):
            unknown = [rank for rank, verdict in enumerate(verdicts) if verdict is None]
            if self._every:
                asks.extend((position, rank) for rank in unknown)
            elif unknown and True not in verdicts:
                asks.append((position, unknown[0]))
        return asks

    def record(self, position: int, rank: int, *, correct: bool) -> None:
        """Store one verdict."""
        self.verdicts[position][rank] = correct

    def critical(self) -> list[bool]:
        """Return the critical mask; call it when nothing is wanted any more."""
        return [is_critical(verdicts) for verdicts in self.verdicts]


def is_critical(verdicts: Sequence[bool | None]) -> bool:
    """Return whether every alternative was asked and failed.

    >>> is_critical([False, False]), is_critical([False, True]), is_critical([True, None])
    (True, False, False)
    """
    return all(verdict is False for verdict in verdicts)
