"""The contract of an engine: token ids in, token ids out (DESIGN: "engines know token ids only").

Greedy means the arg-max of the raw logits in at least float32, ties to the lower id. Sampling draws from
softmax(logits / temperature), with nothing cut off unless `top_k` or `top_p` say so. No other processing applies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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

    def caught(self, ids: Sequence[int], since: int = 0) -> bool:
        """Return whether the sequence ends in such a loop, made of tokens from position `since` on.

        >>> rule = LoopRule(max_period=2, min_repeats=3, min_tokens=4)
        >>> rule.caught([9, 1, 2, 1, 2, 1, 2]), rule.caught([9, 1, 2, 1, 2]), rule.caught([5, 5, 5])
        (True, False, False)
        """
        length = len(ids) - since
        if length < self.min_tokens:
            return False
        last = ids[-1]
        for period in range(1, self.max_period + 1):
            span = max(period * self.min_repeats, self.min_tokens)
            # The first test settles nearly every period without comparing slices.
            if span <= length and ids[-1 - period] == last and ids[-span:-period] == ids[-(span - period) :]:
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
    """A counterfactual to be decoded: contexts[context] with `token` in place of the response's token at `position`.

    `avoid` is for greedy decoding: the tokens behind `token` are the most probable ones other than these, one for each,
    and what follows is free. Like `token` they are none that the rule for loops counts. `seed` decides a sampled
    continuation.
    """

    context: int
    position: int
    token: int
    avoid: tuple[int, ...] = ()
    seed: int = 0


Context = tuple[Sequence[int], Sequence[int]]
"""Prompt ids and response ids."""


@dataclass
class Usage:
    """What an engine has done so far; differences of two snapshots are what a piece of work cost."""

    tokens_emitted: int = 0
    """Tokens chosen, one per decoding step and sequence."""
    tokens_drafted: int = 0
    """Draft tokens put through the model, accepted or not."""
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

    def tune(self, remembered: Mapping[str, float] | None = None) -> dict[str, float]:
        """Settle batch sizes and the like, and return them.

        They are what was `remembered` from an earlier part of the same work, so that a resumed run has the same
        batches, else what a short calibration finds best here. Nothing but speed and rounding depends on them.
        """

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

    def branches(self, *, max_tokens: int, decoding: Decoding) -> Branches:
        """Return a place where counterfactuals are decoded.

        `max_tokens` bounds the whole counterfactual response.
        """


class Branches(Protocol):
    """Counterfactuals while they are decoded: forks go in as they are wanted, finished rollouts come out.

    A rollout's `ids` are the whole counterfactual response, its unchanged beginning included. An alternative that ends
    the sequence ends the rollout. What comes out, and in which order, depends on what went in alone, never on time.
    """

    @property
    def waiting(self) -> int:
        """Forks that went in and did not come out yet."""

    @property
    def room(self) -> bool:
        """Whether it is time to open another context."""

    def open(self, prompt: Sequence[int], response: Sequence[int], *, alternatives: int) -> tuple[int, Scores]:
        """Take in a context; return its number, which forks name, and its scores."""

    def add(self, forks: Sequence[Fork]) -> None:
        """Take in forks of open contexts, each once."""

    def step(self) -> list[tuple[Fork, Generation]]:
        """Decode a little, if anything waits; return what is finished."""

    def close(self, context: int) -> None:
        """Forget a context, whose forks must all have come out."""


def finish_reason(
    ids: Sequence[int], limit: int, eos_ids: frozenset[int], decoding: Decoding, *, since: int = 0
) -> str | None:
    """Return why a continuation ends with its last token, None where it goes on.

    The rule for loops applies to greedy decoding, and to what was chosen from position `since` on.

    >>> finish_reason([5, 9], 8, frozenset({9}), Decoding()), finish_reason([5, 6], 2, frozenset({9}), Decoding())
    ('stop', 'length')
    """
    if ids[-1] in eos_ids:
        return "stop"
    if decoding.temperature == 0 and decoding.loop and decoding.loop.caught(ids, since):
        return "loop"
    return "length" if len(ids) >= limit else None


def token_limits(
    prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int], context_length: int | None
) -> list[int]:
    """Return how many tokens may follow each prompt; `max_new_tokens` is one for all, or one each.

    >>> token_limits([[1] * 4, [1] * 10], 9, 12), token_limits([[1], [1]], [3, 5], None)
    ([8, 2], [3, 5])
    """
    wanted = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    return [token_limit(most, len(prompt), context_length) for most, prompt in zip(wanted, prompts, strict=True)]


def token_limit(wanted: int, prompt_length: int, context_length: int | None) -> int:
    """Return how many tokens may follow a prompt: the smaller of the wish and what the context leaves.

    >>> token_limit(100, 30, 64), token_limit(100, 30, None), token_limit(100, 80, 64)
    (34, 100, 0)
    """
    return wanted if context_length is None else max(0, min(wanted, context_length - prompt_length))


class PlainBranches:
    """Counterfactuals decoded as what they are, prompts that end in the alternative. Any engine can do this."""

    def __init__(self, engine: Engine, *, batch_size: int, max_tokens: int, decoding: Decoding) -> None:
        self._engine = engine
        self._batch_size = batch_size
        self._max_tokens = max_tokens
        self._decoding = decoding
        self._contexts: dict[int, tuple[list[int], list[int]]] = {}
        self._opened = 0
        self._queue: list[Fork] = []

    @property
    def waiting(self) -> int:
        """Forks not decoded yet."""
        return len(self._queue)

    @property
    def room(self) -> bool:
        """Whether the next batch is not full."""
        return len(self._queue) < self._batch_size

    def open(self, prompt: Sequence[int], response: Sequence[int], *, alternatives: int) -> tuple[int, Scores]:
        """Take in a context; see `Branches.open`."""
        scores = self._engine.score(prompt, response, alternatives=alternatives)
        number = self._opened
        self._opened += 1
        self._contexts[number] = (list(prompt), list(response))
        return number, scores

    def add(self, forks: Sequence[Fork]) -> None:
        """Take in forks; see `Branches.add`."""
        self._queue.extend(forks)

    def step(self) -> list[tuple[Fork, Generation]]:
        """Decode one batch to its end; see `Branches.step`."""
        # The longest prompts are neighbours, so that little is padded.
        self._queue.sort(key=lambda fork: (fork.context, fork.position))
        batch, self._queue = self._queue[: self._batch_size], self._queue[self._batch_size :]
        done: list[tuple[Fork, Generation]] = []
        open_: list[tuple[Fork, list[int]]] = []
        for fork in batch:
            head, reason = self._head(fork)
            if reason:
                done.append((fork, Generation(head, reason)))
            else:
                open_.append((fork, head))
        tails = self._engine.generate(
            [[*self._contexts[fork.context][0], *head] for fork, head in open_],
            max_new_tokens=[max(0, self._max_tokens - len(head)) for _, head in open_],
            decoding=self._decoding,
            seeds=[fork.seed for fork, _ in open_] if self._decoding.temperature else None,
        )
        for (fork, head), tail in zip(open_, tails, strict=True):
            done.append((fork, Generation([*head, *tail.ids], tail.finish_reason)))
        return done

    def _head(self, fork: Fork) -> tuple[list[int], str | None]:
        """Return the beginning of a counterfactual up to where the policy is free, and why it ends there if it does."""
        prompt, response = self._contexts[fork.context]
        limit = token_limit(self._max_tokens, len(prompt), self._engine.context_length)
        head = [*response[: fork.position], fork.token]
        for token in fork.avoid:
            if head[-1] in self._engine.eos_ids or len(head) >= limit:
                break
            scores = self._engine.score([*prompt, *head], [token], alternatives=1)
            head.append(scores.alternatives[0][0])
            self._engine.usage.tokens_emitted += 1
        return head, "stop" if head[-1] in self._engine.eos_ids else "length" if len(head) >= limit else None

    def close(self, context: int) -> None:
        """Forget a context."""
        del self._contexts[context]


def roll_out(
    engine: Engine, contexts: Sequence[Context], forks: Sequence[Fork], *, max_tokens: int, decoding: Decoding
) -> list[Generation]:
    """Return the rollouts of some forks, in their order; `Fork.context` counts through `contexts`."""
    branches = engine.branches(max_tokens=max_tokens, decoding=decoding)
    numbers = [branches.open(prompt, response, alternatives=1)[0] for prompt, response in contexts]
    asked = [replace(fork, context=numbers[fork.context]) for fork in forks]
    branches.add(asked)
    done: dict[Fork, Generation] = {}
    while branches.waiting:
        done.update(branches.step())
    return [done[fork] for fork in asked]
