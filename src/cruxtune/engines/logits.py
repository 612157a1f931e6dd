"""From logits to tokens and statistics, the same for every engine that works with tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cruxtune.engines.base import Decoding, Scores
from cruxtune.engines.sampling import BITS, FIRST, GOLDEN, SECOND, key_of
from cruxtune.errors import ModelError

_CHUNK = 128
"""Positions whose full-vocabulary statistics are computed together, which bounds memory."""
_TIE_MARGIN = 32
"""Candidates fetched beyond k, so that a tie at the border is seen; more ties than that cost a full sort."""
_CACHED_CELLS, _CELLS = 1 << 20, 1 << 23
"""Numbers that are worked on at a time: on a CPU what its caches hold, elsewhere what bounds memory."""


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in float32, or in float64 where it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def greedy(logits: torch.Tensor) -> list[int]:
    """Return the most probable id of every row of (rows, vocabulary), the lowest of several.

    Raises:
        ModelError: some logits are not numbers.
    """
    # torch documents for max, too, that the first of several is returned; it is several times as fast as argmax in
    # bfloat16, and passes on NaN. Widening to float32 would change no order.
    best = logits.max(dim=-1)
    _refuse_nan(best.values)
    return best.indices.tolist()


def choose(logits: torch.Tensor, decoding: Decoding, seeds: Sequence[int], positions: Sequence[int]) -> list[int]:
    """Return the next token of every row, each drawn by its own seed and its position in the continuation.

    Raises:
        ModelError: some logits are not numbers.
    """
    if decoding.temperature == 0:
        return greedy(logits)
    states = [_as_signed(key_of(seed, position)) for seed, position in zip(seeds, positions, strict=True)]
    keys = torch.tensor(states, device=logits.device)
    narrowed = decoding.top_k or decoding.top_p < 1
    chosen: list[int] = []
    for part in _parts(len(logits), logits):
        draw = _drawn_of_survivors if narrowed else _drawn
        chosen.extend(draw(logits[part], decoding, keys[part]))
    return chosen


def statistics(logits: torch.Tensor, rows: Sequence[int], tokens: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return the log-probability of a token in each of some rows and the entropy of these rows, in nats."""
    picked: list[float] = []
    entropies: list[float] = []
    places, ids = torch.tensor([rows, tokens], device=logits.device)
    for part in _parts(len(rows), logits):
        logprobs = torch.log_softmax(at_least_float32(logits[places[part]]), dim=-1)
        picked.extend(logprobs.gather(1, ids[part, None])[:, 0].tolist())
        entropies.extend(_entropies(logprobs).tolist())
    return picked, entropies


def scores(logits: torch.Tensor, response: Sequence[int], alternatives: int) -> Scores:
    """Return what logits of shape (T, vocabulary) say about the T tokens that they predict."""
    result = Scores([], [], [], [])
    tokens = torch.tensor(response, device=logits.device)
    for start in range(0, len(response), _CHUNK):
        chunk = at_least_float32(logits[start : start + _CHUNK])
        _refuse_nan(chunk)
        here = tokens[start : start + _CHUNK]
        logprobs = torch.log_softmax(chunk, dim=-1)
        others = _most_probable_others(chunk, here, alternatives)
        result.logprobs.extend(logprobs.gather(1, here[:, None])[:, 0].tolist())
        result.entropies.extend(_entropies(logprobs).tolist())
        result.alternatives.extend(others.tolist())
        result.alternative_logprobs.extend(logprobs.gather(1, others).tolist())
    return result


def _refuse_nan(values: torch.Tensor) -> None:
    if values.isnan().any():
        # The arg-max would be some token all the same.
        raise ModelError(
            "the model's logits are not numbers, so that no token can be chosen; use another --dtype "
            "(float32 is the safest), and check that its weights are whole"
        )


