"""A small world for stages: a tiny model on disk, problems, and a verifier that finds about half of texts correct."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

JUDGE = '''
"""A scripted verifier: a text is correct where its bytes add up to an even number."""


def judge(text, problem):
    return sum(text.encode()) % 2 == 0
'''


@dataclass(frozen=True)
class World:
    """Where things are, and the settings that every stage shares."""

    root: Path
    model: Path
    problems: Path
    leaves: dict[str, Any]

    def settings(self, of: Any, /, **leaves: Any) -> Any:
        """Settings of a stage from flat fields, the shared ones filled in where the stage has them."""
        from cruxtune.options import leaf_fields
        from cruxtune.settings import build

        known = {name for name, *_ in leaf_fields(of)}
        if "validation" in known and "validation" not in leaves:
            known -= {"verifier", "max_new_tokens"}
        return build(of, {name: value for name, value in self.leaves.items() if name in known} | leaves)


@pytest.fixture(scope="session")
def make_world(tiny_checkpoint: Callable[..., Path]) -> Callable[[Path], World]:
    """A maker of the world in a directory, which must be the working directory while stages run."""

    def make(root: Path) -> World:
        model = tiny_checkpoint(root / "model")
        (root / "judge_even.py").write_text(JUDGE)
        problems = root / "problems.jsonl"
        rows = [{"id": f"p{n}", "question": f"What is {n} and {n * 7}?", "answer": str(n)} for n in range(24)]
        problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
        leaves = {
            "model": str(model),
            "dtype": "float64",
            "problems": str(problems),
            "kind": "custom",
            "verifier": "judge_even:judge",
            "max_new_tokens": 24,
            "batch_size": 8,
            "draft_length": 4,
        }
        return World(root, model, problems, leaves)

    return make


@pytest.fixture
def world(tmp_path: Path, make_world: Callable[[Path], World], monkeypatch: pytest.MonkeyPatch) -> World:
    """The world in a directory of its own, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return make_world(tmp_path)
