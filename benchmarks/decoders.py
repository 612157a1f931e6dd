"""Other ways to decode the same counterfactuals, and the labels that each of them gives.

A decoder takes counterfactuals and returns the whole counterfactual responses; `annotate_with` asks it for the first
alternatives of all positions, then for the second ones that still decide: the same skipping for everybody. Every
decoder ends a rollout at the same tokens: end of sequence, the token limit, and an exact loop.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from case import DECODING, Ask, Case
from transformers import ContinuousBatchingConfig, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from cruxtune.criticality import Inquiry
from cruxtune.engines.base import Engine, Fork, PlainBranches, Usage, roll_out

Decoder = Callable[[list[Ask]], list[list[int]]]
Complete = Callable[[list[list[int]], list[int]], list[list[int]]]
"""(prompts, most new tokens of each) → the continuations."""

_PAGE = 32
_PASS_TOKENS = 256


@dataclass
class Outcome:
    """Labels by (place, position), rollouts by (place, position, rank), and what they took."""

    labels: dict[tuple[int, int], bool | None] = field(default_factory=dict)
    rollouts: dict[tuple[int, int, int], list[int]] = field(default_factory=dict)
    seconds: float = 0.0


def annotate_with(case: Case, places: Sequence[int], positions: Sequence[Sequence[int]], decode: Decoder) -> Outcome:
    """Return labels and rollouts of some positions of some responses."""
    outcome = Outcome()
    started = time.perf_counter()
    inquiries = {
        place: Inquiry(len(case.responses[place].response_ids), len(case.alternatives(place)[0]), positions=some)
        for place, some in zip(places, positions, strict=True)
    }
    asks = [
        Ask(place, position, rank, case.alternatives(place)[position][rank])
        for place, inquiry in inquiries.items()
        for position, rank in inquiry.begin()
    ]
    while asks:
        decoded = decode(asks)
        more = []
        for ask, ids, correct in zip(asks, decoded, case.judge(asks, decoded), strict=True):
            outcome.rollouts[ask.place, ask.position, ask.rank] = ids
            wanted = inquiries[ask.place].record(ask.position, ask.rank, correct=correct)
            more += [
                Ask(ask.place, position, rank, case.alternatives(ask.place)[position][rank])
                for position, rank in wanted
            ]
        asks = more
    outcome.seconds = time.perf_counter() - started
    for place, some in zip(places, positions, strict=True):
        critical = inquiries[place].critical()
        outcome.labels.update({(place, position): critical[position] for position in some})
    return outcome


def completing(case: Case, complete: Complete) -> Decoder:
    """Return the decoder that asks for continuations of prompts which end in the alternative."""

    def decode(asks: list[Ask]) -> list[list[int]]:
        heads = [[*case.responses[ask.place].response_ids[: ask.position], ask.token] for ask in asks]
        limit = case.token_limit
        open_ = [place for place, head in enumerate(heads) if head[-1] not in case.eos_ids and len(head) < limit]
        tails = complete(
            [[*case.responses[asks[place].place].prompt_ids, *heads[place]] for place in open_],
            [limit - len(heads[place]) for place in open_],
        )
        for place, tail in zip(open_, tails, strict=True):
            heads[place] = [*heads[place], *_ended(tail, case.eos_ids, limit - len(heads[place]))]
        return heads

    return decode


def one_by_one(
    case: Case,
    spent: dict[Ask, float] | None = None,
    memory: Path | None = None,
    tick: Callable[[], None] | None = None,
) -> Decoder:
    """Return the reference: transformers' `generate`, one prompt at a time.

    `spent` takes the seconds of each. `memory` is a file of what was decoded before, which grows with every rollout, so
    that hours of it can be interrupted; `tick` is called after each.
    """
    known = {} if memory is None or not memory.exists() else dict(map(json.loads, memory.read_text().splitlines()))

    def complete(prompts: list[list[int]], limits: list[int]) -> list[list[int]]:
        ((prompt,), (limit,)) = prompts, limits
        key = hashlib.blake2b(repr((prompt, limit)).encode(), digest_size=12).hexdigest()
        if key not in known:
            (known[key],) = _generate(case, [prompt], [limit])
            if memory is not None:
                with memory.open("a") as file:
                    file.write(json.dumps([key, known[key]]) + "\n")
        return [known[key]]

    decode = completing(case, lambda prompts, limits: complete(prompts, limits) if prompts else [])

    def timed(asks: list[Ask]) -> list[list[int]]:
        decoded = []
        for ask in asks:
            started = time.perf_counter()
            decoded += decode([ask])
            if spent is not None:
                spent[ask] = time.perf_counter() - started
            if tick is not None:
                tick()
        return decoded

    return timed


def batched(case: Case, size: int, *, across: bool = False) -> Decoder:
    """Return `generate` on left-padded batches of neighbouring branches of one response, or `across` all of them."""

    def complete(prompts: list[list[int]], limits: list[int]) -> list[list[int]]:
        tails = []
        for start in range(0, len(prompts), size):
            tails += _generate(case, prompts[start : start + size], limits[start : start + size])
        return tails

    decode = completing(case, complete)
    if across:
        return decode

    def by_response(asks: list[Ask]) -> list[list[int]]:
        done: dict[Ask, list[int]] = {}
        for place in sorted({ask.place for ask in asks}):
            mine = sorted((ask for ask in asks if ask.place == place), key=lambda ask: ask.position)
            done.update(zip(mine, decode(mine), strict=True))
        return [done[ask] for ask in asks]

    return by_response


def continuous(case: Case) -> Decoder:
    """Return transformers' own continuous batching, sized for what it is asked."""

    def complete(prompts: list[list[int]], limits: list[int]) -> list[list[int]]:
        pages = sum(math.ceil((len(prompt) + limit) / _PAGE) for prompt, limit in zip(prompts, limits, strict=True))
        outputs = case.model.generate_batch(
            inputs=prompts,
            generation_config=_clean(case, max(limits)),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=_PAGE,
                num_blocks=pages,
                max_batch_tokens=_PASS_TOKENS,
                max_requests_per_batch=min(len(prompts), _PASS_TOKENS),
            ),
        )
        failed = [output.error for output in outputs.values() if output.error is not None]
        if failed or len(outputs) < len(prompts):
            raise RuntimeError(f"generate_batch: {len(outputs)} of {len(prompts)} came back; {failed[:1]}")
        return [list(output.generated_tokens) for output in outputs.values()]

    return completing(case, complete)


