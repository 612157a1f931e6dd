"""Random numbers that belong to a token, not to a moment: keyed by (seed, position, token id), the same in any batch.

A token is drawn as argmax_v (z_v / temperature + g_v) with independent Gumbel noise g, which draws from the softmax
(Gumbel 1954; Maddison, Tarlow and Minka 2014, "A* Sampling", arXiv 1411.0030). The noise is a counter's: nothing is
drawn in turn, so neither order nor neighbours decide it, and `cruxtune.engines.logits` computes the same for a whole
vocabulary. Rounding changes a draw only where two perturbed logits nearly tie. Where one uniform number is looked up
in the cumulative distribution instead, every border between two tokens moves with the rounding of all before it.
"""

from __future__ import annotations

import hashlib
import math

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Constants of SplitMix64."""
BITS = 31
"""Random bits of one token's noise: a token less than 2⁻³¹ as probable as the best is not drawn to that precision."""
_WORD = (1 << 64) - 1


def seed_of(*parts: object) -> int:
    """Return a 64-bit seed for a tuple of ints and strings, stable over processes and machines.

    >>> seed_of(0, "gsm8k/test/1", 3) == seed_of(0, "gsm8k/test/1", 3) != seed_of(0, "gsm8k/test/1", 4)
    True
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def splitmix64(state: int) -> int:
    """Return SplitMix64's output for a state (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Generators").

    >>> splitmix64(0) == 0xE220A8397B1DCDAF
    True
    """
    state = (state + GOLDEN) & _WORD
    state = (state ^ state >> 30) * FIRST & _WORD
    state = (state ^ state >> 27) * SECOND & _WORD
    return state ^ state >> 31


def key_of(seed: int, position: int) -> int:
    """Return the state at which the noise of one position begins, 64 bits."""
    return splitmix64(splitmix64(seed) + position)


def gumbel(seed: int, position: int, token: int) -> float:
    """Return the Gumbel noise of a token id at one position of one continuation, −log(−log(1 − w)) with w in (0, 1).

    Two ids share a word of the generator: output ⌊id ÷ 2⌋ of SplitMix64, its lower half for an even id.

    >>> gumbel(7, 0, 5) == gumbel(7, 0, 5) != gumbel(7, 1, 5)
    True
    """
    word = splitmix64(key_of(seed, position) + (token >> 1) * GOLDEN)
    bits = word >> 32 * (token & 1) & (1 << BITS) - 1
    return -math.log(-math.log1p(-(bits + 0.5) / (1 << BITS)))
