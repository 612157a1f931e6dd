"""Which tokens are critical: the definition, and what still has to be asked. Knows verdicts only, never models.

A token is critical exactly when keeping it succeeds and the rollout of every one of its alternatives is incorrect
(DESIGN §2.4; the paper's method section). Keeping a token of the policy's own greedy response succeeds by itself, since
the response is correct; elsewhere the kept token is rolled out first. Alternatives are asked in order of probability,
and none after the first that is correct.

Sets of neighbouring tokens are asked about in the same way, the sets in the place of positions: `Inquiry` knows numbers
only. `Sampling` asks for several draws of every alternative, for graded criticality.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

KEPT = -1
"""The rank of the response's own token."""


class Inquiry:
    """The verdicts on one response's counterfactuals, and which are wanted next.

    Alternatives are asked rank by rank; with `every`, all of them at once, whatever the verdicts. `positions` are those
    to ask about (all by default); the others stay unknown. With `keep` the response's own token is asked about first,
    as rank KEPT; where that fails the position is undecided, and its alternatives are not asked. One kept rollout may
    answer for several positions.

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
        self,
        length: int,
        alternatives: int,
        *,
        every: bool = False,
        positions: Sequence[int] | None = None,
        keep: bool = False,
    ) -> None:
        self.verdicts: list[list[bool | None]] = [[None] * alternatives for _ in range(length)]
        self.kept: list[bool | None] = [None] * length
        self._alternatives = alternatives
        self._every = every
        self._positions = range(length) if positions is None else positions
        self._keep = keep
        self._members: dict[int, list[int]] = {}
        self.most = length * (alternatives + keep)
        """Rollouts of a response all of whose positions are asked about."""
        self.left = len(self._positions) * (alternatives + keep)
        """Rollouts that may be wanted yet, at most."""
        self._open = 0

    @property
    def settled(self) -> bool:
        """Whether everything that was asked is answered, and nothing else is wanted."""
        return self._open == 0

    def begin(self, same: Sequence[int] | None = None) -> list[tuple[int, int]]:
        """Return the first (position, rank) pairs to roll out.

        `same` names for each position the one whose kept rollout is its own, too; by default each has its own. Only
        these are asked about then, and answer for the others.
        """
        asks: list[tuple[int, int]] = []
        if self._keep:
            for position in self._positions:
                self._members.setdefault(same[position] if same else position, []).append(position)
            asks += [(position, KEPT) for position in self._members]
        if self._every or not self._keep:
            ranks = range(self._alternatives if self._every else 1)
            asks += [(position, rank) for position in self._positions for rank in ranks]
        self._open = len(asks)
        return asks

    def members(self, position: int) -> list[int]:
        """Return the positions that a kept rollout answers for."""
        return self._members[position]

    def record(self, position: int, rank: int, *, correct: bool, but: Collection[int] = ()) -> list[tuple[int, int]]:
        """Store a verdict; return what is to be rolled out because of it.

        A kept rollout answers for its members, `but` for these, which are rolled out themselves.
        """
        self._open -= 1
        more: list[tuple[int, int]] = []
        if rank == KEPT:
            for member in self._members.pop(position):
                if member in but:
                    self._members[member] = [member]
                    more.append((member, KEPT))
                else:
                    self.kept[member] = correct
                    more += self._after(member, KEPT, decided=not correct)
        else:
            self.verdicts[position][rank] = correct
            more = self._after(position, rank, decided=correct)
        self._open += len(more)
        return more

    def _after(self, position: int, rank: int, *, decided: bool) -> list[tuple[int, int]]:
        """Return what follows an answer, and count down what is left."""
        self.left -= 1
        if self._every:
            return []
        if decided or rank + 1 == self._alternatives:
            self.left -= self._alternatives - 1 - rank
            return []
        return [(position, rank + 1)]

    def critical(self) -> list[bool | None]:
        """Return the critical mask, None where nothing decides."""
        return [
            is_critical(verdicts, kept is not False) for verdicts, kept in zip(self.verdicts, self.kept, strict=True)
        ]


class Sampling:
    """The verdicts on several sampled rollouts of every token, kept (rank KEPT) and replaced; all are asked at once.

    >>> sampling = Sampling(length=2, alternatives=1, draws=2, positions=[1])
    >>> sampling.begin()
    [(1, -1, 0), (1, -1, 1), (1, 0, 0), (1, 0, 1)]
    >>> for ask, correct in zip(sampling.begin(), (True, True, True, False)):
    ...     _ = sampling.record(*ask, correct=correct)
    >>> sampling.success(KEPT), sampling.success(0)
    ([None, 1.0], [None, 0.5])
    """

    def __init__(self, length: int, alternatives: int, *, draws: int, positions: Sequence[int] | None = None) -> None:
        self._draws = draws
        self._ranks = range(KEPT, alternatives)
        self._positions = range(length) if positions is None else positions
        self._right: dict[int, list[int]] = {rank: [0] * length for rank in self._ranks}
        self.most = length * len(self._ranks) * draws
        """Rollouts of a response all of whose positions are asked about."""
        self.left = len(self._positions) * len(self._ranks) * draws
        """Rollouts that are not answered yet."""

    @property
    def settled(self) -> bool:
        """Whether everything is answered."""
        return self.left == 0

    def begin(self) -> list[tuple[int, int, int]]:
        """Return every (position, rank, draw) to roll out."""
        return [(t, rank, draw) for t in self._positions for rank in self._ranks for draw in range(self._draws)]

    def record(self, position: int, rank: int, draw: int, *, correct: bool) -> list[tuple[int, int, int]]:
        """Store a verdict; nothing more is wanted because of it."""
        self._right[rank][position] += correct
        self.left -= 1
        return []

    def success(self, rank: int) -> list[float | None]:
        """Return the share of correct draws of a rank at each position, None where it was not asked about."""
        asked = set(self._positions)
        return [right / self._draws if position in asked else None for position, right in enumerate(self._right[rank])]


def is_critical(verdicts: Sequence[bool | None], kept: bool = True) -> bool | None:
    """Return whether keeping the token succeeds and every alternative was asked and failed.

    None where keeping it fails (undecided), or where no alternative succeeded but some were not asked.

    >>> is_critical([False, False]), is_critical([False, True]), is_critical([True, None]), is_critical([False, None])
    (True, False, False, None)
    >>> is_critical([False, False], kept=False)
    """
    if not kept:
        return None
    if True in verdicts:
        return False
    return None if None in verdicts else True


def open_sets(sets: Sequence[tuple[int, int]], critical: Sequence[bool | None]) -> list[tuple[int, int]]:
    """Return the sets (start, end) to ask about: those none of whose tokens is critical alone, all of them known.

    >>> open_sets([(0, 2), (1, 3), (2, 4)], [False, False, True, None])
    [(0, 2)]
    """
    return [(start, end) for start, end in sets if all(mask is False for mask in critical[start:end])]


def sample_positions(length: int, count: float, seed: int) -> list[int]:
    """Return about `count` of the positions (one at least), in order.

    What is drawn depends on the seed alone, and a larger sample contains every smaller one.

    >>> sample_positions(6, 2.6, seed=0), sample_positions(6, 4, seed=0), sample_positions(2, 9, seed=0)
    ([1, 2, 4], [0, 1, 2, 4], [0, 1])
    """
    order = list(range(length))
    random.Random(seed).shuffle(order)
    return sorted(order[: max(1, round(count))])
