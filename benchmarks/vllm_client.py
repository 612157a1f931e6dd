"""vLLM for CPU as a decoder: its process is started, asked, and put to sleep while others are timed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from case import Case, threads

BLOCK_SIZE = 32
"""Tokens of a block of its prefix cache; its default on CPU is 128, longer than most of these prompts."""


class Vllm:
    """A context manager: the child process in vLLM's environment.

    Raises:
        RuntimeError: it ended; what it said last is in the message.
    """

    def __init__(self, python: Path, case: Case, model: Path, log: Path) -> None:
        self._log = log
        self._forget = True
        self.queries = self.hits = 0
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(python), str(Path(__file__).with_name("vllm_annotate.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        prompts = max(len(response.prompt_ids) for response in case.responses)
        self.facts: dict[str, Any] = self._ask(
            {
                "model": str(model),
                "dtype": case.dtype,
                "block_size": BLOCK_SIZE,
                "longest": prompts + case.token_limit + 1,
                "threads": threads(),
                "eos_ids": case.eos_ids,
            }
        )
        os.killpg(self._process.pid, signal.SIGSTOP)

    def __enter__(self) -> Vllm:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the process; without effect when done already."""
        if self._process.poll() is not None:
            return
        os.killpg(self._process.pid, signal.SIGCONT)
        stdin = self._process.stdin
        assert stdin is not None
        stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let the process run; otherwise it is stopped, so that it takes nothing from what is timed meanwhile."""
        os.killpg(self._process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGSTOP)

    def begin(self) -> None:
        """Start anew: what follows finds the prefix cache empty, and the hit rate counts from here."""
        self._forget = True
        self.queries = self.hits = 0

    def complete(self, prompts: list[list[int]], limits: list[int]) -> list[list[int]]:
        """Continue prompts greedily."""
        answer = self._ask({"prompts": prompts, "limits": limits, "forget": self._forget})
        self._forget = False
        self.queries += answer["queries"]
        self.hits += answer["hits"]
        return answer["ids"]

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"vLLM ended ({self._process.returncode}): {lines[-1] if lines else 'it said nothing'}")
        return json.loads(line)


def available(python: Path | None) -> str | None:
    """Return why vLLM cannot be asked, None if it can."""
    if python is None:
        return "no --vllm-python given"
    if sys.platform != "linux":
        return "runs on Linux only here"
    found = subprocess.run([str(python), "-c", "import importlib.util as u, sys; sys.exit(not u.find_spec('vllm'))"])
    return None if found.returncode == 0 else f"{python} has no vllm"
