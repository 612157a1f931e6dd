"""What the benchmarks work on: a cold-started SmolLM2, its cached responses, and the judge of counterfactuals."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cruxtune.engines.base import Decoding, LoopRule, Scores
from cruxtune.engines.plain import PlainEngine
from cruxtune.models import context_length, end_of_sequence_ids, load_model
from cruxtune.prompts import Renderer
from cruxtune.records import Response
from cruxtune.settings import ModelSettings, PromptSettings
from cruxtune.store import read_rows
from cruxtune.verifiers import Verifier

TOKEN_LIMIT, QUICK_TOKEN_LIMIT = 200, 100
ALTERNATIVES = 2
DECODING = Decoding(loop=LoopRule())
SHORTEST, QUICK_SHORTEST, LONGEST = 50, 40, 150
"""Response tokens."""

_PROBLEMS = ("--problems", "gym:gsm_symbolic")
_SIZE = 72
"""Problems of a cache made here: enough for 40 responses of the wanted length."""
_COLD_START = (
    *("train", "--method", "gold", "--model", "embedded", *_PROBLEMS, "--size", "96", "--learning-rate", "3e-4"),
    *("--epochs", "1", "--batch-size", "8", "--seed", "7"),
)
_RESPOND = ("respond", *_PROBLEMS, "--seed", "99", "--max-new-tokens", str(TOKEN_LIMIT))


@dataclass(frozen=True)
class Ask:
    """One counterfactual: responses[place] with `token`, its alternative of that rank, at `position`."""

    place: int
    position: int
    rank: int
    token: int


@dataclass
class Case:
    """A model in one precision, and what it is asked.

    `sampled` are the positions of each response that are compared with one-by-one decoding, `scores` the plain model's
    own, whose alternatives every method is given that does not find its own.
    """

    model: Any
    renderer: Renderer
    verifier: Verifier
    responses: list[Response]
    sampled: list[list[int]]
    scores: list[Scores]
    eos_ids: list[int]
    context_length: int | None
    dtype: str
    token_limit: int

    def judge(self, asks: Sequence[Ask], ids: Sequence[Sequence[int]]) -> list[bool]:
        """Return whether each counterfactual response is correct."""
        texts = [self.renderer.decode(some) for some in ids]
        problems = [self.responses[ask.place].problem for ask in asks]
        return [verdict.correct for verdict in self.verifier.verify_many(list(zip(texts, problems, strict=True)))]

    def alternatives(self, place: int) -> list[list[int]]:
        """Return the alternatives at every position of a response."""
        return self.scores[place].alternatives


def prepare(cache: Path, console: Console) -> None:
    """Make the checkpoint and the responses where they are not there yet; minutes, once."""
    steps = {
        "cold": (*_COLD_START, "--output", str(cache / "cold")),
        "responses": (
            *(*_RESPOND, "--size", str(_SIZE), "--model", str(cache / "cold")),
            *("--output", str(cache / "responses")),
        ),
    }
    for name, arguments in steps.items():
        if not _finished(cache / name):
            minutes = "6 minutes" if name == "cold" else "1 minute"
            console.print(
                f"No finished {name} in {cache}: making it now, once. It takes about {minutes} on two cores, "
                "which no figure counts."
            )
            program = "from cruxtune.cli import main; main()"
            # Interrupted work is resumed by the same command.
            subprocess.run([sys.executable, "-c", program, *arguments], check=True, env=_offline())


def usable_responses(cache: Path, count: int, *, quick: bool) -> list[Response]:
    """Return up to `count` responses that are compared, if `quick` the shortest, their own answers the right ones.

    So every response counts as correct, and a label means: does the counterfactual still reach this answer?
    """
    rows = [Response.from_row(row) for row in read_rows(cache / "responses")]
    least = QUICK_SHORTEST if quick else SHORTEST
    kept = [
        replace(
            row, problem=replace(row.problem, kind="math", answer=row.verdict.extracted, solution=None, metadata={})
        )
        for row in rows
        if row.finish_reason == "stop" and least <= len(row.response_ids) <= LONGEST and row.verdict.extracted
    ]
    if quick:
        kept.sort(key=lambda row: len(row.response_ids))
    return kept[:count]


def load(
    cache: Path, dtype: str, responses: list[Response], positions: int, token_limit: int, verifier: Verifier
) -> Case:
    """Return the case in one precision, `positions` sampled positions a response."""
    model, tokenizer = load_model(ModelSettings(model=str(cache / "cold"), dtype=dtype))
    model.set_attn_implementation("sdpa")
    eos_ids = end_of_sequence_ids(model, tokenizer)
    most = context_length(model.config)
    plain = PlainEngine(model, eos_ids=eos_ids, context_length=most)
    return Case(
        model=model,
        renderer=Renderer(tokenizer, PromptSettings()),
        verifier=verifier,
        responses=responses,
        sampled=[stratified(len(response.response_ids), positions, seed) for seed, response in enumerate(responses)],
        scores=[plain.score(one.prompt_ids, one.response_ids, alternatives=ALTERNATIVES) for one in responses],
        eos_ids=eos_ids,
        context_length=most,
        dtype=dtype,
        token_limit=token_limit,
    )


def stratified(length: int, count: int, seed: int) -> list[int]:
    """Return `count` positions, one drawn from each of as many equal parts: early rollouts are longer than late ones.

    >>> stratified(8, 4, 0), stratified(3, 9, 0)
    ([1, 3, 4, 7], [0, 1, 2])
    """
    if count >= length:
        return list(range(length))
    draw = random.Random(seed)
    bounds = [round(part * length / count) for part in range(count + 1)]
    return [draw.randrange(low, high) for low, high in pairwise(bounds)]


def threads() -> int:
    """Return the threads that torch computes with."""
    return torch.get_num_threads()


def _finished(path: Path) -> bool:
    manifest = path / "manifest.json"
    return manifest.exists() and json.loads(manifest.read_text())["complete"]


def _offline() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}
