"""What the training benchmark trains: the embedded model as a checkpoint, worked solutions as rows, seeded masks."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from cruxtune.masks import TrainingRow, training_row
from cruxtune.models import load_model, load_tokenizer
from cruxtune.problems import ProblemSource, load_problems
from cruxtune.prompts import Renderer
from cruxtune.settings import ModelSettings, PromptSettings

_SEED = 5


def checkpoint(cache: Path) -> Path:
    """Return a directory with the embedded SmolLM2 in float32: reading its GGUF file takes long, so it is read once."""
    path = cache / "smollm2"
    if not (path / "tokenizer_config.json").exists():
        model, tokenizer = load_model(ModelSettings(model="embedded", dtype="float32"))
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path


def full_rows(model: Path, count: int) -> list[TrainingRow]:
    """Return rows of GSM8K-style problems with their worked solutions, every response token with weight 1.

    Problems are in reasoning-gym's own order, which mixes lengths; prompts have the model's chat template.
    """
    renderer = Renderer(load_tokenizer(ModelSettings(model=str(model))), PromptSettings())
    problems = load_problems(ProblemSource(problems="gym:gsm_symbolic", size=count), seed=_SEED, limit=None)
    rows = []
    for problem in problems:
        ids = renderer.solution_ids(problem)
        rows.append(training_row(renderer.render(problem), ids, [1.0] * len(ids)))
    return rows


def masked(rows: list[TrainingRow], share: float) -> list[TrainingRow]:
    """Return the rows with a weight at `share` of their response tokens, drawn at random; at least one a row.

    >>> row = training_row([1, 2], [3, 4, 5, 6], [1.0] * 4)
    >>> masked([row], 0.5)[0].trained
    2
    """
    draw = random.Random(_SEED)
    chosen = []
    for row in rows:
        places = [place for place, weight in enumerate(row.weights) if weight]
        kept = set(draw.sample(places, max(1, round(share * len(places)))))
        chosen.append(replace(row, weights=[float(place in kept) for place in range(len(row.weights))]))
    return chosen
