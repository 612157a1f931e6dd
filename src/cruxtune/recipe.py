"""A recipe: one YAML file that names model, data and methods, and from which every stage's settings follow.

Sections have the names of the stages and the keys of their flags: `max_new_tokens` is `--max-new-tokens`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from cruxtune.benchmarks import BENCHMARK, BENCHMARKS, BenchmarkList, benchmark_names
from cruxtune.errors import ConfigError
from cruxtune.options import merged
from cruxtune.problems import ProblemSource
from cruxtune.rl_settings import RlSettings
from cruxtune.settings import (
    DecodingSettings,
    EngineSettings,
    ModelSettings,
    PromptSettings,
    S,
    Settings,
    VerifierSettings,
    build,
    explain,
)
from cruxtune.stage_settings import (
    SELECT_METHODS,
    AnnotateSettings,
    CompareSettings,
    EvaluateSettings,
    RespondSettings,
    SelectSettings,
    TrainSettings,
)

START = "start"

_BY_NAME = {"model": "model", "problems": "problems", "heldout": "problems"}
"""Sections that may be a text, and the field that it is."""

_SELECT_KEYS = SelectSettings.model_fields.keys() - {"annotations", "output"}
"""Keys of a model to train that are those of its selection."""


class Splits(Settings):
    """How many problems go where; the splits never share a question."""

    coldstart: int | None = Field(None, gt=0, description="Problems whose worked solutions the cold start trains on.")
    train: int | None = Field(None, gt=0, description="Problems to respond to; by default all that are left.")
    heldout: int | None = Field(None, gt=0, description="Problems to evaluate on.")


class Recipe(Settings):
    """The file, section by section. A text where `model` or `problems` has several fields is its first one."""

    output: Path = Field(description="Directory of the whole run.")
    model: ModelSettings = Field(description="The policy.")
    problems: ProblemSource = Field(description="Problems to train on.")
    heldout: ProblemSource | None = Field(
        None, description="Problems to evaluate on; by default a split of `problems`."
    )
    splits: Splits = Splits()
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    skip_bad: bool = Field(False, description="Leave out problems without a usable gold answer.")
    decontaminate: BenchmarkList = Field(
        None, description="Leave out problems that occur in these benchmarks, e.g. gsm8k,math or paper."
    )
    benchmarks: BenchmarkList = Field(
        None, description="Evaluate on these benchmarks, too, and compare on each, e.g. math,svamp or medical."
    )
    benchmarks_dir: Path | None = Field(
        None, description="Directory with the files of benchmarks; by default they are loaded from their sources."
    )
    prompt: PromptSettings = PromptSettings()
    verifier: VerifierSettings = VerifierSettings()
    decoding: DecodingSettings = DecodingSettings()
    engine: EngineSettings = EngineSettings()
    coldstart: dict[str, Any] | None = Field(
        None, description="Keys of `cruxtune train --method gold`; none: no cold start."
    )
    respond: dict[str, Any] = Field(default_factory=dict, description="Keys of `cruxtune respond`.")
    annotate: dict[str, Any] = Field(default_factory=dict, description="Keys of `cruxtune annotate`.")
    train: dict[str, dict[str, Any]] = Field(
        description="A model to train for each name: keys of `cruxtune train`, whose `method` may also be one of "
        "`cruxtune select`, with that command's keys."
    )
    validation: dict[str, Any] = Field(
        default_factory=dict,
        description="Keys of `cruxtune train` for every model to train (not the cold start), of which validation may "
        "stand alone: 0.1.",
    )
    rl: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="A model to train by reinforcement for each name: keys of `cruxtune rl`, and `from`, the name of "
        "the model to start from (one of `train`, or start).",
    )
    evaluate: dict[str, Any] = Field(default_factory=dict, description="Keys of `cruxtune evaluate`.")
    expected_seconds: dict[str, float] = Field(
        default_factory=dict, description="Seconds that each step took elsewhere, to tell the time left."
    )

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @field_validator("validation", mode="before")
    @classmethod
    def _validation_by_value(cls, value: Any) -> Any:
        return {"validation": value} if isinstance(value, (int, float, str)) else value

    @field_validator("problems", "heldout", mode="before")
    @classmethod
    def _problems_by_name(cls, value: Any) -> Any:
        return {"problems": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class Step:
    """One stage of a plan: its name (unique in the plan), where it writes, and its settings."""

    name: str
    stage: str
    settings: BaseModel


def read_recipe(path: Path, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a YAML file with some values replaced.

    Raises:
        ConfigError: the file is missing, is no YAML, or has wrong values (all of them are listed).
    """
    if not path.is_file():
        raise ConfigError(f"the recipe {path} does not exist; check the path")
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise ConfigError(f"the recipe {path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the recipe {path} must be a mapping of sections; see recipes/ for examples")
    # Spelled out, so that an override of model.dtype does not replace a model that is given by its name alone.
    for name, first in _BY_NAME.items():
        if isinstance(content.get(name), str):
            content[name] = {first: content[name]}
    content = merged(content, overrides)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"the recipe {path}: {explain(error, '')}{_hint(content)}") from error


