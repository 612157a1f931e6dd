"""What is held back to validate on: by question, by seed, and never more than leaves something to train on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cruxtune.errors import DataError
from cruxtune.examination import best_validation, without_gain
from cruxtune.recipe import plan, read_recipe
from cruxtune.records import Problem
from cruxtune.settings import build, flat
from cruxtune.stage_settings import ValidationSettings
from cruxtune.validation import draw, hold_back

ROOT = Path(__file__).parents[1]
QUESTIONS = st.lists(st.integers(0, 30), min_size=1, max_size=40)


def problems_of(numbers: list[int]) -> list[Problem]:
    """Problems of which those of one number ask the same, but for case and space."""
    return [Problem(f"p{place}", f"{'what' if place % 2 else 'What'} is {n} ?", "1") for place, n in enumerate(numbers)]


@given(numbers=QUESTIONS, wanted=st.one_of(st.floats(0.01, 0.99), st.integers(1, 30)), seed=st.integers(0, 3))
def test_no_question_is_on_both_sides(numbers: list[int], wanted: float, seed: int) -> None:
    """As many distinct questions are drawn as asked for, and every problem of theirs leaves training."""
    problems = problems_of(numbers)
    distinct = len(set(numbers))
    count = int(wanted) if wanted >= 1 else max(1, round(wanted * distinct))
    settings = build(ValidationSettings, {"validation": wanted})
    if count >= distinct:
        with pytest.raises(DataError, match=f"asks for {count} of {distinct} distinct problems"):
            hold_back(settings, problems, seed=seed)
        return
    held = hold_back(settings, problems, seed=seed)
    number_of = dict(zip((problem.id for problem in problems), numbers, strict=True))
    drawn = {number_of[problem.id] for problem in held.problems}
    assert len(held.problems) == len(drawn) == count
    assert held.left_out == {problem.id for problem in problems if number_of[problem.id] in drawn}


@given(numbers=st.lists(st.integers(0, 99), min_size=4, max_size=30, unique=True), seed=st.integers(0, 3))
def test_the_order_of_problems_does_not_decide(numbers: list[int], seed: int) -> None:
    """The same questions are drawn from any order, and more of them when more are asked for."""
    problems = problems_of(numbers)
    shuffled = random.Random(seed).sample(problems, len(problems))
    few, more = draw(problems, 2, seed), draw(problems, 3, seed)
    assert {problem.id for problem in draw(shuffled, 2, seed)} == {problem.id for problem in few}
    assert {problem.id for problem in few} < {problem.id for problem in more}


@given(
    numbers=st.lists(st.integers(0, 99), min_size=12, max_size=40, unique=True),
    part=st.integers(6, 11),
    n=st.integers(1, 5),
)
def test_who_trains_on_a_part_holds_back_all_that_is_held_back_of_the_whole(
    numbers: list[int], part: int, n: int
) -> None:
    """SFT of the responses that were right sees no problem on which GRPO of all problems is validated."""
    problems = problems_of(numbers)
    known = problems[:part]
    assert {one.id for one in draw(problems, n, 0)} & {one.id for one in known} <= {one.id for one in draw(known, n, 0)}


@pytest.mark.parametrize("name", ["rl-1gpu", "rl-8gpu"])
def test_recipes_validate_grpo_on_what_its_starts_have_not_seen(name: str) -> None:
    """All models of the recipe hold back as many problems, with one seed, and none is chosen by them."""
    steps = plan(read_recipe(ROOT / "recipes" / f"{name}.yaml", {}))
    held = [flat(step.settings) for step in steps if step.name.startswith(("train ", "rl "))]
    numbers = {(float(leaves["validation"]), leaves["seed"]) for leaves in held}
    assert len(held) == 5
    assert len(numbers) == 1
    assert [leaves["keep"] for leaves in held if "keep" in leaves] == ["last", "last"]


def test_seeds_draw_differently() -> None:
    """Two seeds hold back other problems."""
    problems = problems_of(list(range(30)))
    assert draw(problems, 5, 0) != draw(problems, 5, 1)


@given(accuracies=st.lists(st.sampled_from([0.0, 0.25, 0.5]), max_size=8))
def test_the_first_of_the_best_is_kept(accuracies: list[float]) -> None:
    """The best validation is the earliest of the highest accuracy, and what came after it had no gain."""
    history: list[dict[str, float]] = [{"step": 0, "eval_accuracy": 1.0}]
    for step, accuracy in enumerate(accuracies, 1):
        history += [{"step": step, "loss": 1.0}, {"step": step, "eval_accuracy": accuracy}]
    best = best_validation(history)
    if not accuracies:
        assert best is None
        assert without_gain(history) == 0
        return
    place = accuracies.index(max(accuracies))
    assert best == {"step": place + 1, "eval_accuracy": max(accuracies)}
    assert without_gain(history) == len(accuracies) - place - 1
