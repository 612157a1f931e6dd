"""What the command `study` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from cruxtune.study import Study, read_study
from cruxtune.study_clock import Clock


def study_command(path: Path, overrides: Mapping[str, Any], clock: Clock, *, dry_run: bool) -> None:
    """Run a study or a search as far as the clock lets, or print what is done and what is not.

    Raises:
        CruxtuneError: as the stages do; or results that were found with other settings.
    """
    study = read_study(path, overrides)
    if dry_run:
        for line in _listing(study):
            typer.echo(line)
        return
    if study.threads is not None:
        import torch

        torch.set_num_threads(study.threads)
    from cruxtune.start_search import run_search

    run_search(study, clock)
    typer.echo(study.results)


def _listing(study: Study) -> list[str]:
    from cruxtune.start_search import result_file, starts

    return [f"{'done' if result_file(study, start).exists() else 'missing'}  {start.name}" for start in starts(study)]
