"""A model that takes packed passes: what it can serve exactly, the proof at load, and the two kinds of pass."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from cruxtune.engines.base import Usage
from cruxtune.engines.cache import Feed, Prefix, Slots, storage_dtype
from cruxtune.engines.packing import IMPLEMENTATION, AttentionPlan, Pack, Prefill, Unservable, windows_of
from cruxtune.engines.plain import longest_exact

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-2}
_LOW_PRECISION_TOLERANCE = 0.25
"""Largest difference of logits that the probe accepts, in standard deviations of the logits."""
_ROUNDINGS = 4.0
"""That many times what plain passes differ by among themselves is accepted, too: some processors round bfloat16
otherwise for other shapes. With AMX that is 0.14 for a model of 135M parameters, and 0.29 between packed and plain; a
branch that sees a token too many or too few differs by 1.5 and more."""
_MOST = 1.0
"""But never more than that."""
_COPIES = (2, 8)
"""Rows of the batches in which plain passes are repeated."""


class Passes:
    """Forward passes of a model over packed tokens.

    Making one compares packed logits with those of plain passes. The model itself stays as it was.

    Raises:
        Unservable: packed passes would not be exact.
    """

    def __init__(self, model: Any, usage: Usage) -> None:
        self._model = model
        self._inner = inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        # What the probe puts through the model is no work done.
        self.usage = Usage()
        self.bytes_per_token = 1
        """Memory of one token's keys and values in a slot."""
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        try:
            _gate(inner)
            self.windows = windows_of(inner.config)
            self.longest = longest_exact(inner.config)
            self.layers = inner.config.get_text_config().num_hidden_layers
            self.vocabulary = inner.get_output_embeddings().weight.shape[0]
            ids = _probe_ids(self.vocabulary)
            plain = self._plain_logits(ids)
            tolerance = _TOLERANCE.get(self.dtype) or self._low_precision_tolerance(ids, plain)
            self._choose_attention()
            self._probe(ids, plain, tolerance)
        except Unservable:
            raise
        except Exception as error:
            # Whatever a model's own code trips over, the plain path still serves it.
            raise Unservable(f"a packed pass fails in it ({type(error).__name__}: {error})") from error
        self.usage = usage

    def prefill(self, contexts: Sequence[Sequence[int]], *, keep: Sequence[int] = ()) -> tuple[list[Prefix], Any]:
        """Read contexts; return their keys and values, and the logits at the tokens `keep` of the row (rows, vocab)."""
        plan = Prefill([len(context) for context in contexts], self.windows, self.device)
        # A model that computes no logits at all is not among the choices; one row is the least.
        logits = self._forward([token for context in contexts for token in context], plan, keep or [0])
        return plan.prefixes, logits if keep else None

    def run(self, slots: Slots, feeds: Sequence[Feed], ids: Sequence[int], keep: Sequence[int]) -> torch.Tensor:
        """Put the branches' tokens through the model; return the logits at the tokens `keep` (rows, vocabulary)."""
        return self._forward(ids, Pack(slots, feeds, self.windows, self.device), keep or [0])[: len(keep)]

    def read(self, ids: Sequence[int], plan: AttentionPlan) -> None:
        """Put tokens through the model for what the plan makes of its attention alone."""
        self._forward(ids, plan, [0])

    def workspace(self, tokens: int, longest: int) -> int:
        """Return about how many bytes a pass takes besides keys and values: logits, activations, attention scores."""
        text = self._inner.config.get_text_config()
        inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        activations = 6 * (inner + text.hidden_size) * self.dtype.itemsize
        logits = self.vocabulary * (self.dtype.itemsize + 8)
        return tokens * (logits + activations + 12 * text.num_attention_heads * longest)

    def _choose_attention(self) -> None:
        """See that the model takes our attention function; leave it with its own."""
        before = self._inner.config._attn_implementation
        self._inner.set_attn_implementation(IMPLEMENTATION)
        chosen = self._inner.config._attn_implementation
        self._inner.set_attn_implementation(before)
        if chosen != IMPLEMENTATION:
            raise Unservable("its attention implementation cannot be chosen")

    @torch.inference_mode()
    def _forward(self, ids: Sequence[int], plan: AttentionPlan, keep: Sequence[int]) -> torch.Tensor:
        # The model has our attention for the time of a pass only: it stays what it was for everybody else, and models
        # whose own attention is not SDPA (soft caps) have no other way to be themselves.
        config = self._inner.config
        before, config._attn_implementation = config._attn_implementation, IMPLEMENTATION
        try:
            output = self._call(ids, plan, keep)
        finally:
            config._attn_implementation = before
        if plan.calls != self.layers:
            raise Unservable(f"attention was called {plan.calls} times in {self.layers} layers")
        self.usage.tokens_computed += len(ids)
        self.usage.model_calls += 1
        return output.logits[0]

    def _call(self, ids: Sequence[int], plan: AttentionPlan, keep: Sequence[int]) -> Any:
        return self._model(
            input_ids=torch.tensor([list(ids)], device=self.device),
            position_ids=plan.positions[None],
            # A mask of four dimensions is passed on as it is, so that none is made; our function reads none.
            attention_mask=torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=self.device),
            use_cache=False,
            logits_to_keep=torch.tensor(keep, device=self.device) if len(keep) < len(ids) else 0,
            branch_pass=plan,
        )

    @torch.inference_mode()
    def _plain_logits(self, ids: list[int], copies: int = 1) -> torch.Tensor:
        """Return what plain passes say behind each of the probe's branches, each in a batch of so many copies."""
        rows = [[*ids[:seen], *own] for seen, own in _probe_branches(ids)]
        return torch.stack(
            [
                self._model(input_ids=torch.tensor([row] * copies, device=self.device), use_cache=False).logits[0, -1]
                for row in rows
            ]
        ).double()

    def _low_precision_tolerance(self, ids: list[int], plain: torch.Tensor) -> float:
        """Return what is accepted where numbers are rounded so much that the shape of a pass is seen in its logits."""
        among = max(_difference(self._plain_logits(ids, copies), plain) for copies in _COPIES)
        return min(max(_LOW_PRECISION_TOLERANCE, _ROUNDINGS * among), _MOST)

    def _probe(self, ids: list[int], plain: torch.Tensor, tolerance: float) -> None:
        """Decode the probe's branches, in two passes each, and compare."""
        branches = _probe_branches(ids)
        (prefix,), _ = self.prefill([ids])
        stored = storage_dtype(self.dtype, self.device).itemsize
        self.bytes_per_token = prefix.nbytes() // len(ids) // self.dtype.itemsize * stored
        slots = Slots()
        slots.resize(len(branches), max(len(own) for _, own in branches))
        feeds = [Feed(slot, 0, len(own) - 1, prefix, seen) for slot, (seen, own) in enumerate(branches)]
        fed = [token for _, own in branches for token in own[:-1]]
        self.run(slots, feeds, fed, keep=range(len(fed)))
        feeds = [Feed(slot, len(own) - 1, 1, prefix, seen) for slot, (seen, own) in enumerate(branches)]
        packed = self.run(slots, feeds, [own[-1] for _, own in branches], keep=range(len(branches)))
        difference = _difference(packed.double(), plain)
        if not difference <= tolerance:
            raise Unservable(
                f"its packed logits differ from plain ones by {difference:.2g} standard deviations, of which "
                f"{tolerance:.2g} are accepted"
            )


