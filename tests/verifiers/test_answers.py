r"""Are two answers the same: every form of the benchmarks, equal and unequal, and the rules that users may change."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cruxtune.verifiers.answers import USUAL, Rules, answers_equal
from cruxtune.verifiers.compare import decimal_value, math_equal


def equal(gold: str, answer: str, rules: Rules = USUAL, metadata: Mapping[str, Any] | None = None) -> bool:
    """Return whether an answer is the gold one, values compared as the verifier does."""
    return answers_equal(gold, answer, rules, metadata or {}, math_equal, decimal_value)


EQUAL = {
    "numbers": [
        ("145.0", "145"),
        ("2,125", r"2{,}125"),
        ("1.00", "1"),
        ("4.5e33", r"4.5 \times 10^{33}"),
        ("4.5e33", r"4.5\cdot 10^{33}"),
        ("4.5e33", "4.5 * 10^33"),
        ("4.5e33", "4.5e+33"),
        ("3e8", r"3 \times 10^{8}"),
        (r"3.0 \times 10^8", "300000000"),
        (r"1.4 \times 10^{-3}", "0.0014"),
        ("-1./3", r"-\frac{1}{3}"),
        ("$-1$", "−1"),
        (r"\mathbf{3 2}", "32"),
        (r"\frac{\mathbf{9 4}}{\mathbf{4 2 2 5}}", "94/4225"),
        (r"\frac { 3 } { 2 }", r"\frac{3}{2}"),
        ("1/3", "0.333333"),
        (r"\sqrt{2}", "1.41421356"),
        ("6th", "6"),
        ("2", "3-1"),
        ("2^{10}", "1024"),
        ("12!", "479001600"),
        ("17.10", r"\approx 17.10"),
        (r"\binom{5}{2}", "10"),
        (r"C_{400}^{40} \cdot C_{200}^{20}", r"\binom{400}{40}\binom{200}{20}"),
    ],
    "mixed numbers": [
        (r"$2\frac58$", "2.625"),
        (r"2\frac{5}{8}", r"\frac{21}{8}"),
        (r"2 \frac{5}{8}", "2 5/8"),
        ("1 1/2", "3/2"),
        (r"-1\frac12", "-1.5"),
    ],
    "bases": [("204_5", "204_{5}"), ("204_5", "204"), ("204_{\\text{five}}", "204"), ("BAC_{16}", "BAC_16")],
    "per cent": [(r"10\%", "10"), (r"10\%", "0.1"), ("0.1", r"10\%"), ("10%", "10 percent"), (r"3\%", "3 %")],
    "units": [
        ("9 (apples)", "9"),
        ("9 (apples)", "9 apples"),
        ("$22.1cm^{2}$", "22.1"),
        ("$22.1cm^{2}$", r"22.1\text{ cm}^2"),
        ("22.1", r"22.1\ \mathrm{cm}^{2}"),
        ("$3.5 m$", r"3.5\mathrm{~m}"),
        ("$3.5 m$", "3.5"),
        (r"$\approx 17.10 \mathrm{ft}$", "17.1"),
        ("5 m", "500 cm"),
        ("2 hours", "120 minutes"),
        ("5 hours and 20 minutes", "5 hours 20 minutes"),
        ("50 cents", "$0.50"),
        (r"18 \text{ dollars}", "$18"),
        (r"\$32,348", "32348"),
        (r"30^{\circ}", "30"),
        (r"30^\circ", "30 degrees"),
        (r"\frac{1}{2} \text{ units}", "0.5"),
        (r"\sqrt{2} \text{ units}", r"\sqrt2"),
        ("36 km/h", "10 m/s"),
        ("1.5 square feet", "1.5"),
        ("20 $cm^{2}$", "20 cm^2"),
    ],
    "clocks and ratios": [
        ("5:45", "5:45 p.m."),
        ("6:10 a.m.", "6:10 AM"),
        ("3:4", "3/4"),
        ("3:4", r"\frac{3}{4}"),
        ("3:4", "6:8"),
    ],
    "lists": [
        ("$48$, $384$", "384 and 48"),
        ("1,-2", "x=1 or x=-2"),
        ("$1,-2$", r"x=1\text{ or }x=-2"),
        ("1,-2", "x_1=1, x_2=-2"),
        ("-3,0", r"\{0,-3\}"),
        ("1,-2", "(1,-2)"),
        ("0.5,1.5", r"\frac12,\frac32"),
        ("x=1,y=2", "y=2, x=1"),
        (r"\pm 1", "-1,1"),
        (r"3 \pm 2 \sqrt{2}", r"3+2\sqrt{2}, 3-2\sqrt{2}"),
        (r"\pm i, \pm \sqrt{3}", r"i,-i,\sqrt{3},-\sqrt{3}"),
        ("100,200", "(100, 200)"),
        ("(1,2),(3,4)", "(3,4),(1,2)"),
    ],
    "tuples, sets, intervals": [
        ("(1,2)", "( 1 , 2.0 )"),
        ("(1,2)", "1, 2"),
        ("(1,2)", "x=1, y=2"),
        ("(2,4)", "(k,n)=(2,4)"),
        ("(1,234)", "(1, 234)"),
        (r"\{1,2\}", r"\{2,1\}"),
        (r"\{1,2\}", "1,2"),
        (r"\{5\}", "5"),
        (r"\left( 3, \frac{\pi}{2} \right)", "(3, π/2)"),
        ("(3,4]", r"\left(3,4\right]"),
        ("x>5", r"(5,\infty)"),
        (r"(5,\infty)", "x>5"),
        (r"(-\infty,0]", r"x\le 0"),
        ("(1,2)", "1<x<2"),
        (r"x\in(1,2)", "(1,2)"),
        (r"$\{x|-2\leq x < 1\}$", "[-2,1)"),
        (r"\{x|-2\leq x < 1\}", r"-2\le x<1"),
        (r"(-\infty,-2)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,-2)"),
        (r"(-\infty,-2)\cup(2,\infty)", r"x<-2 \text{ or } x>2"),
        (r"\emptyset", r"\varnothing"),
        (r"\langle 1, 2\rangle", "(1,2)"),
    ],
    "equations and inequalities": [
        ("x=5", "5"),
        ("5", "x = 5"),
        ("y = 2x+3", "2x+3"),
        ("y=2x+3", "2x - y + 3 = 0"),
        ("y = - 2 x - 3", "y=-2x-3"),
        ("f(x)=2 x", "2x"),
        ("32", "2^5=32"),
        (r"200\left(\cos \left(\frac{\pi}{6}\right)\right) 20=3464.1", "3464.1"),
        (r"\operatorname{det}\left[\begin{array}{ll}1 & 2 \\ 3 & 4\end{array}\right]=-2", "-2"),
        (r"m \neq 2", r"m\ne 2"),
        (r"k \geqslant 2", r"k\ge 2"),
        ("x < - 2", "-2 > x"),
        (r"x \le 3", "x≤3"),
    ],
    "expressions": [
        ("b ^ { 2 } - 9 a ^ { 2 }", "(b-3a)(b+3a)"),
        ("$10-4 n$", "-4n+10"),
        (r"\frac{x^2}{2}+C", "x^2/2 + c"),
        ("x^2+C", "x^2+K"),
        ("np.arcsin(10/13)", r"\arcsin\left(\frac{10}{13}\right)"),
        (r"\frac{1}{2a}(\exp{a*t} - \exp{-a*t})", r"\frac{e^{at}-e^{-at}}{2a}"),
        (r"\ln 2 + i\pi / 3", r"\ln(2)+\frac{i\pi}{3}"),
        (r"\frac{n(n+1)}{2}", "n(n+1)/2"),
        (r"\sqrt{3}", "√3"),
        (r"2\sqrt{3}", "sqrt(12)"),
        (r"\frac{\pi}{3}", "π/3"),
        (r"\sqrt[3]{2}", "2^{1/3}"),
        (r"\frac{7-3 x}{2}", r"y=\frac{7-3x}{2}"),
        (
            r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}",
            r"\begin{bmatrix} -1 & 0 \\ 0 & -1 \end{bmatrix}",
        ),
    ],
    "words and letters": [
        (r"\text{Evelyn}", "evelyn"),
        ("Mrs. Hilt", "mrs. Hilt"),
        ("Yes", "Yes, it does"),
        (r"\text{(B)}", "B"),
        ("C", r"\text{C}"),
        ("C", "(C) 12"),
        ("C", "C. 12"),
        (r"\text{no solution}", "No solution."),
        ("Rug B", "rug B"),
        ("$I,II,III,IV$", "IV, III, II and I"),
    ],
}
UNEQUAL = {
    "numbers": [
        ("12345678901234567890", "12345678901234567891"),
        ("4.5e33", "4.5e32"),
        ("4e300", "9e301"),
        (r"\frac{1}{3}", "0.33"),
        (r"\sqrt{2}", "1.414"),
        ("3.14", "3.14159"),
        ("6th", "sixth"),
        ("12", "12!"),
        ("5", "-5"),
        ("2", "2i"),
        (r"3\pi", "3"),
        (r"4\sqrt{2}", "4"),
        ("0", "1e-9"),
        ("1234", "1,2,3,4"),
    ],
    "mixed numbers": [(r"2\frac58", r"\frac{10}{8}"), (r"2\frac{5}{8}", r"\frac{5}{4}")],
    "bases": [("204_5", "204_6"), ("204_5", "54")],
    "per cent": [("10%", "1"), ("0.1", "10"), ("10%", "20%"), ("10%", "0.2")],
    "units": [
        ("5 cm", "5 m"),
        ("5 m", "5 m^2"),
        ("5 hours", "5 minutes"),
        ("$5", "€5"),
        ("5 (apples)", "6 apples"),
        ("6", "6 apples and 2 pears"),
    ],
    "clocks and ratios": [("5:45", "5:46"), ("6:10 a.m.", "6:10 p.m."), ("1:2", "2:1"), ("1", "1:10 P.M.")],
    "lists": [
        ("1,2", "1"),
        ("1", "1,2"),
        ("1,2", "1,3"),
        ("1,2", "1,2,2"),
        ("x=1,y=2", "x=2, y=1"),
        (r"\pm 1", "1"),
        ("1,-2", "(1,2)"),
    ],
    "tuples, sets, intervals": [
        ("(1,2)", "(2,1)"),
        ("(1,2)", "2, 1"),
        ("(1,2)", "(1,2,3)"),
        ("[1,2]", "(1,2)"),
        ("[1,2]", "[1,2)"),
        ("(3,4]", "(3,4)"),
        (r"\{1,2,3\}", r"\{3,2\}"),
        ("x>5", r"x\ge5"),
        ("x>5", "x<5"),
        (r"(-\infty,-2)\cup(2,\infty)", r"(-\infty,-2]\cup(2,\infty)"),
        (r"(-\infty,-2)\cup(2,\infty)", "x<-2"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(2,1)"),
    ],
    "equations and inequalities": [
        ("x^2+y^2=4", "4"),
        ("x^2+y^2=4", "x^2+y^2=5"),
        ("y=2x+3", "2x"),
        ("x=5", "x=6"),
        (r"m \neq 2", "m=2"),
    ],
    "expressions": [
        ("x^2+C", "x^2"),
        ("x+1", "x+2"),
        ("5", "5x"),
        ("5x", "5"),
        ("x", "y"),
        (r"\frac{\pi}{2}", r"90^\circ"),
        (
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
            r"\begin{pmatrix} 1 & 2 \\ 4 & 3 \end{pmatrix}",
        ),
    ],
    "words and letters": [
        ("even", "neve"),
        (r"\text{even}", "odd"),
        ("No", "Yes, no doubt"),
        ("C", "D"),
        ("A", "a patient"),
        ("Evelyn", "5"),
        ("5", "Evelyn"),
        ("Yes", ""),
    ],
}


@pytest.mark.parametrize(("gold", "answer"), [pair for pairs in EQUAL.values() for pair in pairs])
def test_equal(gold: str, answer: str) -> None:
    """An answer in another form than the gold one's is right where it says the same."""
    assert equal(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), [pair for pairs in UNEQUAL.values() for pair in pairs])
