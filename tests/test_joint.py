from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cruxtune.budget import expected_tokens
from cruxtune.joint import choose, pairs, spans


def test_pairs_are_neighbours() -> None:
    """Every token but the last begins one; a response of one token has none."""
    assert list(pairs(4)) == [(0, 2), (1, 3), (2, 4)]
    assert pairs(1) == pairs(0) == {}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["1", "2", ",", "5", " x"], {(0, 4): "number", (0, 5): "line"}),
        ([" 12", ".", "5", " + ", "3"], {(0, 3): "number", (0, 5): "line"}),
        (["a", "\n", "b", "c", "\n", "\n", "d"], {(0, 2): "line", (2, 5): "line"}),
        (["4", "2"], {(0, 2): "number"}),
        (["12", "34."], {(0, 2): "number"}),
        (["one", "", ""], {}),
    ],
)
def test_spans_of_texts(tokens: list[str], expected: dict[tuple[int, int], str]) -> None:
    """Numbers and lines of two tokens or more; a line that is one number is a number; what has no text is in none."""
    text, characters, end = "".join(tokens), [], 0
    for token in tokens:
        characters.append((end, end + len(token)))
        end += len(token)
    assert spans(text, characters) == expected


@given(st.lists(st.text("12.,a \n", min_size=1, max_size=4), min_size=1, max_size=12))
def test_spans_are_what_the_text_says(tokens: list[str]) -> None:
    """Against a walk over characters: a span is the tokens of a number, or those that begin in a line."""
    text = "".join(tokens)
    owner = [number for number, token in enumerate(tokens) for _ in token]
    begins = [number for number, token in enumerate(tokens) for place in range(len(token)) if place == 0]
    starts = [sum(map(len, tokens[:number])) for number in begins]
    characters = [(start, start + len(token)) for start, token in zip(starts, tokens, strict=True)]
    numbers = {(owner[found.start()], owner[found.end() - 1] + 1) for found in re.finditer(r"\d+(?:[.,]\d+)*", text)}
    lines: dict[int, list[int]] = {}
    for number, start in zip(begins, starts, strict=True):
        lines.setdefault(text.count("\n", 0, start), []).append(number)
    expected = {(some[0], some[-1] + 1): "line" for some in lines.values()} | dict.fromkeys(numbers, "number")
    assert spans(text, characters) == {span: kind for span, kind in expected.items() if span[1] - span[0] > 1}


@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.integers(0, 400), st.integers(0, 9))
def test_a_budget_takes_a_seeded_sample(lengths: list[int], allowed: int, seed: int) -> None:
    """What is chosen fits, the next would not, a larger budget contains it, and none takes all."""
    sets: list[Any] = [list(pairs(length)) for length in lengths]

    def cost(chosen: Any) -> int:
        return sum(expected_tokens(n, [a], 2) for n, some in zip(lengths, chosen, strict=True) for a, _ in some)

    few, more, whole = (
        choose(sets, lengths, alternatives=2, allowed=limit, seed=seed) for limit in (allowed, 2 * allowed, None)
    )
    assert whole == sets
    assert cost(few) <= allowed
    assert all(set(a) <= set(b) <= set(c) for a, b, c in zip(few, more, whole, strict=True))
    assert few == whole or cost(few) + 2 * max(lengths) >= allowed
