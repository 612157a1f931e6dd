"""Which units of a study are computed now: those that were asked for, as long as there is time to begin one."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase


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
