"""What the recipes are of: the paper's models and sets, as far as is known; and the page that says what a recipe is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cruxtune.benchmarks import benchmark_names
from cruxtune.recipe import Recipe, plan, read_recipe
from cruxtune.stage_settings import AnnotateSettings, EvaluateSettings, TrainSettings

ROOT = Path(__file__).parent.parent

PAPER = {
    "qwen2.5-3b": "Qwen/Qwen2.5-3B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "olmo-2-1b": "allenai/OLMo-2-0425-1B",
    "olmo-2-7b": "allenai/OLMo-2-1124-7B",
}


def recipe_of(name: str) -> Recipe:
    """The recipe of a name."""
    return read_recipe(ROOT / "recipes" / f"{name}.yaml", {})


@pytest.mark.parametrize("name", PAPER)
def test_models_of_the_paper_are_trained_as_it_says(name: str) -> None:
    """GSM8K's training problems, k = 2, three epochs, SFT and CFT of all parameters and LoRA, eleven benchmarks."""
    recipe = recipe_of(name)
    assert recipe.model.model == PAPER[name]
    assert (recipe.problems.problems, recipe.problems.split) == ("benchmark:gsm8k", "train")
    steps = {step.name: step.settings for step in plan(recipe)}
    annotate = steps["annotate"]
    assert isinstance(annotate, AnnotateSettings)
    assert annotate.alternatives == 2
    trained = {one.removeprefix("train "): found for one, found in steps.items() if isinstance(found, TrainSettings)}
    assert {(found.method, found.low_rank.lora) for found in trained.values()} == {
        (method, lora) for method in ("sft", "cft") for lora in (False, True)
    }
    assert {found.epochs for found in trained.values()} == {3}
    for method in ("start", *trained):
        of = {step.rpartition(" on ")[2] for step in steps if step.startswith(f"evaluate {method} on ")}
        assert {"gsm8k", *of} == set(benchmark_names("paper"))
        own = steps[f"evaluate {method}"]
        assert isinstance(own, EvaluateSettings)
    assert recipe.heldout is not None
    assert (recipe.heldout.problems, recipe.heldout.split) == ("benchmark:gsm8k", "test")


@pytest.mark.parametrize("name", ["medqa", "pubmedqa", "pubmedqa-smollm2"])
def test_medical_recipes_train_on_one_set_and_are_evaluated_on_three(name: str) -> None:
    """Each trains on the training split of the set that it is named after, and leaves out what is in a test."""
    recipe = recipe_of(name)
    own = name.partition("-")[0]
    assert (recipe.problems.problems, recipe.problems.split) == (f"benchmark:{own}", "train")
    assert recipe.heldout is not None
    assert (recipe.heldout.problems, recipe.heldout.split) == (f"benchmark:{own}", "test")
    assert {own, *benchmark_names(recipe.benchmarks or "")} == set(benchmark_names("medical"))
    assert benchmark_names(recipe.decontaminate or "") == benchmark_names("medical")
    # From the Hub, unless a directory is named.
    assert recipe.benchmarks_dir is None


def test_the_page_has_every_section_and_every_recipe() -> None:
    """docs/recipes.md names all keys of a recipe, and every file there is."""
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    sections = page.partition("## Sections")[2].partition("## Those")[0]
    named = [
        name for row in re.findall(r"^\| (`[^|]+) \|", sections, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    assert sorted(named) == sorted(Recipe.model_fields)
    assert {path.name for path in (ROOT / "recipes").glob("*.yaml")} == set(
        re.findall(r"\(\.\./recipes/([^/)]+\.yaml)\)", page)
    )
