"""A continuous batch of branches: each pass feeds every branch its next token and a draft, and keeps what is right.

Under greedy decoding the result is token for token what one token a pass would give: a drafted token is kept only if
it is the one that the model chooses there, and the first one that is not gives way to the model's choice. Branches
that end make room for those that wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cruxtune.engines import logits as choices
from cruxtune.engines.base import Decoding, Generation, Usage
from cruxtune.engines.drafts import Acceptance, Draft, Sources, allot
from cruxtune.engines.packing import Feed, Prefix, Slots
from cruxtune.engines.passes import Passes
from cruxtune.engines.plan import Plan

_FIRST_CAPACITY = 32
"""Tokens that a slot has room for at first; doubled as branches grow."""


class Context:
    """Token ids that branches go on from, with their keys and values while anybody needs them."""

    def __init__(self, ids: Sequence[int], *, shared: bool, prefix: Prefix | None = None) -> None:
        self.ids = list(ids)
        self.shared = shared
        """Whether branches read one copy, or each begins with a copy of its own (better for a branch or two)."""
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
    """Tokens of `ids` that the model did not choose, which the rule for loops leaves out."""
    head: list[int] = field(default_factory=list)
    seed: int = 0
    draft: Draft | None = None
    statistics: tuple[list[float], list[float]] | None = None
    reason: str = ""
    pending: list[int] = field(default_factory=list)
    """Tokens that the next pass must read: chosen, but not in the slot yet."""
    length: int = 0
    """Tokens in the slot."""

    def generation(self) -> Generation:
        """Return the result."""
        return Generation(self.ids, self.reason, *(self.statistics or ()))


class Batch:
    """Branches decoded together on one model, as `plan` says; `decoding` and `eos_ids` are the same for all."""

    def __init__(self, passes: Passes, plan: Plan, decoding: Decoding, eos_ids: frozenset[int]) -> None:
        self._passes = passes
        self._plan = plan
        self._decoding = decoding
        self._eos_ids = eos_ids
        self._slots = Slots()
        self._active: list[Branch] = []
        self._queue: list[tuple[Any, int, Branch]] = []
        self._entered = 0
        self._acceptance = Acceptance()

    @property
    def waiting(self) -> int:
        """Branches that are not finished."""
        return len(self._active) + len(self._queue)

    @property
    def room(self) -> bool:
        """Whether the next pass could take more branches than there are."""
        return self.waiting < self._plan.branches

    def submit(self, branch: Branch, priority: Any) -> None:
        """Queue a branch; a lower priority comes first, and of equals the one that was submitted first."""
        branch.context.users += 1
        self._enqueue(branch, priority)

    @torch.inference_mode()
    def step(self) -> list[Branch]:
        """Make one pass; return the branches that it finished."""
        self._admit()
        if not self._active:
            return []
        drafts = self._drafts()
        feeds = self._feeds(drafts)
        ids: list[int] = []
        keep: list[int] = []
        ends: list[int] = []
        for slot, _ in feeds:
            branch = self._active[slot]
            ids.extend([*branch.pending, *drafts[slot]])
            keep.extend(range(len(ids) - len(drafts[slot]) - 1, len(ids)))
            ends.append(len(keep))
        logits = self._passes.run(self._slots, [feed for _, feed in feeds], ids, keep)
        chosen = self._choose(logits, feeds)
        finished: list[Branch] = []
        start = 0
        for (slot, _), end in zip(feeds, ends, strict=True):
            self._take(self._active[slot], drafts[slot], chosen[start:end], logits, start)
            start = end
        for slot in reversed(range(len(self._active))):
            if self._active[slot].reason:
                finished.append(self._remove(slot))
        return finished

    def _choose(self, logits: Any, feeds: list[tuple[int, Feed]]) -> list[int]:
        if self._decoding.temperature == 0:
            return choices.greedy(logits)
        branches = [self._active[slot] for slot, _ in feeds]
        return choices.choose(
            logits, self._decoding, [branch.seed for branch in branches], [len(branch.ids) for branch in branches]
        )

    def _take(self, branch: Branch, draft: list[int], chosen: list[int], logits: Any, row: int) -> None:
        """Append what the model chose behind the branch's last token and behind each draft token that was right."""
        right = 0
        while right < len(draft) and draft[right] == chosen[right]:
            right += 1
        if branch.draft is not None:
            self._acceptance.record(branch.draft.how, branch.draft.streak, proposed=len(draft), accepted=right)
        taken = 0
        loop = self._decoding.loop if self._decoding.temperature == 0 else None
        for token in chosen[: right + 1]:
            branch.ids.append(token)
            taken += 1
            if token in self._eos_ids:
                branch.reason = "stop"
            elif loop and loop.caught(branch.ids, branch.forced):
                branch.reason = "loop"
            elif len(branch.ids) >= branch.limit:
                branch.reason = "length"
            if branch.reason:
                break
        usage = self._passes.usage
        usage.tokens_emitted += taken
        usage.tokens_accepted += min(taken, right)
        usage.tokens_drafted += len(draft)
        branch.length += len(branch.pending) + min(taken, right)
        branch.pending = branch.ids[-1:]
        if branch.statistics is not None:
            picked, entropies = choices.statistics(logits[row : row + taken], branch.ids[-taken:])
            branch.statistics[0].extend(picked)
            branch.statistics[1].extend(entropies)
        if branch.draft is not None and not branch.reason:
            branch.draft.advance(taken)

    def _drafts(self) -> list[list[int]]:
        """Return the draft of every active branch, together as long as they are worth their cost."""
        plan = self._plan
        offers = []
        for branch in self._active:
            most = min(plan.draft_length, branch.limit - len(branch.ids) - 1)
            offers.append(branch.draft.propose(most) if branch.draft is not None and most > 0 else [])
        chances = [
            self._acceptance.chances(branch.draft, len(offer)) if branch.draft is not None else []
            for branch, offer in zip(self._active, offers, strict=True)
        ]
        counts = allot(
            chances,
            fixed=plan.fixed + plan.per_branch * len(self._active),
            per_token=plan.per_token,
            most=max(plan.width, len(self._active)),
        )
        return [offer[:count] for offer, count in zip(offers, counts, strict=True)]

    def _feeds(self, drafts: list[list[int]]) -> list[tuple[int, Feed]]:
        """Return (slot, feed) of every active branch, those of one context next to each other."""
        feeds = []
        for slot, branch in enumerate(self._active):
            count = len(branch.pending) + len(drafts[slot])
            shared = branch.context.shared
            prefix = branch.context.prefix if shared else None
            feeds.append((slot, Feed(slot, branch.length, count, prefix, branch.seen if shared else 0)))
        need = max(feed.length + feed.count for _, feed in feeds)
        if need > self._slots.capacity:
            self._slots.resize(self._slots.count, max(need, 2 * self._slots.capacity))
        first = {}
        for slot, branch in enumerate(self._active):
            first.setdefault(id(branch.context), slot)
        feeds.sort(key=lambda item: (first[id(self._active[item[0]].context)], item[0]))
        return feeds

    def _admit(self) -> None:
        """Let waiting branches in, and read the contexts that are not read yet."""
        entering: list[Branch] = []
        while self._queue and len(self._active) + len(entering) < self._plan.branches:
            entering.append(heapq.heappop(self._queue)[2])
        self._prefill([branch.context for branch in entering])
        if len(self._active) + len(entering) > self._slots.count:
            self._slots.resize(self._plan.branches, max(self._slots.capacity, _FIRST_CAPACITY))
        for branch in entering:
            branch.pending = [*branch.head, *branch.ids[branch.start :]]
            branch.length = 0
            if not branch.context.shared and branch.context.prefix is not None:
                prefix = branch.context.prefix
                if prefix.length > self._slots.capacity:
                    self._slots.resize(self._slots.count, max(prefix.length + 1, 2 * self._slots.capacity))
                self._slots.fill(len(self._active), prefix)
                branch.length = prefix.length
            self._active.append(branch)
        for branch in entering:
            if not branch.context.shared:
                branch.context.prefix = None

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
        """Take a finished branch out; the last one moves into its slot, so that slots have no holes."""
        branch = self._active[slot]
        last = self._active.pop()
        if last is not branch:
            self._slots.move(len(self._active), slot, last.length)
            self._active[slot] = last
        branch.context.users -= 1
        return branch

    def _enqueue(self, branch: Branch, priority: Any) -> None:
        heapq.heappush(self._queue, (priority, self._entered, branch))
        self._entered += 1
