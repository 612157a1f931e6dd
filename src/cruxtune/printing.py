"""What commands print: shares, what was exported, rows with their trained tokens marked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from cruxtune.report.terminal import bracketed, marked

if TYPE_CHECKING:
    from cruxtune.stages.inspect import Piece, Shown


def share(part: float, whole: float) -> str:
    """Return a part with its share of the whole.

    >>> share(1234, 4936)
    '1,234 of 4,936 (25.0 %)'
    """
    return f"{part:,.0f} of {whole:,.0f} ({100 * part / whole:.1f} %)" if whole else "0"


def exported(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the table of an export."""
    done = manifest["accounting"]
    rows = {"rows": f"{done['rows']:,}, the longest of {done['longest_row']:,} tokens"}
    if manifest["settings"]["to"] == "dpo":
        reasons = f"{done['cut_off']:,} whose rollouts were cut off, {done['other_ids']:,} whose text has other ids"
        return {**rows, "positions left out": reasons}
    return {**rows, "tokens with loss": share(done["tokens_trained"], done["tokens"])}


def inspected(rows: Iterable[Shown]) -> None:
    """Print rows before and after the collator on stdout: marked on a terminal, in brackets elsewhere."""
    for number, row in enumerate(rows):
        for when, pieces, padding in (("before", row.before, 0), ("after", row.after, row.padding)):
            trained = sum(weight > 0 for _, weight in pieces)
            padded = f", {padding} of padding" if padding else ""
            typer.echo(f"# row {number} {when} the collator: {len(pieces)} tokens{padded}, {trained} with loss")
            _show(pieces)


def _show(pieces: list[Piece]) -> None:
    texts, weights = [piece for piece, _ in pieces], [weight for _, weight in pieces]
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(marked(texts, weights), soft_wrap=True)
    else:
        typer.echo(bracketed(texts, weights))
