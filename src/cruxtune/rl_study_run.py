"""Running a study of reinforcement learning: run by run, each with a result that is kept.

Where a model of the other study is gone, its own code makes it again, and it must come out as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cruxtune.cells import Cell, cell_of, write_cell
from cruxtune.errors import ConfigError, StoreError
from cruxtune.recipe import START, Step, plan, split_file
from cruxtune.results import read_result
from cruxtune.rl_settings import RlSettings
from cruxtune.rl_study import RlStudy, Run, begins_as, origin, remade_file, result_file, runs, steps_for, within
from cruxtune.settings import ModelSettings
from cruxtune.stage_settings import EvaluateSettings
from cruxtune.store import write_atomic
from cruxtune.study import Study, Unit
from cruxtune.study import result_file as cell_file
from cruxtune.study_clock import Clock, OutOfTime, compute_missing
from cruxtune.study_run import StudyTask, model_key, run_step
from cruxtune.trainings import Training, reinforced

_SETTINGS = ("settings", "study", "unit")
_CURVES = (
    *("reward", "group_std", "correct", "formed", "entropy", "length", "truncated", "equal_rewards", "clipped"),
    *("grad_norm", "kl", "tokens_computed"),
)
"""Curves of the training log that results keep, besides all of its examinations."""


def run_rl_study(study: RlStudy, record: Study, clock: Clock, *, any_start: bool = False) -> dict[str, dict[str, Any]]:
    """Compute the runs whose results are not there, as far as the clock lets; return all results by the run's name.

    Raises:
        CruxtuneError: as the stages do.
        ConfigError: an arm that is given the compute of another one has spent more before its first step.
        StoreError: a result of other settings, a model of `record` without a result, or one that is not what it was.
    """
    all_runs = _Runs(study, record, clock, any_start)
    return compute_missing(runs(study), clock, all_runs.result, all_runs.compute)


def read_runs(study: RlStudy, record: Study) -> dict[str, dict[str, Any]]:
    """Return the results that are there, by the run's name, and compute nothing.

    Raises:
        StoreError: a result of other settings.
    """
    return run_rl_study(study, record, Clock(max_minutes=0))


def read_origins(study: RlStudy, record: Study, found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the cells that there are of the models that finished runs went on from, by the run's name.

    `found` are the results that there are, as `read_runs` has them.
    """
    all_runs = _Runs(study, record, Clock(max_minutes=0), any_start=False)
    done = [run for run in runs(study) if run.name in found]
    cells = {run.name: all_runs.origin_cell(origin(study, run), _bits(found[run.name])) for run in done}
    return {name: cell for name, cell in cells.items() if cell is not None}


