"""Running a study: unit by unit, each with a result that is kept; a result that is there is not computed again.

Results outlive the working directory. What a missing result needs of it (the start, its annotations) is made again, and
must come out as it was: all methods train from one start on one set of annotations.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from cruxtune.cells import cell_of, write_cell
from cruxtune.errors import StoreError
from cruxtune.models import fingerprint
from cruxtune.pipeline import STAGES, prepare_problems
from cruxtune.problems import ProblemSource
from cruxtune.progress import stderr
from cruxtune.recipe import START, Step, plan, split_file
from cruxtune.results import read_result, write_result
from cruxtune.stage_settings import EvaluateSettings
from cruxtune.statistics import bootstrap_interval
from cruxtune.store import LOCK, MAIN_TABLE, read_rows, write_dataset_card
from cruxtune.study import Study, Unit, result_file, units
from cruxtune.study_clock import Clock, OutOfTime, compute_missing

_log = logging.getLogger("cruxtune")

_CELL_SETTINGS = ("settings", "study", "unit")
_START_KEYS = {"model", "problems", "heldout", "splits", "seed", "skip_bad", "decontaminate", "prompt", "coldstart"}
_ANNOTATION_KEYS = _START_KEYS | {"verifier", "decoding", "respond", "annotate"}
_TRAINED_KEYS = _ANNOTATION_KEYS | {"validation"}
_CELL_KEYS = _TRAINED_KEYS | {"evaluate"}


def run_study(study: Study, clock: Clock, *, any_start: bool = False) -> dict[str, dict[str, Any]]:
    """Compute the units whose results are not there, as far as the clock lets; return all results by the unit's name.

    `any_start` goes on where a start or annotations that were made again are not what they were.

    Raises:
        CruxtuneError: as the stages do.
        StoreError: a result of other settings, or a start that is not the one of the results.
    """
    tasks = {name: StudyTask(study, name, clock, any_start) for name in study.tasks}
    return compute_missing(
        units(study), clock, lambda unit: tasks[unit.task].result(unit), lambda unit: tasks[unit.task].compute(unit)
    )


def make_starts(study: Study, clock: Clock, *, any_start: bool = False) -> dict[str, Path]:
    """Make the start of every task that the clock takes, again if it is gone; return where they are.

    Raises:
        CruxtuneError: as training does.
        StoreError: a start that is not the one of the study or of its results.
    """
    wanted = [name for name in study.tasks if clock.takes(Unit(name, "coldstart").name)]
    return {name: StudyTask(study, name, clock, any_start).start_directory() for name in wanted}


def weights_hash(directory: Path) -> str:
    """Return the SHA-256 of a checkpoint's safetensors files, one after the other in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def masks_hash(annotations: Path) -> str:
    """Return the SHA-256 of which tokens of which responses are critical: what training depends on."""
    digest = hashlib.sha256()
    for row in read_rows(annotations, columns=["id", "response_ids", "critical"]):
        digest.update(json.dumps([row["id"], row["response_ids"], row["critical"]]).encode() + b"\n")
    return digest.hexdigest()


def chosen_rate(accuracies: Mapping[float, float]) -> float:
    """Return the learning rate of the best accuracy, the smallest of several.

    >>> chosen_rate({3e-5: 0.5, 1e-5: 0.5, 1e-4: 0.25})
    1e-05
    """
    return min(accuracies, key=lambda rate: (-accuracies[rate], rate))


def run_step(name: str, step: Step) -> dict[str, Any]:
    """Run a step for the unit of this name; what it has done already it does not do again."""
    stderr.print(f"[bold]{name}[/bold] {step.name}")
    manifest = STAGES[step.stage](step.settings)
    # A model that is no longer used must not stay beside the next one.
    gc.collect()
    return manifest


