"""The rows that stages exchange, and their Arrow schemas.

Rows are flat: an annotation row carries the fields of its response, and a response row those of its problem, so that
one file can be read on its own (by `datasets.load_dataset`, DuckDB or pandas). In Python the same data is nested:
`Annotation.response.problem`. `to_row` and `from_row` convert.

Masks and per-token lists are aligned with `response_ids` and unshifted: entry t belongs to the token at position t.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

KINDS = ("math", "choice", "exact", "custom", "gym")
"""Kinds of answer: how the verifier extracts and compares (see `cruxtune.verifiers`)."""


@dataclass(frozen=True)
class Problem:
    """A question with a checkable answer."""

    id: str
    question: str
    answer: str
    kind: str = "math"
    choices: list[str] | None = None
    solution: str | None = None
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """Return the row, metadata as a JSON string with sorted keys."""
        return {
            "id": self.id,
            "question": self.question,
            "answer": self.answer,
            "kind": self.kind,
            "choices": self.choices,
            "solution": self.solution,
            "source": self.source,
            "metadata": json.dumps(self.metadata, sort_keys=True, ensure_ascii=False),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Problem:
        """Return the problem of a row; columns of later stages are ignored."""
        values = {name: row[name] for name in PROBLEM_SCHEMA.names}
        return cls(**{**values, "metadata": json.loads(values["metadata"])})


@dataclass(frozen=True)
class Verdict:
    """What the verifier says of one text.

    `reason` names what decided: the form in which the answer was found ("boxed", "hash", "tag", "phrase", "bare",
    "line", or one of the fallbacks "last-number", "last-maths", "last-letter", "last-option", "last-line"), the user's
    function ("custom"), or why there is no answer ("no-answer", "custom-error", "gym-error", "time-out", "memory",
    "crash"). See `cruxtune.verifiers`.
    """

    correct: bool
    extracted: str | None
    reason: str


@dataclass(frozen=True)
class Response:
    """An answer to one problem: ids as generated, never re-tokenised from text.

    `origin` says whose it is: "greedy" or "sampled" by the policy, or the problem's worked "solution". `sample` is its
    number among the answers to its problem; the two keys together are unique.
    """

    problem: Problem
    prompt_ids: list[int]
    response_ids: list[int]
    text: str
    finish_reason: str
    verdict: Verdict
    sample: int = 0
    origin: str = "greedy"

    @property
    def key(self) -> tuple[str, int]:
        """What tells responses apart: the problem's id and the sample."""
        return self.problem.id, self.sample

    def to_row(self) -> dict[str, Any]:
        """Return the flat row."""
        return {
            **self.problem.to_row(),
            "prompt_ids": self.prompt_ids,
            "response_ids": self.response_ids,
            "text": self.text,
            "finish_reason": self.finish_reason,
            **_verdict_row(self.verdict),
            "sample": self.sample,
            "origin": self.origin,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Response:
        """Return the response of a row; columns of later stages are ignored.

        A row without sample and origin is the only response to its problem, and greedy.
        """
        return cls(
            problem=Problem.from_row(row),
            prompt_ids=row["prompt_ids"],
            response_ids=row["response_ids"],
            text=row["text"],
            finish_reason=row["finish_reason"],
            verdict=Verdict(row["correct"], row["extracted"], row["reason"]),
            sample=row.get("sample", 0),
            origin=row.get("origin", "greedy"),
        )


@dataclass(frozen=True)
class Annotation:
    """A correct response with what is known of each of its T tokens (k alternatives each).

    Log-probabilities and entropies are in nats, under the policy, given prompt and response before the position.
    `alternative_correct[t][r]` is None where the rollout was not needed to decide position t, or t was not asked
    about; `critical[t]` is None where it is not known.

    `kept_correct[t]` is the verdict on the rollout that keeps the token, None where there was none: a greedy response
    of the policy is that rollout itself. Where it is False the position is `undecided`; any other unknown one was not
    asked about. `kept_success` and `alternative_success` are the shares of correct rollouts of several sampled ones.
    """

    response: Response
    alternatives: list[list[int]]
    alternative_logprobs: list[list[float]]
    alternative_correct: list[list[bool | None]]
    logprobs: list[float]
    entropies: list[float]
    critical: list[bool | None]
    kept_correct: list[bool | None] | None = None
    kept_success: list[float | None] | None = None
    alternative_success: list[list[float | None]] | None = None

    @property
    def undecided(self) -> list[bool]:
        """Where keeping the token fails, so that nothing can be said of its alternatives: never trained as critical."""
        return [kept is False for kept in self.kept_correct or [None] * len(self.alternative_correct)]

    def to_row(self) -> dict[str, Any]:
        """Return the flat row."""
        return {
            **self.response.to_row(),
            "alternatives": self.alternatives,
            "alternative_logprobs": self.alternative_logprobs,
            "alternative_correct": self.alternative_correct,
            "logprobs": self.logprobs,
            "entropies": self.entropies,
            "critical": self.critical,
            "kept_correct": self.kept_correct,
            "kept_success": self.kept_success,
            "alternative_success": self.alternative_success,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Annotation:
        """Return the annotation of a row."""
        names = ("alternatives", "alternative_logprobs", "alternative_correct", "logprobs", "entropies", "critical")
        later = ("kept_correct", "kept_success", "alternative_success")
        values = {**{name: row[name] for name in names}, **{name: row.get(name) for name in later}}
        return cls(response=Response.from_row(row), **values)


@dataclass(frozen=True)
class Rollout:
    """One counterfactual: position t's token replaced by its alternative of that rank, then continued.

    `ids` is the whole counterfactual response: response[:position], the alternative, the continuation. Rank −1 keeps
    the token. `length` tokens were replaced together, and of several sampled rollouts this is number `draw`.
    """

    id: str
    position: int
    rank: int
    ids: list[int]
    finish_reason: str
    verdict: Verdict
    sample: int = 0
    length: int = 1
    draw: int = 0

    def to_row(self) -> dict[str, Any]:
        """Return the flat row; `id` and `sample` are those of the response that was changed."""
        return {
            "id": self.id,
            "sample": self.sample,
            "position": self.position,
            "length": self.length,
            "rank": self.rank,
            "draw": self.draw,
            "ids": self.ids,
            "finish_reason": self.finish_reason,
            **_verdict_row(self.verdict),
        }


@dataclass(frozen=True)
class JointSet:
    """Neighbouring tokens of a response replaced together, none of which is critical alone.

    `kind` is "pair", "number" or "line". `alternatives` are the tokens that took their place, by the rank of the first
    (fewer where they ended the sequence), None where that rank was not asked. `critical`: all ranks failed.
    """

    id: str
    sample: int
    kind: str
    position: int
    length: int
    alternatives: list[list[int] | None]
    alternative_correct: list[bool | None]
    critical: bool

    def to_row(self) -> dict[str, Any]:
        """Return the flat row."""
        return dict(vars(self))


@dataclass(frozen=True)
class Selection:
    """What is trained of one response: a weight per token, 0 where there is no loss.

    `id` and `sample` are the response's, `critical` is its critical mask; `undecided`: keeping the token failed.
    """

    id: str
    sample: int
    prompt_ids: list[int]
    response_ids: list[int]
    weights: list[float]
    critical: list[bool | None]
    undecided: list[bool]

    def to_row(self) -> dict[str, Any]:
        """Return the flat row."""
        return dict(vars(self))

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Selection:
        """Return the selection of a row."""
        return cls(**{name: row[name] for name in SELECTION_SCHEMA.names})


@dataclass(frozen=True)
class Evaluation:
    """One sampled (or greedy, sample 0 of temperature 0) response to a held-out problem.

    `logprob` is the sum over the response's tokens and `entropy` the mean per token, in nats, both under the policy's
    own distribution (temperature 1, nothing cut off).
    """

    id: str
    sample: int
    temperature: float
    response_ids: list[int]
    text: str
    finish_reason: str
    verdict: Verdict
    logprob: float
    entropy: float
    length: int

    def to_row(self) -> dict[str, Any]:
        """Return the flat row; `id` is the problem's."""
        return {
            "id": self.id,
            "sample": self.sample,
            "temperature": self.temperature,
            "response_ids": self.response_ids,
            "text": self.text,
            "finish_reason": self.finish_reason,
            **_verdict_row(self.verdict),
            "logprob": self.logprob,
            "entropy": self.entropy,
            "length": self.length,
        }


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    return {"correct": verdict.correct, "extracted": verdict.extracted, "reason": verdict.reason}


_IDS = pa.list_(pa.int32())
_VERDICT = {"correct": pa.bool_(), "extracted": pa.string(), "reason": pa.string()}

_PROBLEM = {
    "id": pa.string(),
    "question": pa.string(),
    "answer": pa.string(),
    "kind": pa.string(),
    "choices": pa.list_(pa.string()),
    "solution": pa.string(),
    "source": pa.string(),
    "metadata": pa.string(),
}
_RESPONSE = {
    **_PROBLEM,
    "prompt_ids": _IDS,
    "response_ids": _IDS,
    "text": pa.string(),
    "finish_reason": pa.string(),
    **_VERDICT,
    "sample": pa.int32(),
    "origin": pa.string(),
}
_ANNOTATION = {
    **_RESPONSE,
    "alternatives": pa.list_(_IDS),
    "alternative_logprobs": pa.list_(pa.list_(pa.float32())),
    "alternative_correct": pa.list_(pa.list_(pa.bool_())),
    "logprobs": pa.list_(pa.float32()),
    "entropies": pa.list_(pa.float32()),
    "critical": pa.list_(pa.bool_()),
    "kept_correct": pa.list_(pa.bool_()),
    "kept_success": pa.list_(pa.float32()),
    "alternative_success": pa.list_(pa.list_(pa.float32())),
}
_ROLLOUT = {
    "id": pa.string(),
    "sample": pa.int32(),
    "position": pa.int32(),
    "length": pa.int32(),
    "rank": pa.int32(),
    "draw": pa.int32(),
    "ids": _IDS,
    "finish_reason": pa.string(),
    **_VERDICT,
}
_JOINT = {
    "id": pa.string(),
    "sample": pa.int32(),
    "kind": pa.string(),
    "position": pa.int32(),
    "length": pa.int32(),
    "alternatives": pa.list_(_IDS),
    "alternative_correct": pa.list_(pa.bool_()),
    "critical": pa.bool_(),
}
_SELECTION = {
    "id": pa.string(),
    "sample": pa.int32(),
    "prompt_ids": _IDS,
    "response_ids": _IDS,
    "weights": pa.list_(pa.float32()),
    "critical": pa.list_(pa.bool_()),
    "undecided": pa.list_(pa.bool_()),
}
_EVALUATION = {
    "id": pa.string(),
    "sample": pa.int32(),
    "temperature": pa.float32(),
    "response_ids": _IDS,
    "text": pa.string(),
    "finish_reason": pa.string(),
    **_VERDICT,
    "logprob": pa.float32(),
    "entropy": pa.float32(),
    "length": pa.int32(),
}

PROBLEM_SCHEMA = pa.schema(_PROBLEM)
RESPONSE_SCHEMA = pa.schema(_RESPONSE)
ANNOTATION_SCHEMA = pa.schema(_ANNOTATION)
ROLLOUT_SCHEMA = pa.schema(_ROLLOUT)
JOINT_SCHEMA = pa.schema(_JOINT)
SELECTION_SCHEMA = pa.schema(_SELECTION)
EVALUATION_SCHEMA = pa.schema(_EVALUATION)