def test_unequal(gold: str, answer: str) -> None:
    """An answer that says something else is wrong, however alike it looks."""
    assert not equal(gold, answer)


@pytest.mark.parametrize("gold", [pair[0] for pairs in (*EQUAL.values(), *UNEQUAL.values()) for pair in pairs])
def test_a_gold_is_equal_to_itself(gold: str) -> None:
    """Every form is equal to itself, in maths delimiters too."""
    assert equal(gold, gold)
    if "$" not in gold:
        assert equal(gold, f"${gold}$")


@pytest.mark.parametrize(
    ("rules", "metadata", "gold", "answer", "right"),
    [
        (Rules(list_order="same"), {}, "1, -2", "-2, 1", False),
        (Rules(list_order="same"), {}, "1, -2", "1, -2.0", True),
        (Rules(list_order="same"), {}, r"\{1, -2\}", r"\{-2, 1\}", True),
        (Rules(percent="value"), {}, r"10\%", "10", False),
        (Rules(percent="value"), {}, "10", r"10\%", False),
        (Rules(percent="value"), {}, r"10\%", "0.1", True),
        (Rules(percent="value"), {}, r"10\%", "10 percent", True),
        (Rules(units="ignored"), {}, "5 cm", "5 m", True),
        (Rules(units="ignored"), {}, "5 m", "500 cm", False),
        (USUAL, {"unit": "cm"}, "5", "5 m", False),
        (USUAL, {"unit": "cm"}, "500", "5 m", True),
        (USUAL, {"unit": "apples"}, "5", "5 pears", True),
        (Rules(relative_tolerance=0.01), {}, "4.5e33", r"4.52 \times 10^{33}", True),
        (Rules(relative_tolerance=0.01), {}, "4.5e33", r"4.6 \times 10^{33}", False),
        (Rules(relative_tolerance=0.01), {}, "3.14", r"\pi", True),
        (Rules(relative_tolerance=0.01), {}, "1.6", "1.571 cm", False),
        (Rules(relative_tolerance=0.02), {}, "1.6", "1.571 cm", True),
        (Rules(relative_tolerance=0.01), {}, "100", "101", True),
        (USUAL, {"relative_tolerance": 0.01}, "100", "101", True),
        (USUAL, {"tolerance": 1e-05}, "1.00000", "1.000009", True),
        (USUAL, {"tolerance": "1e-1"}, "1.5", "1.59", True),
        (USUAL, {"tolerance": "some", "relative_tolerance": "inf"}, "1.5", "1.59", False),
        (USUAL, {"tolerance": "1e-1"}, "2.7", "2.79", True),
        (USUAL, {"tolerance": "0.1"}, "2.7", "2.81", False),
        (USUAL, {"tolerance": "0.02"}, r"\sqrt{2}", "1.4", True),
    ],
)
def test_rules(rules: Rules, metadata: dict[str, Any], gold: str, answer: str, right: bool) -> None:
    """What users may decide otherwise, and what a problem says of its answer."""
    assert equal(gold, answer, rules, metadata) == right


