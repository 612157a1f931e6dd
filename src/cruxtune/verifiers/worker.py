"""A process that judges texts: started by `cruxtune.verifiers.pool`, which runs `main` in a new interpreter.

One JSON document a line, both ways. Lines in: first the settings, {"strict", "function", "timeout", "rules",
"memory" (bytes, 0 for no limit), "parent", "exceeded"}, then texts, {"text", "problem"}, and at any time {"exceeded"}:
pairs of answers whose comparison has exceeded a limit already, as a list of [gold, extracted, reason]. Lines out, in
the texts' order:

    {"busy": true}              what follows may take long: imports, a scorer to build; the time limit pauses
    {"ready": true}             done with that
    {"comparing": [gold, extracted]}        the answers that symbolic algebra now compares
    {"verdict": [correct, extracted, reason], "last": whether this process ends now, to be replaced}
    {"error": "..."}            nothing can be judged: the user must act

It ends when its input does, and no later than a few seconds after its parent has died. Memory is limited above what the
process holds after its imports, by the kernel (Linux only). Where an allocation is refused, the text at fault is wrong,
with reason "memory", and the process ends.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from cruxtune.errors import VerifierError
from cruxtune.records import Problem, Verdict
from cruxtune.verifiers.answers import Rules
from cruxtune.verifiers.compare import judge, load_function, preparation, prepare

_ORPHAN_CHECK_SECONDS = 5.0
_LONG_SECONDS = 0.02
"""Judging that took longer may have taken memory, too."""

_STATUS = Path("/proc/self/status")


class _ExceededBefore(Exception):
    """These answers have exceeded a limit before: the reason, and what was extracted."""

    def __init__(self, reason: str, extracted: str) -> None:
        self.verdict = Verdict(False, extracted, reason)


def main() -> None:
    """Judge until the input ends."""
    source, sink = _take_protocol()
    lines = _lines(source)
    settings = json.loads(next(lines))
    try:
        _serve(lines, sink, settings)
    except VerifierError as error:
        _send(sink, {"error": str(error)})
    except BrokenPipeError:
        os._exit(0)  # the parent has gone


def _serve(lines: Iterator[bytes], sink: TextIO, settings: dict[str, Any]) -> None:
    strict, function, rules = settings["strict"], settings["function"], Rules(**settings["rules"])
    exceeded = {(gold, extracted): reason for gold, extracted, reason in settings["exceeded"]}
    if function is not None:
        load_function(function)
    _send(sink, {"ready": True})
    prepared: set[str] = set()
    room = _Room(settings["memory"])

    def before_algebra(gold: str, extracted: str) -> None:
        if reason := exceeded.get((gold, extracted)):
            raise _ExceededBefore(reason, extracted)
        _send(sink, {"comparing": [gold, extracted]})

    for line in lines:
        if not line:  # nothing came for a while
            if os.getppid() != settings["parent"]:
                return
            continue
        row = json.loads(line)
        if "exceeded" in row:
            exceeded.update({(gold, extracted): reason for gold, extracted, reason in row["exceeded"]})
            continue
        problem = Problem(**row["problem"])
        if (name := preparation(problem)) not in prepared:
            _send(sink, {"busy": True})
            room.open()
            prepare(problem, function)
            room.limit()
            prepared.add(name)
            _send(sink, {"ready": True})
        # The parent kills us at the limit. Should it have died, the kernel does so later, even amid one long
        # operation on huge integers, where no Python code (such as a check for the parent) would run.
        signal.setitimer(signal.ITIMER_REAL, 2 * settings["timeout"] + 1)
        started = time.monotonic()
        full = False
        try:
            verdict = judge(row["text"], problem, strict, function, rules, before_algebra)
        except _ExceededBefore as known:
            verdict = known.verdict
        except MemoryError:
            verdict, full = Verdict(False, None, "memory"), True
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not full and time.monotonic() - started > _LONG_SECONDS:
            refused, full = room.check()
            # Libraries take a refused allocation for one more thing that cannot be compared, and say "unequal".
            if refused and not verdict.correct:
                verdict, full = Verdict(False, verdict.extracted, "memory"), True
        _send(sink, {"verdict": [verdict.correct, verdict.extracted, verdict.reason], "last": full})
        if full:
            return


class _Room:
    """The memory that judging may take above what the process holds when the limit is set."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._start = 0
        self._peak = 0

    def open(self) -> None:
        """Lift the limit: what follows are imports, no fault of a text's."""
        if self._start:
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

    def limit(self) -> None:
        """Limit the memory to what is held now and the size asked for (nothing where the system cannot tell)."""
        if not self._size or not _STATUS.exists():
            return
        self._start, self._peak = _status("VmSize"), _status("VmPeak")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = self._start + self._size
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))

    def check(self) -> tuple[bool, bool]:
        """Return whether judging may have been refused memory since the last check, and whether much is gone in all.

        An allocation that is refused leaves no trace, but a number or a list that outgrew the room was there before, in
        half its size, beside the first part of its copy: a third of the room.
        """
        before, self._peak = self._peak, _status("VmPeak") if self._start else 0
        return self._peak - before > self._size // 3, self._peak - self._start > self._size // 2


def _status(name: str) -> int:
    """Return an entry of this process's status, in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _take_protocol() -> tuple[int, TextIO]:
    """Return the pipes to and from the parent, out of reach of user code that prints or reads its input."""
    source, sink = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(2, 1)
    os.close(empty)
    return source, os.fdopen(sink, "w", encoding="utf-8")


def _lines(source: int) -> Iterator[bytes]:
    """Yield the lines of a file descriptor until it ends, and b"" whenever none came for a while."""
    buffer = bytearray()
    while True:
        if not select.select([source], [], [], _ORPHAN_CHECK_SECONDS)[0]:
            yield b""
            continue
        data = os.read(source, 1 << 16)
        if not data:
            return
        buffer += data
        *complete, rest = buffer.split(b"\n")
        buffer = bytearray(rest)
        yield from map(bytes, complete)


def _send(sink: TextIO, message: dict[str, Any]) -> None:
    sink.write(json.dumps(message) + "\n")
    sink.flush()


if __name__ == "__main__":
    main()
