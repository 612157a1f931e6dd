"""A study: one YAML file of tasks × methods × seeds, or of starts to search among. Nothing here imports torch.

A task is a recipe without methods (`cruxtune.recipe`): what all tasks share, with the task's own keys put in. What is
computed are units, each with a JSON in the directory of results; one that is there is not computed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from cruxtune.errors import ConfigError
from cruxtune.options import merged
from cruxtune.recipe import START, Recipe
from cruxtune.settings import S, Settings, explain

COLDSTART, ANNOTATIONS, TUNE = "coldstart", "annotations", "tune"

_FOLLOWS = "this follows from the study; leave it out"
_REFUSED = {
    **dict.fromkeys(("output", "train", "expected_seconds"), _FOLLOWS),
    "benchmarks": "a study evaluates on heldout alone; leave it out, and ask `cruxtune evaluate --benchmarks` of the "
    "models that keep_checkpoints keeps",
    "rl": "a study of reinforcement learning is a file of its own, which names this one; leave it out",
}
"""Keys of a recipe that the study decides, or has no use for, and why."""

_GIVEN_OF_METHODS = ("output", "overwrite", "seed", "learning_rate", "annotations", "selection", "model")
"""Keys of a model to train that the study decides."""


class Task(Settings):
    """Problems, how a start for them is made, and how often each method trains from it."""

    recipe: dict[str, Any] = Field(default_factory=dict, description="Keys of a recipe, put into those of the study.")
    seeds: dict[str, int] = Field(default_factory=dict, description="method: number of seeds, which count from 0.")
    start_hash: str | None = Field(
        None, description="SHA-256 of the start's weights (model.safetensors), which a rebuilt start must have."
    )


class Tuning(Settings):
    """How the learning rate of each method is chosen: by accuracy on problems of a split of its own; ties: the smaller.

    Every method has the same values to choose from, one model for each of them, and the same problems.
    """

    learning_rates: list[float] = Field(min_length=1, description="Values to choose from.")
    problems: int = Field(gt=0, description="Problems of the validation split, answered greedily.")
    seed: int = Field(1000, ge=0, description="Seed of the models that are compared; none of the study's own.")


class Power(Settings):
    """What is assumed of verdicts, to say beforehand which differences the sizes of the study can detect."""

    disagreement: float = Field(ge=0, le=1, description="Share of problems on which runs of two methods disagree.")
    between_seeds: float = Field(ge=0, le=1, description="Share of problems on which two seeds of a method disagree.")
    seed_deviation: float = Field(
        ge=0, description="Standard deviation over seeds of the accuracy on endless problems."
    )


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
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="A method by name: keys of a model to train of a recipe."
    )
    tuning: Tuning | None = Field(None, description="How learning rates are chosen.")
    power: Power | None = Field(None, description="Assumptions for the smallest difference that can be detected.")
    keep_checkpoints: bool = Field(
        False, description="Keep the models that were trained, once their results are there."
    )
    expected_minutes: dict[str, float] = Field(
        default_factory=dict, description="Pattern of the names of units: minutes that one takes; the first that fits."
    )
    search: Search | None = Field(None, description="Search for a start instead.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.search is not None:
            if self.methods:
                raise ValueError("a search has no methods; leave one of search and methods out")
            return self
        if not self.methods or self.tuning is None:
            raise ValueError("methods and tuning are missing (or search, for a search); name what is compared")
        for name, keys in self.methods.items():
            if name in (START, COLDSTART, ANNOTATIONS) or name.startswith(f"{TUNE}-"):
                raise ValueError(f"methods.{name}: this name is taken by a unit of every study; choose another")
            if fixed := [key for key in _GIVEN_OF_METHODS if key in keys]:
                raise ValueError(f"methods.{name}.{fixed[0]}: {_FOLLOWS}")
        for task, of in self.tasks.items():
            if unknown := [name for name in of.seeds if name not in self.methods]:
                raise ValueError(f"tasks.{task}.seeds.{unknown[0]}: there is no such method; define it in methods")
            if few := [name for name, number in of.seeds.items() if number < 1]:
                raise ValueError(f"tasks.{task}.seeds.{few[0]}: at least one seed is needed; or leave it out")
            if any(number > self.tuning.seed for number in of.seeds.values()):
                raise ValueError(f"tuning.seed {self.tuning.seed} is one of the study's own; choose a larger one")
        return self

    def minutes(self, name: str) -> float | None:
        """Return how long a unit is expected to take."""
        return expected(self.expected_minutes, name)

    def recipe_of(self, task: str, output: Path, **more: Any) -> Recipe:
        """Return the recipe of a task that writes to `output`, with `more` put in.

        Raises:
            ConfigError: it has wrong keys or values.
        """
        content = merged(_spelled_out(self.recipe), _spelled_out(self.tasks[task].recipe))
        if refused := [name for name in _REFUSED if name in content]:
            raise ConfigError(f"tasks.{task}.recipe.{refused[0]}: {_REFUSED[refused[0]]}")
        try:
            return Recipe.model_validate(merged(content, {"output": str(output), "train": {}, **more}))
        except ValidationError as error:
            raise ConfigError(f"tasks.{task}.recipe: {explain(error, '')}") from error


@dataclass(frozen=True)
class Unit:
    """What is computed at once, and has a result of its own.

    coldstart: the start; annotations: of the start's responses; tune: one learning rate of a method; cell: one method
    and seed (or the start), trained and evaluated.
    """

    task: str
    kind: Literal["coldstart", "annotations", "tune", "cell"]
    method: str = START
    seed: int = 0
    learning_rate: float | None = None

    @property
    def label(self) -> str:
        """The unit's name within its task.

        >>> Unit("sums", "tune", "cft", 1000, 1e-5).label, Unit("sums", "cell", "cft", 2).label
        ('tune-cft-1e-05', 'cft-2')
        """
        if self.kind == "tune":
            return f"{TUNE}-{self.method}-{self.learning_rate:g}"
        if self.kind == "cell":
            return self.method if self.method == START else f"{self.method}-{self.seed}"
        return self.kind

    @property
    def name(self) -> str:
        """How it is called: what --only is matched with."""
        return f"{self.task}/{self.label}"


def units(study: Study) -> list[Unit]:
    """Return the units of a study in order: of each task start, annotations, learning rates, cells seed by seed.

    A study that is stopped has a seed of every method before it has two of one.
    """
    assert study.tuning is not None
    found = []
    for name, task in study.tasks.items():
        found += [Unit(name, "coldstart"), Unit(name, "annotations"), Unit(name, "cell")]
        found += [
            Unit(name, "tune", method, study.tuning.seed, rate)
            for method in task.seeds
            for rate in study.tuning.learning_rates
        ]
        found += [
            Unit(name, "cell", method, seed)
            for seed in range(max(task.seeds.values(), default=0))
            for method, number in task.seeds.items()
            if seed < number
        ]
    return found


def result_file(study: Study, unit: Unit) -> Path:
    """Return where the result of a unit is."""
    return study.results / unit.task / f"{unit.label}.json"


def read_study(path: Path, overrides: Mapping[str, Any]) -> Study:
    """Return the study of a YAML file with some values replaced.

    Raises:
        ConfigError: the file is missing, is no YAML, or has wrong values (all of them are listed).
    """
    return validated(Study, path, merged(read_sections(path), overrides))


def read_sections(path: Path) -> dict[str, Any]:
    """Return what the file of a study says, as it stands.

    Raises:
        ConfigError: the file is missing, or is no YAML with sections.
    """
    if not path.is_file():
        raise ConfigError(f"the study {path} does not exist; check the path")
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise ConfigError(f"the study {path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the study {path} must be a mapping of sections; see recipes/studies for examples")
    return content


def validated(kind: type[S], path: Path, content: Mapping[str, Any]) -> S:
    """Return the content of a study's file as settings.

    Raises:
        ConfigError: it has wrong values (all of them are listed).
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"the study {path}: {explain(error, '')}") from error


def expected(minutes: Mapping[str, float], name: str) -> float | None:
    """Return how long the unit of this name is expected to take: by the first pattern that fits."""
    return next((value for pattern, value in minutes.items() if fnmatchcase(name, pattern)), None)


def _spelled_out(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's keys, where names that stand for a section become that section."""
    first = {"model": "model", "problems": "problems", "heldout": "problems"}
    return {
        name: {first[name]: value} if name in first and isinstance(value, str) else value
        for name, value in recipe.items()
    }
