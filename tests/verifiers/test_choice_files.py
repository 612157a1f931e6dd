"""The choice verifier on every medical question there is: options stated in many ways, and two of them at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cruxtune.problems import ProblemSource, load_problems
from cruxtune.verifiers.choice import extract_choice
from cruxtune.verifiers.options import options

ROOT = Path(__file__).parents[2]
FILES = Path(os.environ.get("CRUXTUNE_BENCHMARKS", ROOT.parent / "shared" / "benchmarks"))

STATED = (
    "\\boxed{{{gold}}}",
    "So \\boxed{{\\text{{{gold_latex}}}}}.",
    "{other_text}, as all know, is wrong. So the answer is \\boxed{{{gold}}}.",
    "The answer is \\boxed{{{gold}}}.\n{other_text}, then, is wrong.",
    "Reasons are given.\n\n{gold_text}.",
    "Reasons are given.\n\n{gold}. {gold_text}",
    "The answer is ({gold}) {gold_text}.",
    "The answer is {gold} ({gold_text}).",
    "The answer is {gold} — {gold_text}.",
    "The answer is {gold_text}.",
    "This is most consistent with {gold_text}, I think",
)
TORN = (
    "The answer is ({other}) {gold_text}.",
    "The answer is ({other}) {gold_text}, because nothing else fits.",
    "I choose {other}: {gold_text}",
    "The answer is {other} ({gold_text}).",
    "\\boxed{{{gold} or {other}}}",
)
ODD = {
    "medqa": 5,  # The options of one question are the letters B, C, D and E.
    "mmlu_medical": 1,  # The options of one begin with 5’ and end with 3’, which reads as a mark around them.
    "pubmedqa": 0,
}
"""Texts that are judged otherwise."""


@pytest.mark.parametrize("name", ODD)
def test_options_are_found_however_they_are_stated(name: str) -> None:
    """The gold is found where it is stated, and nothing where another option is stated with it."""
    if not (FILES / name / "test.jsonl").is_file():
        pytest.skip(f"{name}/test.jsonl is not in {FILES} (set CRUXTUNE_BENCHMARKS to the benchmarks' directory)")
    source = ProblemSource(problems=f"benchmark:{name}", split="test")
    wrong = []
    for problem in load_problems(source, benchmarks_dir=FILES):
        known = options(problem.answer, problem.choices)
        place = known.letters.index(known.gold) if known.by_letter else list(known.texts).index(known.gold)
        next_one = (place + 1) % len(known.texts)
        said = {
            "gold": known.letters[place],
            "gold_text": known.texts[place],
            "gold_latex": known.texts[place].replace("%", "\\%"),
            "other": known.letters[next_one],
            "other_text": known.texts[next_one],
        }
        for template, answer in (*((text, known.name(place)) for text in STATED), *((text, None) for text in TORN)):
            text = template.format(**said)
            if (found := extract_choice(text, known)).answer != answer:
                wrong.append((problem.id, text, found))
        # A list of all options chooses none, whatever comes before it.
        listed = "\n".join(f"({letter}) {text}" for letter, text in zip(known.letters, known.texts, strict=True))
        assert extract_choice(listed, known).answer is None, listed
        assert extract_choice(f"\\boxed{{{said['gold']}}}\n\n{listed}", known).answer == known.name(place), listed
    assert len(wrong) == ODD[name], wrong
    assert len({problem for problem, *_ in wrong}) == min(1, ODD[name])
