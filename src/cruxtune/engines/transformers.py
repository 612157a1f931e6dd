"""The embedded engine: any `AutoModelForCausalLM`, in packed passes where they are exact, else plainly."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from cruxtune.engines import logits as choices
from cruxtune.engines.base import (
    Branches,
    Decoding,
    Fork,
    Generation,
    PlainBranches,
    Progress,
    Scores,
    Usage,
    token_limits,
)
from cruxtune.engines.batch import Batch, Branch, Context
from cruxtune.engines.drafts import Draft, Sources
from cruxtune.engines.memory import budget
from cruxtune.engines.packing import Unservable
from cruxtune.engines.passes import Passes
from cruxtune.engines.plain import PlainEngine
from cruxtune.engines.plan import Plan, calibrate

_LOG = logging.getLogger(__name__)
_PLAIN_BATCH = 64
_LONG = 4096
"""Tokens of context that a pass is budgeted for."""
_SHARED_FROM = 4
"""Continuations of one prompt from which on they read one copy of its keys instead of one each."""


class TransformersEngine:
    """Decode and score with a transformers model.

    What packed passes cannot serve exactly takes the plain path, with one log line.
    """

    def __init__(
        self,
        model: Any,
        *,
        eos_ids: Sequence[int],
        context_length: int | None,
        batch_size: int | None = None,
        draft_length: int | None = None,
        memory_limit: float | None = None,
    ) -> None:
        self._batch_size = batch_size
        self._draft_length = draft_length
        self._memory_limit = memory_limit
        self._plan: Plan | None = None
        self._reported = False
        self._plain = PlainEngine(
            model, eos_ids=eos_ids, context_length=context_length, batch_size=batch_size or _PLAIN_BATCH
        )
        self._passes: Passes | None = None
        try:
            self._passes = Passes(model, self._plain.usage)
        except Unservable as error:
            # Annotation takes several times as long, which nobody would guess.
            _LOG.warning("%s is decoded plainly: %s", type(model).__name__, error)

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ids that end a sequence."""
        return self._plain.eos_ids

    @property
    def context_length(self) -> int | None:
        """The most tokens a sequence may have."""
        return self._plain.context_length

    @property
    def usage(self) -> Usage:
        """The counters."""
        return self._plain.usage

    def tune(self, remembered: Mapping[str, float] | None = None) -> dict[str, float]:
        """Settle the shape of passes; see `Engine.tune`."""
        if self._passes is None:
            return {}
        if remembered:
            self._plan = Plan.of(remembered)
        return asdict(self._settled(self._passes))

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
        limits = token_limits(prompts, max_new_tokens, self.context_length)
        longest = max((len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)), default=0)
        passes = self._passes_for(longest)
        if passes is None:
            return self._plain.generate(
                prompts,
                max_new_tokens=max_new_tokens,
                decoding=decoding,
                seeds=seeds,
                statistics=statistics,
                progress=progress,
            )
        if decoding.temperature > 0 and seeds is None:
            raise ValueError("sampling needs one seed per prompt")
        batch = self._batch(passes, decoding)
        times = Counter(tuple(prompt) for prompt in prompts)
        contexts = {prompt: Context(prompt[:-1] if count >= _SHARED_FROM else ()) for prompt, count in times.items()}
        done: dict[int, Generation] = {}
        for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            kept: tuple[list[float], list[float]] | None = ([], []) if statistics else None
            if limit == 0:
                done[index] = Generation([], "length", *(kept or ()))
                continue
            context = contexts[tuple(prompt)]
            ids: list[int] = []
            branch = Branch(
                context=context,
                seen=len(context.ids),
                ids=ids,
                start=0,
                limit=limit,
                key=index,
                head=list(prompt[len(context.ids) :]),
                seed=seeds[index] if seeds else 0,
                # Worth it for the last ones, which leave passes nearly empty and often repeat what they or the prompt
                # said.
                draft=Draft(Sources((), prompt), ids, 0),
                statistics=kept,
            )
            # Neighbours in length share a batch, so that little is padded; the longest come first and fail first.
            batch.submit(branch, (-len(prompt), tuple(prompt)))
        if progress and done:
            progress(len(done))
        while batch.waiting:
            finished = batch.step()
            done.update((branch.key, branch.generation()) for branch in finished)
            if progress and finished:
                progress(len(finished))
        return [done[index] for index in range(len(prompts))]

    def score(self, prompt: Sequence[int], response: Sequence[int], *, alternatives: int) -> Scores:
        """Score every token of the response; see `Engine.score`."""
        passes = self._passes_for(len(prompt) + len(response))
        if passes is None:
            return self._plain.score(prompt, response, alternatives=alternatives)
        return _read(passes, prompt, response, alternatives)[1]

    def branches(self, *, max_tokens: int, decoding: Decoding) -> Branches:
        """Return a place where counterfactuals are decoded; see `Engine.branches`."""
        if self._passes is None:
            return self._plain.branches(max_tokens=max_tokens, decoding=decoding)
        return PackedBranches(self, self._passes, self._batch(self._passes, decoding), max_tokens)

    def plain_branches(self, max_tokens: int, decoding: Decoding) -> PlainBranches:
        """Return a place for contexts that packed passes do not serve."""
        return self._plain.branches(max_tokens=max_tokens, decoding=decoding)

    def _batch(self, passes: Passes, decoding: Decoding) -> Batch:
        plan = self._settled(passes)
        return Batch(passes, plan, decoding, self.eos_ids, self._memory(plan))

    def _settled(self, passes: Passes) -> Plan:
        """Return the plan, calibrated where there is none yet."""
        if self._plan is None:
            memory = self._memory(Plan())
            self._plan = calibrate(passes, memory, batch_size=self._batch_size, draft_length=self._draft_length)
        return self._plan

    def _memory(self, plan: Plan) -> int:
        """Return the bytes that keys and values may take: what is allowed, less what a pass needs to work."""
        assert self._passes is not None
        allowed = budget(self._passes.device, self._memory_limit)
        longest = min(self.context_length or _LONG, _LONG)
        return max(0, allowed - self._passes.workspace(plan.width, longest))

    def _passes_for(self, longest: int) -> Passes | None:
        """Return packed passes if they serve sequences of this length."""
        passes = self._passes
        if passes is None or passes.longest is None or longest <= passes.longest:
            return passes
        self.report_stretched()
        return None

    def report_stretched(self) -> None:
        """Say once that sequences beyond the original length of the positions are decoded plainly."""
        if not self._reported:
            self._reported = True
            _LOG.info("sequences beyond the length that their positions were made for are decoded plainly")


