"""A comparison as a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

AVERAGE = "average"
BETTER, WORSE, SINGLE = "▲", "▼", "†"
MAYBE_BETTER, MAYBE_WORSE = "△", "▽"


def percent(value: float, interval: Sequence[float]) -> str:
    """Return a share with its interval.

    >>> percent(0.5, (0.4, 0.6))
    '50.0 % [40.0, 60.0]'
    """
    return f"{100 * value:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def points(value: float, interval: Sequence[float]) -> str:
    """Return a difference of shares in percentage points with its interval.

    >>> points(-0.02, (-0.05, 0.01))
    '-2.0 [-5.0, +1.0]'
    """
    return f"{100 * value:+.1f} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"


def page(result: Mapping[str, Any], figure: str | None = None) -> str:
    """Return the comparison as a Markdown page; `figure` is the name of its figure."""
    benchmarks, methods = result["benchmarks"], result["methods"]
    places = [*benchmarks, *([AVERAGE] if len(benchmarks) > 1 else [])]
    lines = [
        f"# Comparison of {_number(len(methods), 'method')} on {_number(len(benchmarks), 'benchmark')}",
        "",
        "95 % intervals. Over problems alone where a method has one training seed, which says nothing of other seeds; "
        "over seeds and problems where it has several. Differences are paired by problem. "
        f"{BETTER} and {WORSE}: better and worse than {result['baseline']}, after Holm's correction for all "
        f"differences of this page in that metric; {MAYBE_BETTER} and {MAYBE_WORSE}: the interval alone leaves 0 out."
        + (f" {SINGLE}: a single training seed; what is said is about that model." if _several(result) else ""),
        "",
        *_list_of_benchmarks(benchmarks),
    ]
    for metric in _headline(result):
        lines += ["", f"## {_title(metric)}", "", *_main_table(result, metric, places)]
    for name in benchmarks:
        lines += ["", f"## Metrics on {name}", "", *_metrics(result, name)]
    if result["pairs"]:
        lines += ["", "## Differences", "", *_differences(result, places)]
    if costs := _costs(result):
        lines += ["", "## Training and compute", "", *costs]
    if losses := _losses(result):
        lines += ["", "## Loss and entropy while training", "", *losses]
    if figure:
        lines += ["", f"![pass@N, and loss on critical and other tokens]({figure})"]
    return "\n".join(lines) + "\n"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _title(metric: str) -> str:
    kind, at, k = metric.partition("@")
    if metric == "pass@1":
        return "pass@1 (greedy)"
    return f"any of {k}" if at and kind == "any" else metric.replace("_sampled", " (samples)").replace("_", " ")


def _list_of_benchmarks(benchmarks: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, facts in benchmarks.items():
        sampled = f", {facts['sampled_problems']:,} of them with {facts['samples']} samples" if facts["samples"] else ""
        lines.append(f"- {name}: {_number(facts['problems'], 'problem')}{sampled}")
    return lines


def _headline(result: Mapping[str, Any]) -> list[str]:
    """Return the metrics of the main tables: greedy pass@1, and the largest pass@N that is estimated."""
    names = list(next(iter(next(iter(result["methods"].values()))["benchmarks"].values()))["metrics"])
    larger = [name for name in names if name.startswith("pass@") and name not in ("pass@1", "pass@1_sampled")]
    any_of = [name for name in names if name.startswith("any@")]
    return ["pass@1", *(larger[-1:] or any_of)]


def _place(entry: Mapping[str, Any], place: str) -> Mapping[str, Any] | None:
    """Return the metrics of a method or a pair at a benchmark, or of its average."""
    found = entry.get(AVERAGE) if place == AVERAGE else entry["benchmarks"].get(place)
    return found.get("metrics", found) if found else None


def _main_table(result: Mapping[str, Any], metric: str, places: Sequence[str]) -> list[str]:
    lines = [f"| method | seeds | {' | '.join(places)} |", f"| --- | ---: | {' | '.join('---' for _ in places)} |"]
    for name, method in result["methods"].items():
        cells = []
        for place in places:
            found = (_place(method, place) or {}).get(metric)
            cells.append(
                percent(found["value"], found["interval"]) + _mark(result, name, place, metric) if found else ""
            )
        lines.append(f"| {_named(result, name)} | {_seeds(method)} | {' | '.join(cells)} |")
    return lines


def _several(result: Mapping[str, Any]) -> bool:
    """Return whether some method has several training seeds, so that one with a single seed is an exception."""
    parts = (part for method in result["methods"].values() for part in method["benchmarks"].values())
    return any(len(part["seeds"]) > 1 for part in parts)


def _named(result: Mapping[str, Any], name: str, place: str = AVERAGE) -> str:
    """Return a method's name, marked where it has a single training seed at a place, or at any of those averaged."""
    parts = result["methods"][name]["benchmarks"]
    seeds = [part["seeds"] for key, part in parts.items() if place in (key, AVERAGE)]
    single = any(len(some) == 1 and some[0] is not None for some in seeds)
    return f"{name} {SINGLE}" if single and _several(result) else name


