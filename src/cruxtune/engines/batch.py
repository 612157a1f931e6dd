"""A continuous batch of branches: each pass feeds every branch its next token and a draft, and keeps what is right.

The result is token for token what one token a pass would give: a drafted token is kept only if it is the one that is
chosen there (of samples too: their noise belongs to a position), and the first one that is not gives way to the choice.
Branches that end make room for those that wait.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cruxtune.engines import logits as choices
from cruxtune.engines.base import Decoding, Generation, finish_reason
from cruxtune.engines.cache import Feed, Prefix, Slots
from cruxtune.engines.drafts import Acceptance, Draft, Sources, allot
from cruxtune.engines.memory import give_back
from cruxtune.engines.packing import CHUNK
from cruxtune.engines.passes import Passes
from cruxtune.engines.plan import Plan
from cruxtune.errors import ModelError

_LOG = logging.getLogger(__name__)
_FIRST_CAPACITY = 32
"""Tokens that a slot has room for at first; doubled as branches grow."""
_STEP = 16
"""Slots grow by multiples of this where doubling them would cost branches."""
_PREFIX_SHARE = 0.5
"""Share of the memory that contexts may take before no other one is opened."""


class Context:
    """Token ids that branches go on from, with the keys and values that all of them read while anybody needs them.

    Without ids, every branch brings what it goes on from in its `head`, which is better for a branch or two.
    """

    def __init__(self, ids: Sequence[int], *, prefix: Prefix | None = None) -> None:
        self.ids = list(ids)
        self.prefix = prefix
        self.users = 0
        self.sources: Sources | None = None


@dataclass(eq=False)
class Branch:
    """One continuation of the first `seen` tokens of a context.

    `ids` is what it will return; of these, ids[start:] are its own tokens, behind `head`.
    """

    context: Context
    seen: int
    ids: list[int]
    start: int
    limit: int
    key: Any
    forced: int = 0
    """Tokens of `ids` that the model did not choose freely, which the rule for loops leaves out."""
    avoid: list[int] = field(default_factory=list)
    """Tokens that the next ones must not be, one for each; no draft is worth while there."""
    head: list[int] = field(default_factory=list)
    seed: int = 0
    draft: Draft | None = None
    statistics: tuple[list[float], list[float]] | None = None
    reason: str | None = None
    pending: list[int] = field(default_factory=list)
    """Tokens that the next pass must read: chosen, but not in the slot yet."""
    length: int = 0
    """Tokens in the slot."""
    priority: Any = None

    def generation(self) -> Generation:
        """Return the result."""
        assert self.reason is not None
        return Generation(self.ids, self.reason, *(self.statistics or ()))


class Batch:
    """Branches decoded together on one model, as `plan` says; `decoding` and `eos_ids` are the same for all.

    `memory` bounds the bytes of all keys and values: where branches outgrow it, the youngest go back to the queue and
    are read again later.
    """

    def __init__(self, passes: Passes, plan: Plan, decoding: Decoding, eos_ids: frozenset[int], memory: int) -> None:
        self._passes = passes
        self._plan = plan
        self.decoding = decoding
        self._eos_ids = eos_ids
        self._slots = Slots()
        self._active: list[Branch] = []
        self._queue: list[tuple[Any, int, Branch]] = []
        self._entered = 0
        self._acceptance = Acceptance()
        self._memory = memory
        self._contexts: dict[Context, None] = {}
        self._most = plan.branches
        self._longest = _FIRST_CAPACITY
        """Tokens that the longest branch so far may come to have in its slot."""

    @property
    def waiting(self) -> int:
        """Branches that are not finished."""
        return len(self._active) + len(self._queue)

    @property
    def room(self) -> bool:
        """Whether memory is left for another context."""
        return not self.waiting or self._held_by_contexts() <= _PREFIX_SHARE * self._memory

    def hold(self, context: Context) -> None:
        """Count a context's keys and values among what is held."""
        self._contexts[context] = None

    def release(self, context: Context) -> None:
        """Count them no more."""
        self._contexts.pop(context, None)

    def submit(self, branch: Branch, priority: Any) -> None:
        """Queue a branch; a lower priority comes first, and of equals the one that was submitted first."""
        branch.context.users += 1
        self.hold(branch.context)
        branch.priority = priority
        self._longest = max(self._longest, len(branch.head) + branch.limit - branch.start)
        self._enqueue(branch)

    @torch.inference_mode()
    def step(self) -> list[Branch]:
        """Make a pass; return the branches that it finished.

        Raises:
            ModelError: not even one branch fits into memory.
        """
        self._admit()
        if not self._active:
            return []
        counts = self._reads()
        drafts = self._drafts(counts)
        self._make_room([count + len(draft) for count, draft in zip(counts, drafts, strict=True)])
        # Without room the youngest have left.
        del counts[len(self._active) :]
        feeds = self._feeds(counts, drafts)
        ids: list[int] = []
        keep: list[int] = []
        slots: list[int] = []
        ends: list[int] = []
        seeds: list[int] = []
        positions: list[int] = []
        for slot, _ in feeds:
            branch = self._active[slot]
            ids.extend([*branch.pending[: counts[slot]], *drafts[slot]])
            if counts[slot] == len(branch.pending):
                keep.extend(range(len(ids) - len(drafts[slot]) - 1, len(ids)))
                slots.append(slot)
                ends.append(len(keep))
                first = len(branch.ids) - branch.forced
                positions.extend(range(first, first + len(drafts[slot]) + 1))
                seeds.extend([branch.seed] * (len(drafts[slot]) + 1))
        try:
            logits = self._passes.run(self._slots, [feed for _, feed in feeds], ids, keep)
            for slot, end in zip(slots, ends, strict=True):
                if avoid := self._active[slot].avoid:
                    logits[end - 1, avoid[0]] = -torch.inf
            chosen = choices.choose(logits, self.decoding, seeds, positions)
        except torch.OutOfMemoryError as error:
            self._shrink(len(self._active) // 2, error)
            return []
        for branch, count in zip(self._active, counts, strict=True):
            branch.length += count
            branch.pending = branch.pending[count:]
        start, taken = 0, []
        for slot, end in zip(slots, ends, strict=True):
            count = self._take(self._active[slot], drafts[slot], chosen[start:end])
            taken.append((self._active[slot], range(start, start + count)))
            start = end
        _add_statistics(logits, taken)
        return [self._remove(slot) for slot in reversed(range(len(self._active))) if self._active[slot].reason]

    def _take(self, branch: Branch, draft: list[int], chosen: list[int]) -> int:
        """Append what the model chose behind the branch's last token and behind each draft token that was right.

        Return how many tokens that are.
        """
        right = 0
        while right < len(draft) and draft[right] == chosen[right]:
            right += 1
        if branch.draft is not None:
            self._acceptance.record(branch.draft.how, branch.draft.streak, proposed=len(draft), accepted=right)
        taken = 0
        for token in chosen[: right + 1]:
            branch.ids.append(token)
            taken += 1
            if branch.avoid:
                branch.avoid.pop(0)
            branch.reason = finish_reason(branch.ids, branch.limit, self._eos_ids, self.decoding, since=branch.forced)
            if branch.reason:
                break
        usage = self._passes.usage
        usage.tokens_emitted += taken
        usage.tokens_accepted += min(taken, right)
        usage.tokens_drafted += len(draft)
        branch.length += min(taken, right)
        branch.pending = branch.ids[-1:]
        if branch.draft is not None and not branch.reason:
            branch.draft.advance(taken)
        return taken

    def _reads(self) -> list[int]:
        """Return how many of its pending tokens each active branch reads in the next pass.

        Each reads one; what the pass has room for beyond is given to the first that have more, so that long prompts
        are read in pieces beside what the others decode.
        """
        left = max(0, self._plan.width - len(self._active))
        counts = []
        for branch in self._active:
            more = min(len(branch.pending) - 1, left)
            left -= more
            counts.append(1 + more)
        return counts

    def _drafts(self, counts: Sequence[int]) -> list[list[int]]:
        """Return the draft of every active branch, together as long as they are worth their cost."""
        plan = self._plan
        longest = plan.drafts(len(self._active))
        offers = []
        for branch, count in zip(self._active, counts, strict=True):
            reading = bool(branch.avoid) or count < len(branch.pending)
            most = 0 if reading else min(longest, branch.limit - len(branch.ids) - 1)
            offers.append(branch.draft.propose(most) if branch.draft is not None and most > 0 else [])
        chances = [
            self._acceptance.chances(branch.draft, len(offer)) if branch.draft is not None else []
            for branch, offer in zip(self._active, offers, strict=True)
        ]
        read = sum(counts) - len(counts)
        worth = allot(
            chances,
            fixed=plan.fixed + plan.per_branch * len(self._active),
            per_token=plan.per_token,
            most=max(plan.width - read, len(self._active)),
        )
        return [offer[:count] for offer, count in zip(offers, worth, strict=True)]

    def _feeds(self, counts: Sequence[int], drafts: list[list[int]]) -> list[tuple[int, Feed]]:
        """Return (slot, feed) of every active branch, those of one context next to each other."""
        feeds = []
        for slot, (branch, count) in enumerate(zip(self._active, counts, strict=True)):
            feed = Feed(slot, branch.length, count + len(drafts[slot]), branch.context.prefix, branch.seen)
            feeds.append((slot, feed))
        first: dict[int, int] = {}
        for slot, branch in enumerate(self._active):
            first.setdefault(id(branch.context), slot)
        feeds.sort(key=lambda item: (first[id(self._active[item[0]].context)], item[0]))
        return feeds

    def _admit(self) -> None:
        """Let waiting branches in as far as a pass has room to read them, and read the contexts not read yet."""
        entering: list[Branch] = []
        left = self._plan.width - sum(len(branch.pending) for branch in self._active)
        while self._queue and len(self._active) + len(entering) < self._most:
            branch = self._queue[0][2]
            left -= len(branch.head) + len(branch.ids) - branch.start
            if left < 0 and (entering or self._active):
                break
            entering.append(heapq.heappop(self._queue)[2])
        self._prefill([branch.context for branch in entering])
        for branch in entering:
            branch.pending = [*branch.head, *branch.ids[branch.start :]]
            branch.length = 0
            self._active.append(branch)

    def _make_room(self, counts: Sequence[int]) -> None:
        """Give every active branch a slot with room for the tokens it reads next, or send the youngest back."""
        need = max((branch.length + count for branch, count in zip(self._active, counts, strict=True)), default=0)
        capacity = max(self._slots.capacity, _FIRST_CAPACITY)
        if need > capacity:
            doubled = max(need, min(2 * need, self._longest))
            capacity = doubled if self._fitting(doubled) >= len(self._active) else -(-need // _STEP) * _STEP
        fitting = self._fitting(capacity)
        if fitting < len(self._active):
            self._shrink(fitting)
            self._make_room(counts[: len(self._active)])
        elif capacity > self._slots.capacity or self._slots.count < len(self._active):
            # For those that wait, too; and where branches come and come, for twice as many as before.
            short = self._slots.count < len(self._active)
            count = min(self._most, fitting, max(self.waiting, 2 * self._slots.count if short else 0))
            used = max((branch.length for branch in self._active), default=0)
            self._slots.resize(count, capacity, used=(len(self._active), used))
            give_back(self._passes.device)

    def _fitting(self, capacity: int) -> int:
        """Return how many slots of a capacity the memory holds beside the contexts."""
        left = max(0, self._memory - self._held_by_contexts())
        # While slots are made longer, the keys or the values of one layer are there twice.
        parts = 2 * self._passes.layers
        return left * parts // ((parts + 1) * capacity * self._passes.bytes_per_token)

    def _held_by_contexts(self) -> int:
        return sum(context.prefix.nbytes() for context in self._contexts if context.prefix is not None)

    def _shrink(self, most: int, error: Exception | None = None) -> None:
        """Send the youngest branches back until `most` are left, and let no more in from now on."""
        if most < 1:
            raise ModelError(
                "what memory is left does not hold the keys and values of a single branch; give more with "
                "--memory-limit, or take a smaller model, --dtype bfloat16 or fewer --max-new-tokens"
            ) from error
        _LOG.info("memory holds %d of %d branches at a time; the batch shrinks", most, len(self._active))
        self._most = most
        while len(self._active) > most:
            branch = self._active.pop()
            branch.length = 0
            self._enqueue(branch)
        give_back(self._passes.device)

    def _prefill(self, contexts: list[Context]) -> None:
        unread = list(dict.fromkeys(context for context in contexts if context.prefix is None and context.ids))
        while unread:
            part, tokens = [unread[0]], len(unread[0].ids)
            for context in unread[1:]:
                tokens += len(context.ids)
                if tokens > self._plan.width:
                    break
                part.append(context)
            prefixes, _ = self._passes.prefill([context.ids for context in part])
            for context, prefix in zip(part, prefixes, strict=True):
                context.prefix = prefix
            unread = unread[len(part) :]

    def _remove(self, slot: int) -> Branch:
        """Take a finished branch out, and close the gap.

        Branches whose own keys are multiplied together pay for the longest of them, so they are kept about in the
        order of their lengths: the longest of the next `CHUNK` moves into the gap, and so on to the last, where new
        ones enter.
        """
        branch = self._active[slot]
        for start in range((slot // CHUNK + 1) * CHUNK, len(self._active), CHUNK):
            longest = max(
                range(start, min(start + CHUNK, len(self._active))), key=lambda other: self._active[other].length
            )
            self._move(longest, slot)
            slot = longest
        if slot < len(self._active) - 1:
            self._move(len(self._active) - 1, slot)
        self._active.pop()
        branch.context.users -= 1
        if not branch.context.users and branch.context.sources is None:
            self.release(branch.context)
            branch.context.prefix = None
        return branch

    def _move(self, source: int, target: int) -> None:
        branch = self._active[source]
        self._slots.move(source, target, branch.length)
        self._active[target] = branch

    def _enqueue(self, branch: Branch) -> None:
        heapq.heappush(self._queue, (branch.priority, self._entered, branch))
        self._entered += 1


def _add_statistics(logits: torch.Tensor, taken: Sequence[tuple[Branch, range]]) -> None:
    """Add what logits say of the tokens that branches took from these rows, for those that want it."""
    wanted = [(branch, rows) for branch, rows in taken if branch.statistics is not None]
    if not wanted:
        return
    tokens = [token for branch, rows in wanted for token in branch.ids[len(branch.ids) - len(rows) :]]
    picked, entropies = choices.statistics(logits, [row for _, rows in wanted for row in rows], tokens)
    start = 0
    for branch, rows in wanted:
        assert branch.statistics is not None
        branch.statistics[0].extend(picked[start : start + len(rows)])
        branch.statistics[1].extend(entropies[start : start + len(rows)])
        start += len(rows)
