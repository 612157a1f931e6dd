"""Prints the matrix of families with its counts at the end of a run."""

from __future__ import annotations

import pytest

COUNTS: dict[str, dict[str, int]] = {}


@pytest.fixture(scope="session")
def counts() -> dict[str, dict[str, int]]:
    """What was counted of each family; printed at the end."""
    return COUNTS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a row per count and a column per family."""
    if not COUNTS:
        return
    terminalreporter.section("families: what was compared")
    rows = list(dict.fromkeys(name for counts in COUNTS.values() for name in counts))
    table = [["", *COUNTS], *([name, *(str(counts.get(name, "-")) for counts in COUNTS.values())] for name in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for first, *rest in table:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        terminalreporter.write_line("  ".join(cells))