def compared_files(study: RlStudy, record: Study, found: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """Return the cells that are compared: those of finished runs, and one of each model that they went on from.

    Where runs went on from a model of the other study and from one made again in its place, it is the former: a
    method has one model of a seed, and there is one start. `found` are the results that there are.
    """
    all_runs = _Runs(study, record, Clock(max_minutes=0), any_start=False)
    done = [run for run in runs(study) if run.name in found]
    before: dict[Unit, Path] = {}
    for run in done:
        unit = origin(study, run)
        file = all_runs.origin_file(unit, _bits(found[run.name]))
        if unit not in before or file == cell_file(record, unit):
            before[unit] = file
    # These first: a difference is what comes later less what comes before.
    return [*(file for file in before.values() if file.exists()), *(result_file(study, run) for run in done)]


class _Runs:
    """The runs of one study."""

    def __init__(self, study: RlStudy, record: Study, clock: Clock, any_start: bool) -> None:
        self._study = study
        self._record = record
        self._clock = clock
        self._task = StudyTask(record, study.task, clock, any_start)
        self._root = study.output / study.task

    def result(self, run: Run) -> dict[str, Any] | None:
        """Return the result of a run if it is there."""
        return read_result(result_file(self._study, run), self._settings(run), below=_SETTINGS)

    def compute(self, run: Run) -> dict[str, Any]:
        """Return the result of a run, computed (with what it needs) if it is not there."""
        found = self.result(run)
        if found is not None:
            return found
        if self._clock.over:
            raise OutOfTime
        bought, came_from = self._bought(run), origin(self._study, run)
        steps = int(self._study.rl["steps"])
        if bought is not None:
            most = self._study.arms[run.arm].most_steps
            steps = within(bought, multiple=self._steps_per_rollouts(run), most=most)
        evaluation = self._task.with_model(came_from)
        made = self._task.made(came_from)
        self._evaluate_remade(came_from, made, evaluation)
        settings = self._rl(run, steps, evaluation.model)
        self._write_problems()
        manifest = run_step(run.name, Step("rl", "rl", settings))
        evaluation = evaluation.model_copy(
            update={
                "model": ModelSettings(
                    model=str(settings.output.output), dtype=evaluation.model.dtype, device=evaluation.model.device
                ),
                "output": evaluation.output.model_copy(update={"output": self._root / "evaluations" / run.label}),
            }
        )
        run_step(run.name, Step("evaluate", "evaluate", evaluation))
        path = write_cell(result_file(self._study, run), self._cell(run, made, bought, evaluation, settings, manifest))
        if not self._study.keep_checkpoints:
            self._task.forget(came_from)
            shutil.rmtree(settings.output.output)
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    def origin_file(self, unit: Unit, bits: str) -> Path:
        """Return where the evaluation of a model with these bits is: what the other study had, or what was remade."""
        cell = self._task.result(unit)
        kept = cell["settings"]["study"].get(model_key(unit)) if cell else None
        return cell_file(self._record, unit) if kept in (None, bits) else remade_file(self._study, unit, bits)

    def origin_cell(self, unit: Unit, bits: str) -> dict[str, Any] | None:
        """Return the evaluation of a model with these bits, if it is there."""
        found = read_result(self.origin_file(unit, bits), self._task.settings_of(unit), below=_SETTINGS)
        return found if found and found["settings"]["study"].get(model_key(unit)) in (None, bits) else None

    def _evaluate_remade(self, unit: Unit, made: Mapping[str, Any], evaluation: EvaluateSettings) -> None:
        """Evaluate the model that a run goes on from if it was made again with other bits, which --any-start allows.

        Otherwise a run would be compared with a model that it does not come from.
        """
        key = model_key(unit)
        path = self.origin_file(unit, made[key])
        if path == cell_file(self._record, unit) or self.origin_cell(unit, made[key]):
            return
        # The other study may have evaluated its own there, if it was made here.
        output = evaluation.output.model_copy(update={"output": self._root / "evaluations" / path.stem})
        evaluation = evaluation.model_copy(update={"output": output})
        run_step(unit.name, Step(f"evaluate {unit.label}", "evaluate", evaluation))
        before = self._task.finished(unit)
        kept = before["settings"]["study"]
        cell = cell_of(
            evaluation.output.output,
            method=unit.method,
            seed=None if unit.method == START else unit.seed,
            benchmark=unit.task,
            training_dir=None if unit.method == START else Path(evaluation.model.model),
        )
        update: dict[str, Any] = {"settings": {**cell.settings, "study": {**made, "instead_of": kept[key]}}}
        if cell.training is not None and made["masks"] == kept["masks"]:
            # The annotations are those of the other study, and were not made here.
            costs = {name: before["training"][name] for name in ("respond_tokens", "annotate_tokens")}
            update |= {
                "training": cell.training.model_copy(update=costs),
                "seconds": {**before["seconds"], **cell.seconds},
            }
        write_cell(path, cell.model_copy(update=update))

    def _bought(self, run: Run) -> int | None:
        """Return the steps that the whole compute of another run buys, where the arm is given as much."""
        other_arm = self._study.arms[run.arm].compute_of
        if other_arm is None:
            return None
        other = Run(run.task, other_arm, run.seed)
        total = sum(self.compute(other)["settings"]["study"]["compute"].values())
        came_from = origin(self._study, run)
        trained = None if came_from.method == START else self._task.finished(came_from)
        own = sum(self._before(came_from, trained).values())
        if total <= own:
            raise ConfigError(
                f"arms.{run.arm}.compute_of: {other.name} took {total:,} tokens in all, and annotation and training of "
                f"what {run.name} goes on from took {own:,}, so that no step is left; name an arm that takes more"
            )
        # A step of the same batch takes as many tokens as its responses are long, which differ from model to model.
        alike = (name for name in self._study.arms if begins_as(self._study, run.arm, name))
        like = next((name for name in alike if run.seed < self._study.seeds_of(name)), other_arm)
        first = self.compute(Run(run.task, like, run.seed))["settings"]["study"]
        per_step = first["compute"]["rl"] / first["steps"]
        return steps_for(total - own, per_step, multiple=self._steps_per_rollouts(run))

    def _steps_per_rollouts(self, run: Run) -> int:
        return self._rl(run, int(self._study.rl["steps"]), None).steps_per_rollouts

    def _before(self, unit: Unit, cell: Mapping[str, Any] | None) -> dict[str, int]:
        """Return the tokens that annotation and training of a model took, by its cell; the start has none."""
        if cell is None:
            return {"annotation": 0, "training": 0}
        training = Training.model_validate(cell["training"])
        annotation, computed = training.annotation_tokens, training.tokens_computed
        if annotation is None or computed is None:
            raise StoreError(
                f"{cell_file(self._record, unit)} does not say what annotation and training took, without which "
                "nothing compares at equal compute; move it away and let its study make it anew"
            )
        return {"annotation": annotation, "training": computed}

    def _rl(self, run: Run, steps: int, model: ModelSettings | None) -> RlSettings:
        """Return the settings of a run's reinforcement learning, under the conditions of the other study."""
        recipe = self._record.recipe_of(run.task, self._record.output / run.task)
        section = {**self._study.rl, "seed": run.seed, "steps": steps, "validation": str(self._validation)}
        planned = plan(recipe.model_copy(update={"rl": {run.label: section}}), only=f"rl {run.label}")[0].settings
        assert isinstance(planned, RlSettings)
        output = planned.output.model_copy(update={"output": self._root / "models" / run.label})
        problems = planned.problems.model_copy(update={"problems": str(self._problems)})
        return planned.model_copy(update={"model": model or planned.model, "problems": problems, "output": output})

    @property
    def _validation(self) -> Path:
        return self._root / "validation.jsonl"

    @property
    def _problems(self) -> Path:
        return self._root / "problems.jsonl"

    def _write_problems(self) -> None:
        """Write the problems that are examined while a model trains, and those that it trains on.

        Both are of the other study's validation split, which chose learning rates and trained nothing: a model that had
        seen a problem in its own training would find little left to learn in it, and so would one arm and not another.
        """
        split = split_file(self._record.output / self._study.task, "validation")
        there = split.read_text(encoding="utf-8").splitlines(True)
        number = self._study.validation_problems
        for path, some in ((self._validation, there[:number]), (self._problems, there[number:])):
            wanted = "".join(some).encode()
            # Another run may be reading it, or be writing the same.
            if not path.exists() or path.read_bytes() != wanted:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, wanted)

    def _cell(
        self,
        run: Run,
        made: Mapping[str, Any],
        bought: int | None,
        evaluation: EvaluateSettings,
        settings: RlSettings,
        manifest: Mapping[str, Any],
    ) -> Cell:
        """Return the evaluation of a run, with what it took from the start on."""
        came_from = origin(self._study, run)
        bits = made[model_key(came_from)]
        from_cell = None if came_from.method == START else self.origin_cell(came_from, bits)
        done, before = manifest["accounting"], self._before(came_from, from_cell)
        trained = Training.model_validate(from_cell["training"]) if from_cell else None
        took = from_cell["seconds"] if from_cell else {}
        cell = cell_of(evaluation.output.output, method=run.arm, seed=run.seed, benchmark=run.task)
        training = reinforced(done, trained, _curves(settings.output.output / "training_log.jsonl"))
        study = {
            "unit": self._settings(run),
            "from_weights": bits,
            "steps": done["steps"],
            "steps_bought": bought,
            "compute": {**before, "rl": done["tokens_computed"]},
            "seconds": {
                "annotation": round(took.get("respond", 0.0) + took.get("annotate", 0.0), 3),
                "training": took.get("train", 0.0),
                "rl": done["seconds"],
            },
            "threads": self._study.threads,
            "model": manifest["identity"]["model"],
        }
        named = {"method": "grpo", "from": came_from.method, "learning_rate": settings.learning_rate}
        seconds = {**cell.seconds, "rl": done["seconds"]}
        return cell.model_copy(update={"settings": {**named, "study": study}, "training": training, "seconds": seconds})

    def _settings(self, run: Run) -> dict[str, Any]:
        """Return what the result of a run depends on, which is not how many others there are."""
        return {
            "rl": self._study.rl,
            "arm": self._study.arms[run.arm].model_dump(
                mode="json", by_alias=True, exclude_none=True, exclude={"seeds"}
            ),
            "validation": self._study.validation_problems,
            "origin": self._task.settings_of(origin(self._study, run)),
        }


def _bits(result: Mapping[str, Any]) -> str:
    """Return the hash of the model that a run went on from."""
    bits: str = result["settings"]["study"]["from_weights"]
    return bits


def _curves(log: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of each curve; of a step that is there twice, as it was examined, one."""
    curves: dict[str, dict[int, float]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if (name in _CURVES or name.startswith("eval_")) and value is not None:
                curves.setdefault(name, {})[entry["step"]] = round(value, 6)
    return {name: sorted(points.items()) for name, points in sorted(curves.items())}
