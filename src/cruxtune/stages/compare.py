"""Stage 6: any number of evaluations side by side (method × seed × benchmark), whichever way they fall."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cruxtune.cells import Cell, benchmark_of, cell_of, is_cell, read_cell
from cruxtune.comparison import compare_cells
from cruxtune.comparison_figure import figure
from cruxtune.comparison_page import page
from cruxtune.errors import DataError
from cruxtune.stage_settings import CompareSettings
from cruxtune.store import MANIFEST, finished_manifest, read_manifest, write_atomic

NAME = "comparison"


@dataclass(frozen=True)
class _Found:
    """A directory of an evaluation, and what its manifest says."""

    method: str
    path: Path
    manifest: Mapping[str, Any]
    benchmark: str

    @property
    def model(self) -> Path:
        """The model (or the adapter on it) that was evaluated, where it is a directory."""
        model = self.manifest["settings"]["model"]
        return Path(model["adapter"] or model["model"])


def compare(settings: CompareSettings) -> dict[str, Any]:
    """Write comparison.md, comparison.json and comparison.svg and return the JSON's content.

    Raises:
        StoreError: an evaluation is missing or unfinished.
        DataError: a file that is no cell, or evaluations that do not compare; see `cruxtune.comparison`.
    """
    cells = [*_evaluated(settings.evaluations), *_read(settings.cells)]
    against = [name.strip() for name in settings.against.split(",")] if settings.against else None
    result = compare_cells([cell.first(settings.limit) for cell in cells], against=against, seed=settings.seed)
    settings.output.mkdir(parents=True, exist_ok=True)
    write_atomic(settings.output / f"{NAME}.svg", figure(result))
    write_atomic(settings.output / f"{NAME}.json", (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomic(settings.output / f"{NAME}.md", page(result, f"{NAME}.svg").encode())
    return result


def _read(paths: list[Path]) -> list[Cell]:
    """Return the cells of files, and all that are in directories; the start, which has no seed, comes first."""
    cells: list[Cell] = []
    for path in paths:
        # A study keeps other results beside its cells.
        files = [file for file in sorted(path.rglob("*.json")) if is_cell(file)] if path.is_dir() else [path]
        if not files:
            raise DataError(f"--cells {path} has no cells; check the path: a study writes them to its results")
        cells += map(read_cell, files)
    return sorted(cells, key=lambda cell: cell.seed is not None)


def _evaluated(evaluations: Mapping[str, list[Path]]) -> list[Cell]:
    """Return the cells of evaluations; one with samples and one without of the same model are one cell."""
    found = [one for name, paths in evaluations.items() for path in paths for one in _find(name, path)]
    trained = {one.model: manifest for one in found if (manifest := _trained(one.model))}
    starts = set(map(_start_of, trained.values()))
    # What all others start from is the start, however it was made.
    trained = {model: manifest for model, manifest in trained.items() if model.resolve() not in starts}
    seeds = _seeds([(one.method, one.model) for one in found], trained)
    groups: dict[tuple[str, str, Path], list[_Found]] = {}
    for one in found:
        # By place, not by weights: two seeds may end with the same.
        groups.setdefault((one.method, one.benchmark, one.model), []).append(one)
    cells: list[Cell] = []
    for (method, benchmark, model), group in groups.items():
        group.sort(key=lambda one: one.manifest["identity"]["samples"] > 0)
        cells.append(
            cell_of(
                [one.path for one in group],
                method=method,
                seed=seeds[method, model],
                benchmark=benchmark,
                training_dir=model if model in trained else None,
                starts=starts,
            )
        )
    return cells


def _seeds(
    models: Iterable[tuple[str, Path]], trained: Mapping[Path, Mapping[str, Any]]
) -> dict[tuple[str, Path], int | None]:
    """Return the training seed of each method's models: the manifest's, or the next free number where there is none.

    Several models of one name are its seeds, whatever trained them; a single one without a manifest has none.
    """
    seeds = {key: trained[key[1]]["settings"]["output"]["seed"] if key[1] in trained else None for key in models}
    for method in {name for name, _ in seeds}:
        mine = {key: seed for key, seed in seeds.items() if key[0] == method}
        if len(mine) > 1:
            free = iter(sorted({*range(len(mine))} - {*mine.values()}))
            seeds |= {key: next(free) for key, seed in mine.items() if seed is None}
    return seeds


def _find(method: str, path: Path) -> Iterator[_Found]:
    """Yield the evaluation of a directory, or each of a suite's."""
    flag = f"--evaluation {method}="
    inside = sorted(manifest.parent for manifest in path.glob(f"*/{MANIFEST}"))
    for one in inside if inside and not (path / MANIFEST).exists() else [path]:
        manifest = finished_manifest(one, "evaluate", flag)
        yield _Found(method, one, manifest, benchmark_of(manifest))


def _start_of(manifest: Mapping[str, Any]) -> Path:
    """Return the model that a training is counted from: the one it began with.

    GRPO counts together with the training before it, unless that was a cold start on worked solutions.
    """
    model = manifest["settings"]["model"]
    began = Path(manifest["base_model"] if manifest["stage"] == "train" else model["adapter"] or model["model"])
    before = _trained(began) if manifest["stage"] == "rl" else None
    return _start_of(before) if before and before["facts"].get("method") != "gold" else began.resolve()


def _trained(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a model that `cruxtune train` or `rl` made, None of any other."""
    if not (path / MANIFEST).is_file():
        return None
    manifest = read_manifest(path)
    return manifest if manifest["stage"] in ("train", "rl") and manifest["complete"] else None
