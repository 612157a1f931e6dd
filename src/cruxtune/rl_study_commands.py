"""What the command `study` does with a study of reinforcement learning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from cruxtune.errors import ConfigError
from cruxtune.progress import stderr
from cruxtune.rl_study import RlStudy, read_rl_study, result_file, runs
from cruxtune.rl_study_page import page, power_lines
from cruxtune.rl_study_summary import summarise
from cruxtune.stage_settings import CompareSettings
from cruxtune.store import write_atomic
from cruxtune.study import Study
from cruxtune.study_clock import Clock
from cruxtune.study_commands import lines, use_threads


def rl_study_command(
    path: Path,
    overrides: Mapping[str, Any],
    clock: Clock,
    *,
    starts: bool = False,
    any_start: bool = False,
    dry_run: bool = False,
) -> None:
    """Run it as far as the clock lets and write its page, or print what is done and what is not.

    Raises:
        CruxtuneError: as the stages do; or results that were found with other settings.
    """
    study, record = read_rl_study(path, overrides)
    if starts:
        raise ConfigError(f"--starts: {path} has no starts of its own; make those of {study.study} with its own file")
    if dry_run:
        for text in listing(study, record):
            typer.echo(text)
        return
    use_threads(study.threads)
    from cruxtune.rl_study_run import run_rl_study

    try:
        found = run_rl_study(study, record, clock, any_start=any_start)
    finally:
        # What is done is worth a page, whatever stopped the rest.
        write_results(path, study, record)
    if missing := len(runs(study)) - len(found):
        stderr.print(f"{missing} of {len(runs(study))} runs are missing; the same command goes on", soft_wrap=True)
    typer.echo(_beside(study, ".md"))


def listing(study: RlStudy, record: Study) -> Iterator[str]:
    """Yield a line for every run: done or missing, expected minutes, name; then what is left, and the power."""
    yield from lines((run.name, result_file(study, run).exists(), study.minutes(run.name)) for run in runs(study))
    yield ""
    yield "percentage points that can be detected:"
    yield ""
    yield from power_lines(study, record)


def write_results(path: Path, study: RlStudy, record: Study) -> None:
    """Write the page of what is done, and where anything is its numbers, its figure and the comparison of its cells."""
    from cruxtune.rl_study_figure import figure
    from cruxtune.rl_study_run import compared_files, read_origins, read_runs
    from cruxtune.stages.compare import compare

    found = read_runs(study, record)
    result = summarise(study, found, read_origins(study, record, found))
    picture = compared = None
    study.results.parent.mkdir(parents=True, exist_ok=True)
    if found:
        picture = _beside(study, ".svg")
        write_atomic(picture, figure(result))
        write_atomic(_beside(study, ".json"), (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
        compared = compare(CompareSettings(cells=compared_files(study, record, found), output=study.results))
    text = page(path.as_posix(), study, record, result, compared=compared, figure=picture.name if picture else None)
    write_atomic(_beside(study, ".md"), text.encode())


def _beside(study: RlStudy, ending: str) -> Path:
    """Return the file of the results that is named as their directory."""
    return study.results.parent / f"{study.results.name}{ending}"
