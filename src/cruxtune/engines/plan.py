"""How many branches and drafts go into a pass: measured on the model and machine at hand, or given."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cruxtune.engines.cache import Feed, Slots
from cruxtune.engines.passes import Passes

_LADDER = (1, 16, 48, 96, 192, 384, 768)
_ENOUGH = 0.95
"""Share of the best rate, drafts included, that a batch must reach: with a smaller one fewer wait for the longest."""
_SECONDS = 12.0
"""The calibration stops climbing after this time; what it has seen has to do."""
_DRAFT_LENGTHS = (0, 2, 4, 8, 16)
_TYPICAL_CHANCE = 0.85
"""Chance of a draft token that a draft length is chosen for; what is used of it depends on each draft's own chance."""
_CONTEXT = 128
_OWN = 32


@dataclass(frozen=True)
class Plan:
    """The shape of passes: at most `branches` branches, `width` tokens, `draft_length` draft tokens a branch.

    Where few branches are left, drafts may have up to `longest_draft` tokens, so that passes stay about as large. A
    pass takes about `fixed` + tokens · `per_token` + branches · `per_branch` seconds, which decides how many drafts are
    worth their cost. The defaults are those of a small model on two CPU cores; where batch size and draft length are
    both given nothing is measured, so that passes are the same on every machine.
    """

    branches: int = 192
    width: int = 512
    draft_length: int = 4
    longest_draft: int = 16
    fixed: float = 0.06
    per_token: float = 0.0011
    per_branch: float = 0.0007

    @classmethod
    def of(cls, values: Mapping[str, float]) -> Plan:
        """Return the plan that `asdict` once took apart."""
        counts = ("branches", "width", "draft_length", "longest_draft")
        branches, width, draft_length, longest_draft = (int(values[name]) for name in counts)
        fixed, per_token, per_branch = (float(values[name]) for name in ("fixed", "per_token", "per_branch"))
        return cls(branches, width, draft_length, longest_draft, fixed, per_token, per_branch)

    def drafts(self, branches: int) -> int:
        """Return the most draft tokens of each of so many branches."""
        room = self.branches * (1 + self.draft_length) // max(1, branches) - 1
        return max(self.draft_length, min(self.longest_draft, room))


def calibrate(passes: Passes, memory: int, *, batch_size: int | None, draft_length: int | None) -> Plan:
    """Return the plan for a model: what is not given is chosen by timing passes over synthetic branches.

    `memory` bounds the keys and values of the branches, in bytes.
    """
    if batch_size is not None and draft_length is not None:
        return Plan(batch_size, max(512, 2 * batch_size), draft_length, draft_length)
    most = max(1, memory // (passes.bytes_per_token * 4 * _OWN))
    deadline = time.monotonic() + _SECONDS
    seen: list[tuple[int, int, float]] = []
    rates: dict[int, float] = {}
    for branches in [size for size in _LADDER if size == 1 or size <= most]:
        seconds = _time(passes, branches, 1)
        seen.append((branches, branches, seconds))
        rates[branches] = branches / seconds
        slower = [rate for size, rate in rates.items() if size < branches and rate * 1.05 > rates[branches]]
        if time.monotonic() > deadline or (slower and branches > _LADDER[2]):
            break
    middle = seen[len(seen) // 2][0]
    for tokens in (3, 6):
        seen.append((middle * tokens, middle, _time(passes, middle, tokens)))
    fixed, per_token, per_branch = _fit(seen)
    lengths = _DRAFT_LENGTHS if draft_length is None else (draft_length,)
    plans = [
        Plan(branches, max(512, 2 * branches), length, max(lengths), fixed, per_token, per_branch)
        for branches in ([batch_size] if batch_size else rates)
        for length in lengths
    ]
    return _choose(plans)


def _choose(plans: Sequence[Plan]) -> Plan:
    """Return the fastest plan of the smallest batch that is fast enough."""
    enough = _ENOUGH * max(map(_emitted_per_second, plans))
    least = min(plan.branches for plan in plans if _emitted_per_second(plan) >= enough)
    return max((plan for plan in plans if plan.branches == least), key=_emitted_per_second)


def _emitted_per_second(plan: Plan) -> float:
    """Return the rate if every branch got a draft of the plan's length whose tokens have the typical chance."""
    emitted = sum(_TYPICAL_CHANCE**ahead for ahead in range(plan.draft_length + 1))
    return emitted / (plan.fixed / plan.branches + plan.per_branch + plan.per_token * (1 + plan.draft_length))


def _time(passes: Passes, branches: int, tokens: int) -> float:
    """Return the seconds of a pass over branches of `tokens` tokens each, the better of two after a first one."""
    vocabulary = passes.vocabulary
    usage = replace(passes.usage)
    (prefix,), _ = passes.prefill([[(5 + 7 * place) % vocabulary for place in range(_CONTEXT)]])
    slots = Slots()
    slots.resize(branches, _OWN + tokens)
    feeds = [Feed(slot, _OWN, tokens, prefix, _CONTEXT - slot % (_CONTEXT // 2)) for slot in range(branches)]
    ids = [(11 + 3 * place) % vocabulary for place in range(branches * tokens)]
    times = []
    for _ in range(3):
        started = time.perf_counter()
        # Reading a value waits for devices that compute asynchronously.
        passes.run(slots, feeds, ids, range(len(ids))).max(dim=-1).indices.tolist()
        times.append(time.perf_counter() - started)
    # What is measured here is no work done.
    passes.usage.__dict__.update(usage.__dict__)
    return min(times[1:])


def _fit(seen: list[tuple[int, int, float]]) -> tuple[float, float, float]:
    """Return (fixed, per token, per branch) that explain (tokens, branches, seconds) best, none of them negative."""
    from scipy.optimize import nnls

    rows = np.array([(1.0, tokens, branches) for tokens, branches, _ in seen])
    seconds = np.array([taken for *_, taken in seen])
    # Relative errors count, so that the short passes say as much as the long ones.
    found, _ = nnls(rows / seconds[:, None], np.ones(len(seen)))
    fixed, per_token, per_branch = (float(value) for value in found)
    return fixed, max(per_token, 1e-9), per_branch