@settings(deadline=None)
@given(st.fractions(max_denominator=10**6), st.sampled_from(["{n}/{d}", r"\frac{{{n}}}{{{d}}}", "x = {n}/{d}"]))
def test_fractions_are_exact(value: Fraction, form: str) -> None:
    """A fraction equals itself in any spelling, and no fraction beside it."""
    gold = f"{value.numerator}/{value.denominator}"
    assert equal(gold, form.format(n=value.numerator * 3, d=value.denominator * 3))
    beside = value + Fraction(1, 10)
    assert not equal(gold, form.format(n=beside.numerator, d=beside.denominator))


@settings(deadline=None)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_lists_have_no_order_and_tuples_have(values: list[int], random: Any) -> None:
    """A shuffled list is the same list; a shuffled tuple only where it is the same."""
    shuffled = random.sample(values, len(values))
    gold, answer = (", ".join(map(str, items)) for items in (values, shuffled))
    assert equal(gold, answer)
    assert equal(f"({gold})", f"({answer})") == (values == shuffled)


@settings(deadline=None)
@given(st.text(alphabet="x2+-=<>,(){}[]\\$%^_ .:m!frac", max_size=30))
def test_any_answer_is_compared(answer: str) -> None:
    """No text makes the comparison of forms fail, whatever compares the values."""
    for gold in ("5", "(1, 2]", "x=3, y=4", "10%", "5 m", answer):
        assert answers_equal(gold, answer, USUAL, {"unit": "cm"}, str.__eq__, lambda _: None) in (True, False)
