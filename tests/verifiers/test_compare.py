r"""Verdicts, judged in this process."""

import json
import random
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cruxtune.errors import VerifierError
from cruxtune.records import Problem, Verdict
from cruxtune.verifiers.compare import judge, math_equal

BENCHMARKS = Path(__file__).parents[3] / "shared" / "benchmarks"


def problem(answer: str, kind: str = "math", choices: list[str] | None = None, **metadata: Any) -> Problem:
    """Return a problem of which only the answer matters."""
    return Problem(id="p", question="?", answer=answer, kind=kind, choices=choices, metadata=metadata)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "18.00"),
        ("18", "$18"),
        ("18", r"\$18"),
        ("2,125", "2125"),
        ("2125", r"2\,125"),
        ("145.0", "145"),
        (".5", "0.50"),
        ("0.5", r"\frac{1}{2}"),
        ("1/2", "0.5"),
        ("1/2", r"\frac12"),
        ("1/3", "0.333333"),
        ("50", "50%"),
        ("50%", "0.5"),
        ("0.25", r"25\%"),
        ("9 (apples)", "9"),
        ("5:45", "5:45"),
        ("$28$", "28"),
        (r"$\frac{1+\sqrt{2}}{2}$", r"\frac{\sqrt{2}+1}{2}"),
        ("x^2-1", "(x-1)(x+1)"),
        ("b ^ { 2 } - 9 a ^ { 2 }", "b^2-9a^2"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        ("5", "x = 5"),
        ("90", r"90^\circ"),
        ("(1,2)", "(1, 2)"),
        ("$48$, $384$", "384, 48"),
        (r"\text{Evelyn}", "Evelyn"),
        ("Yes", "yes"),
        ("4.5e33", r"4.5 \times 10^{33}"),
        ("4e400", "40e399"),
        ("1e999999999", "1e999999999"),
        ("−7", "-7"),
        ("1" * 1500, "1" * 1500 + ".0"),
        ("123456789012345678901234567890.5", "123456789012345678901234567890.50"),
    ],
)
def test_equal(gold: str, answer: str) -> None:
    """Different ways of writing one value are equal."""
    assert math_equal(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "-18"),
        ("1000000", "1000001"),
        ("12345678901234567890", "12345678901234567891"),
        ("1e-10", "2e-10"),
        ("3.14", "3.14159"),
        ("1/3", "0.33"),
        ("4.5e33", "4.5"),
        ("4e400", "9e999"),  # both infinite as floats
        ("4e400", "4e401"),
        ("1e-400", "1e-999"),  # both zero as floats
        ("4e4000", "9e999999999"),
        ("12", "1e999999999"),
        ("1" * 3000, "1" * 2999 + "2"),
        ("1", "1:10 P.M."),
        ("5:45", "5:46"),
        ("(1,2)", "(2,1)"),
        ("x+1", "x-1"),
        ("Yes", "no"),
        ("18", "eighteen"),
        ("18", r"\frac{"),
    ],
)
def test_unequal(gold: str, answer: str) -> None:
    """Different values are not equal, and neither is what cannot be parsed."""
    assert not math_equal(gold, answer)


@settings(deadline=None)  # the first example may wait for imports
@given(st.decimals(-(10**9), 10**9, places=3), st.decimals(-(10**9), 10**9, places=3))
def test_decimals_are_compared_by_value(one: Any, two: Any) -> None:
    """Plain decimals are equal just when their values are, in both orders, with and without commas."""
    assert math_equal(str(one), f"{one:,}")
    assert math_equal(str(one), str(two)) == math_equal(f"{two:,}", str(one)) == (one == two)


@pytest.mark.parametrize(
    ("text", "of", "verdict"),
    [
        ("2 * 9 = 18\n#### 18", problem("18"), Verdict(True, "18", "hash")),
        ("It makes 18.", problem("18"), Verdict(True, "18", "last-number")),
        ("It makes 19.", problem("18"), Verdict(False, "19", "last-number")),
        ("?", problem("18"), Verdict(False, None, "no-answer")),
        ("The answer is (B).", problem("B", "choice", ["x", "y"]), Verdict(True, "B", "phrase")),
        ("The answer is y.", problem("B", "choice", ["x", "y"]), Verdict(True, "B", "phrase")),
        ("#### A", problem("y", "choice", ["x", "y"]), Verdict(False, "x", "hash")),
        ("I take B then", problem("B", "choice", ["x", "y"]), Verdict(True, "B", "last-letter")),
        ("Maybe.", problem("maybe", "choice"), Verdict(True, "maybe", "line")),
        ("the answer is “new  york”.", problem("New York", "exact"), Verdict(True, "new  york", "phrase")),
        ("New Jersey", problem("New York", "exact"), Verdict(False, "New Jersey", "last-line")),
    ],
)
def test_judge(text: str, of: Problem, verdict: Verdict) -> None:
    """A verdict says whether the answer is right, what it is and what decided."""
    assert judge(text, of) == verdict


