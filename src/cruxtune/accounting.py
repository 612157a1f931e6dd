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
from cruxtune.store import Workspace
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
            **count_verdicts(self._verdicts),
            **self._more,
        }


def count_verdicts(reasons: Counter[str]) -> dict[str, int]:
    """Return the counts of verdicts that manifests have, from those by their reasons."""
    return {
        "verdicts": reasons.total(),
        "verdicts_by_fallback": sum(reasons[reason] for reason in FALLBACK_REASONS),
        "verdicts_timed_out": reasons["time-out"],
        "verdicts_out_of_memory": reasons["memory"],
        "verdicts_crashed": reasons["crash"],
    }


class WorkClock:
    """Seconds of work that lasted: what a crash undid is not counted, what was checkpointed is."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._before = workspace.manifest.get("seconds_before", 0.0)
        self._started = time.monotonic()

    def read(self) -> float:
        """Return the seconds so far."""
        return round(self._before + time.monotonic() - self._started, 3)

    def save(self) -> None:
        """Keep the seconds so far with the checkpoint that they led to."""
        self._workspace.remember(seconds_before=self.read())


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
