"""Verification in worker processes, with limits of time and memory for each answer.

Texts go to the workers some dozen at a time, so that pipes and process switches do not bound the rate; the limits are
nevertheless each text's own: its clock starts when the verdict before it arrived. A worker that exceeds one, or dies,
is replaced, its text counts as wrong, and the texts behind it are judged by others. Answers whose symbolic comparison
exceeded a limit are remembered: no other text with the same answer costs that again.

Workers are new interpreters, not forks, so that this works in any thread and in processes that may not have children of
multiprocessing. Nothing here uses signals. A process that is forked from one that has workers starts its own.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from cruxtune.errors import VerifierError
from cruxtune.records import Problem, Verdict
from cruxtune.verifiers.answers import USUAL, Rules
from cruxtune.verifiers.extract import FALLBACK_REASONS

PREPARATION_SECONDS = 120.0
"""Limit for starting a worker, its imports and a gym task's scorer, which `timeout` does not count."""

# The worker has this very package, not another that is installed, and finds at last what only our search path leads to.
_BOOT = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
sys.path += [path for path in sys.argv[2:] if path not in sys.path]
spec = spec_from_file_location("cruxtune", sys.argv[1])
sys.modules["cruxtune"] = package = module_from_spec(spec)
spec.loader.exec_module(package)
from cruxtune.verifiers.worker import main
main()
"""
_PACKAGE = str(Path(__file__).parents[1] / "__init__.py")

_MAX_WORKERS = 4
_CHUNK = 32
_REMEMBERED = 1000
_TAIL_BYTES = 4000
_READ_BYTES = 1 << 16
_LOG = logging.getLogger(__name__)


class _Worker:
    """A child process, its pipes, and the texts that it has been given and not yet judged."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # Popen never forks this process's threads and GPU state. -P keeps files of the working directory from
        # shadowing libraries; a session of its own lets a kill reach what a user's verifier started.
        self.process = process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, _PACKAGE, *filter(None, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self.stdin, self.stdout, self.stderr = map(_open_pipe, (process.stdin, process.stdout, process.stderr))
        self.jobs: deque[int] = deque()
        self.busy = True
        self.leaving = False
        self.comparing: tuple[str, str] | None = None
        self.since = time.monotonic()
        self.outbox = bytearray(json.dumps({**settings, "parent": os.getpid()}).encode() + b"\n")
        self._inbox = bytearray()
        self._tail = bytearray()

    def give(self, jobs: Iterable[int], lines: Iterable[bytes]) -> None:
        """Queue texts; the clock of the first one starts now if nothing is before it."""
        if not self.jobs and not self.busy:
            self.since = time.monotonic()
        self.jobs.extend(jobs)
        for line in lines:
            self.outbox += line

    def write(self) -> None:
        """Write what the pipe takes."""
        with suppress(BlockingIOError, BrokenPipeError):  # a dead worker shows on its output
            del self.outbox[: os.write(self.stdin.fileno(), self.outbox)]

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the messages that have come, and whether the worker has closed its output (it has died)."""
        ended = False
        with suppress(BlockingIOError):
            while data := os.read(self.stdout.fileno(), _READ_BYTES):
                self._inbox += data
            ended = True
        *lines, rest = self._inbox.split(b"\n")
        self._inbox = bytearray(rest)
        return [json.loads(line) for line in lines], ended

    def last_errors(self) -> str:
        """Empty the pipe of errors, so that it never blocks the worker, and return the end of what was written."""
        with suppress(BlockingIOError):
            while not self.stderr.closed and (data := os.read(self.stderr.fileno(), _READ_BYTES)):
                self._tail = (self._tail + data)[-_TAIL_BYTES:]
        return self._tail.decode(errors="replace").strip() or "nothing"

    def forget(self) -> None:
        """Close the pipes and leave the process alone: it belongs to the one that this one was forked from."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()
        self.process.returncode = 0  # not ours to wait for

    def end(self, wait: float = 0.0) -> None:
        """End the process, if need be by a kill after `wait` seconds, reap it and close the pipes."""
        self.stdin.close()
        try:
            self.process.wait(wait)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.last_errors()
        self.stdout.close()
        self.stderr.close()


class Verifier:
    """Judges texts in worker processes; a context manager, usable from any thread (one call at a time).

    Args:
        strict: take explicit forms of an answer only (`--strict-answers`).
        timeout: seconds of wall clock that judging one text may take, without starting and preparing a worker.
        memory: GiB that judging one text may take above what a worker holds after its imports; 0 for no limit.
        workers: processes, started as they are needed; by default the cores that this process may use, at most 4.
        function: `module:function` that judges problems of kind custom (`--verifier`). It is called with the text and
            the problem as a dict, and returns a bool, or a bool and the answer that it found.
        rules: conventions for mathematical answers on which users differ.
    """

    def __init__(
        self,
        strict: bool = False,
        timeout: float = 5.0,
        workers: int | None = None,
        function: str | None = None,
        memory: float = 1.0,
        rules: Rules = USUAL,
    ) -> None:
        if timeout <= 0 or (workers is not None and workers < 1):
            raise ValueError(f"timeout ({timeout}) must be positive and workers ({workers}) at least 1")
        if memory < 0:
            raise ValueError(f"memory ({memory}) must be positive, or 0 for no limit")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._size = workers or min(cores, _MAX_WORKERS)
        self._timeout = timeout
        self._settings = {
            "strict": strict,
            "function": function,
            "timeout": timeout,
            "memory": int(memory * (1 << 30)),
            "rules": rules._asdict(),
        }
        self._workers: list[_Worker] = []
        self._exceeded: dict[tuple[str, str], str] = {}
        self._counts: Counter[str] = Counter(verdicts=0, fallback=0, timeouts=0, out_of_memory=0, crashes=0)
        self._warned: set[str] = set()
        self._lock = threading.Lock()
        self._closed = False
        _living.add(self)
        weakref.finalize(self, _end, self._workers)  # at the latest when this process ends

    def __enter__(self) -> Verifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def verify(self, text: str, problem: Problem) -> Verdict:
        """Return the verdict on one text; see `verify_many`."""
        return self.verify_many([(text, problem)])[0]

    def verify_many(self, texts_and_problems: Sequence[tuple[str, Problem]]) -> list[Verdict]:
        """Return the verdicts on texts, in order; equal texts to the same problem are judged once.

        Raises:
            VerifierError: a worker cannot start, the user's function cannot be imported, or a problem cannot be judged
                whatever the text is.
        """
        lines = [_line(text, problem) for text, problem in texts_and_problems]
        first: dict[bytes, int] = {}
        jobs = [first.setdefault(line, index) for index, line in enumerate(lines)]
        with self._lock:
            if self._closed:
                raise RuntimeError("this Verifier is closed")
            try:
                verdicts = self._run(lines, deque(first.values()))
            except BaseException:
                _end(self._workers)  # they have texts of this call, whose verdicts must not reach the next
                raise
            results = [verdicts[job] for job in jobs]
            self._count(results)
        return results

    def counts(self) -> dict[str, int]:
        """Return how many verdicts were given, and how many of them by fallback, time-out, memory and crash."""
        with self._lock:
            return dict(self._counts)

    def close(self) -> None:
        """End the workers; without effect when done already."""
        with self._lock:
            self._closed = True
            _end(self._workers, wait=1.0)

    def after_fork(self) -> None:
        """Start afresh in a forked process, where workers, lock and threads are another's."""
        self._lock = threading.Lock()
        for worker in self._workers:
            worker.forget()
        self._workers.clear()

    def _run(self, lines: Sequence[bytes], pending: deque[int]) -> dict[int, Verdict]:
        verdicts: dict[int, Verdict] = {}
        total = len(pending)
        while len(verdicts) < total:
            self._deal(lines, pending)
            self._wait()
            for worker in list(self._workers):
                messages, ended = worker.read()
                for message in messages:
                    self._receive(worker, message, verdicts)
                late = bool(worker.jobs) and not messages and time.monotonic() > self._limit(worker)
                if ended or late or worker.leaving:
                    self._replace(worker, "crash" if ended else "time-out", verdicts)
                    pending.extendleft(reversed(worker.jobs))
        return verdicts

    def _deal(self, lines: Sequence[bytes], pending: deque[int]) -> None:
        """Give waiting texts to workers that run low, and start workers while there are texts for them."""
        for worker in [one for one in self._workers if one.process.poll() is not None and not one.jobs]:
            self._workers.remove(worker)  # died between two calls
            worker.end()
        while len(self._workers) < min(self._size, len(pending) + sum(bool(one.jobs) for one in self._workers)):
            self._workers.append(_Worker({**self._settings, "exceeded": self._remembered()}))
        share = max(1, min(_CHUNK, len(pending) // (2 * self._size)))
        for worker in sorted(self._workers, key=lambda one: len(one.jobs)):
            if pending and len(worker.jobs) <= share // 2:
                jobs = [pending.popleft() for _ in range(min(share, len(pending)))]
                worker.give(jobs, (lines[job] for job in jobs))

    def _wait(self) -> None:
        """Sleep until a pipe has or takes something, or the first time limit passes."""
        with selectors.DefaultSelector() as selector:
            limits = []
            for worker in self._workers:
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
                selector.register(worker.stderr, selectors.EVENT_READ, worker)
                if worker.outbox:
                    selector.register(worker.stdin, selectors.EVENT_WRITE, worker)
                if worker.jobs:
                    limits.append(self._limit(worker))
            for key, _ in selector.select(max(0.0, min(limits) - time.monotonic()) + 0.001):
                if key.fileobj is key.data.stdin:
                    key.data.write()
                elif key.fileobj is key.data.stderr:
                    key.data.last_errors()

    def _limit(self, worker: _Worker) -> float:
        return worker.since + (PREPARATION_SECONDS if worker.busy else self._timeout)

    def _receive(self, worker: _Worker, message: dict[str, Any], verdicts: dict[int, Verdict]) -> None:
        if "error" in message:
            raise VerifierError(str(message["error"]))
        if "comparing" in message:
            worker.comparing = (message["comparing"][0], message["comparing"][1])
            return  # the clock goes on: it is still the same text
        worker.since = time.monotonic()
        if "verdict" in message:
            verdict = Verdict(*message["verdict"])
            if verdict.reason == "memory" and worker.comparing:
                verdict = self._exceeds(worker, "memory")
            worker.comparing, worker.leaving = None, message["last"]
            verdicts[worker.jobs.popleft()] = verdict
            if verdict.reason == "custom-error":
                self._warn("custom-error", f"--verifier {self._settings['function']} raised", worker)
        else:
            worker.busy = "busy" in message

    def _replace(self, worker: _Worker, reason: str, verdicts: dict[int, Verdict]) -> None:
        """End a worker that leaves or failed: by its first text, then, while `worker.jobs` keeps the others."""
        self._workers.remove(worker)
        worker.end()
        if worker.leaving:
            return
        if worker.busy:
            raise VerifierError(
                f"A verifier process did not start ({reason}, exit status {worker.process.returncode}). "
                f"Its last output: {worker.last_errors()}"
            )
        if worker.jobs:
            verdicts[worker.jobs.popleft()] = self._exceeds(worker, reason)
            if reason == "crash":
                self._warn("crash", f"a verifier process died (exit status {worker.process.returncode})", worker)

    def _exceeds(self, worker: _Worker, reason: str) -> Verdict:
        """Return the verdict on a worker's first text, and remember the answers if their comparison was to blame."""
        if worker.comparing is None:
            return Verdict(False, None, reason)
        self._exceeded[worker.comparing] = reason
        if len(self._exceeded) > _REMEMBERED:
            del self._exceeded[next(iter(self._exceeded))]
        for other in self._workers:
            other.outbox += json.dumps({"exceeded": [[*worker.comparing, reason]]}).encode() + b"\n"
        return Verdict(False, worker.comparing[1], reason)

    def _remembered(self) -> list[tuple[str, str, str]]:
        return [(gold, extracted, reason) for (gold, extracted), reason in self._exceeded.items()]

    def _warn(self, kind: str, message: str, worker: _Worker) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _LOG.warning("%s; further cases are only counted. Its last output:\n%s", message, worker.last_errors())

    def _count(self, verdicts: Sequence[Verdict]) -> None:
        reasons = Counter(verdict.reason for verdict in verdicts)
        self._counts["verdicts"] += len(verdicts)
        self._counts["fallback"] += sum(reasons[reason] for reason in FALLBACK_REASONS)
        self._counts["timeouts"] += reasons["time-out"]
        self._counts["out_of_memory"] += reasons["memory"]
        self._counts["crashes"] += reasons["crash"]


_living: weakref.WeakSet[Verifier] = weakref.WeakSet()


def _after_fork() -> None:
    for verifier in list(_living):
        verifier.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _end(workers: list[_Worker], wait: float = 0.0) -> None:
    for worker in workers:
        worker.stdin.close()  # they end side by side
    for worker in workers:
        worker.end(wait)
    workers.clear()


def _open_pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # every one was asked for
    os.set_blocking(pipe.fileno(), False)
    return pipe


def _line(text: str, problem: Problem) -> bytes:
    return json.dumps({"text": text, "problem": {**vars(problem), "metadata": dict(problem.metadata)}}).encode() + b"\n"
