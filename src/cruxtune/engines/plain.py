"""The embedded engine: any `AutoModelForCausalLM`, decoded plainly in left-padded batches.

This is the reference for everything faster: one forward pass per token, the cache that the model itself chooses, and
no processing of the logits besides what `Decoding` says. `generate` of transformers is not used because it applies the
model's generation_config (repetition penalties, top-k 50) and keeps finished rows in the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

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
from cruxtune.engines.logits import choose, scores
from cruxtune.engines.logits import statistics as measure


class PlainEngine:
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
        self._may_pad = self._cache_name == names[0] and attends_plainly(inner)

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

    # In inference mode autocast would keep none of its casts, and a trainer's model is asked under autocast.
    @torch.no_grad()
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
        limits = token_limits(prompts, max_new_tokens, self._context_length)
        rows = [
            _Row(
                index=index,
                prompt=list(prompt),
                limit=limits[index],
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

    @torch.no_grad()
    def score(self, prompt: Sequence[int], response: Sequence[int], *, alternatives: int) -> Scores:
        """Score every token of the response; see `Engine.score`."""
        length = len(response)
        ids = torch.tensor([[*prompt, *response]], device=self._device)
        # The logits at the last prompt token predict response token 0; those at the last response token are not needed.
        keep: dict[str, Any] = {"logits_to_keep": length + 1} if self._takes_keep else {}
        if self._cache_name:
            keep["use_cache"] = False
        logits = self._model(input_ids=ids, **keep).logits[0, -(length + 1) : -1]
        self._usage.tokens_computed += ids.numel()
        self._usage.model_calls += 1
        return scores(logits, response, alternatives)

    def branches(self, *, max_tokens: int, decoding: Decoding) -> PlainBranches:
        """Return a place where counterfactuals are decoded, one batch of prompts after another."""
        return PlainBranches(self, batch_size=self._batch_size, max_tokens=max_tokens, decoding=decoding)

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
            chosen = choose(logits, decoding, [row.seed for row in rows], [len(row.ids) for row in rows])
            if statistics:
                picked, entropies = measure(logits, range(len(chosen)), chosen)
            staying = []
            for place, (row, token) in enumerate(zip(rows, chosen, strict=True)):
                row.ids.append(token)
                if statistics:
                    row.logprobs.append(picked[place])
                    row.entropies.append(entropies[place])
                reason = finish_reason(row.ids, row.limit, self._eos_ids, decoding)
                if reason is None:
                    staying.append(place)
                else:
                    finished.append((row, reason))
            self._usage.tokens_emitted += len(rows)
            if progress and len(staying) < len(rows):
                progress(len(rows) - len(staying))
            if not staying:
                return finished
            fed = torch.tensor(chosen, device=self._device)[:, None]
            ids = torch.cat([ids, fed], dim=1) if cache is None else fed
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            if len(staying) < len(rows):
                where = torch.tensor(staying, device=self._device)
                _select_rows(cache, where)
                ids, mask = ids[where], mask[where]
                rows = [rows[place] for place in staying]

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """Return the last position's logits (batch, vocabulary), and the cache."""
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
        return output.logits[:, -1], cache


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


def longest_exact(config: Any) -> int | None:
    """Return the longest sequence that can share a pass with others, None without such a bound.

    RoPE of type dynamic or longrope depends on the largest position in the pass, which may be another sequence's; up to
    the original length it is constant.
    """
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    bounds = []
    for entry in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        kind = entry.get("rope_type", "default")
        if "dynamic" in kind or kind == "longrope":
            bounds.append(entry.get("original_max_position_embeddings") or text.max_position_embeddings)
    return min(bounds, default=None)


def attends_plainly(model: Any) -> bool:
    """Return whether all layers are full attention behind the common interface, where padding is exactly masked.

    Positions must not depend on the other rows either. Elsewhere padding is not harmless: recurrent states run through
    it, and a sliding window that holds nothing else gives NaN.
    """
    config = model.config.get_text_config() if hasattr(model, "config") else None
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) is not None and not getattr(config, "layer_types", None)
    compatible = getattr(model, "is_backend_compatible", lambda: True)()
    shared = config is None or longest_exact(config) is None
    return kinds == {"full_attention"} and not windowed and compatible and shared


def _select_rows(cache: Any, where: torch.Tensor) -> None:
    """Keep some rows of a batch's cache; recurrent layers call that reordering."""
    for layer in getattr(cache, "layers", ()):
        if hasattr(layer, "batch_select_indices"):
            layer.batch_select_indices(where)
        else:
            layer.reorder_cache(where)
