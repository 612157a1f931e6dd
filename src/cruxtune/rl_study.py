"""A study of reinforcement learning: arms × seeds, from models of another study. Nothing here imports torch.

What is computed are runs, each with a JSON in the directory of results; one that is there is not computed again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from cruxtune.errors import ConfigError
from cruxtune.options import merged
from cruxtune.recipe import START
from cruxtune.settings import Settings
from cruxtune.study import Study, Unit, expected, read_sections, read_study, validated

_GIVEN = ("output", "overwrite", "seed", "model", "problems", "from", "validation", "validation_source")
"""Keys of `cruxtune rl` that the study decides."""


class Arm(Settings):
    """One way to spend compute: where reinforcement learning starts, and how long it goes on."""

    origin: str = Field(alias="from", description="A method of the study that is gone on from, or start.")
    compute_of: str | None = Field(
        None,
        description="Take so many more steps that all compute comes to that of this arm: its annotation, its training "
        "and its reinforcement learning.",
    )
    most_steps: int | None = Field(None, gt=0, description="Take no more steps than that, with --compute-of.")
    seeds: int | None = Field(None, gt=0, description="Runs of this arm, where there are fewer than of others.")


class RlStudy(Settings):
    """The file, section by section."""

    study: Path = Field(description="File of the study whose models are gone on from, beside this file.")
    task: str = Field(description="Its task.")
    output: Path = Field(description="Working directory: checkpoints, evaluations. It may be deleted.")
    results: Path = Field(description="Directory of the results, a JSON for each run. It is to be kept.")
    keep_checkpoints: bool = Field(
        False,
        description="Keep the model of each run with its log, and those that it went on from.",
    )
    threads: int | None = Field(None, gt=0, description="Threads of torch.")
    arms: dict[str, Arm] = Field(min_length=1, description="Arms by name.")
    seeds: int = Field(gt=0, description="Runs of each arm; run s goes on from the method's model of seed s.")
    validation_problems: int = Field(
        gt=0,
        description="Problems of the study's validation split that are examined; GRPO trains on the rest of it, which "
        "no model was trained on.",
    )
    rl: dict[str, Any] = Field(description="Keys of `cruxtune rl`, the same for all arms; steps are needed.")
    expected_minutes: dict[str, float] = Field(
        default_factory=dict, description="Pattern of the names of runs: minutes that one takes; the first that fits."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if fixed := [name for name in _GIVEN if name in self.rl]:
            raise ValueError(f"rl.{fixed[0]}: this follows from the study; leave it out")
        if "steps" not in self.rl:
            raise ValueError("rl.steps is missing; say how many steps a run has")
        before: list[str] = []
        for name, arm in self.arms.items():
            other = arm.compute_of
            if other is not None and (other not in before or self.arms[other].compute_of is not None):
                raise ValueError(f"arms.{name}.compute_of: {other} is no arm above with steps of its own")
            if arm.most_steps is not None and other is None:
                raise ValueError(f"arms.{name}.most_steps: this arm has rl.steps; leave it out")
            most = self.seeds if other is None else self.seeds_of(other)
            if self.seeds_of(name) > most:
                whose = "seeds" if other is None else f"{other}, whose compute it takes,"
                raise ValueError(f"arms.{name}.seeds: {whose} has {most}; give it no more")
            before.append(name)
        return self

    def seeds_of(self, arm: str) -> int:
        """Return how many runs an arm has."""
        return self.arms[arm].seeds or self.seeds

    def minutes(self, name: str) -> float | None:
        """Return how long a run is expected to take."""
        return expected(self.expected_minutes, name)


@dataclass(frozen=True)
class Run:
    """What is computed at once: one arm with one seed, trained and evaluated."""

    task: str
    arm: str
    seed: int

    @property
    def label(self) -> str:
        """The run's name within its task."""
        return f"{self.arm}-{self.seed}"

    @property
    def name(self) -> str:
        """How it is called: what --only is matched with.

        >>> Run("sums", "cft-grpo", 2).name
        'sums/cft-grpo-2'
        """
        return f"{self.task}/{self.label}"


