"""Figures as SVG: the same numbers give the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_STYLE: Any = {"svg.hashsalt": "cruxtune", "svg.fonttype": "none", "font.size": 9}
"""Ids in the file come from the salt, not from chance, and text stays text."""
_COLOUR = "#4c72b0"


@dataclass(frozen=True)
class Panel:
    """Shares to draw side by side: rows with `group`, `share` and `interval` (None where there is none)."""

    title: str
    rows: Sequence[Mapping[str, Any]]


def bars(panels: Sequence[Panel], unit: str) -> bytes:
    """Return an SVG with a panel of horizontal bars for each, in per cent, whiskers for the intervals."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = 2
    lines = -(-len(panels) // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(10, 3 * lines), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).flat
        for panel, axis in zip(panels, axes, strict=False):
            values = [100 * row["share"] for row in panel.rows]
            # What has no interval has no whisker, not one of no length.
            ends = [[100 * end for end in row["interval"] or (math.nan, math.nan)] for row in panel.rows]
            # A percentile interval may leave out the estimate itself.
            whiskers = [
                [max(value - low, 0.0) for value, (low, _) in zip(values, ends, strict=True)],
                [max(high - value, 0.0) for value, (_, high) in zip(values, ends, strict=True)],
            ]
            places = range(len(values))
            axis.barh(places, values, xerr=whiskers, color=_COLOUR, error_kw={"elinewidth": 1, "capsize": 2})
            axis.set_yticks(places, [row["group"] for row in panel.rows])
            axis.invert_yaxis()
            axis.set_xlim(left=0)
            axis.set_title(panel.title)
            axis.set_xlabel(unit)
        for axis in list(axes):
            axis.set_visible(False)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()
