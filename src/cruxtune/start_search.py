"""The search for a start: tasks × lengths of the cold start, each with its accuracy and share of critical tokens.

A study wants a start that is neither too weak nor too strong, and whose critical tokens are few (the paper has under
12 %). Every combination is a cell with a JSON of its own; one that is there is not computed again.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cruxtune.comparison_page import percent
from cruxtune.criticality import is_critical
from cruxtune.pipeline import STAGES, prepare_problems
from cruxtune.progress import stderr
from cruxtune.recipe import Recipe, plan
from cruxtune.results import read_result, write_result
from cruxtune.statistics import bootstrap_interval
from cruxtune.store import read_rows, write_atomic
from cruxtune.study import Search, Study
from cruxtune.study_clock import Clock

_RESAMPLES = 2000
_PAGE = "README.md"


@dataclass(frozen=True)
class Start:
    """One combination: a task, and the problems of its cold start."""

    task: str
    coldstart: int

    @property
    def name(self) -> str:
        """How it is called: what --only is matched with."""
        return f"{self.task}/{self.coldstart}"


def starts(study: Study) -> list[Start]:
    """Return the combinations of a search, task by task, short cold starts first."""
    return [Start(task, number) for task in study.tasks for number in sorted(_search(study).coldstart)]


def result_file(study: Study, start: Start) -> Path:
    """Return where the result of a combination is."""
    return study.results / f"{start.task}-{start.coldstart}.json"


def run_search(study: Study, clock: Clock) -> None:
    """Compute the cells that are not there, as far as the clock lets, and write the page.

    Raises:
        CruxtuneError: as the stages do; or a cell that was computed with other settings.
    """
    found: dict[str, dict[str, Any]] = {}
    for start in starts(study):
        recipe, settings = _recipe(study, start)
        path = result_file(study, start)
        cell = read_result(path, settings)
        if cell is None and clock.takes(start.name) and not _too_good(study, start, found):
            stderr.print(f"[bold]{start.name}[/bold]")
            cell = write_result(path, settings, _measure(recipe, _search(study)))
            shutil.rmtree(recipe.output)
        if cell is not None:
            found[start.name] = cell
            stderr.print(_line(start.name, cell), markup=False, soft_wrap=True)
    if found:
        write_atomic(study.results / _PAGE, page(found, len(starts(study))).encode())


def page(found: Mapping[str, Mapping[str, Any]], combinations: int) -> str:
    """Return the results of a search as a Markdown page; `combinations` is how many there are to try."""
    most = max(len(cell["critical_share"]) for cell in found.values())
    ranks = [f"k = {k}" for k in range(1, most + 1)]
    lines = [
        "# Search for a start",
        "",
        "Share of critical tokens for k alternatives, of correct greedy responses to problems that neither the cold "
        "start nor the evaluation has, among the positions that were asked about, drawn by a seed. 95 % bootstrap "
        "intervals over problems (accuracy) and responses (shares). No shares: the accuracy is out of range. "
        f"Tried: {len(found)} of {combinations} combinations.",
        "",
        f"| task / cold-start problems | accuracy | tokens a response | {' | '.join(ranks)} | responses | positions | "
        "minutes |",
        f"| --- | --- | ---: | {'--- | ' * most}---: | ---: | ---: |",
    ]
    for name, cell in found.items():
        shares = [percent(part["share"], part["interval"]) for part in cell["critical_share"].values()]
        shares += [""] * (most - len(shares))
        asked = next((part["tokens"] for part in cell["critical_share"].values()), 0)
        lines.append(
            f"| {name} | {percent(cell['accuracy'], cell['accuracy_interval'])} | {cell['tokens_a_response']:.0f} | "
            f"{' | '.join(shares)} | {cell['responses_annotated']} | {asked} | "
            f"{sum(cell['seconds'].values()) / 60:.1f} |"
        )
    return "\n".join(lines) + "\n"


def critical_shares(verdicts: Sequence[Sequence[Sequence[bool | None]]], most: int) -> dict[str, dict[str, Any]]:
    """Return the share of critical tokens for k = 1 … `most` alternatives, with 95 % intervals over responses.

    The share is that of all responses together: a ratio of sums, so that responses are resampled (percentile bootstrap;
    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", ch. 13).

    Args:
        verdicts: for each response, position and alternative whether the rollout was correct, None at positions that
            were not asked about, which do not count.
        most: the largest k.

    >>> asked = [[[False, True], [False, False], [None, None]], [[True, False], [True, True]]]
    >>> shares = critical_shares(asked, 2)
    >>> shares["1"]["share"], shares["2"]["share"]
    (0.5, 0.25)
    """
    draws = np.random.default_rng(0).integers(len(verdicts), size=(_RESAMPLES, len(verdicts)))
    found = {}
    for k in range(1, most + 1):
        masks = [[mask for row in response if (mask := is_critical(row[:k])) is not None] for response in verdicts]
        critical, known = np.array([sum(mask) for mask in masks]), np.array([len(mask) for mask in masks])
        low, high = np.quantile(critical[draws].sum(axis=1) / known[draws].sum(axis=1), [0.025, 0.975])
        share = float(critical.sum() / known.sum())
        counts = {"critical": int(critical.sum()), "tokens": int(known.sum())}
        found[str(k)] = {"share": share, "interval": [float(low), float(high)], **counts}
    return found


def _search(study: Study) -> Search:
    assert study.search is not None
    return study.search


def _recipe(study: Study, start: Start) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe of a combination and what its result depends on."""
    search = _search(study)
    splits = {"coldstart": start.coldstart, "train": search.respond, "heldout": search.heldout}
    annotate = {
        "alternatives": search.alternatives,
        "every_alternative": True,
        "positions": search.positions,
        "limit": search.annotate,
    }
    output = study.output / start.task / str(start.coldstart)
    recipe = study.recipe_of(start.task, output, splits=splits, annotate=annotate)
    settings = recipe.model_dump(mode="json", exclude={"output", "engine", "train"}, exclude_none=True)
    return recipe, {**settings, "accuracy": list(search.accuracy)}


def _too_good(study: Study, start: Start, found: Mapping[str, Mapping[str, Any]]) -> bool:
    shorter = [cell for name, cell in found.items() if name.partition("/")[0] == start.task]
    return any(cell["accuracy"] > _search(study).accuracy[1] for cell in shorter)


def _measure(recipe: Recipe, search: Search) -> dict[str, Any]:
    """Train a start, evaluate it, and annotate some of its responses if it is in range."""
    steps = {step.name: step for step in plan(recipe)}
    manifests = {}

    def do(name: str) -> None:
        manifests[name] = STAGES[steps[name].stage](steps[name].settings)

    prepare_problems(recipe)
    for name in ("coldstart", "evaluate start"):
        do(name)
    rows = list(read_rows(recipe.output / "evaluations" / "start"))
    right = [float(row["correct"]) for row in rows]
    accuracy = sum(right) / len(right)
    shares: dict[str, Any] = {}
    annotated: list[Any] = []
    low, high = search.accuracy
    if low <= accuracy <= high:
        for name in ("respond", "annotate"):
            do(name)
        annotated = [row["alternative_correct"] for row in read_rows(recipe.output / "annotations")]
        shares = critical_shares(annotated, search.alternatives)
    trained = manifests["coldstart"]["accounting"]
    return {
        "accuracy": accuracy,
        "accuracy_interval": bootstrap_interval(right),
        "problems": len(right),
        "tokens_a_response": sum(row["length"] for row in rows) / len(rows),
        "truncated": sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        "critical_share": shares,
        "responses_annotated": len(annotated),
        "coldstart_steps": trained["steps"],
        "coldstart_tokens": trained["tokens_trained"],
        "seconds": {name: manifest["accounting"]["seconds"] for name, manifest in manifests.items()},
        "examples": [row["text"] for row in rows[:3]],
    }


def _line(name: str, cell: Mapping[str, Any]) -> str:
    shares = [f"k={k} {100 * part['share']:.0f} %" for k, part in cell["critical_share"].items()]
    return f"{name}: accuracy {100 * cell['accuracy']:.0f} %, critical {', '.join(shares) or 'not asked'}"
