"""The commands that run a YAML file: `run`, `study` and `demo`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cruxtune import printing
from cruxtune.options import DRY_RUN, merged, nested_values
from cruxtune.progress import stderr
from cruxtune.recipe import plan, read_recipe, split_file
from cruxtune.stage_settings import CompareSettings
from cruxtune.study_clock import Clock


def run_command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe; recipes/ has examples.")],
    output: Annotated[Path | None, typer.Option(help="Directory of the run, instead of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random, instead of the recipe's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Respond to and evaluate on N problems at most.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the recipe, e.g. train.cft.epochs=1."),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Run only the steps that --dry-run calls so: 'train *'.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what the run has done and start again.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_RUN)] = False,
) -> None:
    """Run a recipe: every stage in order; what is finished is skipped.

    `cruxtune run recipes/qwen2.5-gsm8k.yaml` is an example.
    """
    overrides = nested_values(set_ or [])
    for name, value in (("output", output), ("seed", seed)):
        if value is not None:
            overrides = merged(overrides, {name: str(value) if isinstance(value, Path) else value})
    _run(recipe, overrides, limit, overwrite, dry_run, only)


def study_command(
    study: Annotated[Path, typer.Argument(help="YAML study; recipes/studies has examples.")],
    output: Annotated[Path | None, typer.Option(help="Working directory, instead of the study's.")] = None,
    results: Annotated[Path | None, typer.Option(help="Directory of the results, instead of the study's.")] = None,
    only: Annotated[str | None, typer.Option(metavar="GLOB", help="Compute only what is called so: sums/cft*.")] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="Begin nothing after so many minutes.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the study, e.g. threads=1."),
    ] = None,
    starts: Annotated[
        bool, typer.Option("--starts", help="Make the starts alone, again if they are gone, and check their hashes.")
    ] = False,
    any_start: Annotated[
        bool, typer.Option("--any-start", help="Go on although start or annotations were made again with other bits.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what is done and what is missing; compute and write nothing.")
    ] = False,
) -> None:
    """Run a study: methods × seeds from one start, GRPO from its models, or a search for a start; unit by unit.

    What is finished is skipped.

    `cruxtune study recipes/studies/small.yaml` is an example.
    """
    from cruxtune.study_commands import study_command as run_study

    overrides = nested_values(set_ or [])
    for name, value in (("output", output), ("results", results)):
        if value is not None:
            overrides = merged(overrides, {name: str(value)})
    clock = Clock(only=only, max_minutes=max_minutes)
    run_study(study, overrides, clock, starts=starts, any_start=any_start, dry_run=dry_run)


def demo_command(
    output: Annotated[Path, typer.Option(help="Directory of the run.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Respond to and evaluate on N problems at most.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what an earlier demo did and start again.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_RUN)] = False,
) -> None:
    """Show the whole loop on a small model: cold start, respond, annotate, train, evaluate, report.

    Takes about a quarter of an hour on two cores and needs neither a GPU nor a download.
    `cruxtune demo --output demo` is an example.
    """
    # Everything that the demo needs is installed; nothing of it should ask the network.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    recipe = Path(__file__).with_name("demo.yaml")
    _run(recipe, {"output": str(output), "seed": seed}, limit, overwrite, dry_run)
    if not dry_run:
        stderr.print(
            "At this size the demo shows the loop, not the claim: so few problems cannot tell apart methods that "
            "differ by a few points, whichever way they fall.",
            soft_wrap=True,
        )


def _run(
    path: Path,
    overrides: Mapping[str, Any],
    limit: int | None,
    overwrite: bool,
    dry_run: bool,
    only: str | None = None,
) -> None:
    recipe = read_recipe(path, overrides)
    steps = plan(recipe, only=only, limit=limit, overwrite=overwrite)
    if dry_run:
        splits = ", ".join(str(split_file(recipe.output, name)) for name in ("coldstart", "train", "heldout"))
        typer.echo(f"# problems → {splits}")
        printing.show_plan([(step.name, step.settings) for step in steps])
        return
    from cruxtune.pipeline import run
    from cruxtune.summary import write_summary

    done = run(recipe, only=only, limit=limit, overwrite=overwrite)
    if only is not None:
        # The summary is of all steps.
        typer.echo(recipe.output)
        return
    summary = write_summary(recipe, done.manifests, done.seconds, command=" ".join(["cruxtune", *sys.argv[1:]]))
    for step in steps:
        if isinstance(step.settings, CompareSettings):
            title = "" if step.name == "compare" else f"{step.name}\n\n"
            typer.echo(title + (step.settings.output / "comparison.md").read_text())
    printing.show_run(summary)
    typer.echo(recipe.output / "report.html")
