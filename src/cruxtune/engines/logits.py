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
_CACHED_CELLS, _CELLS = 1 << 16, 1 << 23
"""Numbers for which noise is made at a time: on a CPU what its cache holds, elsewhere what bounds memory."""


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
    rows = max(1, (_CACHED_CELLS if logits.device.type == "cpu" else _CELLS) // logits.shape[1])
    chosen: list[int] = []
    for start in range(0, len(states), rows):
        ids, scaled = None, at_least_float32(logits[start : start + rows]) / decoding.temperature
        if decoding.top_k or decoding.top_p < 1:
            ids, scaled = _survivors(scaled, decoding)
        best = _noise(keys[start : start + rows], ids, scaled).add_(scaled).max(dim=-1)
        _refuse_nan(best.values)
        chosen.extend((best.indices if ids is None else ids.gather(1, best.indices[:, None])[:, 0]).tolist())
    return chosen


def statistics(logits: torch.Tensor, tokens: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return the log-probability of each row's token and the entropy of each row, in nats."""
    logprobs = torch.log_softmax(at_least_float32(logits), dim=-1)
    picked = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    return picked.tolist(), _entropies(logprobs).tolist()


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
    return torch.special.entr(logprobs.exp()).sum(dim=-1)


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


def _noise(keys: torch.Tensor, ids: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """Return the Gumbel noise of some ids (by default of the vocabulary) for every key, as `sampling.gumbel` does."""
    if ids is None:
        words = _words(keys, torch.arange(-(-like.shape[1] // 2), device=like.device))
        # The lower half of a word comes first in memory on all machines that torch runs on.
        bits = words.view(torch.int32)[:, : like.shape[1]]
    else:
        bits = _words(keys, ids >> 1) >> 32 * (ids & 1)
    return _gumbel(bits, like.dtype)


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
