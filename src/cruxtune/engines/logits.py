"""From logits to tokens and statistics, the same for every engine that works with tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cruxtune.engines.base import Decoding, Scores
from cruxtune.engines.sampling import uniform
from cruxtune.errors import ModelError

_CHUNK = 128
"""Positions whose full-vocabulary statistics are computed together, which bounds memory."""
_TIE_MARGIN = 32
"""Candidates fetched beyond k, so that a tie at the border is seen; more ties than that cost a full sort."""


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
    logits = at_least_float32(logits)
    _refuse_nan(logits)
    probabilities = torch.softmax(logits / decoding.temperature, dim=-1).double()
    if decoding.top_k or decoding.top_p < 1:
        probabilities = _cut_off(probabilities, decoding)
    draws = [uniform(seed, position) for seed, position in zip(seeds, positions, strict=True)]
    running = probabilities.cumsum(dim=-1)
    threshold = torch.tensor(draws, dtype=running.dtype, device=running.device) * running[:, -1]
    chosen = (running <= threshold[:, None]).sum(dim=-1)
    # Rounding may put the threshold on the total; the last id with any probability is then the draw.
    last = probabilities.shape[1] - 1 - (probabilities.flip(1) > 0).int().argmax(dim=1)
    return torch.minimum(chosen, last).tolist()


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


def _cut_off(probabilities: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Set to zero what top-k and top-p leave out (the most probable token always stays)."""
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if decoding.top_k:
        keep[:, decoding.top_k :] = False
        ordered = ordered * keep
    before = ordered.cumsum(dim=-1) - ordered
    keep &= before < decoding.top_p * ordered.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(1, ids, ordered * keep)
