"""Every selector on a case worked out by hand, and what holds for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cruxtune import selectors
from cruxtune.errors import DataError
from cruxtune.records import Annotation, Problem, Response, Verdict

MASK = [True, False, None, True, False]


def annotation(verdicts: list[list[bool | None]]) -> Annotation:
    """An annotation whose alternatives came out like this."""
    length = len(verdicts)
    response = Response(Problem("p7", "q", "a"), [1], [2] * length, "t", "stop", Verdict(True, "a", "boxed"))
    return Annotation(response, [], [], verdicts, [0.0] * length, [0.0] * length, [])


def test_critical_all_and_the_complement() -> None:
    """Critical is the mask, all is every token, non-critical the rest; unknown tokens weigh what they are told to."""
    assert selectors.critical(MASK) == [1, 0, 0, 1, 0]
    assert selectors.critical(MASK, unknown=1.0) == [1, 0, 1, 1, 0]
    assert selectors.every(MASK) == [1, 1, 1, 1, 1]
    assert selectors.non_critical(MASK) == [0, 1, 0, 0, 1]
    assert selectors.non_critical(MASK, unknown=1.0) == [0, 1, 1, 0, 1]


def test_budget_counts_critical_tokens_or_takes_a_share() -> None:
    """Without a share as many as are critical; with one, that share of the response, rounded, one at least."""
    assert selectors.budget(MASK, None) == 2
    assert selectors.budget(MASK, 0.5) == 2
    assert selectors.budget(MASK, 0.7) == 4
    assert selectors.budget(MASK, 0.01) == 1
    assert selectors.budget(MASK, 1.0) == 5


def test_numeric_marks_every_token_with_a_part_of_a_digit() -> None:
    """Of "a １5", its full-width digit in three tokens, these and the last are numeric, letter and space are not."""
    text, spans = "a １5", [(0, 1), (1, 2), (2, 3), (2, 3), (2, 3), (3, 4)]
    assert selectors.numeric(text, spans) == [0, 0, 1, 1, 1, 1]
    assert selectors.numeric("x²!", [(0, 2), (2, 3), (3, 3)]) == [1, 0, 0]


def test_entropy_keeps_the_most_uncertain_and_the_earlier_of_equals() -> None:
    """Of 0.2, 1.5, 0.9, 0.9, 0 two are kept: 1.5 and the first 0.9."""
    assert selectors.entropy([0.2, 1.5, 0.9, 0.9, 0.0], 2) == [0, 1, 1, 0, 0]


def test_attention_keeps_what_later_tokens_look_at() -> None:
    """The highest means are kept, whatever the order."""
    assert selectors.attention([0.1, 0.4, 0.3, 0.0], 2) == [0, 1, 1, 0]


def test_rho1_keeps_the_highest_excess_loss() -> None:
    """Losses 2, 1, 3 less the reference's 0.5, 0.9, 2.9 are 1.5, 0.1, 0.1: the first, then the earlier of equals."""
    assert selectors.rho1([-2.0, -1.0, -3.0], [-0.5, -0.9, -2.9], 1) == [1, 0, 0]
    assert selectors.rho1([-2.0, -1.0, -3.0], [-2.5, -0.25, -2.0], 2) == [0, 1, 1]


def test_criticality_is_the_share_of_alternatives_that_fail() -> None:
    """Both fail: 1; one of two: ½; none: 0; not asked about: as told."""
    graded = annotation([[False, False], [True, False], [True, True], [None, None]])
    assert selectors.criticality(graded) == [1, 0.5, 0, 0]
    assert selectors.criticality(graded, unknown=1.0) == [1, 0.5, 0, 1]


def test_undecided_tokens_have_no_grade() -> None:
    """Where keeping the token fails the weight is 0, whatever the alternatives did and whatever unknown ones weigh."""
    graded = replace(
        annotation([[False, False], [None, None], [False, False], [None, None]]),
        kept_correct=[True, False, False, None],
    )
    assert graded.undecided == [False, True, True, False]
    assert selectors.criticality(graded, unknown=1.0) == [1, 0, 0, 1]


def test_criticality_of_several_rollouts_is_a_difference_of_shares() -> None:
    """Success with the token less the mean of its alternatives, 0 at least: 1 − ½, ½ − ¾, undecided, not asked."""
    graded = replace(
        annotation([[True, None]] * 4),
        kept_correct=[None, None, False, None],
        kept_success=[1.0, 0.5, 1.0, None],
        alternative_success=[[0.75, 0.25], [0.75, 0.75], [0.0, 0.0], [None, None]],
    )
    assert selectors.criticality(graded) == [0.5, 0, 0, 0]
    assert selectors.criticality(graded, unknown=1.0) == [0.5, 0, 0, 1]


def test_criticality_refuses_alternatives_that_were_left_out() -> None:
    """The message has position and problem, and names the flag that asks them all."""
    with pytest.raises(DataError, match=r"1 of 2 were left out at position 1 of problem p7.*--every-alternative"):
        selectors.criticality(annotation([[False, False], [True, None]]))


def test_union_and_intersection_of_weights() -> None:
    """Either's larger weight, and both's smaller one."""
    one, other = [1.0, 0.0, 0.5, 0.0], [0.0, 0.0, 1.0, 1.0]
    assert selectors.union(one, other) == [1, 0, 1, 1]
    assert selectors.intersection(one, other) == [0, 0, 0.5, 0]


@given(st.integers(1, 40), st.data())
def test_random_draws_as_many_as_asked_by_its_key_alone(length: int, data: st.DataObject) -> None:
    """The number is exact, the key decides, and another key draws something else sooner or later."""
    count = data.draw(st.integers(0, length))
    drawn = selectors.chance(length, count, "0/0/p")
    assert sum(drawn) == count
    assert set(drawn) <= {0.0, 1.0}
    assert drawn == selectors.chance(length, count, "0/0/p")
    if 0 < count < length and length > 3:
        assert any(selectors.chance(length, count, f"{seed}/0/p") != drawn for seed in range(1, 40))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.data())
def test_a_ranking_keeps_its_budget_and_nothing_better_is_left(scores: list[float], data: st.DataObject) -> None:
    """As many as asked are kept, and no token left out scores higher than one that is kept."""
    count = data.draw(st.integers(1, len(scores)))
    weights = selectors.entropy(scores, count)
    assert sum(weights) == count
    kept = [score for score, weight in zip(scores, weights, strict=True) if weight]
    left = [score for score, weight in zip(scores, weights, strict=True) if not weight]
    assert not left or max(left) <= min(kept)


@given(st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=20), st.sampled_from([0.0, 1.0]))
def test_critical_and_its_complement_share_no_known_token(mask: list[bool | None], unknown: float) -> None:
    """Their union is every known token, and their intersection at most the unknown ones."""
    one, other = selectors.critical(mask, unknown=unknown), selectors.non_critical(mask, unknown=unknown)
    known = [float(value is not None) for value in mask]
    assert selectors.union(one, other) == [max(value, unknown) for value in known]
    assert selectors.intersection(one, other) == [unknown * (1 - value) for value in known]
