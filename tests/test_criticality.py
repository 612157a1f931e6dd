from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cruxtune.criticality import KEPT, Inquiry, Sampling, is_critical, open_sets, sample_positions


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


@given(questions(), st.booleans(), st.data())
def test_a_kept_token_is_asked_about_first(question: Any, every: bool, data: st.DataObject) -> None:
    """In whichever order verdicts come: critical iff keeping succeeds and all alternatives fail, undecided else."""
    truth, positions = question
    length, ranks = len(truth), len(truth[0])
    kept = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    # A rollout answers for some others, but not for all that it might.
    same = list(range(length))
    for t in reversed(range(length - 1)):
        same[t] = same[t + 1] if data.draw(st.booleans()) else t
    alone = {t for t in range(length) if kept[t] != kept[same[t]] or data.draw(st.booleans())}
    inquiry = Inquiry(length, ranks, every=every, positions=positions, keep=True)
    left = inquiry.left
    assert inquiry.most == length * (ranks + 1)
    waiting = inquiry.begin(same)
    asked: set[tuple[int, int]] = set()
    while waiting:
        position, rank = ask = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        if rank == KEPT:
            members = inquiry.members(position)
            but = [t for t in members if t != position and t in alone]
            more = inquiry.record(*ask, correct=kept[position], but=but)
        else:
            more = inquiry.record(*ask, correct=truth[position][rank])
        assert left >= inquiry.left
        left = inquiry.left
        waiting += more
        assert inquiry.settled is (not waiting)
        asked.add(ask)
    assert inquiry.settled
    assert left == 0
    wanted = set(range(length) if positions is None else positions)
    for position, (row, succeeds) in enumerate(zip(truth, kept, strict=True)):
        expected = None if position not in wanted or not succeeds else not any(row)
        assert inquiry.critical()[position] is expected
        assert inquiry.kept[position] is (succeeds if position in wanted else None)
        needed = ranks if every or True not in row else row.index(True) + 1
        if position not in wanted or not (every or succeeds):
            needed = 0
        assert {rank for place, rank in asked if place == position and rank != KEPT} == set(range(needed))
        assert inquiry.verdicts[position] == [*row[:needed], *[None] * (ranks - needed)]
    rolled = {place for place, rank in asked if rank == KEPT}
    assert rolled == {same[t] for t in wanted} | {t for t in wanted if t in alone}


@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.data())
def test_sampling_asks_everything_and_counts(length: int, ranks: int, draws: int, data: st.DataObject) -> None:
    """Every token asked about gets as many draws kept and of each alternative; success is their share, in any order."""
    positions = data.draw(st.lists(st.integers(0, length - 1), unique=True).map(sorted))
    sampling = Sampling(length, ranks, draws=draws, positions=positions)
    asks = sampling.begin()
    assert sampling.most == length * (ranks + 1) * draws
    assert sampling.left == len(asks) == len(set(asks)) == len(positions) * (ranks + 1) * draws
    verdicts = {ask: data.draw(st.booleans()) for ask in asks}
    for ask in data.draw(st.permutations(asks)):
        assert not sampling.settled
        assert sampling.record(*ask, correct=verdicts[ask]) == []
    assert sampling.settled
    for rank in range(KEPT, ranks):
        for position, success in enumerate(sampling.success(rank)):
            right = [verdicts[position, rank, draw] for draw in range(draws) if position in positions]
            assert success == (sum(right) / draws if right else None)


@given(st.lists(st.sampled_from([True, False, None]), min_size=2, max_size=8))
def test_sets_with_a_critical_or_an_unknown_token_are_not_asked_about(mask: list[bool | None]) -> None:
    """What is open is exactly the sets all of whose tokens are known not to be critical alone."""
    sets = [(start, end) for start in range(len(mask)) for end in range(start + 2, len(mask) + 1)]
    found = open_sets(sets, mask)
    assert found == [(a, b) for a, b in sets if not any(mask[t] is not False for t in range(a, b))]


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
    assert is_critical(verdicts, kept=False) is None


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
