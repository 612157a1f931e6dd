"""The stages of a recipe in order. Knows nothing but the order; every step resumes by itself."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cruxtune.benchmark_rows import refuse_test_problems
from cruxtune.contamination import decontaminated
from cruxtune.errors import ConfigError, DataError
from cruxtune.problems import fingerprint, load_problems, split_problems, without_overlap
from cruxtune.processes import count
from cruxtune.progress import duration, stderr
from cruxtune.recipe import Recipe, Step, plan, split_file
from cruxtune.records import Problem
from cruxtune.rows import normalised
from cruxtune.settings import flat
from cruxtune.stages.annotate import annotate
from cruxtune.stages.compare import compare
from cruxtune.stages.evaluate import evaluate
from cruxtune.stages.respond import respond
from cruxtune.stages.rl import rl
from cruxtune.stages.select import select
from cruxtune.stages.train import train
from cruxtune.store import Workspace, write_atomic
from cruxtune.validation import draw

STAGES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "respond": respond,
    "annotate": annotate,
    "select": select,
    "train": train,
    "rl": rl,
    "evaluate": evaluate,
    "compare": compare,
}

_OF_SEVERAL = ("train", "rl")
"""Stages that several processes may share."""


@dataclass(frozen=True)
class Run:
    """What a run made: the manifest of each step by name, and its wall-clock seconds over all runs that it took."""

    manifests: dict[str, dict[str, Any]]
    seconds: dict[str, float]


def run(recipe: Recipe, *, only: str | None = None, limit: int | None = None, overwrite: bool = False) -> Run:
    """Run every step of a recipe that is not finished, or those alone whose names match the pattern `only`.

    `limit` caps the problems to respond to and to evaluate on (of each benchmark, too), for a trial.

    Raises:
        CruxtuneError: as the stages do; `only` matches no step, or there are several processes for a step of one.
    """
    steps = plan(recipe, only=only, limit=limit, overwrite=overwrite)
    if count() > 1:
        _check_steps(steps)
        # What lies before was done by one process.
        manifests = {step.name: STAGES[step.stage](step.settings) for step in steps}
        return Run(manifests, {})
    manifests = {"problems": prepare_problems(recipe, limit=limit, overwrite=overwrite)}
    clock = _Clock(recipe, fresh=overwrite)
    for number, step in enumerate(steps, start=1):
        stderr.print(f"[bold]\\[{number}/{len(steps)}] {step.name}[/bold]{clock.left(step, steps)}")
        with clock.timing(step):
            manifests[step.name] = STAGES[step.stage](step.settings)
        # A model that is no longer used must not stay beside the next one.
        gc.collect()
    return Run(manifests, clock.seconds)


def _check_steps(steps: Sequence[Step]) -> None:
    alone = [step.name for step in steps if step.stage not in _OF_SEVERAL]
    if alone:
        raise ConfigError(
            f"{count()} processes were started, and {alone[0]} is a step of one; name what takes several, as in "
            "--only 'train *' or --only 'rl *', and run the rest without the launcher"
        )


def prepare_problems(
    recipe: Recipe, *, limit: int | None = None, overwrite: bool = False, validation: int | None = None
) -> dict[str, Any]:
    """Write the splits as JSONL files and return their manifest.

    `validation` problems are taken from those to respond to and make a split of their own.

    Raises:
        ConfigError: a cold start without a number of problems for it.
        DataError: too few distinct problems, or held-out ones that are all in the training set.
    """
    identity = {**flat(recipe.problems), **flat(recipe.splits), "seed": recipe.seed, "limit": limit}
    identity["decontaminate"] = recipe.decontaminate
    identity |= {"validation": validation} if validation else {}
    if recipe.heldout:
        identity |= {f"heldout.{name}": value for name, value in flat(recipe.heldout).items()}
    with Workspace(recipe.output / "problems", "problems", identity, overwrite=overwrite) as workspace:
        if workspace.complete:
            return workspace.manifest
        # A cold start on a few problems would teach nothing, and the trial would stop for want of a correct response.
        limits = {"coldstart": None, "train": limit, "heldout": limit, "validation": None}
        parts, notes = split(recipe)
        if validation:
            drawn = draw(parts["train"], validation, recipe.seed)
            parts = {**parts, "validation": drawn, "train": without_overlap(parts["train"], drawn)}
        splits = {name: part[: limits[name]] for name, part in parts.items() if part}
        for name, part in splits.items():
            write_problems(split_file(recipe.output, name), part)
        return workspace.finish(
            rows={name: len(part) for name, part in splits.items()},
            fingerprints={name: fingerprint(part) for name, part in splits.items()},
            **notes,
        )


def split(recipe: Recipe) -> tuple[Mapping[str, list[Problem]], dict[str, Any]]:
    """Return the problems of the splits coldstart, train and heldout, and notes for the manifest.

    No split shares a question with another. What occurs in the benchmarks of `decontaminate` is left out first.

    Raises:
        ConfigError: a split whose size is missing.
        DataError: too few distinct problems, or test problems of a benchmark to train on.
    """
    sizes = recipe.splits
    if recipe.coldstart is not None and sizes.coldstart is None:
        raise ConfigError("coldstart: splits.coldstart is missing; say how many problems the cold start may use")
    where = recipe.benchmarks_dir
    notes: dict[str, Any] = {}
    pool = load_problems(recipe.problems, seed=recipe.seed, skip_bad=recipe.skip_bad, benchmarks_dir=where)
    refuse_test_problems(pool, f"problems: {recipe.problems.problems}")
    if recipe.decontaminate is not None:
        pool, notes = decontaminated(pool, recipe.decontaminate, where)
    if recipe.heldout is not None:
        # reasoning-gym draws problem i from seed + i: a seed that is far off gives other problems.
        heldout = load_problems(
            recipe.heldout, seed=recipe.seed + 1_000_000, skip_bad=recipe.skip_bad, benchmarks_dir=where
        )[: sizes.heldout]
        pool = without_overlap(pool, heldout)
    elif sizes.heldout is None:
        raise ConfigError("splits.heldout is missing and there is no section heldout; give one of them")
    reserved = [sizes.coldstart or 0, 0 if recipe.heldout else sizes.heldout or 0]
    distinct = len({normalised(problem.question) for problem in pool})
    train_size = sizes.train if sizes.train is not None else distinct - sum(reserved)
    if train_size < 1:
        raise DataError(
            f"{recipe.problems.problems} has {distinct} distinct problems that are not held out, and splits want "
            f"{sum(reserved)} of them for other things: none is left to train on; use more problems or smaller splits"
        )
    coldstart, own_heldout, train_part = split_problems(pool, [*reserved, train_size], seed=recipe.seed)
    parts = {"coldstart": coldstart, "train": train_part, "heldout": heldout if recipe.heldout else own_heldout}
    return parts, notes


def write_problems(path: Path, problems: list[Problem]) -> None:
    """Write problems as JSONL, metadata as an object."""
    rows = ({**problem.to_row(), "metadata": problem.metadata} for problem in problems)
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


class _Clock:
    """Seconds of every step, kept in timings.json, and the time left.

    That is what each step is expected to take, scaled by how fast this machine has been so far.
    """

    def __init__(self, recipe: Recipe, *, fresh: bool) -> None:
        self._file = recipe.output / "timings.json"
        self._expected = recipe.expected_seconds
        self.seconds: dict[str, float] = {}
        if self._file.exists() and not fresh:
            self.seconds = json.loads(self._file.read_text())
        self._finished: set[str] = set()

    @contextmanager
    def timing(self, step: Step) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
            self._finished.add(step.name)
        finally:
            # An interrupted step counts too: what it finished is not done again.
            spent = self.seconds.get(step.name, 0.0) + time.monotonic() - started
            self.seconds[step.name] = round(spent, 1)
            write_atomic(self._file, json.dumps(self.seconds, indent=2).encode())

    def left(self, step: Step, steps: list[Step]) -> str:
        rest = sum(self._expected.get(other.name, 0.0) for other in steps[steps.index(step) :])
        if not rest:
            return ""
        known = [name for name in self._finished if name in self._expected]
        planned = sum(self._expected[name] for name in known)
        speed = sum(self.seconds[name] for name in known) / planned if planned else 1.0
        return f" [dim](about {duration(rest * speed)} left)[/dim]"
