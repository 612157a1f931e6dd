from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cruxtune.metrics import (
    answer_entropy,
    calibration_error,
    distinct_n,
    equation_path,
    label_answers,
    majority,
    majority_at_k,
    pass_at_k,
    pass_hat_k,
)


@st.composite
def counts(draw: st.DrawFn, largest: int = 60) -> tuple[int, int, int]:
    """Draw n, c and k that fit together."""
    n = draw(st.integers(1, largest))
    return n, draw(st.integers(0, n)), draw(st.integers(1, n))


# pass@k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (1, 0, 1, 0.0),
        (1, 1, 1, 1.0),
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),
        (5, 2, 2, 7 / 10),  # 1 - C(3, 2) / C(5, 2) = 1 - 3 / 10
        (10, 3, 5, 11 / 12),  # 1 - C(7, 5) / C(10, 5) = 1 - 21 / 252
        (8, 8, 3, 1.0),
        (8, 7, 2, 1.0),
        (100, 0, 100, 0.0),
    ],
)
def test_pass_at_k_of_hand_worked_cases(n: int, c: int, k: int, expected: float) -> None:
    """The estimator gives what the formula does by hand."""
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(counts(largest=9))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(drawn: tuple[int, int, int]) -> None:
    """Over all subsets of k of the n samples, the share that contains one of the c correct ones."""
    n, c, k = drawn
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@given(counts())
def test_pass_at_k_grows_with_k_and_with_c(drawn: tuple[int, int, int]) -> None:
    """More tries or more correct samples never lower it, and it stays a probability."""
    n, c, k = drawn
    value = pass_at_k(n, c, k)
    assert 0 <= value <= 1
    if k < n:
        assert pass_at_k(n, c, k + 1) >= value - 1e-12
    if c < n:
        assert pass_at_k(n, c + 1, k) >= value - 1e-12


@given(counts())
def test_pass_at_1_is_the_share_and_pass_at_n_whether_there_is_any(drawn: tuple[int, int, int]) -> None:
    """The two ends of k are the plain estimates."""
    n, c, _ = drawn
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert pass_at_k(n, c, n) == float(c > 0)


def test_pass_at_k_is_stable_where_binomials_overflow() -> None:
    """For n in the thousands it agrees with exact integer arithmetic, which floats could not hold."""
    n, c, k = 5000, 3, 2000
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert pass_at_k(n, c, k) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_pass_at_k_refuses_what_cannot_be(n: int, c: int, k: int) -> None:
    """More correct than samples, or more tries than samples, is a mistake of the caller."""
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


# All of k, and the majority


@settings(deadline=None)
@given(counts(largest=9))
def test_pass_hat_k_is_the_share_of_subsets_that_are_all_correct(drawn: tuple[int, int, int]) -> None:
    """Over all subsets of k of the n samples; pass@k is its complement with right and wrong exchanged."""
    n, c, k = drawn
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_hat_k(n, c, k) == pytest.approx(sum(map(all, subsets)) / len(subsets), abs=1e-12)
    assert pass_hat_k(n, c, k) == pytest.approx(1 - pass_at_k(n, n - c, k), abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 0, 1], 1.0),
        ([0, 1, 1], 0.0),
        ([0, 1], 1 / 2),
        ([0, 0, 1, 1, 2, 2, -1, -1, -1], 1 / 3),
        ([1, 2], 0.0),
        ([-1, -1, -1, 0], 1.0),
        ([-1, -1], 0.0),
    ],
)
def test_majority_of_hand_worked_cases(labels: list[int], expected: float) -> None:
    """Ties count by their share, responses without an answer not at all."""
    assert majority(labels) == pytest.approx(expected)


def test_majority_of_k_is_the_mean_over_blocks() -> None:
    """Of 7 samples, two blocks of three: (0 0 1) is right and (1 1 0) is not; the seventh is left over."""
    assert majority_at_k([0, 0, 1, 1, 1, 0, 0], 3) == 1 / 2
    assert majority_at_k([0, 1, 0, 0], 1) == 3 / 4
    with pytest.raises(ValueError, match="n=2, k=3"):
        majority_at_k([0, 1], 3)


# Diversity


def test_labels_tell_answers_apart_by_what_they_are() -> None:
    """Numbers by value, texts without case and spaces; whatever is right is one answer."""
    answers = [(False, "1,000"), (False, "1000.0"), (False, "x + 1"), (False, "X+1"), (True, "5"), (False, "1e999999")]
    assert label_answers(answers) == [1, 1, 2, 2, 0, 3]


def test_hostile_answers_are_labelled() -> None:
    """Exponents beyond any number, and integers that differ in their thirtieth digit."""
    huge, long = "1e1000000", "1" * 30
    answers = [huge, huge.upper(), "1e-" + "9" * 30, "1e" + "9" * 30, long, long[:-1] + "2", long + ".0", "nan", "-inf"]
    assert label_answers([(False, answer) for answer in answers]) == [1, 1, 2, 3, 4, 5, 4, 6, 7]


def test_answer_entropy_by_hand() -> None:
    """Shares of 1/2, 1/4 and 1/4: (1/2) ln 2 + (1/2) ln 4; "no answer" is an answer here."""
    assert answer_entropy([0, 0, 3, -1]) == pytest.approx(1.5 * math.log(2))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("3+4=7\n7 × 2 = 14\n#### 14", ("3+4=7", "7*2=14")),
        ("He buys 3 pears + 4 pears = 7 pears.", ("3+4=7",)),
        (r"So \(\frac{6}{2} = 3\) and $3 \cdot 1{,}5$", ("(6)/(2)=3",)),
        ("Total: $1,200 ÷ 4 = $300.", ("1200/4=300",)),
        ("5 − 2 = 3 = 3.0", ("5-2=3=3.0",)),
        ("x = 3. Then y=x+1", ("x=3", "y=x+1")),
        ("no sums, a = b", ()),
        ("- 3 + 4 = 7\n* **7 × 2 = 14**\n  • -2+3=1", ("3+4=7", "7*2=14", "-2+3=1")),
        (r"3 + 4 = \boxed{7}", ("3+4=7",)),
    ],
)
def test_equation_paths(text: str, path: tuple[str, ...]) -> None:
    """Equations in their order, in one notation, without what is counted."""
    assert equation_path(text) == path


def test_order_and_form_make_another_path() -> None:
    """As in Yuan et al.: 3+4 is not 4+3, and the steps' order counts."""
    paths = {equation_path(text) for text in ("3+4=7, 7*2=14", "4+3=7, 7*2=14", "7*2=14, 3+4=7", "3 + 4 = 7; 7*2=14")}
    assert len(paths) == 3


def test_distinct_n_by_hand() -> None:
    """The same sum twice: 4 distinct of 10 words, and 4 of 8 pairs; marks are words."""
    texts = ["1 + 1 = 2", "1+1=2"]
    assert distinct_n(texts, 1) == 4 / 10
    assert distinct_n(texts, 2) == 4 / 8
    assert distinct_n([], 1) == 0


# Calibration


def test_calibration_error_by_hand() -> None:
    """Two bins: (0.9, 1.0) with accuracy 1/2 and confidence 0.95, (0.1) with 0 and 0.1: (2 · 0.45 + 0.1) / 3."""
    assert calibration_error([0.9, 1.0, 0.1], [1, 0, 0], bins=2) == pytest.approx((2 * 0.45 + 0.1) / 3)
    assert calibration_error([0.5, 0.5], [1, 0]) == 0
    with pytest.raises(ValueError, match="0 and 0 values"):
        calibration_error([], [])
