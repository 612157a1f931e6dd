"""Evaluation: samples recorded as the policy gave them, whatever the groups, and fewer problems sampled than asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cruxtune.errors import DataError
from cruxtune.models import load_policy
from cruxtune.problems import load_problems
from cruxtune.records import Evaluation
from cruxtune.settings import EngineSettings, ModelSettings, PromptSettings
from cruxtune.stage_settings import CompareSettings, EvaluateSettings
from cruxtune.stages.compare import compare
from cruxtune.stages.evaluate import evaluate
from cruxtune.store import read_rows

SAMPLING = {"samples": 3, "temperature": 0.7, "top_k": 40, "top_p": 0.95, "limit": 8}


def evaluated(world: Any, name: str, **leaves: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of an evaluation and its manifest."""
    settings = world.settings(EvaluateSettings, output=world.root / name, **{**SAMPLING, **leaves})
    manifest = evaluate(settings)
    return list(read_rows(world.root / name)), manifest


def test_fewer_problems_are_sampled_than_asked(world: Any) -> None:
    """The first problems have the samples that they have anyway, the others none; the accounting says how many."""
    everything, _ = evaluated(world, "all")
    order = list(dict.fromkeys(row["id"] for row in everything))
    for name, group_size in (("some", 5), ("other-groups", 512)):
        rows, manifest = evaluated(world, name, sampled_problems=3, group_size=group_size)
        expected = [row for row in everything if row["temperature"] == 0 or row["id"] in order[:3]]
        for row, other in zip(rows, expected, strict=True):
            assert {**row, "logprob": 0, "entropy": 0} == {**other, "logprob": 0, "entropy": 0}
            assert (row["logprob"], row["entropy"]) == pytest.approx((other["logprob"], other["entropy"]))
        done = manifest["accounting"]
        assert (done["problems"], done["samples"], done["responses"]) == (8, 9, 17)
        right = [(row["correct"], row["temperature"] > 0) for row in rows]
        assert (done["correct_greedy"], done["correct_samples"]) == (right.count((1, 0)), right.count((1, 1)))


def test_evaluations_with_unsampled_problems_are_compared(world: Any) -> None:
    """Greedy scores are over all problems, pass@N over those with samples, and other numbers of them are refused."""
    rows, _ = evaluated(world, "one", sampled_problems=3)
    evaluated(world, "two", sampled_problems=3, group_size=4)
    output = world.root / "comparison"
    paths = {name: [world.root / name] for name in ("one", "two")}
    result = compare(CompareSettings(evaluations=paths, output=output))
    ((task, facts),) = result["benchmarks"].items()
    assert facts["problems"] == 8
    greedy = [row["correct"] for row in rows if row["temperature"] == 0]
    samples = [row["correct"] for row in rows if row["temperature"] > 0]
    metrics = result["methods"]["one"]["benchmarks"][task]["metrics"]
    assert metrics["pass@1"]["value"] == pytest.approx(sum(greedy) / 8)
    assert metrics["pass@1_sampled"]["value"] == pytest.approx(sum(samples) / 9)
    assert result["pairs"]["two - one"]["benchmarks"][task]["any@3"]["difference"] == 0
    evaluated(world, "three", sampled_problems=2)
    with pytest.raises(DataError, match="sampled"):
        compare(CompareSettings(evaluations={**paths, "three": [world.root / "three"]}, output=output))


def test_samples_are_recorded_with_the_policys_own_numbers(world: Any) -> None:
    """Log-probability and entropy are those of the policy at temperature 1 with nothing cut off, end included."""
    rows, _ = evaluated(world, "out", limit=3)
    policy = load_policy(
        ModelSettings(model=str(world.model), dtype="float64"), PromptSettings(), EngineSettings(batch_size=1)
    )
    source = world.settings(EvaluateSettings, output=Path("unused")).problems
    prompts = {problem.id: policy.renderer.render(problem) for problem in load_problems(source)}
    assert {row["sample"] for row in rows} == {0, 1, 2}
    for row in rows:
        found = Evaluation(
            **{name: row[name] for name in row if name not in ("correct", "extracted", "reason")}, verdict=None
        )  # type: ignore[arg-type]
        scores = policy.engine.score(prompts[found.id], found.response_ids, alternatives=1)
        assert found.length == len(found.response_ids)
        assert found.logprob == pytest.approx(sum(scores.logprobs), rel=1e-5)
        assert found.entropy == pytest.approx(sum(scores.entropies) / found.length, rel=1e-5)
        assert found.finish_reason == (
            "length" if found.length == 24 and found.response_ids[-1] not in policy.engine.eos_ids else "stop"
        )
