"""A study of reinforcement learning as a Markdown page: what will be run, what is done, what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cruxtune.comparison_page import percent
from cruxtune.power import detectable_difference
from cruxtune.rl_study import RlStudy
from cruxtune.rl_study_summary import ACCURACY
from cruxtune.study import Study

_CLAIM = (
    "Ruan et al. 2025 (arXiv 2510.10974): checkpoints from CFT start GRPO with higher entropy, explore more, and keep "
    "gaining later, where those from SFT stall. Its curves are of one seed, on models of up to 8B parameters; we have "
    "no numbers of them. Its reviewers asked for seeds, and whether the compute would be better spent on reinforcement "
    "learning: that is what the tables at equal compute are for. Model, task and number of steps here are far smaller, "
    "so that nothing below confirms or refutes the claim at the paper's scale."
)
_LOGGED = {
    "reward": "reward",
    ACCURACY: "pass@1, validation",
    "eval_pass@8": "pass@8, validation",
    "entropy": "entropy, rollouts",
    "eval_entropy": "entropy, validation",
    "length": "tokens a rollout",
}


def page(path: str, study: RlStudy, record: Study, result: Mapping[str, Any], figure: str | None = None) -> str:
    """Return the page; `path` is the study's file as the command names it, `figure` the name of the figure."""
    lines = [
        f"# GRPO on {study.task}: {', '.join(study.arms)}",
        "",
        f"Written by `cruxtune study {path}`, which runs what is missing and writes this page again.",
        "",
        "## What is run",
        "",
        *_plan(study),
        "",
        "## What it can detect",
        "",
        *_power(study, record),
        "",
        "## What the paper claims",
        "",
        _CLAIM,
        "",
        "## Results",
        "",
        *_progress(result),
    ]
    if result["arms"]:
        lines += ["", *_results(study, result)]
        if figure:
            lines += ["", f"![Curves, bands over seeds]({figure})"]
    return "\n".join(lines) + "\n"


