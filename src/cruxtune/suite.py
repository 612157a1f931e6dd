"""Evaluation on several benchmarks: the evaluate stage for each of them, in a directory of its own, and an overview.

Every benchmark resumes by itself, as any evaluation does; the model is loaded once, if anything is left to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cruxtune.benchmark_rows import require_files
from cruxtune.benchmarks import BENCHMARK, BENCHMARKS, benchmark_names
from cruxtune.cells import cell_of
from cruxtune.comparison import summarise
from cruxtune.comparison_page import percent
from cruxtune.errors import ConfigError, StoreError
from cruxtune.models import Policy, load_policy
from cruxtune.problems import ProblemSource, load_problems
from cruxtune.progress import stderr
from cruxtune.prompts import Renderer
from cruxtune.stage_settings import EvaluateSettings
from cruxtune.stages.evaluate import evaluate
from cruxtune.store import MANIFEST, read_manifest, write_atomic

OVERVIEW = "overview"


def evaluate_benchmarks(settings: EvaluateSettings, *, policy: Policy | None = None) -> dict[str, Any]:
    """Evaluate on every benchmark; write overview.md and overview.json, and return the latter's content.

    Base models (plain template) are shown the benchmark's few-shot examples unless `prompt.examples` names others; chat
    models are asked without examples. Both are asked for nothing else.

    Raises:
        ConfigError: no benchmarks, or one that cannot be loaded; told before the model is loaded.
        ModelError: the model cannot be loaded.
        StoreError: an output belongs to other settings, or is being written.
    """
    if settings.benchmarks is None:
        raise ConfigError("evaluate_benchmarks needs --benchmarks, e.g. gsm8k,math500; `cruxtune benchmarks` has all")
    root, directory = settings.output.output, settings.files.benchmarks_dir
    names = benchmark_names(settings.benchmarks)
    if (root / MANIFEST).exists():
        raise StoreError(f"{root} holds one stage's output, not that of several benchmarks; choose another --output")
    require_files(names, "test", directory)
    steps = {name: _settings_for(name, settings) for name in names}
    for step in steps.values():
        assert step.problems is not None
        load_problems(step.problems, limit=1, benchmarks_dir=directory)
    shared = _Shared(policy)
    results = {}
    for number, (name, step) in enumerate(steps.items(), start=1):
        stderr.print(f"[bold]\\[{number}/{len(steps)}] {BENCHMARKS[name].title}[/bold]")
        done = _is_complete(step.output.output) and not settings.output.overwrite
        manifest = evaluate(step, policy=None if done else shared.policy(step))
        results[name] = _result(name, step, manifest)
    overview = {
        "model": settings.model.model,
        "samples": settings.samples,
        "limit": settings.output.limit,
        "benchmarks": results,
        "mean": _mean(results),
    }
    write_atomic(root / f"{OVERVIEW}.json", (json.dumps(overview, indent=2, ensure_ascii=False) + "\n").encode())
    write_atomic(root / f"{OVERVIEW}.md", markdown(overview).encode())
    return overview


def markdown(overview: Mapping[str, Any]) -> str:
    """Return the overview as a Markdown page."""
    n, limit = overview["samples"], overview["limit"]
    lines = [
        f"# {overview['model']} on {len(overview['benchmarks'])} benchmarks",
        "",
        "95 % intervals: bootstrap over problems. The mean counts every benchmark alike."
        + (f" Only the first {limit} problems of each: too few to compare with published scores." if limit else ""),
        "",
        f"| benchmark | problems | pass@1 (greedy) | {f'pass@{n} | ' if n else ''}truncated | by fallback |",
        f"| --- | ---: | --- | {'--- | ' if n else ''}---: | ---: |",
    ]
    for result in overview["benchmarks"].values():
        sampled = f"{percent(result['pass@N'], result['pass@N_interval'])} | " if n else ""
        lines.append(
            f"| {result['title']} | {result['problems']} | {percent(result['pass@1'], result['pass@1_interval'])} | "
            f"{sampled}{100 * result['truncated']:.1f} % | {100 * result['fallback']:.1f} % |"
        )
    mean = overview["mean"]
    sampled = f"{100 * mean['pass@N']:.1f} % | " if n else ""
    lines.append(f"| mean | | {100 * mean['pass@1']:.1f} % | {sampled} | |")
    return "\n".join(lines) + "\n"


class _Shared:
    """The policy, loaded when it is first needed, with the prompts of each benchmark."""

    def __init__(self, policy: Policy | None) -> None:
        self._loaded = policy

    def policy(self, step: EvaluateSettings) -> Policy:
        """Return the policy that renders with a benchmark's examples."""
        if self._loaded is None:
            self._loaded = load_policy(step.model, step.prompt, step.engine)
        renderer = Renderer(self._loaded.renderer.tokenizer, step.prompt)
        return replace(self._loaded, renderer=renderer, facts={**self._loaded.facts, **renderer.facts()})


def _settings_for(name: str, settings: EvaluateSettings) -> EvaluateSettings:
    """Return the settings of one benchmark's evaluation."""
    prompt, output = settings.prompt, settings.output
    if prompt.examples is None:
        prompt = prompt.model_copy(update={"examples": BENCHMARKS[name].examples})
    return settings.model_copy(
        update={
            "problems": ProblemSource(problems=BENCHMARK + name, split="test"),
            "benchmarks": None,
            "prompt": prompt,
            "output": output.model_copy(update={"output": output.output / name}),
        }
    )


def _is_complete(path: Path) -> bool:
    return (path / MANIFEST).exists() and bool(read_manifest(path)["complete"])


def _result(name: str, step: EvaluateSettings, manifest: Mapping[str, Any]) -> dict[str, Any]:
    done = manifest["accounting"]
    path = step.output.output
    return {
        "title": BENCHMARKS[name].title,
        "problems": int(done["problems"]),
        **summarise(cell_of(path, method="", seed=None, benchmark=name), step.output.seed),
        "truncated": done["truncated"] / done["responses"],
        "fallback": manifest["shares"]["fallback_share"] or 0.0,
        "examples": step.prompt.examples if manifest["facts"].get("examples") else None,
        "output": str(path),
    }


def _mean(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    shared = ("pass@1", "pass@N", "pass@1_sampled")
    some = next(iter(results.values()))
    return {
        metric: sum(result[metric] for result in results.values()) / len(results) for metric in shared if metric in some
    }
