"""A comparison as a figure: pass@N, loss on critical and on other tokens while training, accuracy by compute."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

_LOSSES = {"eval_loss_critical": "loss on critical tokens", "eval_loss_other": "loss on other tokens"}
STYLE: dict[Any, Any] = {
    # Without these two, the file has another name for every clip path in every run.
    "svg.hashsalt": "cruxtune",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
"""What figures of results look like."""
_SMALL = 0.04
"""Share by which intervals of neighbouring methods stand apart."""


def figure(result: Mapping[str, Any]) -> bytes:
    """Return the figure as SVG, the same bytes for the same result: a row of panels for each benchmark."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    losses = [name for name in _LOSSES if any(name in part["curves"] for part in _parts(result))]
    benchmarks = list(result["benchmarks"])
    computed = {name: _most_compute(result, name) for name in benchmarks}
    columns = 1 + len(losses) + any(computed.values())
    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE}):
        canvas = Figure(figsize=(4.2 * columns, 3.2 * len(benchmarks) + 0.5), layout="constrained")
        axes = canvas.subplots(len(benchmarks), columns, squeeze=False)
        for row, benchmark in zip(axes, benchmarks, strict=True):
            for number, (name, method) in enumerate(result["methods"].items()):
                part = method["benchmarks"].get(benchmark)
                if part is None:
                    continue
                look = {"color": f"C{number % 10}", "label": name}
                _pass_at_n(row[0], part["metrics"], number, look)
                for axis, curve in zip(row[1 : 1 + len(losses)], losses, strict=True):
                    draw_curve(axis, part["curves"].get(curve), look)
                if computed[benchmark]:
                    shift = computed[benchmark] * 0.25 * _SMALL * number
                    _by_compute(row[-1], part, shift, look, given=name == result["baseline"])
            row[0].set(title=benchmark, xlabel="samples N", ylabel="pass@N (%)")
            for axis, curve in zip(row[1 : 1 + len(losses)], losses, strict=True):
                axis.set(title=_LOSSES[curve], xlabel="step", ylabel="nats")
            if any(computed.values()):
                row[-1].set(title="greedy pass@1 (%)", xlabel="million tokens of annotation and training")
        handles, labels = axes[0][0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
        buffer = io.BytesIO()
        FigureCanvasSVG(canvas).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def _parts(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [part for method in result["methods"].values() for part in method["benchmarks"].values()]


def _pass_at_n(axis: Any, metrics: Mapping[str, Any], number: int, look: Mapping[str, Any]) -> None:
    """Draw pass@N with intervals, any of n as an open mark; greedy pass@1 alone where there are no samples."""
    curve = [(1, metrics["pass@1_sampled"])] if "pass@1_sampled" in metrics else [(1, metrics["pass@1"])]
    curve += [
        (int(name[5:]), entry)
        for name, entry in metrics.items()
        if name.startswith("pass@") and name[5:] not in ("1", "1_sampled")
    ]
    last = [(int(name[4:]), entry) for name, entry in metrics.items() if name.startswith("any@")]
    shift = (1 + _SMALL) ** number
    for points, filled in ((curve, True), (last, False)):
        if points:
            values = [100 * entry["value"] for _, entry in points]
            below = [
                max(0.0, value - 100 * entry["interval"][0]) for value, (_, entry) in zip(values, points, strict=True)
            ]
            above = [
                max(0.0, 100 * entry["interval"][1] - value) for value, (_, entry) in zip(values, points, strict=True)
            ]
            axis.errorbar(
                [n * shift for n, _ in points],
                values,
                yerr=[below, above],
                marker="o",
                markersize=4,
                markerfacecolor=look["color"] if filled else "white",
                linewidth=1.2,
                elinewidth=0.8,
                color=look["color"],
                label=look["label"] if filled else None,
            )
    axis.set_xscale("log", base=2)
    ticks = [n for n, _ in (*curve, *last)]
    axis.set_xticks(ticks, [str(n) for n in ticks])


def _most_compute(result: Mapping[str, Any], benchmark: str) -> int:
    parts = (method["benchmarks"].get(benchmark) for method in result["methods"].values())
    return max((part["cost"]["compute"] or 0 for part in parts if part and part["cost"]), default=0)


def _by_compute(axis: Any, part: Mapping[str, Any], shift: float, look: Mapping[str, Any], *, given: bool) -> None:
    """Draw greedy pass@1 with its interval at the compute that it took, if that is known; a given model took none."""
    tokens = part["cost"]["compute"] if part["cost"] else 0 if given else None
    if tokens is not None:
        value, (low, high) = part["metrics"]["pass@1"]["value"], part["metrics"]["pass@1"]["interval"]
        error = [[max(0.0, 100 * (value - low))], [max(0.0, 100 * (high - value))]]
        axis.errorbar(
            [(tokens + shift) / 1e6], [100 * value], yerr=error, marker="o", markersize=4, color=look["color"]
        )


def draw_curve(axis: Any, curve: Any, look: Mapping[str, Any]) -> None:
    """Draw the mean over seeds, and what lies between the lowest and the highest of them."""
    if curve:
        steps, mean, low, high = zip(*curve, strict=True)
        axis.plot(steps, mean, color=look["color"], linewidth=1.2)
        axis.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
