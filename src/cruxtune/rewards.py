"""The reward of a response: what the verifier says of it, and of its form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from cruxtune.processes import all_of
from cruxtune.prompts import Renderer
from cruxtune.records import Problem, Verdict
from cruxtune.verifiers import Verifier

EXPLICIT = frozenset({"boxed", "hash", "tag", "phrase", "bare", "line"})
"""Reasons of verdicts on answers that were stated as such, none of which had to be guessed; see `verifiers`."""


class Reward:
    """1 for a correct answer, plus `weight` for a well-formed response, correct or not.

    A response is well formed where it ends by itself (its last token is one of `eos_ids`), and where the verifier found
    its answer in an explicit form. The text that is judged is decoded as evaluation decodes it; the verifier spreads
    a batch over its processes.

    TRL calls it with the ids of its problems as prompts.
    """

    __name__ = "verifier"

    def __init__(
        self,
        problems: Mapping[str, Problem],
        renderer: Renderer,
        verifier: Verifier,
        eos_ids: Collection[int],
        weight: float,
    ) -> None:
        self._problems = problems
        self._renderer = renderer
        self._verifier = verifier
        self._eos_ids = frozenset(eos_ids)
        self._weight = weight
        self.verdicts: Counter[str] = Counter()
        """Verdicts so far by their reasons, of all processes; a checkpoint's callbacks carry them."""

    def __call__(
        self,
        *,
        prompts: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        """Return the reward of each response; the shares of correct and of well-formed ones are logged."""
        texts = [self._renderer.decode(ids) for ids in completion_ids]
        problems = [self._problems[name] for name in prompts]
        verdicts = self._verifier.verify_many(list(zip(texts, problems, strict=True)))
        for counts in all_of(Counter(verdict.reason for verdict in verdicts)):
            self.verdicts.update(counts)
        correct = [float(verdict.correct) for verdict in verdicts]
        formed = [
            float(well_formed(verdict, ids, self._eos_ids))
            for verdict, ids in zip(verdicts, completion_ids, strict=True)
        ]
        log_metric("correct", sum(correct) / len(correct))
        if self._weight:
            log_metric("formed", sum(formed) / len(formed))
        return [right + self._weight * form for right, form in zip(correct, formed, strict=True)]


def well_formed(verdict: Verdict, ids: Sequence[int], eos_ids: Collection[int]) -> bool:
    """Return whether a response ended by itself and states its answer explicitly.

    >>> stated = Verdict(correct=False, extracted="5", reason="boxed")
    >>> well_formed(stated, [8, 9, 2], {2}), well_formed(stated, [8, 9], {2})
    (True, False)
    >>> well_formed(Verdict(correct=True, extracted="4", reason="last-number"), [8, 2], {2})
    False
    """
    return bool(ids) and ids[-1] in eos_ids and verdict.reason in EXPLICIT
