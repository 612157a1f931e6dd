"""Worked solutions of reasoning-gym's tasks, in every style."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from cruxtune.errors import ConfigError
from cruxtune.problems import ProblemSource, load_problems
from cruxtune.verifiers import Verifier
from cruxtune.worked import Style

TASKS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 1, "max_terms": 5, "allow_negation": True},
    "word_sequence_reversal": {"min_words": 1},
    "word_sorting": {"min_words": 2},
    "letter_counting": {},
}


@pytest.mark.parametrize("style", get_args(Style))
def test_worked_solutions_are_correct_responses(style: Style) -> None:
    """The verifier finds the answer that a worked solution states, and finds it correct."""
    problems = [
        problem
        for task, gym in TASKS.items()
        for problem in load_problems(
            ProblemSource(problems=f"gym:{task}", gym=gym, size=12, solution_style=style), seed=5
        )
    ]
    with Verifier() as verifier:
        verdicts = verifier.verify_many([(problem.solution or "", problem) for problem in problems])
    assert [p.solution for p, verdict in zip(problems, verdicts, strict=True) if not verdict.correct] == []


def test_sentences_are_worded_in_several_ways_and_always_the_same_for_a_problem() -> None:
    """Wording depends on the question alone."""
    source = ProblemSource(problems="gym:chain_sum", size=40, solution_style="sentences")
    first, again = load_problems(source), load_problems(source, limit=20)
    assert [p.solution for p in first[:20]] == [p.solution for p in again]
    assert len({(p.solution or "").split()[0] for p in first}) == 4


def test_a_style_without_solutions_is_refused() -> None:
    """A task that we have no worked solutions for says so."""
    with pytest.raises(ConfigError, match="--solution-style sentences: there are no worked solutions of ours"):
        load_problems(ProblemSource(problems="gym:leg_counting", solution_style="sentences"))