def power_lines(study: RlStudy, record: Study) -> Iterator[str]:
    """Yield the smallest differences that the study can detect, as Markdown; nothing where nothing is assumed."""
    heldout = record.recipe_of(study.task, record.output).splits.heldout
    if record.power is None or heldout is None:
        return
    arms = len(study.arms)
    pairs = max(1, arms * (arms - 1) // 2)
    yield f"| {study.seeds} seeds and {study.seeds} | alone | first of {pairs} pairs (Holm) |"
    yield "| --- | ---: | ---: |"
    for name, problems in (("held-out", heldout), ("validation", study.validation_problems)):
        alone, first = (
            detectable_difference(problems, (study.seeds, study.seeds), **record.power.model_dump(), pairs=number)
            for number in (1, pairs)
        )
        yield f"| {problems:,} {name} problems | {100 * alone:.1f} | {100 * first:.1f} |"


def _plan(study: RlStudy) -> list[str]:
    settings = ", ".join(f"`{name}: {value}`" for name, value in study.rl.items())
    lines = [
        f"`cruxtune rl` with {settings}; {study.seeds} seeds of each arm, on the problems that {study.study.name} "
        f"responds to in its task {study.task}. Run s goes on from the model of seed s, where there are several. "
        f"{study.validation_problems} problems of that study's validation split are examined while it trains, and its "
        "held-out problems at the end, as all of its own models are.",
        "",
        "| arm | goes on from | steps |",
        "| --- | --- | --- |",
    ]
    for name, arm in study.arms.items():
        steps = str(study.rl["steps"])
        if arm.compute_of:
            most = f", at most {arm.most_steps}" if arm.most_steps else ""
            steps = f"as many as all compute of {arm.compute_of} buys (annotation, training, GRPO){most}"
        lines.append(f"| {name} | {arm.origin} | {steps} |")
    return lines


def _power(study: RlStudy, record: Study) -> list[str]:
    lines = list(power_lines(study, record))
    if not lines:
        return ["Nothing was assumed, so that nothing is said."]
    return [
        "The smallest difference of greedy accuracy between two arms that a paired test finds with power 80 % at 5 %, "
        f"two-sided, in percentage points, as {study.study.name} assumes:",
        "",
        *lines,
        "",
        f"Curves are means over {study.seeds} seeds in bands from the lowest to the highest of them. Such a band is no "
        "confidence interval: where two bands do not touch, that is no proof of a difference.",
    ]


def _progress(result: Mapping[str, Any]) -> list[str]:
    total = len(result["done"]) + len(result["missing"])
    if not result["done"]:
        return [f"Not run yet: 0 of {total} runs."]
    if not result["missing"]:
        return [f"All {total} runs are done."]
    return [f"{len(result['done'])} of {total} runs are done. Missing: {', '.join(result['missing'])}."]


def _results(study: RlStudy, result: Mapping[str, Any]) -> list[str]:
    arms = result["arms"]
    shown = {name: title for name, title in _LOGGED.items() if any(name in arm["curves"] for arm in arms.values())}
    return [
        "Mean [lowest, highest] over the seeds that are done.",
        "",
        "### On the held-out problems, after the last step",
        "",
        *_heldout(study, result),
        "",
        "### While it trained",
        "",
        "From the first to the last value of each curve; means over seeds, entropy in nats.",
        "",
        f"| arm | {' | '.join(shown.values())} |",
        f"| --- | {' | '.join('---' for _ in shown)} |",
        *(f"| {name} | {' | '.join(_ends(arm['curves'], curve) for curve in shown)} |" for name, arm in arms.items()),
        "",
        "### Compute",
        "",
        "Tokens put through the model, means over seeds: for responses and annotation, to train the model that GRPO "
        "goes on from, and for GRPO itself (rollouts, their log-probabilities, training). Left out are the cold start, "
        "which is common to all, validation and evaluation. A token of training takes about three times what one of "
        "annotation or of rollouts does.",
        "",
        "| arm | seeds | steps | annotation | training | GRPO | total | minutes, GRPO and evaluation |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_cost(name, arm) for name, arm in arms.items()),
        "",
        "### At equal total compute",
        "",
        *_equal(result),
    ]


def _heldout(study: RlStudy, result: Mapping[str, Any]) -> list[str]:
    names = list(next(iter(result["arms"].values()))["heldout"])
    shown = ["pass@1", *[name for name in names if name.startswith("pass@") and "sampled" not in name][1:][-1:]]
    lines = [
        f"| arm | seeds | {' | '.join(f'{name}, before | {name}' for name in shown)} | entropy of samples |",
        f"| --- | ---: | {' | '.join('--- | ---' for _ in shown)} | --- |",
    ]
    for name, arm in result["arms"].items():
        before = result["before"].get(study.arms[name].origin, {})
        cells = [_percent(found.get(metric)) for metric in shown for found in (before, arm["heldout"])]
        entropy = arm["heldout"]["entropy"]
        spread = f"{entropy['mean']:.3f} [{entropy['low']:.3f}, {entropy['high']:.3f}]"
        lines.append(f"| {name} | {len(arm['seeds'])} | {' | '.join(cells)} | {spread} |")
    return lines


def _percent(band: Mapping[str, float] | None) -> str:
    return "" if band is None else percent(band["mean"], (band["low"], band["high"]))


def _ends(curves: Mapping[str, Sequence[Sequence[float]]], name: str) -> str:
    """Return the first and the last mean of a curve."""
    if name not in curves:
        return ""
    first, last = curves[name][0][1], curves[name][-1][1]
    if name == ACCURACY or name.startswith("eval_pass@"):
        return f"{100 * first:.1f} → {100 * last:.1f} %"
    return f"{first:.1f} → {last:.1f}" if name == "length" else f"{first:.3f} → {last:.3f}"


def _cost(name: str, arm: Mapping[str, Any]) -> str:
    steps = "–".join(map(str, dict.fromkeys((min(arm["steps"]), max(arm["steps"])))))
    counts = " | ".join(f"{arm['compute'][part]:,}" for part in ("annotation", "training", "rl", "total"))
    return f"| {name} | {len(arm['seeds'])} | {steps} | {counts} | {arm['minutes']:.0f} |"


def _equal(result: Mapping[str, Any]) -> list[str]:
    """Return a table for each metric: what each arm had come to when so many tokens were spent in all."""
    ends = result["equal_compute"]
    measured = ends[-1]["arms"][ends[-1]["end_of"]]
    largest = sorted((name for name in measured if name.startswith("eval_pass@")), key=_samples)[-1:]
    lines = [
        "On the validation problems, by the last validation at or below so many tokens of annotation, training and "
        "GRPO together. The columns are the totals at which arms end, seed by seed (means are shown); the first is the "
        "most that all arms reach. A dash: annotation and training alone take more. An asterisk: all of its runs had "
        "ended before.",
    ]
    for name in (ACCURACY, *largest):
        lines += [
            "",
            f"| {_LOGGED.get(name, name.removeprefix('eval_'))} | {' | '.join(map(_end, ends))} |",
            f"| --- | {' | '.join('---' for _ in ends)} |",
            *(
                f"| {arm} | {' | '.join(_reached(end['arms'].get(arm), name) for end in ends)} |"
                for arm in result["arms"]
            ),
        ]
    return lines


def _samples(name: str) -> int:
    return int(name.partition("@")[2])


def _end(end: Mapping[str, Any]) -> str:
    return f"{end['tokens']:,} ({end['end_of']})"


def _reached(found: Mapping[str, Any] | None, name: str) -> str:
    if found is None:
        return ""
    return "–" if found["state"] == "not begun" else _percent(found[name]) + r" \*" * (found["state"] == "ended")
