"""What the commands `benchmarks` and `contamination` do, and how the results of several benchmarks are shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from cruxtune.benchmark_rows import count_rows, require_files
from cruxtune.benchmarks import BENCHMARKS, BenchmarkSettings
from cruxtune.contamination import ContaminationSettings, find_contaminated, load_benchmarks
from cruxtune.problems import load_problems
from cruxtune.progress import stderr
from cruxtune.store import write_atomic


def show_benchmarks(settings: BenchmarkSettings) -> dict[str, Any]:
    """Print the table of benchmarks, and return the number of problems of each (None where there is no file).

    Raises:
        ConfigError: --benchmarks-dir is no directory.
    """
    directory = settings.benchmarks_dir
    require_files((), "test", directory)
    title = "Benchmarks" + (f" in {directory}" if directory else "")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("name", "problems", "split", "kind", "licence", "to train on", "source"):
        table.add_column(
            column, justify="right" if column == "problems" else "left", no_wrap=column == "name", overflow="fold"
        )
    counts = {}
    for name, benchmark in BENCHMARKS.items():
        rows = benchmark.splits["test"].rows if directory is None else count_rows(name, "test", directory)
        counts[name] = rows
        table.add_row(
            name,
            "no file" if rows is None else f"{rows:,}",
            "test",
            benchmark.kind,
            benchmark.licence,
            _training(name, directory),
            benchmark.shown_source,
        )
    Console().print(table)
    stderr.print(
        "paper stands for the first twelve but math500, medical for the last three. A test split is never trained on; "
        "where there is no training split, take problems from elsewhere.",
        soft_wrap=True,
    )
    return counts


def show_contamination(settings: ContaminationSettings) -> dict[str, Any]:
    """Print, or write, one JSON object for each problem and benchmark that it occurs in; return the numbers.

    Raises:
        ConfigError: problems or benchmarks that cannot be loaded.
        DataError: problems that cannot be read.
    """
    directory = settings.files.benchmarks_dir
    problems = load_problems(
        settings.problems, seed=settings.seed, limit=settings.limit, skip_bad=True, benchmarks_dir=directory
    )
    benchmarks = load_benchmarks(settings.benchmarks, directory)
    found = find_contaminated(problems, benchmarks)
    counts = Counter(finding.benchmark for finding in found)
    table = Table(title=f"{settings.problems.problems}: {len(problems):,} problems", title_justify="left")
    for column in ("benchmark", "its problems", "of yours in it", "for example"):
        table.add_column(column, justify="left" if column in ("benchmark", "for example") else "right")
    for name, others in benchmarks.items():
        first = next((finding for finding in found if finding.benchmark == name), None)
        example = f"{first.id} is like {first.like}" if first else ""
        table.add_row(BENCHMARKS[name].title, f"{len(others):,}", f"{counts[name]:,}", example)
    stderr.print(table)
    bad = len({finding.id for finding in found})
    stderr.print(
        f"{bad:,} of {len(problems):,} problems occur in these benchmarks"
        + (f"; leave them out with --decontaminate {settings.benchmarks}" if bad else ""),
        soft_wrap=True,
    )
    lines = "".join(json.dumps(finding._asdict(), ensure_ascii=False) + "\n" for finding in found)
    if settings.output is None:
        typer.echo(lines, nl=False)
    else:
        write_atomic(settings.output, lines.encode())
        typer.echo(settings.output)
    return dict(counts)


def show_overview(overview: Mapping[str, Any], output: Path) -> None:
    """Print the scores of several benchmarks."""
    from cruxtune.comparison_page import percent

    table = Table(title=f"evaluate {overview['model']}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    samples = overview["samples"]
    for column in ("benchmark", "problems", "pass@1 (greedy)", *([f"pass@{samples}"] if samples else [])):
        table.add_column(column, justify="right" if column == "problems" else "left")
    for result in overview["benchmarks"].values():
        scores = [percent(result[f"pass@{k}"], result[f"pass@{k}_interval"]) for k in ("1", *("N" if samples else ""))]
        table.add_row(result["title"], f"{result['problems']:,}", *scores)
    mean = overview["mean"]
    table.add_row("mean", "", f"{100 * mean['pass@1']:.1f} %", *([f"{100 * mean['pass@N']:.1f} %"] if samples else []))
    stderr.print(table)
    typer.echo(output)


def _training(name: str, directory: Path | None) -> str:
    split = BENCHMARKS[name].splits.get("train")
    if directory is None:
        return f"{split.rows:,}" if split else "none"
    rows = count_rows(name, "train", directory)
    if rows is not None:
        return f"{rows:,}"
    return f"none here, {split.rows:,} at the source" if split else "none"