def test_judge_strict() -> None:
    """A strict verdict is incorrect without an explicit form, of whatever kind the problem is."""
    for of in (problem("18"), problem("B", "choice", ["x", "y"]), problem("18", "exact")):
        assert judge("I take B and 18", of, strict=True) == Verdict(False, None, "no-answer")


def test_unknown_kind() -> None:
    """A kind that no verifier knows is the user's to correct."""
    with pytest.raises(VerifierError, match="kind 'essay'"):
        judge("text", problem("18", "essay"))


def gym_problem(task: str, index: int, config: Mapping[str, Any]) -> Problem:
    """Return a reasoning-gym problem as a file would hold it: after a trip through JSON."""
    import reasoning_gym

    entry = json.loads(json.dumps(reasoning_gym.create_dataset(task, **config)[index]))
    return problem(entry["answer"], "gym", dataset=task, config=dict(config), entry=entry)


@pytest.mark.parametrize(
    "task", ["ab", "basic_arithmetic", "chain_sum", "countdown", "mini_sudoku", "rearc", "word_sorting"]
)
def test_gym_gold_is_correct(task: str) -> None:
    """The gold answer scores, whatever JSON made of the entry; a damaged one does not."""
    of = gym_problem(task, 0, {"size": 1, "seed": 7})
    assert judge(f"Let me see.\n#### {of.answer}", of) == Verdict(True, of.answer, "hash")
    assert not judge(f"Let me see.\n#### {of.answer}7", of).correct
    assert judge("", of) == Verdict(False, None, "no-answer")


def test_gym_partial_score_is_incorrect() -> None:
    """An answer for which the scorer gives part of the mark is not correct."""
    of = gym_problem("chain_sum", 0, {"size": 1, "seed": 7})
    assert not judge(f"#### {of.answer} or so", of).correct


def test_gym_without_entry() -> None:
    """A gym problem without its entry, or of an unknown task, is named in the error."""
    with pytest.raises(VerifierError, match="lacks `dataset`"):
        judge("#### 1", problem("1", "gym"))
    with pytest.raises(VerifierError, match="no_such_task"):
        judge("#### 1", problem("1", "gym", dataset="no_such_task", config={}, entry={"answer": "1"}))


def benchmark(name: str, rows: int) -> list[Problem]:
    """Return a sample of a benchmark's problems; skip the test where the file is absent."""
    path = BENCHMARKS / name
    if not path.exists():
        pytest.skip(f"benchmark file {name} is not there")
    with path.open() as file:
        loaded = [json.loads(line) for line in islice(file, rows)]
    return [problem(row["answer"], "choice" if row.get("choices") else "math", row.get("choices")) for row in loaded]


@pytest.mark.parametrize(
    ("name", "rows", "share"),
    [
        ("gsm8k/test.jsonl", 200, 1.0),
        ("svamp/test.jsonl", 1000, 1.0),
        ("mawps/test.jsonl", 200, 1.0),
        ("math500/test.jsonl", 500, 0.995),
        ("tabmwp/test.jsonl", 300, 0.98),
        ("medqa/test.jsonl", 200, 1.0),
    ],
)
@pytest.mark.parametrize("form", ["#### {}", "\\boxed{{{}}}", "Hence the answer is {}."])
def test_gold_of_benchmarks(name: str, rows: int, share: float, form: str) -> None:
    """A benchmark's gold answers verify against themselves, in each explicit form."""
    problems = benchmark(name, rows)
    wrong = [of.answer for of in problems if not judge(form.format(of.answer), of, strict=True).correct]
    assert 1 - len(wrong) / len(problems) >= share, wrong


@pytest.mark.parametrize("name", ["gsm8k/test.jsonl", "svamp/test.jsonl"])
def test_other_gold_is_incorrect(name: str) -> None:
    """The gold answer of another problem is correct only where it is the same number."""
    problems = benchmark(name, 200)
    others = random.Random(0).sample(problems, len(problems))
    for of, other in zip(problems, others, strict=True):
        same = float(of.answer.replace(",", "")) == float(other.answer.replace(",", ""))
        assert judge(f"#### {other.answer}", of).correct == same