class PackedBranches:
    """Counterfactuals on packed passes; see `Branches`."""

    def __init__(self, engine: TransformersEngine, passes: Passes, batch: Batch, max_tokens: int) -> None:
        self._engine = engine
        self._passes = passes
        self._batch = batch
        self._max_tokens = max_tokens
        self._eos_ids = engine.eos_ids
        self._context_length = engine.context_length
        self._plain = engine.plain_branches(max_tokens, batch.decoding)
        self._plain_numbers: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._contexts: dict[int, tuple[Context, int, list[int]]] = {}
        self._opened = 0
        self._ended: list[tuple[Fork, Generation]] = []

    @property
    def waiting(self) -> int:
        """Forks that did not come out yet."""
        return self._batch.waiting + len(self._ended) + self._plain.waiting

    @property
    def room(self) -> bool:
        """Whether memory is left for another context: of all that are open, the longest rollouts are begun first."""
        return self._batch.room and self._plain.room

    def open(self, prompt: Sequence[int], response: Sequence[int], *, alternatives: int) -> tuple[int, Scores]:
        """Take in a context; see `Branches.open`."""
        number = self._opened
        self._opened += 1
        longest = self._passes.longest
        if longest is not None and len(prompt) + max(len(response), self._max_tokens) > longest:
            self._engine.report_stretched()
            inner, scores = self._plain.open(prompt, response, alternatives=alternatives)
            self._plain_numbers[number], self._numbers[inner] = inner, number
            return number, scores
        prefix, scores = _read(self._passes, prompt, response, alternatives)
        context = Context([*prompt, *response], prefix=prefix)
        context.sources = Sources(response, prompt)
        self._contexts[number] = (context, len(prompt), list(response))
        self._batch.hold(context)
        return number, scores

    def add(self, forks: Sequence[Fork]) -> None:
        """Take in forks; see `Branches.add`."""
        for fork in forks:
            if fork.context in self._plain_numbers:
                self._plain.add([replace(fork, context=self._plain_numbers[fork.context])])
                continue
            context, prompt_length, response = self._contexts[fork.context]
            ids = [*response[: fork.position], fork.token]
            limit = self._max_tokens
            if self._context_length is not None:
                limit = min(limit, self._context_length - prompt_length)
            if fork.token in self._eos_ids:
                self._ended.append((fork, Generation(ids, "stop")))
            elif len(ids) >= limit:
                self._ended.append((fork, Generation(ids, "length")))
            else:
                assert context.sources is not None
                greedy = self._batch.decoding.temperature == 0
                branch = Branch(
                    context=context,
                    seen=prompt_length + fork.position,
                    ids=ids,
                    start=fork.position,
                    limit=limit,
                    key=fork,
                    forced=len(ids) + len(fork.avoid),
                    avoid=list(fork.avoid),
                    seed=fork.seed,
                    # A draft is kept where the model is sure to say the same, which a sample is not.
                    draft=Draft(context.sources, ids, fork.position) if greedy else None,
                )
                # What has most to say comes first, or the batch would run nearly empty for it at the end.
                self._batch.submit(branch, (fork.position - len(response), fork.context))

    def step(self) -> list[tuple[Fork, Generation]]:
        """Make a pass; see `Branches.step`."""
        ended, self._ended = self._ended, []
        for branch in self._batch.step():
            if branch.draft is not None:
                assert branch.context.sources is not None
                branch.context.sources.add(branch.ids, branch.start)
            ended.append((branch.key, branch.generation()))
        for fork, rollout in self._plain.step() if self._plain.waiting else ():
            ended.append((replace(fork, context=self._numbers[fork.context]), rollout))
        return ended

    def close(self, context: int) -> None:
        """Forget a context."""
        if context in self._plain_numbers:
            inner = self._plain_numbers.pop(context)
            del self._numbers[inner]
            self._plain.close(inner)
            return
        self._batch.release(self._contexts.pop(context)[0])


def _read(passes: Passes, prompt: Sequence[int], response: Sequence[int], alternatives: int) -> tuple[Any, Scores]:
    """Read a context once: its keys and values, and the scores of its response."""
    start, end = len(prompt) - 1, len(prompt) + len(response) - 1
    (prefix,), logits = passes.prefill([[*prompt, *response]], keep=range(start, end))
    return prefix, choices.scores(logits, response, alternatives)
