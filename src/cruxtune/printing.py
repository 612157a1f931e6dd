"""What commands print when they are done: a table on stderr, and on stdout where the result lies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
import yaml
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from cruxtune.accounting import cut_off
from cruxtune.exporters.settings import ExportSettings
from cruxtune.progress import duration, stderr
from cruxtune.report.terminal import bracketed, marked
from cruxtune.rl_settings import RlSettings
from cruxtune.stage_settings import (
    AnnotateSettings,
    CompareSettings,
    EvaluateSettings,
    RespondSettings,
    SelectSettings,
    TrainSettings,
)

if TYPE_CHECKING:
    from cruxtune.stages.estimate import Estimate
    from cruxtune.stages.inspect import Piece, Shown


def show_plan(steps: list[tuple[str, BaseModel]]) -> None:
    """Print the settings of each step as YAML."""
    for name, settings in steps:
        text = yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
        typer.echo(f"# {name}\n{text}")


def table(title: str, rows: Mapping[str, str]) -> None:
    """Print names and values on stderr."""
    grid = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        grid.add_row(name, value)
    stderr.print(grid)


def share(part: float, whole: float) -> str:
    """Return a part with its share of the whole.

    >>> share(1234, 4936)
    '1,234 of 4,936 (25.0 %)'
    """
    return f"{part:,.0f} of {whole:,.0f} ({100 * part / whole:.1f} %)" if whole else "0"


def show_respond(settings: RespondSettings, manifest: dict[str, Any]) -> None:
    """Print what `cruxtune respond` came to."""
    done = manifest["accounting"]
    rows = {"correct responses": share(done["correct"], done["responses"])}
    if settings.samples:
        rows["problems with one"] = share(done["solved"], done["problems"])
    rows["truncated"] = f"{done['truncated']:.0f}"
    table("respond", {**rows, **_cost(manifest)})
    typer.echo(settings.output.output)


def show_annotate(settings: AnnotateSettings, manifest: dict[str, Any]) -> None:
    """Print what `cruxtune annotate` came to."""
    done, left_out = manifest["accounting"], manifest.get("responses_left_out", {})
    rows = {"responses": f"{done['responses']:.0f}"}
    if reasons := {name: count for name, count in left_out.items() if count}:
        words = {"repeated": "the same as another", "text": "changed by the tokenizer", "long": "too long"}
        rows["left out"] = ", ".join(f"{count} {words[name]}" for name, count in reasons.items())
    rows |= {
        "critical tokens": share(done["critical_tokens"], done["known_tokens"]),
        "rollouts made": share(done["rollouts_made"], done["rollouts_wanted"])
        + f", {done['rollouts_skipped']:,.0f} not needed",
        "ended in a loop / at the limit": f"{done['rollouts_looped']:.0f} / {done['rollouts_truncated']:.0f}",
    }
    if done.get("responses_not_own"):
        asked = done["known_tokens"] + done["undecided_tokens"]
        rows["not the model's own"] = f"{done['responses_not_own']:.0f}, their tokens kept first"
        rows["undecided tokens"] = share(done["undecided_tokens"], asked)
    if settings.rollouts_per_alternative:
        rows["sampled rollouts"] = f"{done['rollouts_sampled']:,.0f}"
    if settings.joint:
        rows[f"{settings.joint} critical together"] = (
            share(done["joint_sets_critical"], done["joint_sets_asked"])
            + f"; {done['joint_sets_open']:,.0f} of {done['joint_sets']:,.0f} have no critical token"
        )
    table("annotate", {**rows, **_cost(manifest)})
    typer.echo(settings.output.output)


def show_estimate(found: Estimate) -> None:
    """Print what an annotation will cost: as a table, and as JSON on stdout."""
    table(
        "estimate",
        {
            "responses, positions": f"{found.responses:,}, {found.positions:,}",
            "rollouts": share(found.rollouts, found.rollouts_wanted),
            **({"of these sampled": f"{found.sampled:,}"} if found.sampled else {}),
            **({"of these together": f"{found.joint:,}"} if found.joint else {}),
            "tokens": f"{found.tokens:,} ({found.tokens_low:,} to {found.tokens_high:,})",
            "speed": f"{found.tokens_per_second:,.0f} tokens/s",
            "time": f"{duration(found.seconds)} ({duration(found.seconds_low)} to {duration(found.seconds_high)})",
            "tried": f"{found.trial_rollouts:,} rollouts, {duration(found.trial_seconds)}",
        },
    )
    typer.echo(json.dumps(asdict(found)))


def show_select(settings: SelectSettings, manifest: dict[str, Any]) -> None:
    """Print what `cruxtune select` kept."""
    done = manifest["accounting"]
    kept = ", ".join(f"{token['text']!r} {token['kept']}/{token['seen']}" for token in manifest["most_kept"])
    rows = {
        "responses": f"{done['responses']:.0f}" + (f", {done['empty']:.0f} with nothing kept" if done["empty"] else ""),
        "tokens kept": share(done["tokens_kept"], done["response_tokens"]),
        "of critical tokens": share(done["critical_kept"], done["critical_tokens"]),
        **({"undecided tokens": f"{undecided:,.0f}"} if (undecided := done.get("undecided_tokens")) else {}),
        "sum of weights": f"{done['weight']:,.1f}",
        "most kept": kept,
    }
    table(f"select {settings.method}", rows)
    typer.echo(settings.output.output)


def show_train(settings: TrainSettings, manifest: dict[str, Any]) -> None:
    """Print what `cruxtune train` came to."""
    facts, done = manifest["facts"], manifest["accounting"]
    rows = {
        "rows": f"{facts['rows']} ({facts['rows_dropped']} too long and left out)",
        "trained tokens an epoch": share(facts["tokens_per_epoch"], facts["response_tokens_per_epoch"]),
        "loss": f"{manifest['loss']['first']:.4f} → {manifest['loss']['last']:.4f} in {done['steps']} steps",
        "time": duration(done["seconds"]),
    }
    if found := manifest.get("validation"):
        accuracy = f"{100 * found['accuracy_at_start']:.1f} % → {100 * found['accuracy']:.1f} % (step {found['step']})"
        early = ", stopped early" if found["stopped_early"] else ""
        rows["validation accuracy"] = f"{accuracy} on {facts['validation_problems']} problems{early}"
    table(f"train {facts['method']}", rows)
    if pushed := manifest.get("pushed"):
        stderr.print(f"pushed: {pushed['url']}", markup=False, soft_wrap=True)
    typer.echo(settings.output.output)


def show_rl(settings: RlSettings, manifest: dict[str, Any]) -> None:
    """Print what `cruxtune rl` came to."""
    facts, done, curves = manifest["facts"], manifest["accounting"], manifest["curves"]

    def ends(name: str, factor: float = 1.0, unit: str = "") -> str:
        return f"{factor * curves[name]['first']:.3g}{unit} → {factor * curves[name]['last']:.3g}{unit}"

    rows = {
        "problems": f"{facts['problems']} ({facts['problems_dropped']} too long and left out)",
        "rollouts": f"{done['rollouts']:,}, {done['tokens_generated']:,} tokens",
        "reward": f"{ends('reward')} in {done['steps']} steps",
        "groups with equal rewards": ends("equal_rewards", 100, " %"),
        "validation accuracy": f"{ends('eval_accuracy', 100, ' %')} on {facts['validation_problems']} problems",
        "entropy there": f"{ends('eval_entropy')} nats a token",
        "KL to the start": f"{curves['eval_kl']['last']:.3g} nats a token",
        "time": duration(done["seconds"]),
    }
    table(f"rl {facts['method']}", rows)
    if pushed := manifest.get("pushed"):
        stderr.print(f"pushed: {pushed['url']}", markup=False, soft_wrap=True)
    typer.echo(settings.output.output)


def show_evaluate(settings: EvaluateSettings, done: dict[str, Any]) -> None:
    """Print what `cruxtune evaluate` came to: on one list of problems, or on several benchmarks."""
    if settings.benchmarks is not None:
        from cruxtune.benchmark_commands import show_overview

        show_overview(done, settings.output.output)
        return
    counts = done["accounting"]
    rows = {
        "problems": f"{counts['problems']:.0f}",
        "greedy responses correct": share(counts["correct_greedy"], counts["problems"]),
    }
    if settings.samples:
        rows["samples correct"] = share(counts["correct_samples"], counts["responses"] - counts["problems"])
    table("evaluate", {**rows, **_cost(done)})
    typer.echo(settings.output.output)


def show_compare(settings: CompareSettings, _: dict[str, Any]) -> None:
    """Print the comparison."""
    typer.echo((settings.output / "comparison.md").read_text())
    typer.echo(settings.output)


def show_export(settings: ExportSettings, manifest: dict[str, Any]) -> None:
    """Print what was written, and the settings that its consumer needs."""
    done = manifest["accounting"]
    rows = {"rows": f"{done['rows']:,}, the longest of {done['longest_row']:,} tokens"}
    if settings.to == "dpo":
        reasons = f"{done['cut_off']:,} whose rollouts were cut off, {done['other_ids']:,} whose text has other ids"
        rows["positions left out"] = reasons
    else:
        rows["tokens with loss"] = share(done["tokens_trained"], done["tokens"])
    table(f"export to {settings.to}", rows)
    stderr.print(manifest["advice"]["settings"], markup=False, soft_wrap=True)
    typer.echo(settings.output)


def show_inspect(rows: Iterable[Shown]) -> None:
    """Print rows before and after the collator on stdout: marked on a terminal, in brackets elsewhere."""
    for number, row in enumerate(rows):
        for when, pieces, padding in (("before", row.before, 0), ("after", row.after, row.padding)):
            trained = sum(weight > 0 for _, weight in pieces)
            padded = f", {padding} of padding" if padding else ""
            typer.echo(f"# row {number} {when} the collator: {len(pieces)} tokens{padded}, {trained} with loss")
            _show_pieces(pieces)


def show_grade(done: Mapping[str, Any]) -> None:
    """Print how many answers of a file are right, by what decided."""
    rows = {"correct": share(done["correct"], done["rows"] - done["bad"])}
    for reason, counts in sorted(done["reasons"].items(), key=lambda item: -item[1]["count"]):
        rows[f"  {reason}"] = share(counts["correct"], counts["count"])
    if done["bad"]:
        rows["could not be graded"] = f"{done['bad']:,}"
    rows["time"] = f"{duration(done['seconds'])} ({done['rows'] / max(done['seconds'], 1e-9):,.0f} answers/s)"
    table("grade", rows)
    typer.echo(done["output"])


def show_run(summary: Mapping[str, Any]) -> None:
    """Print what a whole run came to."""
    rollouts = summary["rollouts"]
    table(
        f"run on {summary['task']}",
        {
            "annotated responses": str(summary["annotated_responses"]),
            "critical tokens": f"{100 * summary['critical_share']:.1f} %",
            "rollouts made": share(rollouts["made"], rollouts["wanted"]),
            "time": duration(summary["seconds"]),
            "peak memory": f"{summary['peak_memory_gib']:.1f} GiB",
        },
    )


def nothing_more(_: BaseModel, __: dict[str, Any]) -> None:
    """Print nothing: the command has printed what there is."""


def _show_pieces(pieces: list[Piece]) -> None:
    texts, weights = [piece for piece, _ in pieces], [weight for _, weight in pieces]
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(marked(texts, weights), soft_wrap=True)
    else:
        typer.echo(bracketed(texts, weights))


def _cost(manifest: Mapping[str, Any]) -> dict[str, str]:
    done = manifest["accounting"]
    fallback, accepted = manifest["shares"]["fallback_share"], manifest["shares"]["drafts_accepted"]
    return {
        "verdicts by the fallback": "-" if fallback is None else f"{100 * fallback:.1f} %",
        "verdicts cut off": f"{cut_off(done):,}",
        "tokens": f"{done['tokens_emitted']:,.0f} emitted, {done['tokens_computed']:,.0f} put through the model",
        **({"drafts": f"{100 * accepted:.0f} % of {done['tokens_drafted']:,.0f} tokens right"} if accepted else {}),
        "passes": f"{done['model_calls']:,.0f}",
        "time": f"{duration(done['seconds'])} ({done['tokens_emitted'] / max(done['seconds'], 1e-9):,.0f} tokens/s)",
    }
