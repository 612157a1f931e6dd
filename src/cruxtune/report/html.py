"""The report of a run as one HTML file that asks nothing of the network.

The file carries its style and script inline, and a content security policy that admits those two by their hashes and
nothing else: neither a request nor a script smuggled in by a model's text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from cruxtune.records import Annotation
from cruxtune.report.text import one_line, printable

SHOWN = 10
"""Responses shown in full: the first ones, in the order of the annotations, so that none is picked by hand."""

_MODELS = {
    "start": ("Start", "before fine-tuning"),
    "sft": ("SFT", "on every token"),
    "cft": ("CFT", "on critical tokens"),
}
_VERDICTS = {True: "still right", False: "wrong", None: "not asked"}
_THIN = "\u202f"

_CURVES = {
    "eval_accuracy": "Validation accuracy",
    "eval_loss_critical": "Loss on critical tokens",
    "eval_loss_other": "Loss on other tokens",
    "eval_entropy_critical": "Entropy at critical tokens",
    "eval_entropy_other": "Entropy at other tokens",
    "eval_entropy": "Entropy of greedy answers",
    "eval_kl": "KL to the start, nats a token",
}
"""What is drawn of the measurements made while models trained. Validation losses of two methods do not compare."""


def write_report(
    path: Path,
    summary: Mapping[str, Any],
    annotations: Sequence[Annotation],
    pieces: Callable[[Sequence[int]], list[str]],
) -> Path:
    """Write the report of a run as a self-contained HTML file.

    Args:
        path: The file to write; its folder is made where it is missing.
        summary: The run's numbers. Every key is optional: what is missing is left out of the page.
        annotations: Annotated responses, from the first on. All go into the histogram, the first ten are shown.
        pieces: Gives one string per token id, however many ids it is asked for at once.

    Returns:
        The path.
    """
    files = resources.files(__package__)
    style, script, template = (
        files.joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "script.js", "template.html")
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    page = environment.from_string(template).render(
        style=Markup(style),
        script=Markup(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        facts=_facts(summary),
        results=_results(summary),
        differences=_differences(summary.get("cft_minus_sft") or {}, summary.get("samples")),
        curves=_curves(summary.get("curves") or {}),
        histogram=_histogram(annotations),
        stages=_stages(summary.get("seconds_by_stage") or {}),
        responses=[_response(number, annotation, pieces) for number, annotation in enumerate(annotations[:SHOWN], 1)],
        annotated=max(len(annotations), summary.get("annotated_responses") or 0),
        run=_run(summary),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def _csp_hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the run's key figures as (label, value, note)."""
    facts = []
    if (share := summary.get("critical_share")) is not None:
        facts.append(("Critical tokens", _percent(share), "of all annotated tokens"))
    if undecided := summary.get("undecided_tokens"):
        facts.append(("Undecided tokens", f"{undecided:,}", "answers went wrong although they were kept"))
    if joint := summary.get("joint"):
        facts.append(("Critical together", f"{joint['critical']:,}", f"of {joint['asked']:,} sets of tokens"))
    if (annotated := summary.get("annotated_responses")) is not None:
        facts.append(("Responses", f"{annotated:,}", "annotated, all of them right"))
    rollouts = summary.get("rollouts") or {}
    if (made := rollouts.get("made")) is not None:
        skipped = rollouts.get("skipped")
        facts.append(("Rollouts made", f"{made:,}", "" if skipped is None else f"{skipped:,} skipped: already decided"))
    if (heldout := summary.get("heldout_problems")) is not None:
        facts.append(("Held-out problems", f"{heldout:,}", "for each model"))
    if (cut := summary.get("verdicts_cut_off")) is not None:
        note = f"of {summary['verdicts']:,}: over the limit of time or memory, counted as wrong"
        facts.append(("Verdicts cut off", f"{cut:,}", note))
    if (seconds := summary.get("seconds")) is not None:
        facts.append(("Time", _duration(seconds), "all stages together"))
    if memory := summary.get("peak_memory_gib"):
        facts.append(("Peak memory", f"{memory:.1f}{_THIN}GiB", ""))
    return facts


