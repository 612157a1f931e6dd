from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cruxtune import budget
from cruxtune.budget import choose_positions, expected_tokens, groups_by_work

lengths_of = st.lists(st.integers(1, 400), min_size=1, max_size=20)


@given(st.integers(1, 50), st.integers(1, 4), st.data())
def test_expected_tokens_count_each_rollout_to_the_responses_end(
    length: int, alternatives: int, data: st.DataObject
) -> None:
    """Every rollout emits what is left of the response from its position on, its alternative included."""
    positions = data.draw(st.lists(st.integers(0, length - 1), unique=True))
    expected = sum(len(range(length)[position:]) for position in positions for _ in range(alternatives))
    assert expected_tokens(length, positions, alternatives) == expected


@given(st.lists(st.integers(0, 3000), max_size=30), st.integers(1, 3), st.integers(1, 9), st.integers(1, 2_000_000))
def test_groups_are_bounded(lengths: list[int], alternatives: int, most: int, bound: int) -> None:
    """Groups cover the responses in order, none has too many, and none but a single response has too much work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "_GROUP_TOKENS", bound)
        groups = groups_by_work(lengths, alternatives, most=most)

    def work(part: range) -> int:
        return sum(expected_tokens(lengths[index], range(lengths[index]), alternatives) for index in part)

    assert [index for part in groups for index in part] == list(range(len(lengths)))
    assert all(1 <= len(part) <= most for part in groups)
    assert all(len(part) == 1 or work(part) <= bound for part in groups)
    # No group could have taken the first response of the next one.
    for part, following in pairwise(groups):
        assert len(part) == most or work(range(part.start, following.start + 1)) > bound


@given(lengths_of, st.integers(1, 3), st.integers(0, 99))
def test_without_a_limit_every_position_is_asked_about(lengths: list[int], alternatives: int, seed: int) -> None:
    """By default nothing stays unknown."""
    chosen = choose_positions(lengths, range(len(lengths)), alternatives=alternatives, seed=seed, before={})
    assert chosen == [list(range(length)) for length in lengths]


@given(lengths_of, st.one_of(st.integers(1, 300), st.floats(0.01, 0.99)), st.integers(0, 99))
def test_positions_are_a_number_or_a_share(lengths: list[int], positions: float, seed: int) -> None:
    """A number is taken of each response (all of a shorter one), a share below 1 of each length, one at least."""
    whole = range(len(lengths))
    chosen = choose_positions(lengths, whole, alternatives=2, seed=seed, positions=positions, before={})
    for length, some in zip(lengths, chosen, strict=True):
        wanted = positions * length if positions < 1 else positions
        assert len(some) == min(length, max(1, round(wanted)))
        assert some == sorted(set(some))
        assert set(some) <= set(range(length))


@given(lengths_of, st.integers(0, 99), st.data())
def test_positions_do_not_depend_on_groups(lengths: list[int], seed: int, data: st.DataObject) -> None:
    """A response's sample is its own, whatever group it is in, and a larger sample contains a smaller one."""
    whole = range(len(lengths))
    small, large = sorted(data.draw(st.tuples(st.integers(1, 50), st.integers(1, 50))))
    chosen = choose_positions(lengths, whole, alternatives=2, seed=seed, positions=small, before={})
    cut = data.draw(st.integers(0, len(lengths)))
    parts = [
        choose_positions(lengths, part, alternatives=2, seed=seed, positions=small, before={"tokens_emitted": 5})
        for part in (whole[:cut], whole[cut:])
    ]
    assert parts[0] + parts[1] == chosen
    more = choose_positions(lengths, whole, alternatives=2, seed=seed, positions=large, before={})
    assert all(set(few) <= set(many) for few, many in zip(chosen, more, strict=True))


def spent(lengths: list[int], groups: list[range], total: int, seed: int, factor: float) -> tuple[float, int]:
    """(tokens emitted, positions asked about) where rollouts are `factor` times as long as expected."""
    before = {"tokens_emitted": 0.0, "tokens_expected": 0.0}
    asked = 0
    for part in groups:
        chosen = choose_positions(lengths, part, alternatives=2, seed=seed, token_budget=total, before=dict(before))
        expected = sum(expected_tokens(lengths[index], some, 2) for index, some in zip(part, chosen, strict=True))
        before["tokens_expected"] += expected
        before["tokens_emitted"] += expected * factor
        asked += sum(map(len, chosen))
    return before["tokens_emitted"], asked


@pytest.mark.parametrize("factor", [0.4, 1.0, 1.7])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_a_budget_is_kept_also_where_expectations_are_off(share: float, factor: float) -> None:
    """Rollouts shorter or longer than expected: what comes later makes up for it, and the sum is near the budget."""
    lengths = [60 + (37 * index) % 90 for index in range(120)]
    everything = sum(expected_tokens(length, range(length), 2) for length in lengths)
    groups = groups_by_work(lengths, 2, most=8)
    total = int(everything * share)
    emitted, asked = spent(lengths, groups, total, seed=3, factor=factor)
    possible = min(total, everything * factor)
    assert emitted == pytest.approx(possible, rel=0.1)
    assert 0 < asked <= sum(lengths)


def test_a_generous_budget_leaves_nothing_out() -> None:
    """With tokens enough for all, every position is asked about."""
    lengths = [20, 50, 80]
    groups = [range(2), range(2, 3)]
    everything = sum(expected_tokens(length, range(length), 2) for length in lengths)
    assert spent(lengths, groups, everything, seed=0, factor=1.0) == (everything, sum(lengths))


def test_a_spent_budget_asks_nothing_more() -> None:
    """Where earlier groups took more than all of it, later responses stay unknown as a whole."""
    before = {"tokens_emitted": 5000.0, "tokens_expected": 2000.0}
    assert choose_positions([30, 30], range(1, 2), alternatives=2, seed=0, token_budget=4000, before=before) == [[]]


def test_the_tighter_of_both_limits_holds() -> None:
    """With a number of positions and a budget, the smaller sample is taken."""
    lengths = [100] * 10
    whole = range(10)
    few = choose_positions(lengths, whole, alternatives=2, seed=0, positions=4, token_budget=10**9, before={})
    assert [len(some) for some in few] == [4] * 10
    fewer = choose_positions(lengths, whole, alternatives=2, seed=0, positions=50, token_budget=1010 * 10, before={})
    assert [len(some) for some in fewer] == [10] * 10
