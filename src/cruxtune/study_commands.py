"""What the command `study` does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from cruxtune import start_search
from cruxtune.power import compared_pairs, power_table
from cruxtune.progress import stderr
from cruxtune.rl_study import is_rl_study
from cruxtune.stage_settings import CompareSettings
from cruxtune.store import write_atomic
from cruxtune.study import Study, read_study, result_file, units
from cruxtune.study_clock import Clock


def study_command(
    path: Path,
    overrides: Mapping[str, Any],
    clock: Clock,
    *,
    starts: bool = False,
    any_start: bool = False,
    dry_run: bool = False,
) -> None:
    """Run a study of whatever kind as far as the clock lets, make its starts alone, or print what is done.

    Raises:
        CruxtuneError: as the stages do; or results that were found with other settings.
    """
    if is_rl_study(path):
        from cruxtune.rl_study_commands import rl_study_command

        rl_study_command(path, overrides, clock, starts=starts, any_start=any_start, dry_run=dry_run)
        return
    study = read_study(path, overrides)
    if dry_run:
        for line in listing(study):
            typer.echo(line)
        return
    use_threads(study.threads)
    if study.search is not None:
        start_search.run_search(study, clock)
    elif starts:
        from cruxtune.study_run import make_starts

        for directory in make_starts(study, clock, any_start=any_start).values():
            typer.echo(directory)
        return
    else:
        from cruxtune.study_run import run_study

        found = run_study(study, clock, any_start=any_start)
        missing = len(units(study)) - len(found)
        if missing:
            stderr.print(
                f"{missing} of {len(units(study))} units are missing; the same command goes on", soft_wrap=True
            )
        if any(unit.kind == "cell" for unit in units(study) if unit.name in found):
            _compare(study)
    typer.echo(study.results)


def use_threads(threads: int | None) -> None:
    """Let torch use so many threads; as many as it likes without a number."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def listing(study: Study) -> Iterator[str]:
    """Yield a line for every unit: done or missing, expected minutes, name; then what is left, and the power."""
    if study.search is not None:
        for start in start_search.starts(study):
            done = start_search.result_file(study, start).exists()
            yield f"{'done' if done else 'missing':8}{start.name}"
        return
    yield from lines((unit.name, result_file(study, unit).exists(), study.minutes(unit.name)) for unit in units(study))
    yield from power_lines(study)


def lines(units: Iterable[tuple[str, bool, float | None]]) -> Iterator[str]:
    """Yield a line for each unit of (name, done, expected minutes), and how long the missing ones take.

    >>> list(lines([("sums/cft-0", False, 13), ("sums/cft-1", True, None)]))
    ['missing   13 min  sums/cft-0', 'done       ? min  sums/cft-1', 'left: about 0.2 hours']
    """
    left, unknown = 0.0, 0
    for name, done, minutes in units:
        if not done:
            left, unknown = left + (minutes or 0.0), unknown + (minutes is None)
        yield f"{'done' if done else 'missing':8}{'?' if minutes is None else f'{minutes:.0f}':>4} min  {name}"
    yield f"left: about {left / 60:.1f} hours" + (f", and {unknown} units of unknown length" if unknown else "")


def power_lines(study: Study) -> Iterator[str]:
    """Yield the smallest differences that each task can detect, as Markdown."""
    if study.power is None:
        return
    pairs = compared_pairs([task.seeds for task in study.tasks.values()])
    for name, task in study.tasks.items():
        heldout = study.recipe_of(name, study.output).splits.heldout
        if heldout is None:
            continue
        yield ""
        yield f"{name}, {heldout:,} problems, percentage points:"
        yield ""
        yield from power_table(task.seeds, heldout, pairs=pairs, **study.power.model_dump()).splitlines()


def _compare(study: Study) -> None:
    """Compare the cells that there are, among the results; the numbers are also in one file beside them."""
    from cruxtune.stages.compare import NAME, compare

    compare(CompareSettings(cells=[study.results], output=study.results))
    write_atomic(study.results.parent / f"{study.results.name}.json", (study.results / f"{NAME}.json").read_bytes())
    typer.echo((study.results / f"{NAME}.md").read_text())
