"""An engine whose policy is a Python function: for tests, docs and experiments of thought. Slow and exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from cruxtune.engines.base import (
    Decoding,
    Generation,
    PlainBranches,
    Progress,
    Scores,
    Usage,
    finish_reason,
    token_limits,
)
from cruxtune.engines.sampling import gumbel

_BATCH_SIZE = 16
"""Counterfactuals decoded in one step."""


class ScriptedEngine:
    """An engine that asks `logits(ids)` for the next token's logits (one per id of the vocabulary).

    A policy over the ids 0–3 that counts up and ends with 3:

    >>> from cruxtune.engines.base import Decoding
    >>> engine = ScriptedEngine(lambda ids: [float(token == ids[-1] + 1) for token in range(4)], eos_ids={3})
    >>> engine.generate([[0]], max_new_tokens=9, decoding=Decoding())[0].ids
    [1, 2, 3]
    >>> engine.score([0], [1, 2, 3], alternatives=1).alternatives
    [[0], [0], [0]]
    """

    def __init__(
        self,
        logits: Callable[[Sequence[int]], Sequence[float]],
        *,
        eos_ids: set[int],
        context_length: int | None = None,
    ) -> None:
        self._logits = logits
        self._eos_ids = frozenset(eos_ids)
        self._context_length = context_length
        self._usage = Usage()

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ids that end a sequence."""
        return self._eos_ids

    @property
    def context_length(self) -> int | None:
        """The most tokens a sequence may have."""
        return self._context_length

    @property
    def usage(self) -> Usage:
        """The counters."""
        return self._usage

    def tune(self, remembered: Mapping[str, float] | None = None) -> dict[str, float]:
        """Settle nothing: batches have one size."""
        return {}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int],
        decoding: Decoding,
        seeds: Sequence[int] | None = None,
        statistics: bool = False,
        progress: Progress | None = None,
    ) -> list[Generation]:
        """Continue each prompt; see `Engine.generate`."""
        limits = token_limits(prompts, max_new_tokens, self._context_length)
        done = []
        for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            done.append(self._continue(prompt, limit, decoding, seeds[index] if seeds else None, statistics))
            if progress:
                progress(1)
        return done

    def score(self, prompt: Sequence[int], response: Sequence[int], *, alternatives: int) -> Scores:
        """Score every token of the response; see `Engine.score`."""
        scores = Scores([], [], [], [])
        for position, token in enumerate(response):
            logprobs = self._logprobs([*prompt, *response[:position]])
            others = sorted((t for t in range(len(logprobs)) if t != token), key=lambda t: (-logprobs[t], t))
            scores.logprobs.append(logprobs[token])
            scores.entropies.append(_entropy(logprobs))
            scores.alternatives.append(others[:alternatives])
            scores.alternative_logprobs.append([logprobs[t] for t in others[:alternatives]])
        return scores

    def branches(self, *, max_tokens: int, decoding: Decoding) -> PlainBranches:
        """Return a place where counterfactuals are decoded, one batch of prompts after another."""
        return PlainBranches(self, batch_size=_BATCH_SIZE, max_tokens=max_tokens, decoding=decoding)

    def _continue(
        self, prompt: Sequence[int], limit: int, decoding: Decoding, seed: int | None, statistics: bool
    ) -> Generation:
        ids: list[int] = []
        logprobs: list[float] = []
        entropies: list[float] = []
        reason = None if limit else "length"
        while reason is None:
            step = self._logprobs([*prompt, *ids])
            token = _choose(step, decoding, seed, len(ids))
            self._usage.tokens_emitted += 1
            ids.append(token)
            logprobs.append(step[token])
            entropies.append(_entropy(step))
            reason = finish_reason(ids, limit, self._eos_ids, decoding)
        return Generation(ids, reason, logprobs, entropies) if statistics else Generation(ids, reason)

    def _logprobs(self, ids: Sequence[int]) -> list[float]:
        self._usage.tokens_computed += 1
        self._usage.model_calls += 1
        return _log_softmax([float(value) for value in self._logits(ids)])


def _choose(logprobs: list[float], decoding: Decoding, seed: int | None, position: int) -> int:
    order = sorted(range(len(logprobs)), key=lambda token: (-logprobs[token], token))
    if decoding.temperature == 0:
        return order[0]
    if seed is None:
        raise ValueError("sampling needs one seed per prompt")
    tempered = _log_softmax([value / decoding.temperature for value in logprobs])
    kept = order[: decoding.top_k or None]
    total, nucleus = 0.0, []
    mass = sum(math.exp(tempered[token]) for token in kept)
    for token in kept:
        nucleus.append(token)
        total += math.exp(tempered[token])
        if total >= decoding.top_p * mass:
            break
    return max(nucleus, key=lambda token: tempered[token] + gumbel(seed, position, token))


def _log_softmax(values: list[float]) -> list[float]:
    top = max(values)
    norm = top + math.log(sum(math.exp(value - top) for value in values))
    return [value - norm for value in values]


def _entropy(logprobs: list[float]) -> float:
    return -sum(math.exp(value) * value for value in logprobs if value > -math.inf)
