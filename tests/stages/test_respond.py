"""Responses on disk: greedy ones, samples beside them, worked solutions instead of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cruxtune.errors import ConfigError, DataError
from cruxtune.records import Response
from cruxtune.stage_settings import RespondSettings
from cruxtune.store import read_rows


def responded(world: Any, name: str, **leaves: Any) -> tuple[list[Response], dict[str, Any]]:
    """What `respond` writes with these settings, and its manifest."""
    from cruxtune.stages.respond import respond

    output = world.root / name
    manifest = respond(world.settings(RespondSettings, output=output, **leaves))
    return [Response.from_row(row) for row in read_rows(output)], manifest


def test_samples_lie_beside_the_greedy_response(world: Any) -> None:
    """Sample 0 is what there is without samples; the others are drawn by seed, problem and sample alone."""
    alone, _ = responded(world, "alone")
    found, manifest = responded(world, "found", samples=3)
    assert [one.key for one in found] == [(f"p{n}", sample) for n in range(24) for sample in range(4)]
    assert [one for one in found if one.sample == 0] == alone
    assert {one.origin for one in alone} == {"greedy"}
    sampled = [one for one in found if one.sample > 0]
    assert {one.origin for one in sampled} == {"sampled"}
    assert len({tuple(one.response_ids) for one in sampled}) > len(sampled) / 2
    done = manifest["accounting"]
    assert (done["problems"], done["responses"]) == (24, 96)
    assert done["correct"] == sum(one.verdict.correct for one in found)
    assert done["solved"] == len({one.problem.id for one in found if one.verdict.correct})
    fewer, _ = responded(world, "fewer", samples=2, group_size=7, batch_size=3, limit=9)
    assert fewer == [one for one in found if one.sample < 3][: len(fewer)]
    other, _ = responded(world, "other", samples=3, seed=1)
    assert [one for one in other if one.sample == 0] == alone
    assert other != found


def test_worked_solutions_are_responses(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each solution is tokenised as training does it, ended, verified, and called a solution; no weights are read."""
    import cruxtune.models as models

    _, greedy = responded(world, "greedy", limit=1)
    monkeypatch.delattr(models, "load_model")
    rows = [
        {"id": f"s{n}", "question": f"{n} + 1?", "answer": str(n + 1), "solution": f"{n} and one is {n + 1}."}
        for n in range(8)
    ]
    (world.root / "solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, manifest = responded(world, "solved", problems=str(world.root / "solved.jsonl"), worked_solutions=True)
    assert [one.text for one in found] == [f" {n} and one is {n + 1}.\n#### {n + 1}" for n in range(8)]
    assert {(one.origin, one.finish_reason, one.sample) for one in found} == {("solution", "stop", 0)}
    assert all(one.response_ids == [*one.text.encode(), 258] for one in found)
    assert {one.verdict.correct for one in found} == {True, False}
    assert manifest["accounting"]["tokens_emitted"] == 0
    shared = ("architecture", "eos_ids", "context_length", "tokenizer", "chat_template", "commit")
    assert {name: manifest["facts"][name] for name in shared} == {name: greedy["facts"][name] for name in shared}
    assert not {"dtype", "parameters"} & manifest["facts"].keys()
    with pytest.raises(DataError, match="problem p0 has no worked solution"):
        responded(world, "unsolved", worked_solutions=True)
    with pytest.raises(ConfigError, match="--worked-solutions generates no response"):
        world.settings(RespondSettings, output=world.root / "both", worked_solutions=True, samples=2)