def plan(recipe: Recipe, *, only: str | None = None, limit: int | None = None, overwrite: bool = False) -> list[Step]:
    """Return the steps of a recipe in order, with the settings of each; `limit` caps the problems of each benchmark.

    With `only`, those whose names match this pattern.

    Raises:
        ConfigError: a section has wrong keys or values (all sections' errors are listed), or no step matches.
    """
    root = recipe.output
    errors: list[str] = []

    def settings(kind: type[S], section: str, leaves: Mapping[str, Any], folder: str) -> S | None:
        if fixed := [name for name in ("output", "overwrite") if name in leaves]:
            errors.extend(f"{section}.{name}: later steps read what is in the run's own directory" for name in fixed)
            return None
        try:
            where = {"output": root / folder, "seed": recipe.seed, "overwrite": overwrite}
            return build(kind, {**where, **leaves}, section)
        except ConfigError as error:
            errors.append(str(error))
            return None

    engine = recipe.engine.model_dump()
    conditions = {**recipe.prompt.model_dump(), **recipe.verifier.model_dump(), **recipe.decoding.model_dump()}
    common = {**conditions, **engine}
    prompt = recipe.prompt.model_dump()
    model = recipe.model.model_dump()
    wanted: list[tuple[str, str, BaseModel | None]] = []
    if recipe.coldstart is not None:
        leaves = {**prompt, **model, "problems": str(split_file(root, "coldstart")), **recipe.coldstart}
        if recipe.coldstart.get("validation") is not None:
            leaves = {**recipe.verifier.model_dump(), **recipe.decoding.model_dump(), **leaves}
        wanted.append(
            ("coldstart", "train", settings(TrainSettings, "coldstart", {"method": "gold", **leaves}, "models/start"))
        )
        model = {"model": str(root / "models" / START), "dtype": recipe.model.dtype, "device": recipe.model.device}
    leaves = {**common, **model, "problems": str(split_file(root, "train"))}
    wanted.append(
        (
            "respond",
            "respond",
            settings(
                RespondSettings, "respond", {**leaves, "skip_bad": recipe.skip_bad, **recipe.respond}, "responses"
            ),
        )
    )
    leaves = {"responses": root / "responses", **engine, **recipe.annotate}
    wanted.append(("annotate", "annotate", settings(AnnotateSettings, "annotate", leaves, "annotations")))
    for name, section in recipe.train.items():
        where, source = f"train.{name}", {"annotations": root / "annotations"}
        if section.get("method") in SELECT_METHODS:
            # What a selection draws at random depends on the model's seed, as its training does.
            drawn = {"seed": section["seed"]} if "seed" in section else {}
            leaves = {**source, **drawn, **{key: value for key, value in section.items() if key in _SELECT_KEYS}}
            section = {key: value for key, value in section.items() if key not in _SELECT_KEYS}
            source = {"selection": root / "selections" / name}
            wanted.append((f"select {name}", "select", settings(SelectSettings, where, leaves, f"selections/{name}")))
        # What another model annotated trains the policy all the same.
        policy = model if "model" in recipe.annotate else {}
        leaves = {**source, **prompt, **policy, **recipe.validation, **section}
        wanted.append((f"train {name}", "train", settings(TrainSettings, where, leaves, f"models/{name}")))
    for name, section in recipe.rl.items():
        origin = section.get("from", START)
        if origin not in (START, *recipe.train):
            errors.append(f"rl.{name}.from: {origin!r} is neither {START} nor a name in train")
        leaves = {key: value for key, value in section.items() if key != "from"}
        leaves = {**conditions, **_trained(model, root, origin), "problems": str(split_file(root, "train")), **leaves}
        leaves = {"method": "grpo", **leaves}
        wanted.append((f"rl {name}", "rl", settings(RlSettings, f"rl.{name}", leaves, f"models/{name}")))
    names = [START, *recipe.train, *recipe.rl]
    benchmarks = benchmark_names(recipe.benchmarks) if recipe.benchmarks is not None else ()
    if taken := [section for section in ("train", "rl") if START in getattr(recipe, section)]:
        errors.append(f"{taken[0]}.{START}: this name is taken by the model that training starts from; choose another")
    if both := sorted(recipe.train.keys() & recipe.rl.keys()):
        errors.append(f"rl.{both[0]}: this name is one of train, too; choose another")
    for name in names:
        trained, heldout = _trained(model, root, name), str(split_file(root, "heldout"))
        leaves = {**common, **trained, "problems": heldout, **recipe.evaluate}
        wanted.append(
            (f"evaluate {name}", "evaluate", settings(EvaluateSettings, "evaluate", leaves, f"evaluations/{name}"))
        )
        for benchmark in benchmarks:
            # Each has its own examples for base models, as `evaluate --benchmarks` has it.
            examples = {
                "examples": BENCHMARKS[benchmark].examples,
                "shots": None,
                "benchmarks_dir": recipe.benchmarks_dir,
            }
            test = {"problems": BENCHMARK + benchmark, "split": "test", **({"limit": limit} if limit else {})}
            asked = {**leaves, **examples, **recipe.evaluate, **test}
            built = settings(EvaluateSettings, "evaluate", asked, f"benchmarks/{benchmark}/{name}")
            wanted.append((f"evaluate {name} on {benchmark}", "evaluate", built))
    if errors:
        raise ConfigError("; ".join(dict.fromkeys(errors)))
    steps = [Step(name, stage, built) for name, stage, built in wanted if built is not None]
    places = {"compare": (root / "evaluations", root / "comparison")}
    places |= {f"compare on {name}": (root / "benchmarks" / name, root / "benchmarks" / name) for name in benchmarks}
    for title, (parent, output) in places.items():
        evaluations = {name: [parent / name] for name in names}
        steps.append(Step(title, "compare", CompareSettings(evaluations=evaluations, output=output, seed=recipe.seed)))
    matching = [step for step in steps if fnmatch(step.name, only or "*")]
    if not matching:
        raise ConfigError(f"--only {only} matches no step; they are {', '.join(step.name for step in steps)}")
    return matching


def _trained(start: Mapping[str, Any], root: Path, name: str) -> dict[str, Any]:
    """Return the fields of a model that the recipe trains, or of the one that training starts from."""
    if name == START:
        return dict(start)
    return {**start, "model": str(root / "models" / name), "adapter": None, "revision": None}


def split_file(root: Path, name: str) -> Path:
    """Return where the problems of a split are."""
    return root / "problems" / f"{name}.jsonl"


def _hint(content: Mapping[str, Any]) -> str:
    for key in content:
        if key not in Recipe.model_fields and (
            near := difflib.get_close_matches(str(key), list(Recipe.model_fields), 1)
        ):
            return f" (did you mean {near[0]} instead of {key}?)"
    return ""
