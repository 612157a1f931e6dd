"""One forward pass of packed tokens: many branches, one shared prefix each context, nothing copied per branch.

The tokens of all branches lie in one row with explicit positions; only attention knows which belong together. A branch
attends to two parts: the keys of its context up to where it left it (`Prefix`, one matrix product for all tokens of a
context), and what it said itself (`Slots`, one row a branch). The two results are merged by log-sum-exp, which is what
one softmax over both would have given.

transformers calls `packed_attention` in place of its own attention, for every layer of every architecture on its
attention interface. The plan of the pass (`Pack`) travels as a keyword argument through the model's forward; without
one the function is transformers' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cruxtune.engines.cache import Feed, Prefix, Slots
from cruxtune.engines.logits import at_least_float32

IMPLEMENTATION = "cruxtune"
"""The name under which transformers knows the attention function."""

_HIDDEN = -1e30
"""Score of a key that may not be seen: finite, so that a row which sees nothing has a log-sum-exp, not NaN."""
_HARMLESS = {"position_ids", "use_cache", "output_attentions", "is_causal", "output_hidden_states", "return_dict"}
CHUNK = 32
"""Most branches whose own keys are multiplied together: the longest of them decides how many columns."""
_AREA = 512
"""Most rows of such a product, padding included: one branch that reads a lot at once is not a burden to all."""
_KEY, _PRODUCT = 8, 9000
"""What reading one key and value costs, and a product by itself, in units of a score: measured on two CPU cores."""
_PREFILL_CHUNK = 256
"""Queries of a prefill attended together where the scores have to be made by hand."""


_MaskKey = tuple[int | None, int]
"""Window, and query heads of a key head."""


class AttentionPlan(Protocol):
    """What a pass does in place of attention, layer by layer, and how often it was asked to."""

    calls: int
    positions: torch.Tensor
    windows: Sequence[int | None]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Return what every token attends to, (tokens, heads, value width), from (heads, tokens, width) each."""
        ...


class Unservable(Exception):
    """The model does something in attention that a packed pass does not know, so that it would be wrong."""


@dataclass
class _Shared:
    """The tokens of one context: a slice of the pack, and what each sees of the prefix."""

    prefix: Prefix
    tokens: slice
    seen: torch.Tensor
    first: int
    last: int
    masks: dict[_MaskKey, torch.Tensor | None] = field(default_factory=dict)


@dataclass
class _Own:
    """Neighbouring slots: which tokens of the pack are theirs, and where these stand in a (slots × width) rectangle."""

    slots: slice
    width: int
    span: int
    tokens: torch.Tensor
    rows: torch.Tensor
    lengths: torch.Tensor
    masks: dict[_MaskKey, torch.Tensor] = field(default_factory=dict)


