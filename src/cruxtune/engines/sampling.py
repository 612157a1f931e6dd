"""Random numbers that belong to a token, not to a moment: keyed by (seed, position), the same in any batch."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_of(*parts: object) -> int:
    """Return a 64-bit seed for a tuple of ints and strings, stable over processes and machines.

    >>> seed_of(0, "gsm8k/test/1", 3) == seed_of(0, "gsm8k/test/1", 3) != seed_of(0, "gsm8k/test/1", 4)
    True
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) for one token of one continuation (Philox, counter = position).

    >>> uniform(7, 0) == uniform(7, 0) != uniform(7, 1)
    True
    """
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())
