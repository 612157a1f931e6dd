"""What work cost: seconds, tokens, verdicts, memory. Numbers that add up over groups, kept in every manifest."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cruxtune.engines.base import Engine
from cruxtune.records import Verdict
from cruxtune.verifiers import FALLBACK_REASONS


class Meter:
    """Measures one group of work: create it before, call `read` after."""

    def __init__(self, engine: Engine | None = None, *, before: Mapping[str, float] | None = None) -> None:
        self.before = before or {}
        """The sums over all earlier groups."""
        self._engine = engine
        self._before = replace(engine.usage) if engine else None
        self._started = time.monotonic()
        self._verdicts: Counter[str] = Counter()
        self._more: Counter[str] = Counter()

    def count(self, verdicts: Iterable[Verdict]) -> None:
        """Count verdicts by what decided them."""
        self._verdicts.update(verdict.reason for verdict in verdicts)

    def add(self, **counts: int) -> None:
        """Add counts of the stage's own."""
        self._more.update(counts)

    def read(self) -> dict[str, float]:
        """Return seconds, tokens, verdicts and the stage's own counts since the start."""
        used = self._engine.usage.since(self._before) if self._engine and self._before else {}
        return {
            "seconds": round(time.monotonic() - self._started, 3),
            **used,
            "verdicts": self._verdicts.total(),
            "verdicts_by_fallback": sum(self._verdicts[reason] for reason in FALLBACK_REASONS),
            "verdicts_timed_out": self._verdicts["time-out"],
            "verdicts_out_of_memory": self._verdicts["memory"],
            "verdicts_crashed": self._verdicts["crash"],
            **self._more,
        }


def cut_off(accounting: Mapping[str, float]) -> int:
    """Return how many verdicts are "incorrect" because judging exceeded a limit or ended its process.

    >>> cut_off({"verdicts": 9, "verdicts_timed_out": 2, "verdicts_out_of_memory": 1, "verdicts_crashed": 0})
    3
    """
    names = ("verdicts_timed_out", "verdicts_out_of_memory", "verdicts_crashed")
    return int(sum(accounting.get(name, 0) for name in names))


def shares(accounting: dict[str, float]) -> dict[str, Any]:
    """Return the ratios that manifests report beside the sums (None where nothing was counted)."""
    verdicts, emitted, computed = (
        accounting.get(name, 0) for name in ("verdicts", "tokens_emitted", "tokens_computed")
    )
    return {
        "fallback_share": accounting["verdicts_by_fallback"] / verdicts if verdicts else None,
        "emitted_per_computed": emitted / computed if computed else None,
        "drafts_accepted": accounting["tokens_accepted"] / accounting["tokens_drafted"]
        if accounting.get("tokens_drafted")
        else None,
    }


def peak_memory_gib() -> float:
    """Return the most memory that this process has held so far, in GiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not `ru_maxrss`, which on Linux begins with what the parent held when it started this process.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / (1 << 20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 30 if sys.platform == "darwin" else 1 << 20)
