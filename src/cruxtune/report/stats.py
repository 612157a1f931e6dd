"""The statistics of critical tokens as tables: in the terminal, and as a Markdown page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cruxtune.report.text import one_line

PANELS = {
    "classes": "by class of token",
    "positions": "by position in the response",
    "entropy": "by entropy (nats)",
    "rank_gap": "by gap to the first alternative (nats)",
}
"""Ways to group tokens, and what they are called."""


@dataclass(frozen=True)
class Sheet:
    """A table: the first column is text, the others are numbers as text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def sheets(found: Mapping[str, Any]) -> Iterator[Sheet]:
    """Yield the tables of one of the annotations."""
    columns = ("tokens", "critical", "share", "95 %")
    yield Sheet("All tokens", ("", *columns), [["all that are known", *_share(found)]])
    for key, title in PANELS.items():
        yield Sheet(f"Critical tokens {title}", ("", *columns), [[row["group"], *_share(row)] for row in found[key]])
    top = [[one_line(row["text"]), *_share(row)] for row in found["top_tokens"]]
    yield Sheet("Tokens that are critical most often", ("token", *columns), top)
    by = found["by_alternatives"]
    rows = [[str(row["alternatives"]), *_share(row)] for row in by["shares"]]
    yield Sheet("Critical tokens by number of alternatives k", ("k", *columns), rows)
    if by["agreement"]:
        pairs = [[f"{row['first']} and {row['second']}", *_agreement(row["agreement"])] for row in by["agreement"]]
        yield Sheet("Agreement between numbers of alternatives", ("k", *_AGREEMENT), pairs)


def model_sheet(models: Sequence[Mapping[str, Any]]) -> Sheet | None:
    """Return the table of how models agree, None where there is no pair of them that can be compared."""
    rows = [
        [f"{pair['first']} and {pair['second']} ({pair['responses']:,} responses)", *_agreement(pair["agreement"])]
        for pair in models
        if pair["agreement"]
    ]
    return Sheet("Agreement between models", ("annotations", *_AGREEMENT), rows) if rows else None


def left_out(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each pair that cannot be compared."""
    return [
        f"{pair['first']} and {pair['second']} are not compared: {pair['left_out']}."
        for pair in models
        if not pair["agreement"]
    ]


def show(result: Mapping[str, Any]) -> None:
    """Print all tables on stdout."""
    console = Console()
    for name, found in result["annotations"].items():
        console.print(f"\n{name}: {_facts(found)}", markup=False, highlight=False)
        for sheet in sheets(found):
            console.print(_rich(sheet))
    if models := model_sheet(result["models"]):
        console.print(_rich(models))
    for line in left_out(result["models"]):
        console.print(line, markup=False, highlight=False)


def markdown(result: Mapping[str, Any], page: Path) -> str:
    """Return the page at a path: tables, and links to the figures beside it."""
    lines = [
        "# Which tokens are critical",
        "",
        "Shares are of the tokens that are known to be critical or not. 95 % intervals: bootstrap over responses "
        f"(percentiles, seed {result['seed']}), – where only one response has such tokens. What the groups are: "
        "`cruxtune stats` in the documentation.",
    ]
    for name, found in result["annotations"].items():
        figure = f"![critical tokens of {name}]({figure_name(page, name)})"
        lines += ["", f"## {name}", "", f"{_facts(found)}.", "", figure]
        for sheet in sheets(found):
            lines += ["", f"### {sheet.title}", "", *_markdown(sheet)]
    if result["models"]:
        lines += ["", "## Models", ""]
        if models := model_sheet(result["models"]):
            lines += [*_markdown(models), ""]
        lines += left_out(result["models"])
    return "\n".join(lines).rstrip() + "\n"


def figure_name(page: Path, name: str) -> str:
    """Return the name of the figure of some annotations, beside a page.

    >>> figure_name(Path("docs/tokens.md"), "runs/a 1")
    'tokens-runs-a-1.svg'
    """
    return f"{page.stem}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-')}.svg"


_AGREEMENT = ("tokens", "both", "first alone", "second alone", "neither", "equal", "95 %", "κ", "95 %")


def _facts(found: Mapping[str, Any]) -> str:
    undecided = f", {found['undecided']:,} undecided" if found["undecided"] else ""
    return (
        f"{found['responses']:,} responses of {found['response_tokens']:,} tokens, {found['tokens']:,} of them "
        f"known{undecided}; k = {found['alternatives']}; model {found['model']}"
    )


def _share(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['tokens']:,}", f"{row['critical']:,}", f"{100 * row['share']:.1f} %", _ends(row["interval"], 100, 1)]


def _agreement(row: Mapping[str, Any]) -> list[str]:
    counts = [f"{row[name]:,}" for name in ("tokens", "both", "first", "second", "neither")]
    kappa = "–" if row["kappa"] is None else f"{row['kappa']:.3f}"
    equal = [f"{100 * row['equal']:.1f} %", _ends(row["equal_interval"], 100, 1)]
    return [*counts, *equal, kappa, _ends(row["kappa_interval"], 1, 3)]


def _ends(interval: Sequence[float] | None, factor: float, digits: int) -> str:
    return "–" if interval is None else f"{factor * interval[0]:.{digits}f} to {factor * interval[1]:.{digits}f}"


def _rich(sheet: Sheet) -> Table:
    table = Table(title=sheet.title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(sheet.columns):
        table.add_column(column, justify="right" if number else "left")
    for row in sheet.rows:
        # As text: tokens may hold what looks like markup.
        table.add_row(*map(Text, row))
    return table


def _markdown(sheet: Sheet) -> list[str]:
    cells = [[_cell(cell) for cell in row] for row in sheet.rows]
    return [
        "| " + " | ".join(sheet.columns) + " |",
        "| --- |" + " ---: |" * (len(sheet.columns) - 1),
        *("| " + " | ".join(row) + " |" for row in cells),
    ]


def _cell(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|$~])", r"\\\1", text)