def packed(case: Case, engine: Engine) -> Decoder:
    """Return our engine, on given counterfactuals."""

    def decode(asks: list[Ask]) -> list[list[int]]:
        places = sorted({ask.place for ask in asks})
        contexts = [(case.responses[place].prompt_ids, case.responses[place].response_ids) for place in places]
        forks = [Fork(places.index(ask.place), ask.position, ask.token) for ask in asks]
        return [one.ids for one in roll_out(engine, contexts, forks, max_tokens=case.token_limit, decoding=DECODING)]

    return decode


class WholePrompts:
    """An engine whose counterfactuals share nothing: each is generated from its whole prompt, in the same batch."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def usage(self) -> Usage:
        """The counters of the engine."""
        return self._engine.usage

    def branches(self, *, max_tokens: int, decoding: Any) -> PlainBranches:
        """Return all that wait as one batch: the engine's own refills as rows finish."""
        return PlainBranches(self._engine, batch_size=1 << 30, max_tokens=max_tokens, decoding=decoding)


class _Ends(StoppingCriteria):
    """Ends rows at their own limits, and in exact loops, as our engines do."""

    def __init__(self, limits: Sequence[int], eos_ids: Sequence[int]) -> None:
        self.rows: list[list[int]] = [[] for _ in limits]
        self._limits = limits
        self._eos_ids = frozenset(eos_ids)
        self._done = [False] * len(limits)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **rest: Any) -> torch.Tensor:
        for place, token in enumerate(input_ids[:, -1].tolist()):
            if not self._done[place]:
                row = self.rows[place]
                row.append(token)
                looped = DECODING.loop is not None and DECODING.loop.caught(row)
                self._done[place] = token in self._eos_ids or looped or len(row) >= self._limits[place]
        return torch.tensor(self._done, device=input_ids.device)


def _generate(case: Case, prompts: list[list[int]], limits: list[int]) -> list[list[int]]:
    if not prompts:
        return []
    width = max(len(prompt) for prompt in prompts)
    ends = _Ends(limits, case.eos_ids)
    case.model.generate(
        torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        generation_config=_clean(case, max(limits)),
        stopping_criteria=StoppingCriteriaList([ends]),
    )
    return ends.rows


def _clean(case: Case, limit: int) -> GenerationConfig:
    return GenerationConfig(do_sample=False, max_new_tokens=limit, eos_token_id=list(case.eos_ids), pad_token_id=0)


def _ended(tail: Sequence[int], eos_ids: Sequence[int], limit: int) -> list[int]:
    """Cut what a decoder made behind the end: not all of them know of loops and of limits of each prompt."""
    kept: list[int] = []
    for token in tail[:limit]:
        kept.append(token)
        if token in eos_ids or (DECODING.loop is not None and DECODING.loop.caught(kept)):
            break
    return kept