def runs(study: RlStudy) -> list[Run]:
    """Return the runs of a study in order: a seed of every arm before two of one."""
    every = [(arm, seed) for seed in range(study.seeds) for arm in study.arms]
    return [Run(study.task, arm, seed) for arm, seed in every if seed < study.seeds_of(arm)]


def origin(study: RlStudy, run: Run) -> Unit:
    """Return the unit of the other study whose model a run goes on from; there is one start."""
    method = study.arms[run.arm].origin
    return Unit(run.task, "cell", method, 0 if method == START else run.seed)


def begins_as(study: RlStudy, name: str, other: str) -> bool:
    """Return whether an arm that is given the compute of another begins as `other` does: from there, seed by seed."""
    arm, first = study.arms[name], study.arms[other]
    return arm.compute_of is not None and first.compute_of is None and first.origin == arm.origin


def result_file(study: RlStudy, run: Run) -> Path:
    """Return where the result of a run is."""
    return study.results / run.task / f"{run.label}.json"


def remade_file(study: RlStudy, unit: Unit, weights: str) -> Path:
    """Return where the evaluation of a unit's model is that was made again with other bits, those of this hash.

    Runs that go on from the same bits share it.
    """
    return study.results / unit.task / f"{unit.label}-{weights.removeprefix('sha256:')[:8]}.json"


def steps_for(tokens: float, per_step: float, *, multiple: int) -> int:
    """Return the steps that so many tokens buy, the next multiple.

    >>> steps_for(1000, 9.0, multiple=2)
    112
    """
    return math.ceil(tokens / per_step / multiple) * multiple


def within(steps: int, *, multiple: int, most: int | None) -> int:
    """Return so many steps, and at most `most` rounded down to a multiple, but one at least.

    >>> within(112, multiple=2, most=41), within(112, multiple=2, most=None), within(112, multiple=4, most=3)
    (40, 112, 4)
    """
    return steps if most is None else max(multiple, min(steps, most // multiple * multiple))


def is_rl_study(path: Path) -> bool:
    """Return whether the file of a study goes on from the models of another one.

    Raises:
        ConfigError: the file is missing, or is no YAML with sections.
    """
    return "study" in read_sections(path)


def read_rl_study(path: Path, overrides: Mapping[str, Any]) -> tuple[RlStudy, Study]:
    """Return the study of a YAML file with some values replaced, and the study that it goes on from.

    Raises:
        ConfigError: a file is missing, is no YAML, or has wrong values, or the two do not fit together.
    """
    study = validated(RlStudy, path, merged(read_sections(path), overrides))
    record = read_study(path.parent / study.study, {})
    if record.search is not None or study.task not in record.tasks:
        raise ConfigError(f"the study {path}: task: {study.study} has no task {study.task} with models")
    seeds = record.tasks[study.task].seeds
    for name, arm in study.arms.items():
        if arm.origin != START and seeds.get(arm.origin, 0) < study.seeds_of(name):
            raise ConfigError(
                f"the study {path}: arms.{name}.from: {study.study} has {seeds.get(arm.origin, 0)} seeds of "
                f"{arm.origin}, and seeds says {study.seeds_of(name)}; lower it, or name another method"
            )
        if name == START or name in record.methods:
            raise ConfigError(
                f"the study {path}: arms.{name}: {study.study} calls something else so, and both may be compared; "
                "choose another name"
            )
    assert record.tuning is not None
    if study.validation_problems >= record.tuning.problems:
        raise ConfigError(
            f"the study {path}: validation_problems {study.validation_problems}: {study.study} keeps "
            f"{record.tuning.problems} problems to validate on, of which some are to be left to train on; ask for fewer"
        )
    return study, record