def _copy(source: Path, target: Path) -> None:
    """Copy annotations whole or not at all, without their rollouts: most of it, and nothing here reads them."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, ignore=shutil.ignore_patterns("rollouts", LOCK))
    write_dataset_card(temporary, "annotate", [MAIN_TABLE])
    temporary.rename(target)


def model_key(unit: Unit) -> str:
    """Return where the `study` section of a cell has the hash of its model."""
    return "start" if unit.method == START else "weights"


class StudyTask:
    """The units of one task."""

    def __init__(self, study: Study, name: str, clock: Clock, any_start: bool) -> None:
        assert study.tuning is not None
        self._study = study
        self._tuning = study.tuning
        self._name = name
        self._clock = clock
        self._any_start = any_start
        self._root = study.output / name
        self._base = study.recipe_of(name, self._root)

    def result(self, unit: Unit) -> dict[str, Any] | None:
        """Return the result of a unit if it is there."""
        below = _CELL_SETTINGS if unit.kind == "cell" else ("settings",)
        return read_result(result_file(self._study, unit), self.settings_of(unit), below=below)

    def compute(self, unit: Unit) -> dict[str, Any]:
        """Return the result of a unit, computed (with what it needs) if it is not there."""
        found = self.result(unit)
        if found is not None:
            return found
        if self._clock.over:
            raise OutOfTime
        match unit.kind:
            case "coldstart":
                return self._start
            case "annotations":
                return self._annotations
            case "tune":
                return self._tune(unit)
            case _:
                return self._cell(unit)

    def start_directory(self) -> Path:
        """Return where the start is, which is made if it is not there."""
        stderr.print(f"{self._name}: {self._start['hash']}", soft_wrap=True)
        return self._root / "models" / START

    def finished(self, unit: Unit) -> dict[str, Any]:
        """Return the result of a unit.

        Raises:
            StoreError: it is not there.
        """
        found = self.result(unit)
        if found is None:
            raise StoreError(
                f"{result_file(self._study, unit)} is missing, and what goes on from {unit.name} needs to know what "
                f"that took; run the study that has it first: --only {unit.name}"
            )
        return found

    def with_model(self, unit: Unit) -> EvaluateSettings:
        """Return how the model of a finished cell is evaluated, the model being there: trained again if it is gone.

        Raises:
            StoreError: the cell has no result yet, or what is trained again is not what it was.
        """
        trained, path = unit.method != START, result_file(self._study, unit)
        cell = self.finished(unit) if trained else self.result(unit)
        settings = cell["settings"] if cell else {}
        kept = settings.get("study", {})
        self._must_be(f"{path} start", kept.get("start"), self._start["hash"])
        if trained:
            self._must_be(f"{path} masks", kept["masks"], self._annotations["masks"])
        steps = self._steps(unit, settings["learning_rate"] if trained else None)
        evaluation = steps[f"evaluate {unit.label}"].settings
        assert isinstance(evaluation, EvaluateSettings)
        if trained:
            self._train(unit, steps)
            self._must_be(f"{path} weights", kept.get("weights"), weights_hash(self._root / "models" / unit.label))
        return evaluation

    def made(self, unit: Unit) -> dict[str, Any]:
        """Return what the model of a cell is, which `with_model` has made: the `study` section that its cell has."""
        now = {"unit": self.settings_of(unit), "start": self._start["hash"]}
        if unit.method != START:
            now["masks"] = self._annotations["masks"]
            now["weights"] = weights_hash(self._root / "models" / unit.label)
        return now

    def settings_of(self, unit: Unit) -> dict[str, Any]:
        """Return what the result of a unit depends on."""
        keys = {"coldstart": _START_KEYS, "annotations": _ANNOTATION_KEYS, "tune": _TRAINED_KEYS, "cell": _CELL_KEYS}
        settings = self._base.model_dump(mode="json", include=keys[unit.kind], exclude_none=True)
        settings["validation_problems"] = self._tuning.problems
        if unit.kind in ("tune", "cell") and unit.method != START:
            settings["method"] = self._study.methods[unit.method]
            settings["tuning_seed"] = self._tuning.seed
            settings["learning_rates"] = (
                [unit.learning_rate] if unit.kind == "tune" else sorted(self._tuning.learning_rates)
            )
        return settings

    def forget(self, unit: Unit) -> None:
        """Delete the model of a unit, unless it is to be kept."""
        trained = self._root / "models" / unit.label
        if unit.kind in ("tune", "cell") and unit.method != START and not self._study.keep_checkpoints:
            shutil.rmtree(trained)

    @cached_property
    def _start(self) -> dict[str, Any]:
        """The start's result, the start itself being in the working directory and as it was."""
        unit = Unit(self._name, "coldstart")
        before = self.result(unit)
        prepare_problems(self._base, validation=self._tuning.problems)
        if self._base.coldstart is None:
            now, cost = fingerprint(self._base.model), {}
        else:
            cost = self._do(unit, self._steps()["coldstart"])["accounting"]
            now = weights_hash(self._root / "models" / START)
        stated = self._study.tasks[self._name].start_hash
        self._must_be(f"tasks.{self._name}.start_hash", stated, now)
        if before is not None:
            self._must_be(f"{result_file(self._study, unit)} hash", before["hash"], now)
            # What goes on from another start, with --any-start, names that one.
            return {**before, "hash": now}
        return self._keep(unit, {"hash": now, "threads": self._study.threads, "accounting": cost})

    @cached_property
    def _annotations(self) -> dict[str, Any]:
        """The annotations' result, they themselves being in the working directory and as they were."""
        unit, steps, start = Unit(self._name, "annotations"), self._steps(), self._start
        before = self.result(unit)
        made, kept = self._root / "annotations", result_file(self._study, unit).with_suffix("")
        if before is not None and before["start"] != start["hash"] and kept.is_dir():
            # With --any-start: what a start that rounds otherwise goes on with is what was found critical, not other
            # responses that were annotated anew.
            if not made.exists():
                _copy(kept, made)
            self._must_be(f"{result_file(self._study, unit)} masks", before["masks"], masks_hash(made))
            return {**before, "start": start["hash"]}
        costs = {"respond": self._do(unit, steps["respond"])["accounting"]}
        if kept.is_dir() and not made.exists():
            _copy(kept, made)
        costs["annotate"] = self._do(unit, steps["annotate"])["accounting"]
        now = masks_hash(made)
        if before is None:
            share = costs["annotate"]["critical_tokens"] / costs["annotate"]["known_tokens"]
            content = {"masks": now, "start": start["hash"], "critical_share": share, "accounting": costs}
            before = self._keep(unit, content)
        self._must_be(f"{result_file(self._study, unit)} masks", before["masks"], now)
        # With --any-start they may be others than those of the results, which are the ones to keep.
        if before["masks"] == now and not kept.exists():
            _copy(made, kept)
        return {**before, "masks": now, "start": start["hash"]}

    def _tune(self, unit: Unit) -> dict[str, Any]:
        """Train with a learning rate, and answer the validation problems greedily."""
        annotations = self._annotations
        assert unit.learning_rate is not None
        steps = self._steps(unit, unit.learning_rate)
        trained = self._train(unit, steps)
        evaluation = steps[f"evaluate {unit.label}"].settings
        assert isinstance(evaluation, EvaluateSettings)
        problems = ProblemSource(problems=str(split_file(self._root, "validation")))
        evaluation = evaluation.model_copy(update={"problems": problems, "samples": 0, "sampled_problems": None})
        evaluated = self._do(unit, Step(f"validate {unit.label}", "evaluate", evaluation))
        right = [float(row["correct"]) for row in read_rows(evaluation.output.output)]
        return self._keep(
            unit,
            {
                "learning_rate": unit.learning_rate,
                "accuracy": sum(right) / len(right),
                "interval": bootstrap_interval(right),
                "problems": len(right),
                "start": annotations["start"],
                "masks": annotations["masks"],
                "accounting": {"train": trained["accounting"], "evaluate": evaluated["accounting"]},
            },
        )

    def _cell(self, unit: Unit) -> dict[str, Any]:
        """Train a method with a seed at its learning rate (the start: not at all), and evaluate."""
        trained, rates, rate = None, {}, None
        if unit.method != START:
            rates = self._rates(unit.method)
            rate = chosen_rate(rates)
        annotations = self._annotations
        steps = self._steps(unit, rate)
        if unit.method != START:
            trained = self._train(unit, steps)
        self._do(unit, steps[f"evaluate {unit.label}"])
        cell = cell_of(
            self._root / "evaluations" / unit.label,
            method=unit.method,
            seed=unit.seed if trained else None,
            benchmark=self._name,
            training_dir=self._root / "models" / unit.label if trained else None,
        )
        study: dict[str, Any] = {
            "unit": self.settings_of(unit),
            "start": annotations["start"],
            "masks": annotations["masks"],
            "validation": {f"{rate:g}": accuracy for rate, accuracy in rates.items()},
        }
        if trained:
            study["weights"] = weights_hash(self._root / "models" / unit.label)
        path = write_cell(
            result_file(self._study, unit), cell.model_copy(update={"settings": {**cell.settings, "study": study}})
        )
        self.forget(unit)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def _train(self, unit: Unit, steps: Mapping[str, Step]) -> dict[str, Any]:
        if f"select {unit.label}" in steps:
            self._do(unit, steps[f"select {unit.label}"])
        return self._do(unit, steps[f"train {unit.label}"])

    def _rates(self, method: str) -> dict[float, float]:
        """Return the accuracy of each learning rate of a method."""
        tried = [Unit(self._name, "tune", method, self._tuning.seed, rate) for rate in self._tuning.learning_rates]
        return {unit.learning_rate: self.compute(unit)["accuracy"] for unit in tried if unit.learning_rate is not None}

    def _steps(self, unit: Unit | None = None, learning_rate: float | None = None) -> dict[str, Step]:
        """Return the steps of the task's recipe by name, with a model to train if a unit has one."""
        recipe = self._base
        if unit is not None and unit.method != START:
            section = {**self._study.methods[unit.method], "seed": unit.seed, "learning_rate": learning_rate}
            recipe = recipe.model_copy(update={"train": {unit.label: section}})
        return {step.name: step for step in plan(recipe)}

    def _do(self, unit: Unit, step: Step) -> dict[str, Any]:
        return run_step(unit.name, step)

    def _keep(self, unit: Unit, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write a result, and delete what it makes superfluous."""
        result = write_result(result_file(self._study, unit), self.settings_of(unit), content)
        self.forget(unit)
        return result

    def _must_be(self, what: str, before: str | None, now: str) -> None:
        """Refuse, or warn of, a start or annotations that are not what they were."""
        if before is None or before == now:
            return
        message = (
            f"{what} is {before}, and what was made here has {now}: another machine, other threads or other versions "
            "round otherwise, and results from different starts are not one study"
        )
        if not self._any_start:
            raise StoreError(f"{message}; continue where it was begun, or accept it with --any-start")
        _log.warning("%s", message)