def _entropies(logprobs: torch.Tensor) -> torch.Tensor:
    # A share of 0 counts for nothing; of its logarithm, −∞, the product would be no number.
    return -logprobs.exp().mul_(logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(dim=-1)


def _parts(count: int, like: torch.Tensor) -> list[slice]:
    """Return how so many rows of these logits are cut into what is worked on at a time."""
    most = max(1, (_CACHED_CELLS if like.device.type == "cpu" else _CELLS) // like.shape[1])
    return [slice(start, start + most) for start in range(0, count, most)]


def _drawn(logits: torch.Tensor, decoding: Decoding, keys: torch.Tensor) -> list[int]:
    """Return argmax_v (z_v / temperature + g_v) of every row, the lowest id of several.

    Noise is made only for what can win: ids whose logit, with the most noise there is, comes up to what the most
    probable id has with its own. Of a trained model's vocabulary that is a few per cent.
    """
    temperature, best = decoding.temperature, logits.max(dim=-1)
    _refuse_nan(best.values)
    top = at_least_float32(best.values) / temperature
    lead = top + _noise(keys, best.indices[:, None], top[:, None])[:, 0]
    most = _most_noise(top)
    floor = (lead - most) * temperature
    # Less what rounding can add to it here, and in the precision of the logits.
    slack = 8 * torch.finfo(top.dtype).eps * (lead.abs() + most) * temperature
    lower = floor - slack - 2 * torch.finfo(logits.dtype).eps * floor.abs()
    floor = torch.where(floor.isfinite(), lower, floor).to(logits.dtype)
    rows, ids = (logits >= floor[:, None]).nonzero(as_tuple=True)
    scaled = at_least_float32(logits[rows, ids]) / temperature
    perturbed = _noise(keys[rows], ids[:, None], scaled[:, None])[:, 0].add_(scaled)
    highest = torch.full_like(top, -torch.inf).scatter_reduce_(0, rows, perturbed, "amax")
    # From the last to the first, so that the first of several stays.
    won = (perturbed == highest[rows]).nonzero()[:, 0].flip(0)
    chosen = dict(zip(rows[won].tolist(), ids[won].tolist(), strict=True))
    return [chosen[row] for row in range(len(logits))]


def _most_probable_others(logits: torch.Tensor, tokens: torch.Tensor, k: int) -> torch.Tensor:
    """Return (positions, k): the ids with the highest logits, `tokens` excluded, by (−logit, id).

    `topk` leaves the order of ties open, and low-precision logits tie often, so a few more are fetched and sorted.
    """
    logits = logits.scatter(1, tokens[:, None], -torch.inf)
    fetched = min(k + _TIE_MARGIN, logits.shape[1])
    values, ids = logits.topk(fetched, dim=-1)
    ids, by_id = ids.sort(dim=-1)
    order = values.gather(1, by_id).argsort(dim=-1, descending=True, stable=True)
    result = ids.gather(1, order)[:, :k]
    if fetched < logits.shape[1]:
        # If the last one fetched ties with the k-th, an id that was not fetched may come before it.
        unsure = (values[:, -1] == values[:, k - 1]).nonzero()[:, 0]
        result[unsure] = logits[unsure].argsort(dim=-1, descending=True, stable=True)[:, :k]
    return result


def _drawn_of_survivors(logits: torch.Tensor, decoding: Decoding, keys: torch.Tensor) -> list[int]:
    """Return the same of what top-k and top-p leave."""
    ids, scaled = _survivors(at_least_float32(logits) / decoding.temperature, decoding)
    best = _noise(keys, ids, scaled).add_(scaled).max(dim=-1)
    _refuse_nan(best.values)
    return ids.gather(1, best.indices[:, None])[:, 0].tolist()


def _survivors(scaled: torch.Tensor, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows, m) ids in order of (−logit, id), and their logits, −inf where top-k and top-p leave them out.

    The most probable token always stays. Only the m ids that can survive in some row are sorted.
    """
    probabilities = torch.softmax(scaled, dim=-1)
    if decoding.top_k:
        kth = min(decoding.top_k, scaled.shape[1])
        reach = scaled >= scaled.topk(kth, dim=-1).values[:, -1:]
    else:
        # What is less probable than this and all that is still less so add up to less than 1 − top_p.
        reach = probabilities >= 0.99 * (1 - decoding.top_p) / scaled.shape[1]
    _, ids = scaled.topk(max(1, int(reach.sum(dim=-1).max())), dim=-1)
    ids, _ = ids.sort(dim=-1)
    ids = ids.gather(1, scaled.gather(1, ids).argsort(dim=-1, descending=True, stable=True))
    ordered = probabilities.gather(1, ids).double()
    if decoding.top_k:
        ordered[:, decoding.top_k :] = 0
    total = ordered.sum(dim=-1, keepdim=True) if decoding.top_k else 1.0
    gone = (ordered.cumsum(dim=-1) - ordered >= decoding.top_p * total) | (ordered == 0)
    gone[:, 0] = False
    return ids, scaled.gather(1, ids).masked_fill(gone, -torch.inf)


def _noise(keys: torch.Tensor, ids: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the Gumbel noise of some ids (rows, m) for the key of each row, as `sampling.gumbel` does."""
    return _gumbel(_words(keys, ids >> 1) >> 32 * (ids & 1), like.dtype)


def _most_noise(like: torch.Tensor) -> float:
    return float(_gumbel(torch.zeros(1, dtype=torch.int64), like.dtype))


def _gumbel(bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    share = (bits & ((1 << BITS) - 1)).to(dtype).add_(0.5).mul_(2.0**-BITS)
    # In float32 the largest shares round to 1, whose noise is not finite.
    return share.clamp_(max=1 - torch.finfo(dtype).eps / 2).neg_().log1p_().neg_().log_().neg_()


def _words(keys: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return the outputs of SplitMix64 with these numbers for each key; integers are signed and wrap around."""
    words = keys[:, None] + (numbers + 1) * _as_signed(GOLDEN)
    for shift, factor in ((30, FIRST), (27, SECOND), (31, None)):
        # The shift is arithmetic: what it fills in goes.
        words ^= (words >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        if factor is not None:
            words *= _as_signed(factor)
    return words


def _as_signed(word: int) -> int:
    """Return the signed 64-bit integer of the same bits."""
    return word - (1 << 64) if word >> 63 else word
