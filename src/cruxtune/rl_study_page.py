"""A study of reinforcement learning as a Markdown page: what will be run, what is done, what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, combinations_with_replacement
from typing import Any

from cruxtune.comparison_page import SINGLE, difference_table, names_of, percent
from cruxtune.power import detectable_difference, points_or_none
from cruxtune.rl_study import RlStudy, begins_as
from cruxtune.rl_study_summary import ACCURACY, PARTS, SAMPLED
from cruxtune.study import Study

_CLAIM = (
    "Ruan et al. 2025 (arXiv 2510.10974): checkpoints from CFT start GRPO with higher entropy, explore more, and keep "
    "gaining later, where those from SFT stall. Its curves are of one seed, on models of up to 8B parameters; we have "
    "no numbers of them. Its reviewers asked for seeds, and whether the compute would be better spent on reinforcement "
    "learning: that is what the tables at equal compute are for, as far as runs go. Model, task and number of steps "
    "here are far smaller, so that nothing below confirms or refutes the claim at the paper's scale."
)
_LOGGED = {
    "reward": "reward",
    ACCURACY: "greedy pass@1, validation",
    SAMPLED: "pass@1 of samples, validation",
    "eval_pass@8": "pass@8, validation",
    "entropy": "entropy, rollouts",
    "eval_entropy": "entropy, validation",
    "length": "tokens a rollout",
}
_CHECKS = {
    "equal_rewards": "groups with equal rewards",
    "group_std": "deviation of rewards in a group",
    "grad_norm": "norm of the gradient",
    "eval_kl": "KL to where it began, validation",
    "clipped": "clipped ratios",
    "truncated": "truncated rollouts",
}
_HELDOUT = {"pass@1": "greedy pass@1", "pass@1_sampled": "pass@1 of samples"}


def page(
    path: str,
    study: RlStudy,
    record: Study,
    result: Mapping[str, Any],
    *,
    compared: Mapping[str, Any] | None = None,
    figure: str | None = None,
) -> str:
    """Return the page.

    Args:
        path: the study's file as the command names it.
        study: what is run.
        record: the study that it goes on from.
        result: what the runs that there are come to.
        compared: the comparison of their cells with those of the models that they went on from.
        figure: the name of the figure.
    """
    lines = [
        f"# GRPO on {study.task}: {', '.join(study.arms)}",
        "",
        f"Written by `cruxtune study {path}`, which runs what is missing and writes this page again.",
        "",
        "## What is run",
        "",
        *_plan(study, result),
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
        lines += [*_remade(study, result), "", *_results(study, result, compared)]
        if figure:
            lines += ["", f"![Curves, bands over seeds]({figure})"]
    return "\n".join(lines) + "\n"


def power_lines(study: RlStudy, record: Study) -> Iterator[str]:
    """Yield the smallest differences that the study can detect, as Markdown; nothing where nothing is assumed."""
    heldout = record.recipe_of(study.task, record.output).splits.heldout
    if record.power is None or heldout is None:
        return
    compared = len(study.arms) + len({arm.origin for arm in study.arms.values()})
    pairs = compared * (compared - 1) // 2
    yield f"| problems | seeds | alone | first of {pairs} pairs (Holm) |"
    yield "| --- | --- | ---: | ---: |"
    counts = Counter(study.seeds_of(name) for name in study.arms)
    # What runs go on from has as many seeds as the study.
    counts[study.seeds] += 1
    both = combinations_with_replacement(sorted(counts, reverse=True), 2)
    there = [(a, b) for a, b in both if a != b or counts[a] > 1]
    for name, problems in (("held-out", heldout), ("validation", study.validation_problems)):
        for seeds in there:
            alone, first = (
                detectable_difference(problems, seeds, **record.power.model_dump(), pairs=number)
                for number in (1, pairs)
            )
            yield (
                f"| {problems:,} {name} | {seeds[0]} and {seeds[1]} | {points_or_none(alone)} | "
                f"{points_or_none(first)} |"
            )


def _plan(study: RlStudy, result: Mapping[str, Any]) -> list[str]:
    settings = ", ".join(f"`{name}: {value}`" for name, value in study.rl.items())
    seeds = {name: study.seeds_of(name) for name in study.arms}
    fewer = "".join(f", {number} of {name}" for name, number in seeds.items() if number < study.seeds)
    lines = [
        f"`cruxtune rl` with {settings}; {study.seeds} seeds of each arm{fewer}, on the task {study.task} of "
        f"{study.study.name}. Run s goes on from the model of seed s, where there are several. Of that study's "
        f"validation split {study.validation_problems} problems are examined while a model trains, and the others are "
        "what it trains on: no model was trained on them, they chose learning rates. At the end the held-out problems "
        "are examined, as for all models of that study.",
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
    for name, arm in study.arms.items():
        if arm.compute_of and arm.most_steps:
            lines += [
                "",
                f"All compute of {arm.compute_of} may buy more than {arm.most_steps} steps. Then {name} does not come "
                "to as many tokens, and no other arm does: the tables at equal compute say how far it came.",
            ]
        for other in study.arms:
            if begins_as(study, name, other):
                lines += [
                    "",
                    f"Run s of {name} begins as that of {other} does, with the same model, seed and problems, and goes "
                    f"on: the two are not independent.{_other_bits(result['arms'], name, other)}",
                ]
    lines += [
        "",
        "A run is not independent of the model that it goes on from, which the comparison takes it to be. Where seeds "
        "that are good before GRPO are good after it, its intervals of that difference are wider than they need be.",
    ]
    return lines


def _other_bits(arms: Mapping[str, Any], name: str, other: str) -> str:
    """Return in which seeds two arms do not begin with the same bits, as a sentence; nothing where there are none."""
    if name not in arms or other not in arms:
        return ""
    first, second = (dict(zip(arm["seeds"], arm["from_weights"], strict=True)) for arm in (arms[name], arms[other]))
    seeds = [str(seed) for seed, weights in first.items() if second.get(seed, weights) != weights]
    return f" In seed {' and '.join(seeds)} the two models differ in bits (see the results)." if seeds else ""


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
        f"What seeds were seen to differ by is on the page of {study.study.name}; where it is more than was assumed, "
        "so is the smallest difference.",
        "",
        "Curves are means over seeds in bands from the lowest to the highest of them. Such a band is no "
        "confidence interval: where two bands do not touch, that is no proof of a difference.",
    ]


def _progress(result: Mapping[str, Any]) -> list[str]:
    total = len(result["done"]) + len(result["missing"])
    if not result["done"]:
        return [f"Not run yet: 0 of {total} runs."]
    if not result["missing"]:
        return [f"All {total} runs are done."]
    return [f"{len(result['done'])} of {total} runs are done. Missing: {', '.join(result['missing'])}."]


def _remade(study: RlStudy, result: Mapping[str, Any]) -> list[str]:
    if not result["from_remade"]:
        return []
    return [
        "",
        f"{', '.join(result['from_remade'])} go on from models that were made again by the same commands with the "
        f"same seeds, and came out with other bits than those of {study.study.name} (`--any-start`; another processor "
        "rounds otherwise). Such a model is trained on the annotations that are kept with that study's results, which "
        "are of its own start, and what responses and annotation took is from there. It was evaluated again: what is "
        "said of a run before GRPO is of the very model that it goes on from. The comparison has one model of each "
        f"method and seed: that of {study.study.name} where any run goes on from it, else what was made again.",
    ]


def _results(study: RlStudy, result: Mapping[str, Any], compared: Mapping[str, Any] | None) -> list[str]:
    arms = result["arms"]
    threads = sorted({number for arm in arms.values() for number in arm["threads"]}) or ["any number"]
    return [
        "Mean [lowest, highest] over the seeds that are done.",
        "",
        "### On the held-out problems, after the last step",
        "",
        *_heldout(result),
        *(_differences(study, compared) if compared else ()),
        "",
        "### While it trained",
        "",
        "From the first validation to the last; of rollouts, from the mean of the first third of their steps (rounded "
        "up) to that of the last. Means over seeds, entropy in nats. There are "
        f"{study.validation_problems} validation problems, which may be easier than those held out, or harder: they "
        "compare arms with one another, and not with the table above. Rollouts answer few problems at a step, and "
        "others at the next, the same in all arms of a seed: their reward, and what follows from it in the table after "
        "this one, compare arms with one another, and say less of how far an arm has come.",
        "",
        *_curves(arms, _LOGGED),
        "",
        "Whether there was anything to learn, and how far it went. A group whose rewards are all equal teaches "
        "nothing; shares are from 0 to 1. That of clipped ratios is over the steps whose rollouts an earlier policy "
        "made (at the step that makes them every ratio is 1).",
        "",
        *_curves(arms, _CHECKS),
        "",
        "### Compute",
        "",
        "Tokens put through the model, means over seeds: for responses and annotation, to train the model that GRPO "
        "goes on from, and for GRPO itself (rollouts, their log-probabilities, training). Left out are the cold start, "
        "which is common to all, validation, evaluation, and the choice of learning rates, which the models that GRPO "
        "goes on from had and GRPO had not. A token of training takes about three times the arithmetic of the others. "
        "By the clock a token of annotation is the cheapest, since many are computed at once, where those of rollouts "
        "are generated one after the other.",
        "",
        "| arm | seeds | steps | annotation | training | GRPO | total |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_cost(name, arm) for name, arm in arms.items()),
        "",
        "The same in minutes, GRPO with its validations. They depend on the day, on what else ran, and on the number "
        f"of threads ({' or '.join(map(str, threads))} for GRPO; {study.study.name} says it for the others), and are "
        f"not to be added up.{_whole_runs(study, result)}",
        "",
        "| arm | annotation | training | GRPO |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {name} | {_counts(arm, 'seconds', 60, PARTS)} |" for name, arm in arms.items()),
        "",
        "### At equal total compute",
        "",
        *_equal(study, result),
    ]


def _whole_runs(study: RlStudy, result: Mapping[str, Any]) -> str:
    """Return how long runs took as a whole beside what was planned, as a sentence."""
    took = sorted(minutes for arm in result["arms"].values() for minutes in arm["minutes"])
    planned = sorted({minutes for name in result["done"] if (minutes := study.minutes(name)) is not None})
    if not planned:
        return ""
    return (
        f" With its evaluation a run took {took[0]} to {took[-1]} minutes, and was planned to take "
        f"{' or '.join(f'{minutes:.0f}' for minutes in planned)}."
    )


def _curves(arms: Mapping[str, Any], titles: Mapping[str, str]) -> list[str]:
    shown = {name: title for name, title in titles.items() if any(name in arm["curves"] for arm in arms.values())}
    return [
        f"| arm | {' | '.join(shown.values())} |",
        f"| --- | {' | '.join('---' for _ in shown)} |",
        *(f"| {name} | {' | '.join(ends(arm['curves'], curve) for curve in shown)} |" for name, arm in arms.items()),
    ]


def _heldout(result: Mapping[str, Any]) -> list[str]:
    shown = {**_accuracies(result), "entropy": "entropy of samples"}
    lines = [
        f"| arm | seeds | {' | '.join(f'{title}, before | after' for title in shown.values())} |",
        f"| --- | ---: | {' | '.join('--- | ---' for _ in shown)} |",
    ]
    for name, arm in result["arms"].items():
        cells = [_band(metric, arm[when].get(metric)) for metric in shown for when in ("before", "heldout")]
        lines.append(f"| {name} | {len(arm['seeds'])} | {' | '.join(cells)} |")
    return lines


def _differences(study: RlStudy, compared: Mapping[str, Any]) -> list[str]:
    """Return how arms differ from one another and from their own starts, as the comparison has it."""
    own = {frozenset((name, arm.origin)) for name, arm in study.arms.items()}
    own |= {frozenset(both) for both in combinations(study.arms, 2)}
    shown = [pair for pair in compared["pairs"] if frozenset(names_of(compared, pair)) in own]
    file = f"{study.results.name}/comparison.md"
    corrected, table = len(compared["pairs"]), difference_table(compared, shown, [study.task])
    single = f" {SINGLE}: a single seed." if any(SINGLE in line for line in table) else ""
    return [
        "",
        "Each arm against its own start, and against the others: percentage points, and nats of entropy. The intervals "
        f"are not corrected; p is, by Holm's procedure, for all {corrected} differences of [{file}]({file}) in that "
        f"metric. An asterisk: significant.{single}",
        "",
        *table,
    ]


def _accuracies(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the accuracies on the held-out problems that are shown, with titles: of pass@N that of the largest N."""
    names = list(next(iter(result["arms"].values()))["heldout"])
    largest = [name for name in names if name.startswith("pass@") and name not in _HELDOUT][-1:]
    shown = {**_HELDOUT, **{name: name for name in largest}}
    return {name: title for name, title in shown.items() if name in names}


