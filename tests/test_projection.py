from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cruxtune.projection import overlaps

Span = tuple[int, int]


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[Span]:
    """Spans of tokens that cover a text: in order, some of them repeated (parts of one character), some empty."""
    found: list[Span] = []
    start = 0
    while start < length:
        end = draw(st.integers(start + 1, length))
        found += [(start, end)] * draw(st.sampled_from([1, 1, 1, 2]))
        start = end
        if draw(st.booleans()):
            found.append((end, end))
    return found


@given(st.data())
def test_tokens_share_what_their_characters_share(data: st.DataObject) -> None:
    """Against every pair of tokens, character by character."""
    length = data.draw(st.integers(1, 12))
    ours, theirs = data.draw(cuts(length)), data.draw(cuts(length))
    found = overlaps(ours, theirs)
    for place, (a, b) in enumerate(ours):
        expected = [n for n, (c, d) in enumerate(theirs) if set(range(a, b)) & set(range(c, d))]
        if place == len(ours) - 1 and a == b and theirs[-1][0] == theirs[-1][1]:
            expected = [len(theirs) - 1]
        assert found[place] == expected


def test_the_end_of_sequence_answers_to_the_other() -> None:
    """Tokens without text have nothing in common with any, but for the two that end the responses."""
    assert overlaps([(0, 0), (0, 3), (3, 3)], [(0, 2), (2, 3), (3, 3), (3, 3)]) == [[], [0, 1], [3]]
    assert overlaps([(0, 3), (3, 3)], [(0, 3)]) == [[0], []]
    assert overlaps([], [(0, 3)]) == []