def _seeds(method: Mapping[str, Any]) -> str:
    counts = sorted({len(part["seeds"]) for part in method["benchmarks"].values()})
    return "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _mark(result: Mapping[str, Any], name: str, place: str, metric: str) -> str:
    """Return the mark of a difference to the baseline that is significant, or that its interval alone tells."""
    baseline = result["baseline"]
    for key, sign in ((f"{name} - {baseline}", 1), (f"{baseline} - {name}", -1)):
        entry = (_place(result["pairs"].get(key, {"benchmarks": {}}), place) or {}).get(metric)
        if entry and (entry["significant"] or entry["told_apart"]):
            better, worse = (BETTER, WORSE) if entry["significant"] else (MAYBE_BETTER, MAYBE_WORSE)
            return f" {better if sign * entry['difference'] > 0 else worse}"
    return ""


def names_of(result: Mapping[str, Any], pair: str) -> tuple[str, str]:
    """Return the two methods of a difference by its name in a comparison's JSON."""
    # A name may have a minus sign in it.
    return next(both for both in product(result["methods"], repeat=2) if " - ".join(both) == pair)


def _pair(result: Mapping[str, Any], pair: str, place: str) -> str:
    return " - ".join(_named(result, name, place) for name in names_of(result, pair))


def _metrics(result: Mapping[str, Any], name: str) -> list[str]:
    """Return a table of every metric, methods as columns."""
    methods = {key: part for key, method in result["methods"].items() if (part := method["benchmarks"].get(name))}
    lines = [f"| metric | {' | '.join(methods)} |", f"| --- | {' | '.join('---' for _ in methods)} |"]
    for metric in next(iter(methods.values()))["metrics"]:
        cells = [_shown(metric, part["metrics"][metric]) for part in methods.values()]
        lines.append(f"| {_title(metric)} | {' | '.join(cells)} |")
    for metric, title in (("ece", "calibration error"), ("ece_per_token", "calibration error, per token")):
        cells = [f"{100 * part['calibration'][metric]:.1f} %" for part in methods.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def _shown(metric: str, entry: Mapping[str, Any]) -> str:
    value, (low, high) = entry["value"], entry["interval"]
    if metric.startswith("length"):
        return f"{value:.1f} [{low:.1f}, {high:.1f}]"
    if metric.startswith(("distinct", "entropy", "answer_entropy")):
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"
    return percent(value, entry["interval"])


def _differences(result: Mapping[str, Any], places: Sequence[str]) -> list[str]:
    return [
        "Percentage points (entropy: nats). The intervals are not corrected; p is, by Holm's procedure, for all "
        "differences of this page in that metric. An asterisk: significant.",
        "",
        *difference_table(result, list(result["pairs"]), places),
    ]


def difference_table(result: Mapping[str, Any], pairs: Sequence[str], places: Sequence[str]) -> list[str]:
    """Return some of a comparison's differences as a Markdown table; `pairs` are their names in its JSON."""
    metrics = [*_headline(result), "entropy"]
    lines = [
        f"| difference | on | {' | '.join(f'{_title(metric)} | p' for metric in metrics)} |",
        f"| --- | --- | {' | '.join('--- | ---:' for _ in metrics)} |",
    ]
    for pair in pairs:
        for place in places:
            if found := _place(result["pairs"][pair], place):
                cells = " | ".join(_difference(metric, found.get(metric)) for metric in metrics)
                lines.append(f"| {_pair(result, pair, place)} | {place} | {cells} |")
    return lines


def _difference(metric: str, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return " | "
    value, (low, high) = entry["difference"], entry["interval"]
    shown = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" if metric == "entropy" else points(value, entry["interval"])
    star = r" \*" if entry["significant"] else ""
    return f"{shown}{star} | {entry['p_holm']:.2g}"


def _costs(result: Mapping[str, Any]) -> list[str]:
    rows = [
        (name, place, part["cost"])
        for name, method in result["methods"].items()
        for place, part in method["benchmarks"].items()
        if part["cost"]
    ]
    if not rows:
        return []
    lines = [
        "Means over seeds. Compute is tokens put through the model: for responses and annotation, and for training. A "
        f"token of training takes about three times what one of annotation does.{_reinforced(result)}",
        "",
        "| method | on | tokens trained | share | annotation tokens | training tokens | sum | training time |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, place, cost in rows:
        counts = (cost["annotation_tokens"], cost["tokens_computed"], cost["compute"])
        shown = " | ".join("unknown" if count is None else f"{count:,.0f}" for count in counts)
        lines.append(
            f"| {name} | {place} | {cost['tokens_trained']:,.0f} | {100 * cost['share_trained']:.1f} % | {shown} | "
            f"{cost['seconds']:,.0f} s |"
        )
    return lines


def _reinforced(result: Mapping[str, Any]) -> str:
    """Return what is counted as training where a method ends with reinforcement learning, as a sentence."""
    parts = [part for method in result["methods"].values() for part in method["benchmarks"].values()]
    if not any(part["settings"].get("method") == "grpo" for part in parts):
        return ""
    return (
        " Training tokens of a method that ends with GRPO are those of the training before it and of all passes of "
        "GRPO, also those that generate."
    )


def _losses(result: Mapping[str, Any]) -> list[str]:
    names = {
        "eval_loss_critical": "loss, critical",
        "eval_loss_other": "loss, other",
        "eval_entropy_critical": "entropy, critical",
        "eval_entropy_other": "entropy, other",
    }
    lines = []
    for name, method in result["methods"].items():
        for place, part in method["benchmarks"].items():
            if any(curve in part["curves"] for curve in names):
                cells = [_from_to(part, curve) for curve in names]
                lines.append(f"| {name} | {place} | {' | '.join(cells)} |")
    if not lines:
        return []
    return [
        "On the probe's critical and other tokens, in nats, from the start of training to its end; means over seeds. "
        "Of several, the end has its 95 % interval over seeds (t, S − 1 degrees of freedom), and in the figure "
        "a band goes from the lowest to the highest seed. Each seed draws its own probe, so that methods with other "
        "seeds begin at other values.",
        "",
        f"| method | on | {' | '.join(names.values())} |",
        f"| --- | --- | {' | '.join('---' for _ in names)} |",
        *lines,
    ]


def _from_to(part: Mapping[str, Any], curve: str) -> str:
    """Return the first and the last value of a curve, with the interval of the last where there are several seeds."""
    end = part["curve_ends"].get(curve)
    if end is None:
        return ""
    shown = f"{part['curves'][curve][0][1]:.3f} → {end['value']:.3f}"
    return shown if len(part["seeds"]) < 2 else f"{shown} [{end['interval'][0]:.3f}, {end['interval'][1]:.3f}]"
