"""The embedded engine: any `AutoModelForCausalLM`, decoded plainly in left-padded batches.

This is the reference for everything faster: one forward pass per token, the cache that the model itself chooses, and
no processing of the logits besides what `Decoding` says. `generate` of transformers is not used because it applies the
model's generation_config (repetition penalties, top-k 50) and keeps finished rows in the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from cruxtune.engines.base import (
    Context,
    Decoding,
    Fork,
    Generation,
    Progress,
    Scores,
    Usage,
    rollouts_by_generation,
    token_limit,
)
from cruxtune.engines.sampling import uniform
from cruxtune.errors import ModelError

_SCORE_CHUNK = 128
"""Positions whose full-vocabulary statistics are computed together, which bounds memory."""
_TIE_MARGIN = 32
"""Candidates fetched beyond k, so that a tie at the border is seen; more ties than that cost a full sort."""


class TransformersEngine:
    """Decode and score with a transformers model in evaluation mode.

    `batch_size` bounds the sequences decoded together; results do not depend on it but for rounding.
    """

    def __init__(self, model: Any, *, eos_ids: Sequence[int], context_length: int | None, batch_size: int = 64) -> None:
        self._model = model.eval()
        self._device = next(model.parameters()).device
        self._eos_ids = frozenset(eos_ids)
        self._context_length = context_length
        self._batch_size = batch_size
        self._usage = Usage()
        # PEFT wraps the forward in (*args, **kwargs): the model inside knows what it accepts.
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        accepted = inspect.signature(inner.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_keep = "logits_to_keep" in accepted
        # State-space models call their cache otherwise; the oldest models have none and read everything again.
        names = ("past_key_values", "cache_params")
        self._cache_name = next((name for name in names if name in accepted), None)
        self._may_pad = self._cache_name == names[0] and _attends_plainly(inner)

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

    @torch.inference_mode()
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
        if decoding.temperature > 0 and seeds is None:
            raise ValueError("sampling needs one seed per prompt")
        wanted = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        rows = [
            _Row(
                index=index,
                prompt=list(prompt),
                limit=token_limit(wanted[index], len(prompt), self._context_length),
                seed=seeds[index] if seeds else 0,
            )
            for index, prompt in enumerate(prompts)
        ]
        done: list[Generation | None] = [None] * len(rows)
        open_ = []
        for row in rows:
            if row.limit == 0:
                done[row.index] = row.generation("length", statistics)
            else:
                open_.append(row)
        if progress and len(open_) < len(rows):
            progress(len(rows) - len(open_))
        # Neighbours in length share a batch, so that little is padded; the longest come first and fail first.
        open_.sort(key=lambda row: (-len(row.prompt), row.index))
        for batch in self._batches(open_):
            for row, reason in self._decode(batch, decoding, statistics, progress):
                done[row.index] = row.generation(reason, statistics)
        return [generation for generation in done if generation is not None]

    @torch.inference_mode()
    def score(self, prompt: Sequence[int], response: Sequence[int], *, alternatives: int) -> Scores:
        """Score every token of the response; see `Engine.score`."""
        scores = Scores([], [], [], [])
        length = len(response)
        ids = torch.tensor([[*prompt, *response]], device=self._device)
        # The logits at the last prompt token predict response token 0; those at the last response token are not needed.
        keep: dict[str, Any] = {"logits_to_keep": length + 1} if self._takes_keep else {}
        if self._cache_name:
            keep["use_cache"] = False
        logits = self._model(input_ids=ids, **keep).logits[0, -(length + 1) : -1]
        self._usage.tokens_computed += ids.numel()
        self._usage.model_calls += 1
        for start in range(0, length, _SCORE_CHUNK):
            chunk = _at_least_float32(logits[start : start + _SCORE_CHUNK])
            tokens = ids[0, len(prompt) + start : len(prompt) + start + len(chunk)]
            logprobs = torch.log_softmax(chunk, dim=-1)
            others = _most_probable_others(chunk, tokens, alternatives)
            scores.logprobs.extend(logprobs.gather(1, tokens[:, None])[:, 0].tolist())
            scores.entropies.extend(_entropies(logprobs).tolist())
            scores.alternatives.extend(others.tolist())
            scores.alternative_logprobs.extend(logprobs.gather(1, others).tolist())
        return scores

    def rollouts(
        self,
        contexts: Sequence[Context],
        forks: Sequence[Fork],
        *,
        max_tokens: int,
        decoding: Decoding,
        progress: Progress | None = None,
    ) -> list[Generation]:
        """Decode counterfactuals; see `Engine.rollouts`."""
        return rollouts_by_generation(
            self, contexts, forks, max_tokens=max_tokens, decoding=decoding, progress=progress
        )

    def _batches(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Yield batches of neighbours; of prompts of one length each where padding would not be harmless."""
        groups = [rows] if self._may_pad else [list(group) for _, group in groupby(rows, lambda row: len(row.prompt))]
        for group in groups:
            for start in range(0, len(group), self._batch_size):
                yield group[start : start + self._batch_size]

    def _decode(
        self, rows: list[_Row], decoding: Decoding, statistics: bool, progress: Progress | None
    ) -> list[tuple[_Row, str]]:
        """Decode one batch to its end; finished rows leave it."""
        finished: list[tuple[_Row, str]] = []
        width = max(len(row.prompt) for row in rows)
        # Any id does for padding: it is masked and never attended to.
        ids = torch.tensor([[0] * (width - len(row.prompt)) + row.prompt for row in rows], device=self._device)
        mask = torch.tensor(
            [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows], device=self._device
        )
        cache: Any = None
        while True:
            logits, cache = self._forward(ids, mask, cache)
            chosen = self._choose(logits, rows, decoding)
            if statistics:
                logprobs = torch.log_softmax(logits, dim=-1)
                picked = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
                entropies = _entropies(logprobs).tolist()
            staying = []
            for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
                row.ids.append(token)
                if statistics:
                    row.logprobs.append(picked[place])
                    row.entropies.append(entropies[place])
                reason = self._reason(row, decoding)
                if reason is None:
                    staying.append(place)
                else:
                    finished.append((row, reason))
            self._usage.tokens_emitted += len(rows)
            if progress and len(staying) < len(rows):
                progress(len(rows) - len(staying))
            if not staying:
                return finished
            ids = torch.cat([ids, chosen[:, None]], dim=1) if cache is None else chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            if len(staying) < len(rows):
                where = torch.tensor(staying, device=self._device)
                _select_rows(cache, where)
                ids, mask = ids[where], mask[where]
                rows = [rows[place] for place in staying]

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """Return the last position's logits (batch, vocabulary) in at least float32, and the cache."""
        extra: dict[str, Any] = {}
        if self._takes_positions:
            extra["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if self._takes_keep:
            extra["logits_to_keep"] = 1
        if self._cache_name:
            extra |= {"use_cache": True, self._cache_name: cache}
        if self._may_pad:
            # Without padding there is nothing to mask, and recurrent layers take a mask of their input's length only.
            extra["attention_mask"] = mask
        output = self._model(input_ids=ids, **extra)
        self._usage.tokens_computed += ids.numel()
        self._usage.model_calls += 1
        cache = getattr(output, self._cache_name) if self._cache_name else None
        logits = _at_least_float32(output.logits[:, -1])
        if logits.isnan().any():
            # The arg-max would be some token all the same.
            raise ModelError(
                "the model's logits are not numbers, so that no token can be chosen; use another --dtype "
                "(float32 is the safest), and check that its weights are whole"
            )
        return logits, cache

    def _choose(self, logits: torch.Tensor, rows: Sequence[_Row], decoding: Decoding) -> torch.Tensor:
        if decoding.temperature == 0:
            # torch documents that the first of several maxima is returned: ties go to the lower id.
            return logits.argmax(dim=-1)
        probabilities = torch.softmax(logits / decoding.temperature, dim=-1).double()
        if decoding.top_k or decoding.top_p < 1:
            probabilities = _cut_off(probabilities, decoding)
        draws = [uniform(row.seed, len(row.ids)) for row in rows]
        running = probabilities.cumsum(dim=-1)
        threshold = torch.tensor(draws, dtype=running.dtype, device=running.device) * running[:, -1]
        chosen = (running <= threshold[:, None]).sum(dim=-1)
        # Rounding may put the threshold on the total; the last id with any probability is then the draw.
        last = probabilities.shape[1] - 1 - (probabilities.flip(1) > 0).int().argmax(dim=1)
        return torch.minimum(chosen, last)

    def _reason(self, row: _Row, decoding: Decoding) -> str | None:
        if row.ids[-1] in self._eos_ids:
            return "stop"
        if decoding.temperature == 0 and decoding.loop and decoding.loop.caught(row.ids):
            return "loop"
        return "length" if len(row.ids) >= row.limit else None


class _Row:
    """One sequence while it is decoded."""

    def __init__(self, index: int, prompt: list[int], limit: int, seed: int) -> None:
        self.index = index
        self.prompt = prompt
        self.limit = limit
        self.seed = seed
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.entropies: list[float] = []

    def generation(self, reason: str, statistics: bool) -> Generation:
        return (
            Generation(self.ids, reason, self.logprobs, self.entropies) if statistics else Generation(self.ids, reason)
        )


def _attends_plainly(model: Any) -> bool:
    """Return whether all layers are full attention behind the common interface, where padding is exactly masked.

    Elsewhere it is not: recurrent states run through it, and a sliding window that holds nothing else gives NaN.
    """
    config = model.config.get_text_config() if hasattr(model, "config") else None
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) is not None and not getattr(config, "layer_types", None)
    compatible = getattr(model, "is_backend_compatible", lambda: True)()
    return kinds == {"full_attention"} and not windowed and compatible


def _select_rows(cache: Any, where: torch.Tensor) -> None:
    """Keep some rows of a batch's cache; recurrent layers call that reordering."""
    for layer in getattr(cache, "layers", ()):
        if hasattr(layer, "batch_select_indices"):
            layer.batch_select_indices(where)
        else:
            layer.reorder_cache(where)


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


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
