"""How much annotation to do: groups of bounded work, and samples of positions that fit a budget of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cruxtune.criticality import sample_positions
from cruxtune.engines.sampling import seed_of

_GROUP_TOKENS = 400_000
"""Expected tokens after which a group is closed: what a crash may cost, minutes on a laptop, seconds on a GPU."""


def expected_tokens(length: int, positions: Sequence[int], alternatives: int) -> int:
    """Return the tokens of the rollouts of some positions, were each as long as what it replaces.

    >>> expected_tokens(4, [0, 2], 2)
    12
    """
    return alternatives * sum(length - position for position in positions)


def groups_by_work(lengths: Sequence[int], alternatives: int, *, most: int) -> list[range]:
    """Return the fixed groups of responses of these lengths: `most` each, fewer where they are long.

    >>> groups_by_work([10, 10, 10, 900, 10], 2, most=2)
    [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    """
    groups: list[range] = []
    start = tokens = 0
    for index, length in enumerate(lengths):
        work = expected_tokens(length, range(length), alternatives)
        if index > start and (index - start == most or tokens + work > _GROUP_TOKENS):
            groups.append(range(start, index))
            start, tokens = index, 0
        tokens += work
    if lengths:
        groups.append(range(start, len(lengths)))
    return groups


def choose_positions(
    lengths: Sequence[int],
    part: range,
    *,
    alternatives: int,
    seed: int,
    positions: float | None = None,
    token_budget: int | None = None,
    before: Mapping[str, float] | None = None,
) -> list[list[int]]:
    """Return the positions to ask about in each response of a group.

    `positions` is a count per response, or a share below 1. With `token_budget`, what the groups `before` left of it is
    spread over all responses still to come, each in proportion to its expected tokens, and corrected by how far the
    expectation was off so far. It depends on finished groups alone, so that a resumed run chooses the same.
    """
    share = 1.0
    if token_budget is not None:
        rest = sum(expected_tokens(length, range(length), alternatives) for length in lengths[part.start :])
        before = before or {}
        emitted, expected = before.get("tokens_emitted", 0), before.get("tokens_expected", 0)
        off = emitted / expected if expected else 1.0
        share = max(0.0, token_budget - emitted) / (rest * off) if rest else 0.0
    chosen = []
    for index in part:
        length = lengths[index]
        count = float(length)
        if positions is not None:
            count = min(count, positions * length if positions < 1 else positions)
        count = min(count, share * length)
        everything = count >= length
        drawn = sample_positions(length, count, seed_of(seed, "positions", index)) if count > 0 else []
        chosen.append(list(range(length)) if everything else drawn)
    return chosen


def allowance(budget: int, lengths: Sequence[int], part: range, *, spent: float, expected: float) -> float:
    """Return how many expected tokens a group may ask for, of a budget of tokens for all groups.

    What the groups before left of it is shared in proportion to the work in the responses to come, and corrected by how
    far what was `expected` was off from what was `spent`.

    >>> allowance(100, [10, 10], range(0, 1), spent=0, expected=0)
    50.0
    >>> allowance(100, [10, 10], range(1, 2), spent=40, expected=80)
    120.0
    """
    work = [expected_tokens(length, range(length), 1) for length in lengths[part.start :]]
    share = sum(work[: len(part)]) / max(1, sum(work))
    off = spent / expected if spent and expected else 1.0
    return max(0.0, budget - spent) * share / off
