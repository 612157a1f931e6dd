"""Which units of a study are computed now: those that were asked for, as long as there is time to begin one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeVar


class Named(Protocol):
    """What a study computes one by one: a unit or a run."""

    @property
    def name(self) -> str:
        """How it is called: what --only is matched with."""


_Unit = TypeVar("_Unit", bound=Named)


class OutOfTime(Exception):
    """There is no time to begin what is needed."""


class Clock:
    """Says whether a unit is to be computed.

    Args:
        only: pattern of the names of units, by default all.
        max_minutes: begin no unit after so many minutes.

    >>> clock = Clock(only="sums/*")
    >>> clock.takes("sums/512"), clock.takes("words/512")
    (True, False)
    >>> Clock(max_minutes=0).takes("sums/512")
    False
    """

    def __init__(self, *, only: str | None = None, max_minutes: float | None = None) -> None:
        self._only = only or "*"
        self._end = None if max_minutes is None else time.monotonic() + 60 * max_minutes

    @property
    def over(self) -> bool:
        """Whether there is no time to begin anything."""
        return self._end is not None and time.monotonic() >= self._end

    def takes(self, name: str) -> bool:
        """Return whether the unit of this name is to be computed."""
        return not self.over and fnmatchcase(name, self._only)


def compute_missing(
    units: Iterable[_Unit],
    clock: Clock,
    result: Callable[[_Unit], dict[str, Any] | None],
    compute: Callable[[_Unit], dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Compute the units without a result, as far as the clock lets; return all results by the unit's name."""
    found = {}
    for unit in units:
        there = result(unit)
        if there is None and clock.takes(unit.name):
            try:
                there = compute(unit)
            except OutOfTime:
                continue
        if there is not None:
            found[unit.name] = there
    return found
