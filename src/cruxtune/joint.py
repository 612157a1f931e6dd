"""Sets of neighbouring tokens that are replaced together: pairs, and spans of the text."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from cruxtune.budget import expected_tokens
from cruxtune.prompts import character_spans
from cruxtune.records import Response

Span = tuple[int, int]
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


def pairs(length: int) -> dict[Span, str]:
    """Return every two neighbouring tokens of a response as (start, end).

    >>> pairs(3)
    {(0, 2): 'pair', (1, 3): 'pair'}
    """
    return {(start, start + 2): "pair" for start in range(length - 1)}


def spans(text: str, characters: Sequence[Span]) -> dict[Span, str]:
    r"""Return the numbers and lines of a text as (start, end) in tokens, two tokens at least, in order.

    `characters` are the tokens' (start, end) in the text. A number (digits, with the points and commas between them)
    has every token that carries a part of it; a line has the tokens that begin in it, its newline included. Tokens
    without text (end of sequence) are in none.

    >>> spans("a 12\nb", [(0, 1), (1, 3), (3, 4), (4, 5), (5, 6), (6, 6)])
    {(0, 4): 'line', (1, 3): 'number'}
    """
    found: dict[Span, str] = {}
    for kind, pattern in (("line", _LINE), ("number", _NUMBER)):
        for match in pattern.finditer(text):
            first, last = match.span()
            places = [
                place
                for place, (start, end) in enumerate(characters)
                if start < end and (first <= start < last if kind == "line" else start < last and first < end)
            ]
            if len(places) > 1:
                found[places[0], places[-1] + 1] = kind
    return dict(sorted(found.items()))


def sets_of(kind: str, responses: Sequence[Response], tokenizer: Any) -> list[dict[Span, str]]:
    """Return the pairs or spans of each response, with what they are."""
    if kind == "pairs":
        return [pairs(len(response.response_ids)) for response in responses]
    return [spans(*character_spans(tokenizer, response.response_ids)) for response in responses]


def choose(
    candidates: Sequence[Sequence[Span]],
    lengths: Sequence[int],
    *,
    alternatives: int,
    allowed: float | None,
    seed: int,
) -> list[list[Span]]:
    """Return the sets of each response to ask about: all, or a seeded sample whose expected tokens are those allowed.

    `lengths` are those of the responses. A rollout is expected to be as long as what it replaces.
    """
    if allowed is None:
        return [list(some) for some in candidates]
    flat = [(place, span) for place, some in enumerate(candidates) for span in some]
    random.Random(seed).shuffle(flat)
    chosen: list[list[Span]] = [[] for _ in candidates]
    for place, span in flat:
        allowed -= expected_tokens(lengths[place], [span[0]], alternatives)
        if allowed < 0:
            break
        chosen[place].append(span)
    return [sorted(some) for some in chosen]
