from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cruxtune.criticality import Inquiry, is_critical, sample_positions


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[list[bool]], list[int] | None]:
    """The true verdicts of every alternative at every position, and the positions to ask about, if not all."""
    ranks = draw(st.integers(1, 4))
    truth = draw(st.lists(st.lists(st.booleans(), min_size=ranks, max_size=ranks), min_size=1, max_size=10))
    some = st.lists(st.integers(0, len(truth) - 1), unique=True).map(sorted)
    return truth, draw(st.one_of(st.none(), some))


@given(questions(), st.booleans(), st.data())
def test_inquiry_asks_no_more_than_decides(question: Any, every: bool, data: st.DataObject) -> None:
    """In whichever order verdicts come: the mask is the definition's."""
    truth, positions = question
    ranks = len(truth[0])
    inquiry = Inquiry(len(truth), ranks, every=every, positions=positions)
    waiting = inquiry.begin()
    asked = set(waiting)
    assert len(asked) == len(waiting)
    while waiting:
        assert not inquiry.settled
        position, rank = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        more = inquiry.record(position, rank, correct=truth[position][rank])
        assert not asked & set(more)
        asked |= set(more)
        waiting += more
    assert inquiry.settled
    wanted = set(range(len(truth)) if positions is None else positions)
    for position, (row, critical, verdicts) in enumerate(zip(truth, inquiry.critical(), inquiry.verdicts, strict=True)):
        needed = ranks if every or True not in row else row.index(True) + 1
        if position not in wanted:
            needed = 0
        assert {rank for place, rank in asked if place == position} == set(range(needed))
        assert verdicts == [*row[:needed], *[None] * (ranks - needed)]
        assert critical == (not any(row) if position in wanted else None)


def test_nothing_to_ask_is_settled() -> None:
    """A response none of whose positions are asked about is settled at once, and all of it is unknown."""
    for inquiry in (Inquiry(3, 2, positions=[]), Inquiry(0, 2)):
        assert inquiry.begin() == []
        assert inquiry.settled
    assert Inquiry(3, 2, positions=[]).critical() == [None, None, None]


@given(st.lists(st.one_of(st.none(), st.booleans()), min_size=1, max_size=5))
def test_a_token_is_critical_if_all_alternatives_failed(verdicts: list[bool | None]) -> None:
    """One success settles it, failures do only if all are known."""
    expected = False if any(verdicts) else True if all(verdict is False for verdict in verdicts) else None
    assert is_critical(verdicts) is expected


@given(st.integers(1, 60), st.lists(st.floats(0, 80), min_size=1, max_size=5), st.integers(0, 2**32))
def test_samples_of_positions_are_nested(length: int, counts: list[float], seed: int) -> None:
    """A larger sample contains every smaller one; one position at least, in order, and as many as were wanted."""
    samples = [sample_positions(length, count, seed) for count in sorted(counts)]
    for count, sample in zip(sorted(counts), samples, strict=True):
        assert sample == sorted(set(sample))
        assert set(sample) <= set(range(length))
        assert len(sample) == min(length, max(1, round(count)))
        assert sample == sample_positions(length, count, seed)
    for small, large in pairwise(samples):
        assert set(small) <= set(large)


def test_samples_of_positions_depend_on_the_seed() -> None:
    """Another seed is another sample, and every position has its turn about equally often."""
    counts = [0] * 10
    for seed in range(2000):
        for position in sample_positions(10, 3, seed):
            counts[position] += 1
    assert all(abs(count - 600) < 100 for count in counts)
