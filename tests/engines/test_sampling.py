"""Gumbel noise keyed by (seed, position, token id): the same everywhere, and draws of the right distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cruxtune.engines import logits as choices
from cruxtune.engines.base import Decoding
from cruxtune.engines.sampling import gumbel, key_of, seed_of
from cruxtune.engines.scripted import ScriptedEngine

VOCABULARY = 301
WORDS = st.integers(0, 2**64 - 1)
CUT_OFFS = (
    Decoding(1.0),
    Decoding(0.5),
    Decoding(1.7),
    Decoding(1.0, top_k=4),
    Decoding(0.8, top_p=0.613),
    Decoding(1.3, top_k=7, top_p=0.813),
)


def keys_of(pairs: list[tuple[int, int]]) -> torch.Tensor:
    """The generator's states of (seed, position) pairs."""
    return torch.tensor([choices._as_signed(key_of(*pair)) for pair in pairs])


def kept(probabilities: np.ndarray, decoding: Decoding) -> np.ndarray:
    """What top-k and then top-p leave of probabilities, by their definitions, as a distribution."""
    order = sorted(range(len(probabilities)), key=lambda token: (-probabilities[token], token))
    order = order[: decoding.top_k or None]
    mass, result = 0.0, np.zeros(len(probabilities))
    for token in order:
        if mass >= decoding.top_p * probabilities[order].sum():
            break
        mass += probabilities[token]
        result[token] = probabilities[token]
    return result / result.sum()


@settings(max_examples=30, deadline=None)
@given(pairs=st.lists(st.tuples(WORDS, st.integers(0, 10**6)), min_size=1, max_size=4), odd=st.integers(1, 9))
def test_a_vocabulary_gets_the_noise_of_its_tokens(pairs: list[tuple[int, int]], odd: int) -> None:
    """Tensors, for ids in any order, hold what the definition gives for one token after another."""
    keys, like = keys_of(pairs), torch.zeros(len(pairs), odd, dtype=torch.float64)
    expected = [[gumbel(seed, position, token) for token in range(odd)] for seed, position in pairs]
    ids = torch.arange(odd).expand(len(pairs), -1)
    np.testing.assert_allclose(choices._noise(keys, ids, like), expected, rtol=1e-12)
    np.testing.assert_allclose(choices._noise(keys, ids.flip(1), like), np.flip(expected, axis=1), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    spread=st.sampled_from([0.01, 1.0, 6.0, 40.0, 400.0]),
    shift=st.sampled_from([-50.0, 0.0, 22.0]),
    temperature=st.sampled_from([0.2, 1.0, 3.0]),
)
def test_leaving_out_what_cannot_win_changes_no_draw(
    seed: int, dtype: torch.dtype, spread: float, shift: float, temperature: float
) -> None:
    """The draw is that of the definition over the whole vocabulary, ties and impossible tokens included."""
    rows, vocabulary = 6, 700
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread + shift
    logits[0, ::3] = -torch.inf
    logits[1] = logits[1, 0]
    logits[2, 5] = logits[2, 9] = torch.inf
    logits = logits.to(dtype)
    pairs = [(seed + row, row) for row in range(rows)]
    like = choices.at_least_float32(logits)
    noise = choices._noise(keys_of(pairs), torch.arange(vocabulary).expand(rows, -1), like)
    expected = (noise + like / temperature).max(dim=-1).indices.tolist()
    decoding = Decoding(temperature=temperature)
    assert choices.choose(logits, decoding, *map(list, zip(*pairs, strict=True))) == expected


@pytest.mark.parametrize("along", ["tokens", "positions", "seeds"])
def test_noise_is_gumbel(along: str) -> None:
    """Along token ids, positions and seeds the noise follows the standard Gumbel distribution, without correlation."""
    count = 4000
    pairs = {
        "tokens": [(3, 5)],
        "positions": [(3, position) for position in range(count)],
        "seeds": [(seed, 5) for seed in range(count)],
    }[along]
    like = torch.zeros(len(pairs), count if along == "tokens" else 3, dtype=torch.float64)
    noise = choices._noise(keys_of(pairs), torch.arange(like.shape[1]).expand(like.shape), like).numpy()
    values = noise[0] if along == "tokens" else noise[:, 2]
    assert scipy.stats.kstest(values, "gumbel_r").pvalue > 1e-3
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 4 / math.sqrt(count)


def test_noise_is_finite_in_float32() -> None:
    """The largest and the smallest share of 31 bits give finite noise, so that an only survivor is drawn."""
    bits = torch.tensor([[0, 2**31 - 1]], dtype=torch.int32)
    assert torch.isfinite(choices._gumbel(bits, torch.float32)).all()
    assert choices.choose(torch.randn(9, 50), Decoding(1.0, top_k=1), range(9), range(9))


@pytest.mark.parametrize("decoding", CUT_OFFS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_draws_follow_the_distribution(decoding: Decoding, dtype: torch.dtype) -> None:
    """Draws at one seed's positions follow what temperature, top-k and top-p leave of the softmax (chi-square)."""
    count = 4000
    logits = np.random.default_rng(0).normal(0, 2, VOCABULARY).round(1)
    expected = kept(scipy.special.softmax(logits / decoding.temperature), decoding)
    rows = torch.tensor(logits, dtype=dtype).expand(count, -1)
    found = np.bincount(
        choices.choose(rows, decoding, [seed_of("chi-square")] * count, range(count)), minlength=VOCABULARY
    )
    assert not found[expected == 0].any()
    # Rare tokens count together: the test needs about five of a kind.
    often = expected * count >= 5
    observed = [*found[often], found[~often].sum()]
    wanted = [*expected[often] * count, max(expected[~often].sum() * count, 1e-9)]
    assert scipy.stats.chisquare(observed, np.array(wanted) / sum(wanted) * count).pvalue > 1e-3


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(-4, 4), min_size=12, max_size=12), min_size=1, max_size=5),
    decoding=st.sampled_from(CUT_OFFS),
    seed=WORDS,
)
def test_tensors_draw_what_the_definition_draws(rows: list[list[int]], decoding: Decoding, seed: int) -> None:
    """With many ties, alone or in a batch: the same ids as one token after another by the definition."""
    logits = torch.tensor(rows, dtype=torch.float64)
    together = choices.choose(logits, decoding, [seed] * len(rows), [0] * len(rows))
    for place, row in enumerate(rows):
        engine = ScriptedEngine(lambda ids, row=row: [float(value) for value in row], eos_ids=set())
        assert engine.generate([[0]], max_new_tokens=1, decoding=decoding, seeds=[seed])[0].ids == [together[place]]
        assert choices.choose(logits[place : place + 1], decoding, [seed], [0]) == [together[place]]


def test_rounding_changes_next_to_no_draw() -> None:
    """Logits off by a rounding error of float32 change fewer than one draw in ten thousand."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 2048, generator=generator, dtype=torch.float64) * 2
    near = logits + torch.randn(logits.shape, generator=generator, dtype=torch.float64) * 1e-6
    seeds = range(len(logits))
    first, second = (choices.choose(each, Decoding(1.0), seeds, [0] * len(logits)) for each in (logits, near))
    assert first == second
    assert len(set(first)) > 500
