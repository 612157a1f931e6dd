"""The search for a start, on a tiny model with a verifier that finds about half of all texts correct."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cruxtune.errors import StoreError
from cruxtune.start_search import critical_shares, run_search
from cruxtune.study import Study
from cruxtune.study_clock import Clock


@pytest.fixture
def content(study_recipe: dict[str, Any]) -> dict[str, Any]:
    """A search of one task and two lengths of the cold start, whose working directory is the current one."""
    return {
        "output": "work",
        "results": "found",
        "recipe": {
            **study_recipe,
            "decoding": {"max_new_tokens": 12},
        },
        "tasks": {"sums": {"recipe": {"problems": {"problems": "gym:chain_sum", "size": 200, "kind": "custom"}}}},
        "search": {
            "coldstart": [16, 8],
            "heldout": 12,
            "respond": 8,
            "annotate": 3,
            "positions": 4,
            "alternatives": 3,
            "accuracy": [0.0, 1.0],
        },
    }


def test_every_start_is_measured_once(content: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """A JSON for each combination and a page; what is there is not computed again, and other settings are refused."""
    study = Study.model_validate(content)
    run_search(study, Clock(only="sums/8"))
    first = Path("found/sums-8.json")
    cell = json.loads(first.read_text())
    assert cell["problems"] == 12
    assert cell["coldstart_steps"] == 1
    assert list(cell["critical_share"]) == ["1", "2", "3"]
    shares = [part["share"] for part in cell["critical_share"].values()]
    assert shares == sorted(shares, reverse=True)
    assert not Path("found/sums-16.json").exists()
    written = first.stat().st_mtime_ns
    run_search(study, Clock())
    assert first.stat().st_mtime_ns == written
    assert json.loads(Path("found/sums-16.json").read_text())["coldstart_steps"] == 2
    shown = Path("found/README.md").read_text()
    assert "Tried: 2 of 2 combinations." in shown
    assert "sums/16" in shown
    assert not list(Path("work").rglob("*.safetensors"))
    content["recipe"]["decoding"]["max_new_tokens"] = 13
    with pytest.raises(StoreError, match=r"decoding.max_new_tokens = 12, and the study has 13"):
        run_search(Study.model_validate(content), Clock())


def test_no_longer_start_is_tried_than_one_that_is_too_good(content: dict[str, Any]) -> None:
    """A start above the range is not annotated, and its task's longer ones are left out."""
    content["search"]["accuracy"] = [-1.0, -0.5]
    run_search(Study.model_validate(content), Clock())
    assert [path.name for path in Path("found").glob("*.json")] == ["sums-8.json"]
    assert json.loads(Path("found/sums-8.json").read_text())["critical_share"] == {}


def test_shares_count_known_positions_of_all_responses_together() -> None:
    """Positions that were not asked about are no part of the share, and its interval contains it."""
    shares = critical_shares([[[False, False]] * 3 + [[None, None]] * 5, [[True, False]]], 2)
    assert {k: (part["share"], part["tokens"]) for k, part in shares.items()} == {"1": (0.75, 4), "2": (0.75, 4)}
    low, high = shares["1"]["interval"]
    assert low <= 0.75 <= high