def _difference(logits: torch.Tensor, plain: torch.Tensor) -> float:
    """Return the largest difference in standard deviations of the plain logits; not a number where one is none."""
    return float((logits - plain).abs().max() / plain.std())


def _gate(model: Any) -> None:
    """Refuse what is known not to work before anything is tried."""
    config = model.config.get_text_config()
    if not getattr(model, "is_backend_compatible", lambda: False)():
        raise Unservable("its attention bypasses transformers' attention interface")
    accepted = inspect.signature(model.forward).parameters
    missing = {"position_ids", "logits_to_keep", "attention_mask", "use_cache"} - accepted.keys()
    if missing:
        raise Unservable(f"its forward does not take {', '.join(sorted(missing))}")
    if getattr(config, "num_kv_shared_layers", 0):
        raise Unservable("its layers share keys and values")
    if model.config.is_encoder_decoder:
        raise Unservable("it is an encoder-decoder model")


def _probe_ids(vocabulary: int) -> list[int]:
    return [(7 + 13 * place) % vocabulary for place in range(12)]


def _probe_branches(ids: list[int]) -> list[tuple[int, list[int]]]:
    """Return (tokens seen, own tokens): one branch leaves the context early, one late, one has said much."""
    return [(3, ids[5:8]), (10, ids[2:4]), (7, ids[1:6])]
