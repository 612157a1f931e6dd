"""Verifiers such as a user writes, for the tests: imported by the workers from their working directory."""

import os
import sys
import time
from typing import Any


def by_text(text: str, problem: dict[str, Any]) -> Any:
    """Do what the text says, while printing where the protocol must not break."""
    print("noise on standard output", flush=True)  # noqa: T201
    os.write(1, b"noise below Python\n")
    assert sys.stdin.read() == ""
    if text == "sleep":
        time.sleep(30)
    if text == "fill":
        return bool(bytearray(3 << 30))
    if text == "exit":
        os._exit(3)
    if text == "raise":
        raise RuntimeError("the check failed")
    if text == "odd":
        return 0.5
    if text == "pair":
        return True, problem["answer"]
    return text == problem["answer"]


not_callable = 3
