from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cruxtune.drift import divergence

LOGPROB = st.floats(-20, 0)


@given(st.lists(st.tuples(LOGPROB, LOGPROB), min_size=1, max_size=8))
def test_divergence_is_nowhere_negative(pairs: list[tuple[float, float]]) -> None:
    """It is at least 0, and 0 only where nothing moved."""
    start, now = zip(*pairs, strict=True)
    assert divergence(start, now) >= 0
    assert divergence(start, start) == 0


def test_divergence_estimates_the_kl() -> None:
    """Its mean over tokens drawn from the start is KL(start ‖ now) of their distributions."""
    import torch

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0)
    now = (start + 0.5 * torch.randn(6, generator=generator, dtype=torch.float64)).log_softmax(0)
    exact = float((start.exp() * (start - now)).sum())
    # The expectation over all tokens, weighted by the start's probabilities.
    mean = sum(math.exp(p) * divergence([p], [q]) for p, q in zip(start.tolist(), now.tolist(), strict=True))
    assert mean == pytest.approx(exact, rel=1e-9)
