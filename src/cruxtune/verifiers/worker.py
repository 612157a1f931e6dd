"""A process that judges texts: `python -m cruxtune.verifiers.worker`, started by `cruxtune.verifiers.pool`.

One JSON document a line, both ways. The first line in is the settings: {"strict", "function", "timeout", "rules",
"parent"}; the others are texts: {"text", "problem"}. Lines out, in the order of the texts:

    {"busy": true}              what follows may take long: imports, a scorer to build; the time limit pauses
    {"ready": true}             done with that
    {"verdict": [correct, extracted, reason]}
    {"error": "..."}            nothing can be judged: the user must act

It ends when its input does, and no later than a few seconds after its parent has died.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from typing import Any, TextIO

from cruxtune.errors import VerifierError
from cruxtune.records import Problem
from cruxtune.verifiers.answers import Rules
from cruxtune.verifiers.compare import judge, load_function, preparation, prepare

_ORPHAN_CHECK_SECONDS = 5.0


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
    if function is not None:
        load_function(function)
    _send(sink, {"ready": True})
    prepared: set[str] = set()
    for line in lines:
        if not line:  # nothing came for a while
            if os.getppid() != settings["parent"]:
                return
            continue
        row = json.loads(line)
        problem = Problem(**row["problem"])
        if (name := preparation(problem)) not in prepared:
            _send(sink, {"busy": True})
            prepare(problem, function)
            prepared.add(name)
            _send(sink, {"ready": True})
        # The parent kills us at the limit. Should it have died, the kernel does so later, even amid one long
        # operation on huge integers, where no Python code (such as a check for the parent) would run.
        signal.setitimer(signal.ITIMER_REAL, 2 * settings["timeout"] + 1)
        verdict = judge(row["text"], problem, strict, function, rules)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(sink, {"verdict": [verdict.correct, verdict.extracted, verdict.reason]})


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
