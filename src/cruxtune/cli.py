"""The command line: parse, call, print. Every option is a field of a settings class; see `cruxtune.settings`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.logging import RichHandler

from cruxtune import printing, processes
from cruxtune.benchmarks import BenchmarkSettings
from cruxtune.contamination import ContaminationSettings
from cruxtune.errors import ConfigError, CruxtuneError, DataError, ElsewhereError
from cruxtune.exporters.settings import ExportSettings, InspectSettings
from cruxtune.options import with_options
from cruxtune.progress import stderr
from cruxtune.recipe_commands import demo_command, run_command, study_command
from cruxtune.report.stats import show as show_stats
from cruxtune.rl_settings import RlSettings
from cruxtune.settings import S, build
from cruxtune.stage_settings import (
    AnnotateSettings,
    CompareSettings,
    EstimateSettings,
    EvaluateSettings,
    GradeSettings,
    RespondSettings,
    SelectSettings,
    TrainSettings,
)
from cruxtune.stats_settings import StatsSettings

app = typer.Typer(
    name="cruxtune",
    help="Find the tokens that decide whether a model's reasoning comes out right, and fine-tune on those alone.\n\n"
    "Stages: respond → annotate → select → train → evaluate → compare. `cruxtune run RECIPE` does all of them; "
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
    context: typer.Context,
    version_: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if processes.count() > 1 and context.invoked_subcommand not in ("train", "rl", "run"):
        raise ConfigError(
            f"cruxtune {context.invoked_subcommand} is one process, and {processes.count()} were started; only train "
            "and rl take several: run it without the launcher"
        )


def main() -> None:
    """Run the command line; user errors are one line on stderr and exit code 2, an interrupt is 130."""
    if processes.index() > 0:
        # The first of several processes speaks for all.
        stderr.quiet, sys.stdout = True, open(os.devnull, "w")  # noqa: SIM115
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
        processes.leave()
    except ElsewhereError:
        sys.exit(2)
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
    # Until processes are connected, those of a machine have the same errors.
    if processes.speaks() or processes.joined():
        stderr.quiet = False
        stderr.print("error: " + " ".join(message.split()), style="red", markup=False, soft_wrap=True)
    sys.exit(2)


def _stage(
    name: str,
    kind: type[S],
    load: Callable[[], Callable[[S], dict[str, Any]]],
    show: Callable[[S, dict[str, Any]], None],
    help_: str,
) -> None:
    """Register a command; `load` imports what it runs, which happens only then."""

    def handler(given: dict[str, Any], dry_run: bool) -> None:
        settings = build(kind, given)
        if dry_run:
            printing.show_plan([(name, settings)])
            return
        show(settings, load()(settings))

    app.command(name, help=help_)(with_options(kind, handler))


def _respond() -> Callable[[RespondSettings], dict[str, Any]]:
    from cruxtune.stages.respond import respond

    return respond


def _annotate() -> Callable[[AnnotateSettings], dict[str, Any]]:
    from cruxtune.stages.annotate import annotate

    return annotate


def _estimate(given: dict[str, Any], dry_run: bool) -> None:
    settings = build(EstimateSettings, given)
    if dry_run:
        printing.show_plan([("estimate", settings)])
        return
    from cruxtune.stages.estimate import estimate

    found = estimate(settings)
    printing.show_estimate(found)


def _inspect(given: dict[str, Any], dry_run: bool) -> None:
    settings = build(InspectSettings, given)
    if dry_run:
        printing.show_plan([("inspect", settings)])
        return
    from cruxtune.stages.inspect import inspect

    printing.show_inspect(inspect(settings))


def _select() -> Callable[[SelectSettings], dict[str, Any]]:
    from cruxtune.stages.select import select

    return select


def _train() -> Callable[[TrainSettings], dict[str, Any]]:
    from cruxtune.stages.train import train

    return train


def _rl() -> Callable[[RlSettings], dict[str, Any]]:
    from cruxtune.stages.rl import rl

    return rl


def _evaluate() -> Callable[[EvaluateSettings], dict[str, Any]]:
    from cruxtune.stages.evaluate import evaluate
    from cruxtune.suite import evaluate_benchmarks

    return lambda settings: evaluate(settings) if settings.benchmarks is None else evaluate_benchmarks(settings)


def _benchmarks() -> Callable[[BenchmarkSettings], dict[str, Any]]:
    from cruxtune.benchmark_commands import show_benchmarks

    return show_benchmarks


def _contamination() -> Callable[[ContaminationSettings], dict[str, Any]]:
    from cruxtune.benchmark_commands import show_contamination

    return show_contamination


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
    printing.show_respond,
    "Stage 1: let the policy answer problems greedily (and by samples, if asked for), and verify the answers.\n\n"
    "Example:\n\n"
    "    cruxtune respond --model embedded --problems gym:chain_sum --size 64 --max-new-tokens 128 "
    "--output runs/first/responses",
)
_stage(
    "annotate",
    AnnotateSettings,
    _annotate,
    printing.show_annotate,
    "Stage 2: find the critical tokens of the correct responses. Each token gives way to the model's next-best ones; "
    "where every replacement ends in a wrong answer, it is critical. In responses that are not the model's own greedy "
    "ones, keeping the token must succeed, too.\n\n"
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
    "select",
    SelectSettings,
    _select,
    printing.show_select,
    "Stage 3: weigh every token of the annotated responses by one of several methods, and say which are kept.\n\n"
    "Example:\n\n"
    "    cruxtune select --method entropy --annotations runs/first/annotations --output runs/first/entropy",
)
_stage(
    "train",
    TrainSettings,
    _train,
    printing.show_train,
    "Stage 4: fine-tune on the critical tokens (cft), on all tokens of the same responses (sft), on worked solutions "
    "(gold), or on what `cruxtune select` chose.\n\n"
    "Example:\n\n"
    "    cruxtune train --method cft --annotations runs/first/annotations --learning-rate 1e-5 --output runs/first/cft",
)
_stage(
    "rl",
    RlSettings,
    _rl,
    printing.show_rl,
    "Reinforcement learning: sample responses, reward those that the verifier finds correct, and train on the "
    "differences within each group (GRPO). From any checkpoint or adapter.\n\n"
    "Example:\n\n"
    "    cruxtune rl --method grpo --model runs/first/cft --problems gym:chain_sum --size 500 --seed 2000 "
    "--max-new-tokens 128 --steps 40 --output runs/first/grpo",
)
_stage(
    "export",
    ExportSettings,
    _export,
    printing.show_export,
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
    printing.show_evaluate,
    "Stage 5: answer held-out problems greedily and by samples, and verify. With --benchmarks, those of several "
    "benchmarks (`cruxtune benchmarks` lists them).\n\n"
    "Example:\n\n"
    "    cruxtune evaluate --model runs/first/cft --problems gym:chain_sum --size 100 --seed 1000 --samples 4 "
    "--max-new-tokens 128 --output runs/first/eval-cft",
)
_stage(
    "compare",
    CompareSettings,
    _compare,
    printing.show_compare,
    "Stage 6: any number of evaluations side by side (methods, training seeds, benchmarks): a table with 95 % "
    "intervals and marks for what is significant, differences, compute, curves. What an interval says depends on "
    "what was repeated: with one seed of a method it holds for that model only. `--cells` takes the results of a "
    "study.\n\n"
    "Example:\n\n"
    "    cruxtune compare --evaluation sft=runs/eval-sft --evaluation cft=runs/eval-cft --output runs/comparison",
)
_stage(
    "benchmarks",
    BenchmarkSettings,
    _benchmarks,
    printing.nothing_more,
    "The benchmarks by name: problems, licences, sources, and whether there are problems to train on.\n\n"
    "Example:\n\n"
    "    cruxtune benchmarks",
)
_stage(
    "contamination",
    ContaminationSettings,
    _contamination,
    printing.nothing_more,
    "Problems to train on that occur in a benchmark: those that share 13 words in a row with one of its questions. "
    "`--decontaminate` of `cruxtune respond` leaves them out.\n\n"
    "Example:\n\n"
    "    cruxtune contamination --problems train.jsonl --benchmarks gsm8k,math",
)


def _grade(given: dict[str, Any], dry_run: bool) -> None:
    settings = build(GradeSettings, given)
    if dry_run:
        printing.show_plan([("grade", settings)])
        return
    from cruxtune.stages.grade import grade

    done = grade(settings)
    printing.show_grade(done)
    if done["bad"] and not settings.skip_bad:
        raise DataError(
            f"{done['bad']} of {done['rows']} rows could not be graded (reason bad-line in {done['output']}, which has "
            f"the verdicts on all others), the first: {done['first_error']}. Correct them, or accept it with --skip-bad"
        )


def _stats(given: dict[str, Any], dry_run: bool) -> None:
    settings = build(StatsSettings, given)
    if dry_run:
        printing.show_plan([("stats", settings)])
        return
    from cruxtune.stages.stats import stats

    show_stats(stats(settings))


app.command(
    "stats",
    help="Which tokens are critical: their share by class of token, position, entropy and rank gap, with fewer "
    "alternatives, and the tokens that are critical most often. Of several annotations of the same responses, how they "
    "agree.\n\n"
    "Example:\n\n"
    "    cruxtune stats runs/first/annotations --page runs/first/tokens.md",
)(with_options(StatsSettings, _stats, argument="annotations"))
app.command(
    "grade",
    help="Judge the answers of a file: rows of gold and prediction get correct, extracted and reason. A prediction may "
    "be a bare answer or a whole response.\n\n"
    "Example:\n\n"
    "    cruxtune grade answers.jsonl --output verdicts.jsonl",
)(with_options(GradeSettings, _grade, argument="file"))

app.command("run")(run_command)
app.command("study")(study_command)
app.command("demo")(demo_command)