def _results(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the columns and rows of the result table, or None where there are no models."""
    models = summary.get("models") or {}
    rows = [(name, models[name]) for name in dict.fromkeys([*_MODELS, *models]) if models.get(name)]
    if not rows:
        return None
    metrics = [metric for metric in ("pass@1", "pass@N") if any(row.get(metric) is not None for _, row in rows)]
    all_tokens = (models.get("sft") or {}).get("tokens_trained")
    return {
        "columns": [_metric_name(metric, summary.get("samples"), greedy=True) for metric in metrics],
        "tokens": any(row.get("tokens_trained") is not None for _, row in rows),
        "rows": [
            {
                "name": name,
                "title": _MODELS.get(name, (name, ""))[0],
                "note": _MODELS.get(name, (name, ""))[1],
                "cells": [_estimate(row.get(metric), row.get(f"{metric}_interval")) for metric in metrics],
                "tokens": _tokens(row.get("tokens_trained"), all_tokens, ordinary=name == "sft"),
            }
            for name, row in rows
        ],
    }


def _metric_name(metric: str, samples: int | None, *, greedy: bool = False) -> str:
    if metric == "pass@1":
        return "pass@1 (greedy)" if greedy else "pass@1"
    return metric if samples is None else f"pass@{samples}"


def _estimate(value: float | None, interval: Sequence[float] | None) -> dict[str, str] | None:
    """Return a rate and its interval as text and as places on a line from 0 to 100 %."""
    if value is None:
        return None
    shown = {"value": _percent(value), "dot": f"{100 * value:.2f}%"}
    if interval is not None:
        low, high = interval
        shown |= {
            "interval": f"{100 * low:.1f}–{100 * high:.1f}",
            "left": f"{100 * low:.2f}%",
            "right": f"{100 * high:.2f}%",
        }
    return shown


def _tokens(trained: int | None, all_tokens: int | None, *, ordinary: bool) -> tuple[str, str]:
    """Return the number of trained tokens and their share of those that ordinary fine-tuning trains on."""
    if trained is None:
        return "", ""
    if not trained:
        return "0", ""
    share = f"{_percent(trained / all_tokens)} of SFT’s" if all_tokens and not ordinary else ""
    return f"{trained:,}", share


def _differences(paired: Mapping[str, Any], samples: int | None) -> list[dict[str, str]]:
    """Return for each metric what the paired difference says, in words."""
    found = []
    for metric in ("pass@1", "pass@N"):
        entry = paired.get(metric) or {}
        difference, interval = entry.get("difference"), entry.get("interval")
        if difference is None or interval is None:
            continue
        low, high = interval
        if low <= 0 <= high:
            verdict, reason = "CFT and SFT cannot be told apart", "the interval contains 0"
        elif low > 0:
            verdict, reason = "CFT does better than SFT", "the interval lies above 0"
        else:
            verdict, reason = "CFT does worse than SFT", "the interval lies below 0"
        found.append(
            {
                "metric": _metric_name(metric, samples),
                "verdict": verdict,
                "reason": reason,
                "value": _points(difference),
                "low": _points(low),
                "high": _points(high),
            }
        )
    return found


def _histogram(annotations: Sequence[Annotation]) -> dict[str, Any] | None:
    """Return how many responses have 0–10 %, 10–20 % … of their tokens critical, as bars 100 units high."""
    known = ([mask for mask in annotation.critical if mask is not None] for annotation in annotations)
    shares = [sum(masks) / len(masks) for masks in known if masks]
    if not shares:
        return None
    counts = [0] * 10
    for share in shares:
        counts[min(int(share * 10), 9)] += 1
    tallest = max(counts)
    bars = [
        {"count": count, "height": round(100 * count / tallest, 1), "label": f"{10 * index}–{10 * index + 10}{_THIN}%"}
        for index, count in enumerate(counts)
    ]
    return {"bars": bars, "responses": len(shares), "median": _percent(median(shares))}


def _curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Return for each measure its title, range and lines, drawn into 300 × 100 units from step 0 to the last."""
    drawn = []
    for name, title in _CURVES.items():
        lines = {
            model: [(entry["step"], entry[name]) for entry in log if name in entry] for model, log in curves.items()
        }
        values = [value for line in lines.values() for _, value in line]
        if not values:
            continue
        last = max(step for line in lines.values() for step, _ in line) or 1
        low, high = min(values), max(values)
        show = _percent if name == "eval_accuracy" else "{:.3f}".format
        drawn.append(
            {
                "title": title,
                "low": show(low),
                "high": show(high),
                "steps": last,
                "lines": [
                    {
                        "model": model,
                        "name": _MODELS.get(model, (model, ""))[0],
                        "points": " ".join(
                            f"{300 * step / last:.1f},{100 - 100 * (value - low) / ((high - low) or 1):.1f}"
                            for step, value in line
                        ),
                        "said": f"{show(line[0][1])} → {show(line[-1][1])}",
                    }
                    for model, line in lines.items()
                    if line
                ],
            }
        )
    return drawn


def _stages(seconds: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Return (stage, duration, width of its bar), the longest bar being full."""
    longest = max(seconds.values(), default=0) or 1
    return [(stage, _duration(value), f"{100 * value / longest:.1f}%") for stage, value in seconds.items()]


def _run(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is needed to repeat the run, as (label, value)."""
    labels = {"command": "Command", "task": "Task", "model": "Model", "seed": "Seed"}
    run = [(label, str(summary[key])) for key, label in labels.items() if summary.get(key) is not None]
    if versions := summary.get("versions"):
        run.append(("Versions", ", ".join(f"{name}\u00a0{version}" for name, version in versions.items())))
    return run


def _response(number: int, annotation: Annotation, pieces: Callable[[Sequence[int]], list[str]]) -> dict[str, Any]:
    """Return one response with all that its tokens show."""
    response, problem = annotation.response, annotation.response.problem
    tokens = [
        _token(position, piece, annotation, pieces) for position, piece in enumerate(pieces(response.response_ids))
    ]
    known = [mask for mask in annotation.critical if mask is not None]
    critical, undecided = sum(known), sum(annotation.undecided)
    unasked = len(tokens) - len(known) - undecided
    return {
        "number": number,
        "id": printable(problem.id) + (f" · sample {response.sample}" if response.sample else ""),
        "question": printable(problem.question),
        "choices": [printable(choice) for choice in problem.choices or []],
        "answer": printable(problem.answer),
        "tokens": tokens,
        "has_empty": any(not token["shown"] for token in tokens),
        "has_undecided": undecided > 0,
        "counts": f"{critical} of {len(known)} tokens critical"
        + (f", {undecided} undecided" if undecided else "")
        + (f", {unasked} not asked about" if unasked else ""),
        "share": f" ({_percent(critical / len(known))})" if known else "",
    }


def _token(
    position: int, piece: str, annotation: Annotation, pieces: Callable[[Sequence[int]], list[str]]
) -> dict[str, Any]:
    """Return one token: its text, and what the details panel says of it."""
    critical, undecided = annotation.critical[position], annotation.undecided[position]
    probability = _probability(annotation.logprobs[position])
    # Exact ties and a probability of 1 may leave an entropy of -0.0.
    entropy = f"{max(0.0, annotation.entropies[position]):.2f}"
    alternatives = [
        (one_line(pieces([token_id])[0]), _probability(logprob), _VERDICTS[correct])
        for token_id, logprob, correct in zip(
            annotation.alternatives[position],
            annotation.alternative_logprobs[position],
            annotation.alternative_correct[position],
            strict=True,
        )
    ]
    lines = [
        f"{one_line(piece)}  position {position}{', critical' if critical else ', undecided' if undecided else ''}",
        f"probability {probability}, entropy {entropy} nats",
        *(f"{shown}  {chance}: {_line(verdict)}" for shown, chance, verdict in alternatives),
    ]
    return {
        "shown": _with_breaks(piece),
        "critical": critical,
        "undecided": undecided,
        "title": "\n".join(lines),
        "details": json.dumps(
            {
                "text": one_line(piece),
                "position": position,
                "probability": probability,
                "entropy": entropy,
                "critical": critical,
                **({"undecided": True} if undecided else {}),
                "alternatives": alternatives,
            },
            ensure_ascii=False,
            separators=(",", ":"),
        ),
    }


def _line(verdict: str) -> str:
    return verdict if verdict == "not asked" else f"answer {verdict}"


def _with_breaks(piece: str) -> Markup:
    """Return the escaped text, each newline after an element that the style shows as ↵ and that copies as nothing."""
    return Markup('<i class="nl"></i>\n').join(escape(part) for part in printable(piece).split("\n"))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}{_THIN}%"


def _probability(logprob: float) -> str:
    """Return a probability, never rounded to none or to certainty."""
    probability = math.exp(logprob)
    if probability < 0.001:
        return f"<{_THIN}0.1{_THIN}%"
    if probability > 0.999:
        return f">{_THIN}99.9{_THIN}%"
    return _percent(probability)


def _points(difference: float) -> str:
    """Return a difference of rates in percentage points, with its sign."""
    shown = f"{100 * difference:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else shown.replace("-", "−")


def _duration(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f}{_THIN}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{_THIN}s"
    if whole < 3600:
        return f"{whole // 60}{_THIN}min {whole % 60:02}{_THIN}s"
    return f"{whole // 3600}{_THIN}h {whole % 3600 // 60:02}{_THIN}min"
