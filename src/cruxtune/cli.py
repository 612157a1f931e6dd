"""The command line: parse, call, print. Every option is a field of a settings class; see `cruxtune.settings`."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import BaseModel
from rich.logging import RichHandler
from rich.table import Table

from cruxtune import printing
from cruxtune.errors import CruxtuneError
from cruxtune.exporters.settings import ExportSettings, InspectSettings
from cruxtune.options import DRY_RUN, merged, nested_values, with_options
from cruxtune.progress import duration, stderr
from cruxtune.recipe import plan, read_recipe, split_file
from cruxtune.settings import (
    AnnotateSettings,
    CompareSettings,
    EstimateSettings,
    EvaluateSettings,
    RespondSettings,
    S,
    TrainSettings,
    build,
)

app = typer.Typer(
    name="cruxtune",
    help="Find the tokens that decide whether a model's reasoning comes out right, and fine-tune on those alone.\n\n"
    "Stages: respond → annotate → train → evaluate → compare. `cruxtune run RECIPE` does all of them; "
    "`cruxtune demo` shows them on a small model, without a GPU or a download.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


INTERRUPTED = 130


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cruxtune {version('cruxtune')}")
        raise typer.Exit


@app.callback()
def _root(
    version_: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; user errors are one line on stderr and exit code 2, an interrupt is 130."""
    handler = RichHandler(console=stderr, show_time=False, show_path=False)
    logging.getLogger("cruxtune").addHandler(handler)
    # TRL reports its use to the Hub unless told otherwise; nobody asked for that.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Fast tokenizers warn about forks that we never make.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        # typer turns an interrupt into this exit code by itself.
        if app(standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt
    except CruxtuneError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        stderr.print("\ninterrupted: what is finished is kept; the same command resumes", soft_wrap=True)
        sys.exit(INTERRUPTED)
    except typer.Exit as exit_:
        sys.exit(exit_.exit_code)
    except Exception as error:
        # typer's own complaints (unknown option, wrong type) show themselves; all else is a bug and keeps its trace.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        if message():
            _fail(message())
        sys.exit(2)


def _fail(message: str) -> None:
    stderr.print("error: " + " ".join(message.split()), style="red", markup=False, soft_wrap=True)
    sys.exit(2)


def _stage(
    name: str,
    kind: type[S],
    load: Callable[[], Callable[[S], dict[str, Any]]],
    show: Callable[[S, dict[str, Any]], None],
    help_: str,
) -> None:
    """Register a stage's command; `load` imports the stage, which happens only when it runs."""

    def handler(given: dict[str, Any], dry_run: bool) -> None:
        settings = build(kind, given)
        if dry_run:
            _print_plan([(name, settings)])
            return
        show(settings, load()(settings))

    app.command(name, help=help_)(with_options(kind, handler))


def _print_plan(steps: list[tuple[str, BaseModel]]) -> None:
    for name, settings in steps:
        text = yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
        typer.echo(f"# {name}\n{text}")


def _table(title: str, rows: Mapping[str, str]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, value)
    stderr.print(table)


def _cost(manifest: Mapping[str, Any]) -> dict[str, str]:
    done = manifest["accounting"]
    fallback, accepted = manifest["shares"]["fallback_share"], manifest["shares"]["drafts_accepted"]
    return {
        "verdicts by the fallback": "-" if fallback is None else f"{100 * fallback:.1f} %",
        "tokens": f"{done['tokens_emitted']:,.0f} emitted, {done['tokens_computed']:,.0f} put through the model",
        **({"drafts": f"{100 * accepted:.0f} % of {done['tokens_drafted']:,.0f} tokens right"} if accepted else {}),
        "passes": f"{done['model_calls']:,.0f}",
        "time": f"{duration(done['seconds'])} ({done['tokens_emitted'] / max(done['seconds'], 1e-9):,.0f} tokens/s)",
    }


def _show_respond(settings: RespondSettings, manifest: dict[str, Any]) -> None:
    done = manifest["accounting"]
    rows = {
        "correct responses": printing.share(done["correct"], done["responses"]),
        "truncated": f"{done['truncated']:.0f}",
    }
    _table("respond", {**rows, **_cost(manifest)})
    typer.echo(settings.output.output)


def _show_annotate(settings: AnnotateSettings, manifest: dict[str, Any]) -> None:
    done = manifest["accounting"]
    rows = {
        "responses": f"{done['responses']:.0f}",
        "critical tokens": printing.share(done["critical_tokens"], done["known_tokens"]),
        "rollouts made": printing.share(done["rollouts_made"], done["rollouts_wanted"])
        + f", {done['rollouts_skipped']:,.0f} not needed",
        "ended in a loop / at the limit": f"{done['rollouts_looped']:.0f} / {done['rollouts_truncated']:.0f}",
    }
    _table("annotate", {**rows, **_cost(manifest)})
    typer.echo(settings.output.output)


def _show_train(settings: TrainSettings, manifest: dict[str, Any]) -> None:
    facts, done = manifest["facts"], manifest["accounting"]
    rows = {
        "rows": f"{facts['rows']} ({facts['rows_dropped']} too long and left out)",
        "trained tokens an epoch": printing.share(facts["tokens_per_epoch"], facts["response_tokens_per_epoch"]),
        "loss": f"{manifest['loss']['first']:.4f} → {manifest['loss']['last']:.4f} in {done['steps']} steps",
        "time": duration(done["seconds"]),
    }
    _table(f"train {settings.method}", rows)
    typer.echo(settings.output.output)


def _show_evaluate(settings: EvaluateSettings, manifest: dict[str, Any]) -> None:
    done = manifest["accounting"]
    rows = {
        "problems": f"{done['problems']:.0f}",
        "greedy responses correct": printing.share(done["correct_greedy"], done["problems"]),
    }
    if settings.samples:
        rows["samples correct"] = printing.share(done["correct_samples"], done["responses"] - done["problems"])
    _table("evaluate", {**rows, **_cost(manifest)})
    typer.echo(settings.output.output)


def _show_compare(settings: CompareSettings, _: dict[str, Any]) -> None:
    typer.echo((settings.output / "comparison.md").read_text())
    typer.echo(settings.output)


def _show_export(settings: ExportSettings, manifest: dict[str, Any]) -> None:
    _table(f"export to {settings.to}", printing.exported(manifest))
    stderr.print(manifest["advice"]["settings"], markup=False, soft_wrap=True)
    typer.echo(settings.output)


def _inspect(given: dict[str, Any], dry_run: bool) -> None:
    settings = build(InspectSettings, given)
    if dry_run:
        _print_plan([("inspect", settings)])
        return
    from cruxtune.stages.inspect import inspect

    printing.inspected(inspect(settings))


def _respond() -> Callable[[RespondSettings], dict[str, Any]]:
    from cruxtune.stages.respond import respond

    return respond


def _annotate() -> Callable[[AnnotateSettings], dict[str, Any]]:
    from cruxtune.stages.annotate import annotate

    return annotate


def _estimate(given: dict[str, Any], dry_run: bool) -> None:
    settings = build(EstimateSettings, given)
    if dry_run:
        _print_plan([("estimate", settings)])
        return
    from cruxtune.stages.estimate import estimate

    found = estimate(settings)
    _table(
        "estimate",
        {
            "responses, positions": f"{found.responses:,}, {found.positions:,}",
            "rollouts": printing.share(found.rollouts, found.rollouts_wanted),
            "tokens": f"{found.tokens:,} ({found.tokens_low:,} to {found.tokens_high:,})",
            "speed": f"{found.tokens_per_second:,.0f} tokens/s",
            "time": f"{duration(found.seconds)} ({duration(found.seconds_low)} to {duration(found.seconds_high)})",
            "tried for": duration(found.trial_seconds),
        },
    )
    typer.echo(json.dumps(asdict(found)))


def _train() -> Callable[[TrainSettings], dict[str, Any]]:
    from cruxtune.stages.train import train

    return train


def _evaluate() -> Callable[[EvaluateSettings], dict[str, Any]]:
    from cruxtune.stages.evaluate import evaluate

    return evaluate


def _compare() -> Callable[[CompareSettings], dict[str, Any]]:
    from cruxtune.stages.compare import compare

    return compare


def _export() -> Callable[[ExportSettings], dict[str, Any]]:
    from cruxtune.stages.export import export

    return export


_stage(
    "respond",
    RespondSettings,
    _respond,
    _show_respond,
    "Stage 1: let the policy answer problems greedily, and verify the answers.\n\n"
    "Example:\n\n"
    "    cruxtune respond --model embedded --problems gym:chain_sum --size 64 --max-new-tokens 128 "
    "--output runs/first/responses",
)
_stage(
    "annotate",
    AnnotateSettings,
    _annotate,
    _show_annotate,
    "Stage 2: find the critical tokens of the correct responses. Each token gives way to the model's next-best ones; "
    "where every replacement ends in a wrong answer, it is critical.\n\n"
    "Example:\n\n"
    "    cruxtune annotate --responses runs/first/responses --output runs/first/annotations",
)
app.command(
    "estimate",
    help="What stage 2 will cost on this machine: rollouts, tokens and time, from a trial of a minute or less. Takes "
    "the options of annotate, and writes nothing.\n\n"
    "Example:\n\n"
    "    cruxtune estimate --responses runs/first/responses --positions 0.25",
)(with_options(EstimateSettings, _estimate))
_stage(
    "train",
    TrainSettings,
    _train,
    _show_train,
    "Stage 4: fine-tune on the critical tokens (cft), on all tokens of the same responses (sft), or on worked "
    "solutions (gold).\n\n"
    "Example:\n\n"
    "    cruxtune train --method cft --annotations runs/first/annotations --learning-rate 1e-5 --output runs/first/cft",
)
_stage(
    "export",
    ExportSettings,
    _export,
    _show_export,
    "Write the critical tokens for another trainer (or preference pairs for DPO), and print the settings it needs.\n\n"
    "Example:\n\n"
    "    cruxtune export --to axolotl --annotations runs/first/annotations --output runs/first/axolotl",
)
app.command(
    "inspect",
    help="Print rows as text with the tokens that carry loss marked, before and after the trainer's collator.\n\n"
    "Example:\n\n"
    "    cruxtune inspect --annotations runs/first/annotations --limit 2",
)(with_options(InspectSettings, _inspect))
_stage(
    "evaluate",
    EvaluateSettings,
    _evaluate,
    _show_evaluate,
    "Stage 5: answer held-out problems greedily and by samples, and verify.\n\n"
    "Example:\n\n"
    "    cruxtune evaluate --model runs/first/cft --problems gym:chain_sum --size 100 --seed 1000 --samples 4 "
    "--max-new-tokens 128 --output runs/first/eval-cft",
)
_stage(
    "compare",
    CompareSettings,
    _compare,
    _show_compare,
    "Stage 6: evaluations of the same problems side by side, with 95 % intervals.\n\n"
    "Example:\n\n"
    "    cruxtune compare --evaluation sft=runs/first/eval-sft --evaluation cft=runs/first/eval-cft "
    "--output runs/first/comparison",
)


@app.command("run")
def run_command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe; recipes/ has examples.")],
    output: Annotated[Path | None, typer.Option(help="Directory of the run, instead of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random, instead of the recipe's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Respond to and evaluate on N problems at most.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the recipe, e.g. train.cft.epochs=1."),
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
    _run(recipe, overrides, limit, overwrite, dry_run)


@app.command("demo")
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


def _run(path: Path, overrides: Mapping[str, Any], limit: int | None, overwrite: bool, dry_run: bool) -> None:
    recipe = read_recipe(path, overrides)
    steps = plan(recipe, overwrite=overwrite)
    if dry_run:
        splits = ", ".join(str(split_file(recipe.output, name)) for name in ("coldstart", "train", "heldout"))
        typer.echo(f"# problems → {splits}")
        _print_plan([(step.name, step.settings) for step in steps])
        return
    from cruxtune.pipeline import run
    from cruxtune.summary import write_summary

    done = run(recipe, limit=limit, overwrite=overwrite)
    summary = write_summary(recipe, done.manifests, done.seconds, command=" ".join(["cruxtune", *sys.argv[1:]]))
    typer.echo((recipe.output / "comparison" / "comparison.md").read_text())
    made, total = summary["rollouts"]["made"], summary["rollouts"]["wanted"]
    _table(
        f"run on {summary['task']}",
        {
            "annotated responses": str(summary["annotated_responses"]),
            "critical tokens": f"{100 * summary['critical_share']:.1f} %",
            "rollouts made": printing.share(made, total),
            "time": duration(summary["seconds"]),
            "peak memory": f"{summary['peak_memory_gib']:.1f} GiB",
        },
    )
    typer.echo(recipe.output / "report.html")
