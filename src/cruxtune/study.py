"""A study: one YAML file of tasks × methods × seeds, or of starts to search among. Nothing here imports torch.

A task is a recipe without methods (`cruxtune.recipe`): what all tasks share, with the task's own keys put in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from cruxtune.errors import ConfigError
from cruxtune.options import merged
from cruxtune.recipe import Recipe
from cruxtune.settings import Settings, explain

_GIVEN = ("output", "train", "expected_seconds")
"""Keys of a recipe that the study decides."""


class Task(Settings):
    """Problems, and how a start for them is made."""

    recipe: dict[str, Any] = Field(default_factory=dict, description="Keys of a recipe, put into those of the study.")


class Search(Settings):
    """Which starts are tried: every task with every length of the cold start."""

    coldstart: list[int] = Field(min_length=1, description="Problems of the cold start, ascending.")
    heldout: int = Field(150, gt=0, description="Problems that each start is evaluated on greedily.")
    respond: int = Field(80, gt=0, description="Problems to respond to, of whose correct responses some are annotated.")
    annotate: int = Field(25, gt=0, description="Correct responses to annotate.")
    positions: float | None = Field(
        None, gt=0, description="Ask about so many tokens of each response, or a share below 1; by default all."
    )
    alternatives: int = Field(4, gt=0, description="Count critical tokens for each k up to this.")
    accuracy: tuple[float, float] = Field(
        (0.4, 0.75),
        description="Annotate where the accuracy is in this range; above it, no longer cold start is tried.",
    )


class Study(Settings):
    """The file, section by section."""

    output: Path = Field(description="Working directory: checkpoints, responses, annotations. It may be deleted.")
    results: Path = Field(description="Directory of the results, a JSON for each cell. It is to be kept.")
    threads: int | None = Field(
        None, gt=0, description="Threads of torch; the same number gives the same bits on the same machine."
    )
    recipe: dict[str, Any] = Field(default_factory=dict, description="Keys of a recipe that all tasks share.")
    tasks: dict[str, Task] = Field(min_length=1, description="Tasks by name.")
    search: Search | None = Field(None, description="Search for a start instead.")

    def recipe_of(self, task: str, output: Path, **more: Any) -> Recipe:
        """Return the recipe of a task that writes to `output`, with `more` put in.

        Raises:
            ConfigError: it has wrong keys or values.
        """
        content = merged(_spelled_out(self.recipe), _spelled_out(self.tasks[task].recipe))
        if fixed := [name for name in _GIVEN if name in content]:
            raise ConfigError(f"tasks.{task}.recipe.{fixed[0]}: this follows from the study; leave it out")
        try:
            return Recipe.model_validate(merged(content, {"output": str(output), "train": {}, **more}))
        except ValidationError as error:
            raise ConfigError(f"tasks.{task}.recipe: {explain(error, '')}") from error


def read_study(path: Path, overrides: Mapping[str, Any]) -> Study:
    """Return the study of a YAML file with some values replaced.

    Raises:
        ConfigError: the file is missing, is no YAML, or has wrong values (all of them are listed).
    """
    if not path.is_file():
        raise ConfigError(f"the study {path} does not exist; check the path")
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise ConfigError(f"the study {path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the study {path} must be a mapping of sections; see recipes/studies for examples")
    try:
        return Study.model_validate(merged(content, overrides))
    except ValidationError as error:
        raise ConfigError(f"the study {path}: {explain(error, '')}") from error


def _spelled_out(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's keys, where names that stand for a section become that section."""
    first = {"model": "model", "problems": "problems", "heldout": "problems"}
    return {
        name: {first[name]: value} if name in first and isinstance(value, str) else value
        for name, value in recipe.items()
    }
