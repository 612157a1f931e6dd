"""A study of reinforcement learning as a figure: means over seeds, in bands from the lowest to the highest of them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from cruxtune.comparison_figure import STYLE, draw_curve
from cruxtune.rl_study_summary import ACCURACY, COMPUTE, SAMPLED

_PANELS = {
    "reward": ("reward of rollouts", 1),
    ACCURACY: ("greedy pass@1, validation (%)", 100),
    SAMPLED: ("pass@1 of samples, validation (%)", 100),
    "eval_pass@8": ("pass@8, validation (%)", 100),
    "entropy": ("entropy of rollouts (nats)", 1),
    "length": ("length of rollouts (tokens)", 1),
    "equal_rewards": ("groups with equal rewards (%)", 100),
    "eval_kl": ("KL to where it began (nats a token)", 1),
}


def figure(result: Mapping[str, Any]) -> bytes:
    """Return the figure as SVG, the same bytes for the same result: a panel for each curve, the last by compute."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    arms = result["arms"]
    panels = {name: look for name, look in _PANELS.items() if any(name in arm["curves"] for arm in arms.values())}
    columns = -(-(len(panels) + 1) // 2)
    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE}):
        canvas = Figure(figsize=(4.2 * columns, 6.5), layout="constrained")
        axes = canvas.subplots(2, columns, squeeze=False).ravel()
        for number, (name, arm) in enumerate(arms.items()):
            look = {"color": f"C{number}", "label": name}
            for axis, (curve, (_, scale)) in zip(axes, panels.items(), strict=False):
                rows = [[step, *(scale * value for value in values)] for step, *values in arm["curves"].get(curve, ())]
                draw_curve(axis, rows, look)
            by_compute = _by_compute(arm)
            draw_curve(axes[len(panels)], by_compute, look)
            axes[len(panels)].plot(*by_compute[0][:2], marker="o", markersize=4, **look)
        for axis, (title, _) in zip(axes, panels.values(), strict=False):
            axis.set(title=title, xlabel="step")
        axes[len(panels)].set(title="greedy pass@1, validation (%)", xlabel="thousand tokens, from the start on")
        for axis in axes[len(panels) + 1 :]:
            axis.remove()
        handles, labels = axes[len(panels)].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
        buffer = io.BytesIO()
        FigureCanvasSVG(canvas).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def _by_compute(arm: Mapping[str, Any]) -> list[list[float]]:
    """Return the accuracy against thousands of tokens: annotation, training and reinforcement learning."""
    before = arm["compute"]["annotation"] + arm["compute"]["training"]
    tokens = {step: mean for step, mean, *_ in arm["curves"][COMPUTE]}
    return [
        [(before + tokens[step]) / 1000, *(100 * value for value in values)]
        for step, *values in arm["curves"][ACCURACY]
    ]
