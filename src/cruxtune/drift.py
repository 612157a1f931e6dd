r"""A policy examined while reinforcement learning changes it: how it answers, and how far it is from its start.

Each time, the validation problems are answered greedily, as `cruxtune evaluate` does it: accuracy (pass@1), length,
share of truncated answers, entropy; on request also by samples at temperature 1 (pass@k). The distance is measured on
responses that do not change: one to each problem, sampled from the start at temperature 1 before the first step. With
x_t their tokens, π_0 the start, π_θ the policy and r_t = π_θ(x_t | x_<t) / π_0(x_t | x_<t), it is the mean over all
tokens of

    r_t − 1 − log r_t ≥ 0,

which is unbiased for KL(π_0 ‖ π_θ) per token where the start goes (the estimator k3 of Schulman 2020), in nats: exactly
0 at the start, and no copy of the start has to stay in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cruxtune.engines.base import Decoding, Generation
from cruxtune.engines.plain import PlainEngine
from cruxtune.engines.sampling import seed_of
from cruxtune.examination import ACCURACY
from cruxtune.metrics import pass_at_k
from cruxtune.processes import all_of, from_first, index
from cruxtune.prompts import Renderer
from cruxtune.records import Problem
from cruxtune.store import write_atomic
from cruxtune.verifiers import Verifier

ENTROPY, KL, LENGTH, TRUNCATED = "eval_entropy", "eval_kl", "eval_length", "eval_truncated"
SAMPLED = "eval_accuracy_sampled"
_SAMPLE = 1
"""Number of the sample by which responses of the start are drawn."""
_VALIDATION = "validation"
"""What keys the samples of an examination, the same each time."""


class StartResponse(NamedTuple):
    """A response sampled from the start, and the log-probability of each of its tokens there, in nats."""

    ids: list[int]
    logprobs: list[float]


class Drift:
    """What is asked of the policy, the same each time.

    The start's responses are kept in the file `kept`: a resumed run measures the distance to the same start.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        renderer: Renderer,
        verifier: Verifier,
        decoding: Decoding,
        *,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        context_length: int | None,
        seed: int,
        kept: Path,
        samples: int = 0,
    ) -> None:
        self._problems = list(problems)
        self._prompts = [renderer.render(problem) for problem in problems]
        self._renderer = renderer
        self._verifier = verifier
        self._decoding = decoding
        self._max_new_tokens = max_new_tokens
        self._eos_ids = list(eos_ids)
        self._context_length = context_length
        self._seed = seed
        self._kept = kept
        self._samples = samples
        self._start: list[StartResponse] | None = None

    def tallies(self, model: Any, part: slice = slice(None)) -> dict[str, float]:
        """Return sums over a part of the problems; the model is in evaluation mode. All processes ask together."""
        # Nothing of the plain engine stays in the model, which goes on training.
        engine = PlainEngine(model, eos_ids=self._eos_ids, context_length=self._context_length)
        if self._start is None:
            self._start = self._read() or self._sample(engine, part)
        answers = engine.generate(
            self._prompts[part], max_new_tokens=self._max_new_tokens, decoding=self._decoding, statistics=True
        )
        right = self._judge(answers, self._problems[part])
        sums = {
            "problems": float(len(answers)),
            "correct": float(sum(right)),
            "tokens": float(sum(len(answer.ids) for answer in answers)),
            "truncated": float(sum(answer.finish_reason == "length" for answer in answers)),
            "entropy": sum(sum(answer.entropies or []) for answer in answers),
            "start_tokens": 0.0,
            "kl": 0.0,
            **self._passed(engine, part),
        }
        for prompt, response in zip(self._prompts[part], self._start[part], strict=True):
            if response.ids:
                now = engine.score(prompt, response.ids, alternatives=1).logprobs
                sums["kl"] += divergence(response.logprobs, now)
                sums["start_tokens"] += len(now)
        return sums

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return what the sums over all parts come to, by the names that logs have."""
        return {
            ACCURACY: sums["correct"] / sums["problems"],
            ENTROPY: sums["entropy"] / max(1.0, sums["tokens"]),
            KL: sums["kl"] / max(1.0, sums["start_tokens"]),
            LENGTH: sums["tokens"] / sums["problems"],
            TRUNCATED: sums["truncated"] / sums["problems"],
            **{name: value / sums["problems"] for name, value in sums.items() if name.startswith("eval_")},
        }

    def _judge(self, answers: Sequence[Generation], problems: Sequence[Problem]) -> list[bool]:
        texts = [self._renderer.decode(answer.ids) for answer in answers]
        verdicts = self._verifier.verify_many(list(zip(texts, problems, strict=True)))
        return [verdict.correct for verdict in verdicts]

    def _passed(self, engine: PlainEngine, part: slice) -> dict[str, float]:
        """Return the sums over problems of what samples estimate, by the names that logs have."""
        if not self._samples:
            return {}
        problems, prompts = self._problems[part], self._prompts[part]
        answers = engine.generate(
            [prompt for prompt in prompts for _ in range(self._samples)],
            max_new_tokens=self._max_new_tokens,
            decoding=Decoding(temperature=1.0),
            seeds=[
                seed_of(self._seed, problem.id, _VALIDATION, sample)
                for problem in problems
                for sample in range(self._samples)
            ],
        )
        right = self._judge(answers, [problem for problem in problems for _ in range(self._samples)])
        counts = [sum(right[start : start + self._samples]) for start in range(0, len(right), self._samples)]
        sizes = [1 << power for power in range(1, self._samples.bit_length())]
        return {SAMPLED: sum(counts) / self._samples} | {
            f"eval_pass@{k}": sum(pass_at_k(self._samples, count, k) for count in counts) for k in sizes
        }

    def _read(self) -> list[StartResponse] | None:
        found = json.loads(self._kept.read_text()) if index() == 0 and self._kept.exists() else None
        kept = from_first(found)
        return [StartResponse(*entry) for entry in kept] if kept is not None else None

    def _sample(self, engine: PlainEngine, part: slice) -> list[StartResponse]:
        """Return the start's responses to all problems, those of the part by this process, and keep them."""
        prompts = self._prompts[part]
        sampled = engine.generate(
            prompts,
            max_new_tokens=self._max_new_tokens,
            decoding=Decoding(temperature=1.0),
            seeds=[seed_of(self._seed, problem.id, _SAMPLE) for problem in self._problems[part]],
        )
        own = [
            StartResponse(answer.ids, engine.score(prompt, answer.ids, alternatives=1).logprobs if answer.ids else [])
            for prompt, answer in zip(prompts, sampled, strict=True)
        ]
        parts = all_of(own)
        # Process i of n has the problems i, i + n, …
        start = [parts[place % len(parts)][place // len(parts)] for place in range(len(self._problems))]
        if index() == 0:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._kept, json.dumps(start).encode())
        return start


def divergence(start: Sequence[float], now: Sequence[float]) -> float:
    """Return Σ_t (r_t − 1 − log r_t) of one response, r_t = exp(now_t − start_t); see the module.

    >>> divergence([-1.0, -2.0], [-1.0, -2.0])
    0.0
    >>> round(divergence([math.log(0.5)], [math.log(0.25)]), 4)  # 0.5 − 1 + log 2
    0.1931
    """
    moved = [after - before for before, after in zip(start, now, strict=True)]
    return sum(math.expm1(log_ratio) - log_ratio for log_ratio in moved)
