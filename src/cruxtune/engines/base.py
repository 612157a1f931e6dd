"""The contract of an engine: token ids in, token ids out (DESIGN: "engines know token ids only").

Greedy means the arg-max of the raw logits in at least float32, ties to the lower id. Sampling draws from
softmax(logits / temperature), with nothing cut off unless `top_k` or `top_p` say so. No other processing applies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

Progress = Callable[[int], None]
"""Called with the number of sequences that were finished since the last call."""


@dataclass(frozen=True)
class LoopRule:
    """When a greedy continuation counts as caught in an exact loop, and ends there.

    It does as soon as its last tokens are one block of at most `max_period` tokens, `min_repeats` times or more in a
    row, and these repeats cover at least `min_tokens` tokens. The rule is part of the definition of a critical token:
    responses, rollouts and evaluations use the same one.
    """

    max_period: int = 24
    min_repeats: int = 4
    min_tokens: int = 32

    def caught(self, ids: Sequence[int]) -> bool:
        """Return whether the sequence ends in such a loop.

        >>> rule = LoopRule(max_period=2, min_repeats=3, min_tokens=4)
        >>> rule.caught([9, 1, 2, 1, 2, 1, 2]), rule.caught([9, 1, 2, 1, 2]), rule.caught([5, 5, 5])
        (True, False, False)
        """
        if len(ids) < self.min_tokens:
            return False
        last = ids[-1]
        for period in range(1, self.max_period + 1):
            span = max(period * self.min_repeats, self.min_tokens)
            # The first test settles nearly every period without comparing slices.
            if span <= len(ids) and ids[-1 - period] == last and ids[-span:-period] == ids[-(span - period) :]:
                return True
        return False


@dataclass(frozen=True)
class Decoding:
    """How to choose the next token. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 cut nothing off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    loop: LoopRule | None = None
    """Applies to greedy decoding only: a sampled continuation can leave a loop."""


@dataclass(frozen=True)
class Generation:
    """A continuation: its ids (the end-of-sequence token included) and why it ended: "stop", "length" or "loop".

    `logprobs` and `entropies` (nats, one per id, temperature 1) are there only where they were asked for.
    """

    ids: list[int]
    finish_reason: str
    logprobs: list[float] | None = None
    entropies: list[float] | None = None


@dataclass(frozen=True)
class Scores:
    """What the policy says at each of a response's T positions, given the tokens before it; nats.

    `alternatives` (T × k) are the most probable tokens other than the response's own, by (−logit, id).
    """

    logprobs: list[float]
    entropies: list[float]
    alternatives: list[list[int]]
    alternative_logprobs: list[list[float]]


@dataclass(frozen=True)
class Fork:
    """A counterfactual to be decoded: contexts[context] with `token` in place of the response's token at `position`."""

    context: int
    position: int
    token: int


Context = tuple[Sequence[int], Sequence[int]]
"""Prompt ids and response ids."""


@dataclass
class Usage:
    """What an engine has done so far; differences of two snapshots are what a piece of work cost."""

    tokens_emitted: int = 0
    """Tokens chosen, one per decoding step and sequence."""
    tokens_accepted: int = 0
    """Of these, tokens accepted from drafts (none in plain decoding)."""
    tokens_computed: int = 0
    """Tokens put through the model, padding included."""
    model_calls: int = 0

    def since(self, before: Usage) -> dict[str, int]:
        """Return the differences to an earlier snapshot."""
        past = asdict(before)
        return {name: value - past[name] for name, value in asdict(self).items()}


class Engine(Protocol):
    """Generation and scoring of token ids by one policy."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ids that end a sequence; one set for every stage."""

    @property
    def context_length(self) -> int | None:
        """The most tokens a sequence may have, None where the model has no bound."""

    @property
    def usage(self) -> Usage:
        """The counters, updated in place."""

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
        """Continue each prompt. `max_new_tokens` (one for all, or one each) is cut to what the context leaves.

        `seeds` (one per prompt, needed where the temperature is above 0) decide a continuation by themselves: neither
        its place nor its batch matters.
        """

    def score(self, prompt: Sequence[int], response: Sequence[int], *, alternatives: int) -> Scores:
        """Score every token of the response, with its `alternatives` most probable replacements."""

    def rollouts(
        self,
        contexts: Sequence[Context],
        forks: Sequence[Fork],
        *,
        max_tokens: int,
        decoding: Decoding,
        progress: Progress | None = None,
    ) -> list[Generation]:
        """Decode counterfactuals: `ids` is the whole counterfactual response, its unchanged beginning included.

        `max_tokens` bounds the whole counterfactual response. An alternative that ends the sequence ends the rollout.
        """


def token_limit(wanted: int, prompt_length: int, context_length: int | None) -> int:
    """Return how many tokens may follow a prompt: the smaller of the wish and what the context leaves.

    >>> token_limit(100, 30, 64), token_limit(100, 30, None), token_limit(100, 80, 64)
    (34, 100, 0)
    """
    return wanted if context_length is None else max(0, min(wanted, context_length - prompt_length))


def rollouts_by_generation(
    engine: Engine,
    contexts: Sequence[Context],
    forks: Sequence[Fork],
    *,
    max_tokens: int,
    decoding: Decoding,
    progress: Progress | None = None,
) -> list[Generation]:
    """Decode counterfactuals as what they are: prompts that end in the alternative. Any engine can do this."""
    heads = [[*contexts[fork.context][1][: fork.position], fork.token] for fork in forks]
    open_ = [index for index, fork in enumerate(forks) if fork.token not in engine.eos_ids]
    if progress and len(open_) < len(forks):
        progress(len(forks) - len(open_))
    tails = engine.generate(
        [[*contexts[forks[index].context][0], *heads[index]] for index in open_],
        max_new_tokens=[max_tokens - len(heads[index]) for index in open_],
        decoding=decoding,
        progress=progress,
    )
    done = [Generation(head, "stop") for head in heads]
    for index, tail in zip(open_, tails, strict=True):
        done[index] = Generation([*heads[index], *tail.ids], tail.finish_reason)
    return done