def _band(metric: str, band: Mapping[str, float] | None) -> str:
    if band is None:
        return ""
    if metric.endswith("entropy"):
        return f"{band['mean']:.3f} [{band['low']:.3f}, {band['high']:.3f}]"
    return percent(band["mean"], (band["low"], band["high"]))


def ends(curves: Mapping[str, Sequence[Sequence[float]]], name: str) -> str:
    """Return the first and the last mean of a curve of validations, or those of the thirds of one of rollouts."""
    if name not in curves:
        return ""
    points = curves[name]
    if name == "clipped":
        # Where rollouts are new, the policy is the one that made them.
        new = {step for step, *_ in curves["reward"]}
        points = [point for point in points if point[0] not in new]
        if not points:
            return ""
    means = [mean for _, mean, *_ in points]
    # A step has few problems, and others than the last one.
    part = 1 if name.startswith("eval_") else -(-len(means) // 3)
    first, last = sum(means[:part]) / part, sum(means[-part:]) / part
    if name in (ACCURACY, SAMPLED) or name.startswith("eval_pass@"):
        return f"{100 * first:.1f} → {100 * last:.1f} %"
    return f"{first:.1f} → {last:.1f}" if name == "length" else f"{first:.3f} → {last:.3f}"


def _cost(name: str, arm: Mapping[str, Any]) -> str:
    steps = "–".join(map(str, dict.fromkeys((min(arm["steps"]), max(arm["steps"])))))
    return f"| {name} | {len(arm['seeds'])} | {steps} | {_counts(arm, 'compute', 1)} |"


def _counts(arm: Mapping[str, Any], of: str, unit: int, parts: Sequence[str] = (*PARTS, "total")) -> str:
    return " | ".join(f"{arm[of][part] / unit:,.0f}" for part in parts)


def _equal(study: RlStudy, result: Mapping[str, Any]) -> list[str]:
    """Return what each arm had come to when so many tokens were spent in all: held-out problems, then validation."""
    totals = result["equal_compute"]
    measured = totals[-1]["arms"][totals[-1]["end_of"]]
    largest = sorted((name for name in measured if name.startswith("eval_pass@")), key=_samples)[-1:]
    mixed = ""
    if len({tuple(arm["seeds"]) for arm in result["arms"].values()}) > 1:
        mixed = " A value is over the seeds that the arm of its row and that of its column both have."
    lines = [
        "On the held-out problems, by all tokens that were spent on a model until then, before GRPO and after it:",
        "",
        *_by_tokens(result),
        "",
        "On the validation problems, by the last validation at or below so many tokens of annotation, training and "
        "GRPO together. The columns are the totals at which arms end, seed by seed (means are shown). A dash: "
        "annotation and training alone take more. An asterisk: all of its runs had ended before, and what "
        f"they would have come to with the rest is not known.{mixed}",
    ]
    for name, arm in result["arms"].items():
        given = result["arms"].get(study.arms[name].compute_of)
        if given and max(arm["steps"]) < max(arm["steps_bought"]):
            tokens = 100 * arm["compute"]["total"] / given["compute"]["total"]
            lines += [
                "",
                f"{name} stopped at {max(arm['steps'])} of the {max(arm['steps_bought'])} steps that all compute of "
                f"{study.arms[name].compute_of} buys: it took {tokens:.0f} % of that one's tokens.",
            ]
    for name in (ACCURACY, *(name for name in (SAMPLED,) if name in measured), *largest):
        lines += [
            "",
            f"| {_LOGGED.get(name, name.removeprefix('eval_'))} | {' | '.join(map(_end, totals))} |",
            f"| --- | {' | '.join('---' for _ in totals)} |",
            *(
                f"| {arm} | {' | '.join(_reached(end['arms'].get(arm), name) for end in totals)} |"
                for arm in result["arms"]
            ),
        ]
    return lines


def _by_tokens(result: Mapping[str, Any]) -> list[str]:
    points: dict[str, tuple[int, Mapping[str, Any]]] = {}
    # Of arms that go on from the same method, what the one with most seeds began with.
    for name, arm in sorted(result["arms"].items(), key=lambda item: len(item[1]["seeds"]), reverse=True):
        cost = arm["compute"]
        if arm["before"]:
            points.setdefault(f"{arm['from']}, before GRPO", (cost["annotation"] + cost["training"], arm["before"]))
        points[name] = (cost["total"], arm["heldout"])
    shown = _accuracies(result)
    return [
        f"| model | tokens | {' | '.join(shown.values())} |",
        f"| --- | ---: | {' | '.join('---' for _ in shown)} |",
        *(
            f"| {name} | {tokens:,} | {' | '.join(_band(metric, found.get(metric)) for metric in shown)} |"
            for name, (tokens, found) in sorted(points.items(), key=lambda point: point[1][0])
        ),
    ]


def _samples(name: str) -> int:
    return int(name.partition("@")[2])


def _end(end: Mapping[str, Any]) -> str:
    return f"{end['tokens']:,} ({end['end_of']})"


def _reached(found: Mapping[str, Any] | None, name: str) -> str:
    if found is None:
        return ""
    return "–" if found["state"] == "not begun" else _band(name, found[name]) + r" \*" * (found["state"] == "ended")