class Pack:
    """The plan of a pass over branches. Feeds of one prefix must be neighbours; tokens come in the order of the feeds.

    `windows` are the layers' sliding windows, `positions` the tokens' absolute positions.
    """

    def __init__(self, slots: Slots, feeds: Sequence[Feed], windows: Sequence[int | None], device: Any) -> None:
        self.calls = 0
        self.windows = windows
        self._slots = slots
        starts = [feed.seen + feed.length for feed in feeds]
        counts = torch.tensor([feed.count for feed in feeds])
        offsets = torch.cat([torch.arange(feed.count) for feed in feeds])
        self._slot_of = torch.tensor([feed.slot for feed in feeds]).repeat_interleave(counts).to(device)
        self._place_of = (torch.tensor([feed.length for feed in feeds]).repeat_interleave(counts) + offsets).to(device)
        self.positions = (torch.tensor(starts).repeat_interleave(counts) + offsets).to(device)
        self._shared = self._plan_shared(feeds)
        self._own = self._plan_own(feeds, device)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Store the new keys and values, and return what every token attends to: (tokens, heads, value width)."""
        keys, values = self._slots.write(layer, self._slot_of, self._place_of, key, value)
        query = at_least_float32(query) * scaling
        heads, groups = query.shape[0], query.shape[0] // key.shape[0]
        result = query.new_empty(query.shape[1], heads, value.shape[2])
        norms = query.new_empty(query.shape[1], heads)
        by_token = query.transpose(0, 1)
        for own in self._own:
            count = own.slots.stop - own.slots.start
            padded = by_token.new_zeros(count * own.width, heads, query.shape[2])
            padded[own.rows] = by_token[own.tokens]
            padded = padded.view(count, own.width, -1, groups, query.shape[2]).permute(0, 2, 3, 1, 4)
            out, norm = _attention(
                padded.reshape(count, -1, groups * own.width, query.shape[2]),
                keys[own.slots, :, : own.span],
                values[own.slots, :, : own.span],
                softcap,
                self._own_mask(own, window, groups, query),
            )
            out = out.reshape(count, -1, groups, own.width, value.shape[2]).permute(0, 3, 1, 2, 4)
            norm = norm.reshape(count, -1, groups, own.width).permute(0, 3, 1, 2)
            result[own.tokens] = out.reshape(count * own.width, heads, -1)[own.rows]
            norms[own.tokens] = norm.reshape(count * own.width, heads)[own.rows]
        for shared in self._shared:
            self._merge(shared, layer, query, result, norms, softcap, window)
        return result

    def _merge(
        self,
        shared: _Shared,
        layer: int,
        query: torch.Tensor,
        result: torch.Tensor,
        norms: torch.Tensor,
        softcap: float | None,
        window: int | None,
    ) -> None:
        """Merge what the tokens of a context see of its prefix into their results."""
        keys = shared.prefix.keys[layer][:, : shared.last]
        values = shared.prefix.values[layer][:, : shared.last]
        count = shared.tokens.stop - shared.tokens.start
        groups = query.shape[0] // len(keys)
        out, norm = _attention(
            query[:, shared.tokens].reshape(1, len(keys), groups * count, query.shape[2]),
            keys[None],
            values[None],
            softcap,
            self._shared_mask(shared, window, groups, query),
        )
        out = out.reshape(query.shape[0], count, -1).transpose(0, 1)
        own = norms[shared.tokens]
        share = torch.sigmoid(norm.reshape(query.shape[0], count).t() - own)
        result[shared.tokens].lerp_(out, share[:, :, None])

    def _shared_mask(self, shared: _Shared, window: int | None, groups: int, like: torch.Tensor) -> torch.Tensor | None:
        """Return (1, 1, groups · tokens, columns) to add to the scores, None where every token sees every column."""
        if (window, groups) not in shared.masks:
            places = torch.arange(shared.last, device=like.device)
            hidden = places >= shared.seen[:, None]
            if window:
                hidden |= places <= self.positions[shared.tokens, None] - window
            shared.masks[window, groups] = _to_add(hidden.repeat(groups, 1)[None, None], like) if hidden.any() else None
        return shared.masks[window, groups]

    def _own_mask(self, own: _Own, window: int | None, groups: int, like: torch.Tensor) -> torch.Tensor:
        """Return (slots, 1, groups · width, span): a token sees what its branch said up to itself."""
        if (window, groups) not in own.masks:
            places = torch.arange(own.span, device=like.device)
            ends = own.lengths[:, None, None] + torch.arange(own.width, device=like.device)[:, None]
            hidden = places > ends
            if window:
                hidden |= places <= ends - window
            own.masks[window, groups] = _to_add(hidden.repeat(1, groups, 1)[:, None], like)
        return own.masks[window, groups]

    def _plan_shared(self, feeds: Sequence[Feed]) -> list[_Shared]:
        plans: list[_Shared] = []
        start = 0
        place = 0
        while place < len(feeds):
            prefix, end, stop = feeds[place].prefix, place, start
            seen: list[int] = []
            while end < len(feeds) and feeds[end].prefix is prefix:
                seen.extend([feeds[end].seen] * feeds[end].count)
                stop += feeds[end].count
                end += 1
            if prefix is not None and max(seen):
                tensor = torch.tensor(seen, device=self.positions.device)
                plans.append(_Shared(prefix, slice(start, stop), tensor, min(seen), max(seen)))
            start, place = stop, end
        return plans

    def _plan_own(self, feeds: Sequence[Feed], device: Any) -> list[_Own]:
        firsts = [0]
        for feed in feeds:
            firsts.append(firsts[-1] + feed.count)
        plans = []
        for part in _rectangles(sorted(range(len(feeds)), key=lambda place: feeds[place].slot), feeds):
            low, high = feeds[part[0]].slot, feeds[part[-1]].slot + 1
            width = max(feeds[place].count for place in part)
            lengths = torch.zeros(high - low, dtype=torch.long)
            lengths[[feeds[place].slot - low for place in part]] = torch.tensor([feeds[place].length for place in part])
            tokens = [firsts[place] + ahead for place in part for ahead in range(feeds[place].count)]
            rows = [(feeds[place].slot - low) * width + ahead for place in part for ahead in range(feeds[place].count)]
            plans.append(
                _Own(
                    slots=slice(low, high),
                    width=width,
                    span=max(feeds[place].length + feeds[place].count for place in part),
                    tokens=torch.tensor(tokens, device=device),
                    rows=torch.tensor(rows, device=device),
                    lengths=lengths.to(device),
                )
            )
        return plans


class Prefill:
    """The plan of a pass that reads whole contexts, one behind the other, and keeps their keys and values."""

    def __init__(self, lengths: Sequence[int], windows: Sequence[int | None], device: Any) -> None:
        self.calls = 0
        self.windows = windows
        self.prefixes = [Prefix(length) for length in lengths]
        self.positions = torch.cat([torch.arange(length) for length in lengths]).to(device)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Keep the keys and values, and return what every token attends to: (tokens, heads, value width)."""
        parts = []
        start = 0
        for prefix in self.prefixes:
            part = slice(start, start + prefix.length)
            prefix.keys[layer], prefix.values[layer] = key[:, part].clone(), value[:, part].clone()
            start = part.stop
            if softcap is None and not (window and window < prefix.length):
                out = scaled_dot_product_attention(
                    query[None, :, part],
                    key[None, :, part],
                    value[None, :, part],
                    is_causal=True,
                    scale=scaling,
                    enable_gqa=len(query) != len(key),
                )[0]
            else:
                out = self._by_hand(query[:, part], key[:, part], value[:, part], scaling, softcap, window)
            parts.append(out.transpose(0, 1))
        return torch.cat(parts)

    def _by_hand(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        places = torch.arange(key.shape[1], device=key.device)
        parts = []
        for start in range(0, query.shape[1], _PREFILL_CHUNK):
            chunk = at_least_float32(query[:, start : start + _PREFILL_CHUNK]) * scaling
            ends = places[start : start + _PREFILL_CHUNK, None]
            hidden = (places > ends) | (places <= ends - window if window else False)
            groups = len(query) // len(key)
            out, _ = _attention(
                chunk.reshape(1, len(key), -1, key.shape[2]),
                key[None],
                value[None],
                softcap,
                _to_add(hidden.repeat(groups, 1)[None, None], chunk),
            )
            parts.append(out.view(len(query), -1, value.shape[2]))
        return torch.cat(parts, dim=1).to(query.dtype)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    branch_pass: AttentionPlan | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as the pass says; the signature is that of transformers' attention interface.

    Raises:
        Unservable: an argument that changes attention in a way we do not know.
    """
    if branch_pass is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            **rest,
        )
    unknown = [name for name, given in rest.items() if not (given is None or given is False) and name not in _HARMLESS]
    if unknown or dropout:
        raise Unservable(f"attention takes {', '.join(sorted(unknown)) or 'dropout'}")
    branch_pass.calls += 1
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise Unservable("attention layers have no index")
    expected = branch_pass.windows[layer]
    if sliding_window != expected:
        raise Unservable(f"layer {layer} has a window of {sliding_window}, its config says {expected}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = branch_pass.attend(layer, query[0], key[0], value[0], scaling, softcap, sliding_window)
    return out[None].to(query.dtype), None


def _rectangles(order: Sequence[int], feeds: Sequence[Feed]) -> list[list[int]]:
    """Return neighbouring feeds (their places, in the order of their slots) whose own keys are multiplied together.

    All in a product pay for its longest branch and its longest feed, and every product costs something by itself; the
    cheapest way to cut is found from the front, the last cut of each beginning at a time.
    """
    costs, cuts = [0], [0]
    for stop in range(1, len(order) + 1):
        width = span = 0
        least, cut = 0, -1
        for start in range(stop - 1, max(-1, stop - 1 - CHUNK), -1):
            feed = feeds[order[start]]
            width, span = max(width, feed.count), max(span, feed.length + feed.count)
            rows = stop - start
            if rows > 1 and rows * width > _AREA:
                break
            cost = costs[start] + _PRODUCT + rows * span * (_KEY + width)
            if cut < 0 or cost < least:
                least, cut = cost, start
        costs.append(least)
        cuts.append(cut)
    parts: list[list[int]] = []
    stop = len(order)
    while stop:
        parts.append(list(order[cuts[stop] : stop]))
        stop = cuts[stop]
    return parts[::-1]


def windows_of(config: Any) -> list[int | None]:
    """Return the sliding window of every layer, None for full attention.

    Raises:
        Unservable: layers of another kind.
    """
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * config.num_hidden_layers
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise Unservable(f"layers of kind {', '.join(sorted(unknown))}")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _to_add(hidden: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return like.new_zeros(hidden.shape).masked_fill_(hidden, _HIDDEN)


def _attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    softcap: float | None,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (batch, key heads, rows, value width) and the log-sum-exp of the scores, (batch, key heads, rows).

    `query` (batch, key heads, rows, width) is scaled already, and its precision is the one that everything is computed
    in. `mask` is added to the scores; it is the same for all heads.
    """
    scores = torch.matmul(query, keys.to(query.dtype).transpose(2, 3))
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores.add_(mask)
    top = scores.amax(dim=-1)
    # The largest share is exp(0) ÷ sum, which spares an exponential by hand: on CPU those crawl over denormal numbers.
    shares = torch.softmax(scores, dim=-1)
    return torch.matmul(shares, values.to(query.dtype)), top - shares.amax(dim=-1).log_()


AttentionInterface.register(IMPLEMENTATION, packed_attention)
# Passes without a plan need the mask that goes with transformers' own function: an unregistered name gets none at all.
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
