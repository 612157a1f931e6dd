"""What was measured, for people."""

from __future__ import annotations

from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table


def show(console: Console, results: dict[str, Any]) -> None:
    """Print every table that there is something for."""
    if "rows" in results:
        _speed(console, results)
    if results["exactness"]:
        _exactness(console, results["exactness"])
    if results.get("growth"):
        _growth(console, results["growth"])


def _speed(console: Console, results: dict[str, Any]) -> None:
    tokens = results["response_tokens"]
    machine = results["machine"]
    table = Table(
        title=f"Annotating {len(tokens)} responses of {min(tokens)}–{max(tokens)} tokens, {results['dtype']}, "
        f"{machine['threads']} threads"
    )
    for column in ("", "method"):
        table.add_column(column)
    for column in ("s a response", "× f", "rollouts", "same labels", "computed ÷ emitted"):
        table.add_column(column, justify="right")
    for row in results["rows"]:
        seconds = row["seconds"]
        emitted, computed = row.get("tokens_emitted"), row.get("tokens_computed")
        table.add_row(
            row["row"][:1],
            row["name"],
            f"{median(seconds) / len(tokens):.2f}" if seconds else "–",
            f"{row['ratio']:.2f}" if row["ratio"] is not None else "–",
            str(row.get("rollouts", "–")),
            _share(row.get("label_agreement")),
            f"{computed / emitted:.2f}" if computed else "–",
        )
    console.print(table)
    for row in results["rows"]:
        if remark := _remark(row):
            console.print(f"{row['row'][:1]}, {row['name']}: {remark}.")
    console.print(
        f"Limit: {median(results['limit_seconds']) / len(tokens):.2f} s a response "
        f"({max(results['prefill_tokens_per_second'].values()):.0f} tokens/s of prefill); "
        f"f reaches {_share(results['share_of_limit'])} of it. "
        f"Drafts accepted: {_share(results['acceptance'])}. Plan: {_plan(results['plan'])}"
    )


def _remark(row: dict[str, Any]) -> str:
    remark = row.get("note") or ""
    if "prefix_cache_hit_rate" in row:
        remark += f"; prefix-cache hit rate {_share(row['prefix_cache_hit_rate'])}"
    return remark


def _exactness(console: Console, exactness: dict[str, Any]) -> None:
    table = Table(title="Equal to one-by-one decoding")
    for column in ("precision", "labels", "ours", "batched generate", "rollouts", "ours", "batched generate"):
        table.add_column(column, justify="right")
    for dtype, found in exactness.items():
        table.add_row(
            dtype,
            str(found["labels"]),
            _share(found["label_agreement"]),
            _share(found["batched_label_agreement"]),
            str(found["rollouts"]),
            _share(found["text_agreement"]),
            _share(found["batched_text_agreement"]),
        )
    console.print(table)


def _growth(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title="Cost and length: random responses, scripted ends, one alternative at sampled positions")
    for column in ("T", "positions", "emitted", "computed", "passes", "seconds", "peak GiB"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            *(str(row[name]) for name in ("length", "positions", "tokens_emitted", "tokens_computed", "passes")),
            f"{row['seconds']:.2f}",
            f"{row['peak_memory_gib']:.2f}",
        )
    console.print(table)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}".replace("%", " %")


def _plan(plan: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in plan.items()) or "plain path"
