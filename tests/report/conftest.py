from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cruxtune.records import Annotation, Problem, Response, Verdict


class Pieces:
    """A vocabulary that grows as texts are split; gives the piece of each id."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each id."""
        return [self.known[token_id] for token_id in ids]

    def id(self, piece: str) -> int:
        """Return the id of a piece, new if it has to be."""
        if piece not in self.known:
            self.known.append(piece)
        return self.known.index(piece)

    def split(self, text: str) -> list[int]:
        """Return the ids of a text: words with the space before them, digits and all else one by one."""
        return [self.id(piece) for piece in re.findall(r"<\|\w+\|>| ?[^\W\d]+| ?\W|\d", text)]


@pytest.fixture
def pieces() -> Pieces:
    """An empty vocabulary."""
    return Pieces()


@pytest.fixture
def annotate(pieces: Pieces) -> Callable[..., Annotation]:
    """A maker of annotations: digits and what is in `also` are critical."""

    def make(
        text: str,
        *,
        question: str = "How many apples has Lena?",
        answer: str = "19",
        problem_id: str = "apples-0",
        also: str = "#",
        choices: list[str] | None = None,
    ) -> Annotation:
        chance = random.Random(text)
        ids = pieces.split(text)
        others = [pieces.id(other) for other in ("8", "9", " so", "\n", " the", "<|im_end|>")]
        alternatives, alternative_logprobs, verdicts, logprobs, entropies, critical = [], [], [], [], [], []
        for token_id in ids:
            piece = pieces([token_id])[0].strip()
            decides = piece.isdigit() or (piece != "" and piece in also)
            first = chance.uniform(0.6, 0.9999)
            alternatives.append(chance.sample([other for other in others if other != token_id], 2))
            alternative_logprobs.append([math.log((1 - first) * share) for share in (0.6, 0.2)])
            verdicts.append([False, False] if decides else chance.choice([[True, None], [False, True]]))
            logprobs.append(math.log(first))
            entropies.append(-first * math.log(first) - (1 - first) * math.log(1 - first))
            critical.append(decides)
        problem = Problem(id=problem_id, question=question, answer=answer, choices=choices)
        response = Response(problem, [1, 2], ids, text, "stop", Verdict(True, answer, "hash"))
        return Annotation(response, alternatives, alternative_logprobs, verdicts, logprobs, entropies, critical)

    return make


@pytest.fixture
def annotations(annotate: Callable[..., Annotation]) -> list[Annotation]:
    """Twenty-four annotated responses."""
    names = ("Lena", "Omar", "Mei", "Ivo", "Ada", "Noor")
    made = []
    for number in range(24):
        name, had, bought, gave = names[number % 6], 12 + number, 7 + number // 2, 3 + number % 4
        left = had + bought - gave
        made.append(
            annotate(
                f"{name} has {had} apples and buys {bought} more, so there are {had} + {bought} = {had + bought}.\n"
                f"Giving away {gave} leaves {had + bought} - {gave} = {left} apples.{' That is it.' * (number % 5)}\n\n"
                f"#### {left}<|im_end|>",
                question=f"{name} has {had} apples and buys {bought} more at the market. On the way home {gave} "
                "of them are given to a friend. How many apples are left?",
                answer=str(left),
                problem_id=f"gsm_symbolic-{number:04}",
            )
        )
    return made


@pytest.fixture
def summary() -> dict[str, Any]:
    """A run's summary with every key."""
    return {
        "annotated_responses": 110,
        "critical_share": 0.3142,
        "heldout_problems": 160,
        "seconds": 1421.7,
        "seconds_by_stage": {
            "warm up": 240.2,
            "respond": 38.0,
            "annotate": 611.9,
            "train SFT": 118.4,
            "train CFT": 116.0,
            "evaluate": 296.0,
            "report": 1.2,
        },
        "peak_memory_gib": 4.31,
        "samples": 8,
        "models": {
            "start": {
                "pass@1": 0.3875,
                "pass@N": 0.519,
                "tokens_trained": 0,
                "pass@1_interval": [0.3125, 0.4625],
                "pass@N_interval": [0.442, 0.594],
            },
            "sft": {
                "pass@1": 0.381,
                "pass@N": 0.525,
                "tokens_trained": 13640,
                "pass@1_interval": [0.306, 0.456],
                "pass@N_interval": [0.447, 0.602],
            },
            "cft": {
                "pass@1": 0.4,
                "pass@N": 0.531,
                "tokens_trained": 4286,
                "pass@1_interval": [0.325, 0.475],
                "pass@N_interval": [0.453, 0.608],
            },
        },
        "cft_minus_sft": {
            "pass@1": {"difference": 0.019, "interval": [-0.041, 0.08]},
            "pass@N": {"difference": 0.006, "interval": [-0.057, 0.068]},
        },
        "rollouts": {"wanted": 27280, "skipped": 9012, "made": 18268},
        "task": "chain_sum: 3–4 terms of 1–2 digits",
        "model": "SmolLM2-135M-Instruct",
        "versions": {"cruxtune": "0.1.0", "torch": "2.8.0", "transformers": "5.23.0", "trl": "1.16.0"},
        "seed": 0,
        "command": "make demo",
    }
