"""Cells: what one evaluation of one method's model with one training seed on one benchmark gave, problem by problem.

A cell is small JSON (about 200 kB for 1,000 problems greedily and 200 with 16 samples each) from which every table and
figure can be made again, without the responses and without the model. It holds no text of problems or responses.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cruxtune.errors import DataError, StoreError
from cruxtune.metrics import answer_entropy, distinct_n, equation_path, label_answers, plain_text
from cruxtune.store import finished_manifest, read_rows, write_atomic
from cruxtune.trainings import Training, training_of

_SHARED = (
    *("system", "instruction", "examples", "shots"),
    *("max_new_tokens", "loop_stop"),
    *("verifier", "strict_answers", "list_order", "percent", "units", "relative_tolerance"),
)
"""What a problem was asked with and judged by. The template is none of it: that is the model's."""
_SAMPLING = ("samples", "temperature", "top_k", "top_p", "seed")
_COLUMNS = [
    *("id", "sample", "temperature", "text", "finish_reason", "correct", "extracted", "reason"),
    *("logprob", "entropy", "length"),
]
_LISTS = ("problems", "greedy", "length", "truncated", "time_out", "greedy_entropy", "greedy_logprob")
"""Fields of a cell with an entry per problem."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Sampled(_Part):
    """The samples of the problems that were sampled, an entry per problem."""

    problems: list[str] = Field(description="Ids of the problems.")
    answers: list[list[int]] = Field(
        description="Label of each sample's answer, in the order of the samples: 0 is right, 1, 2 … are the wrong "
        "ones, −1 is none."
    )
    distinct_paths: list[int] = Field(description="Distinct correct solutions by equation path.")
    distinct_texts: list[int] = Field(description="Distinct correct solutions by text.")
    distinct_1: list[float] = Field(description="distinct-1 over all samples.")
    distinct_2: list[float] = Field(description="distinct-2 over all samples.")
    entropy: list[float] = Field(description="Mean token entropy, mean over samples, in nats.")
    answer_entropy: list[float] = Field(description="Entropy of the answers, in nats.")
    length: list[float] = Field(description="Tokens of a sample, mean over samples.")
    truncated: list[int] = Field(description="Samples that did not end by themselves.")
    time_out: list[int] = Field(description="Samples whose verdict was cut off.")

    @model_validator(mode="after")
    def _check(self) -> Sampled:
        _one_each(self, len(self.problems), type(self).model_fields)
        return self

    @property
    def samples(self) -> int:
        """Samples per problem (of the problem with the fewest)."""
        return min(map(len, self.answers))

    @property
    def correct(self) -> list[int]:
        """Correct samples of each problem."""
        return [labels.count(0) for labels in self.answers]


class Cell(_Part):
    """One evaluation, problem by problem."""

    format: Literal[1] = 1
    method: str = Field(description="Name of the method; `start` is the model that training starts from.")
    seed: int | None = Field(description="Seed of training; none for the start.")
    benchmark: str = Field(description="Name of the benchmark or task.")
    conditions: dict[str, Any] = Field(description="What must be the same for scores to be comparable.")
    settings: dict[str, Any] = Field(description="What was trained, and how.")
    training: Training | None = Field(description="None for the start.")
    seconds: dict[str, float] = Field(description="Wall-clock seconds: respond, annotate, train, evaluate.")
    problems: list[str] = Field(description="Ids of the problems, in the order of the evaluation.")
    greedy: list[int] = Field(description="1 where the greedy response is right.")
    length: list[int] = Field(description="Tokens of the greedy response.")
    truncated: list[int] = Field(description="1 where the greedy response did not end by itself.")
    time_out: list[int] = Field(description="1 where its verdict was cut off (time, memory, crash).")
    greedy_entropy: list[float] = Field(description="Its mean token entropy, in nats.")
    greedy_logprob: list[float] = Field(description="Its log-probability, the sum over tokens, in nats.")
    sampled: Sampled | None = Field(description="The samples, if any were taken: of all problems or of some.")

    @model_validator(mode="after")
    def _check(self) -> Cell:
        if not self.problems:
            raise ValueError("there are no problems")
        _one_each(self, len(self.problems), _LISTS)
        if self.sampled and not set(self.sampled.problems) <= set(self.problems):
            raise ValueError("some problems were sampled that have no greedy response")
        return self

    def first(self, limit: int | None) -> Cell:
        """Return the cell of the first problems alone."""
        if limit is None or limit >= len(self.problems):
            return self
        kept = set(self.problems[:limit])
        cut = {name: getattr(self, name)[:limit] for name in _LISTS}
        if self.sampled:
            places = [place for place, name in enumerate(self.sampled.problems) if name in kept]
            parts = {name: [getattr(self.sampled, name)[place] for place in places] for name in Sampled.model_fields}
            cut["sampled"] = Sampled(**parts) if places else None
        return self.model_copy(update=cut)


def read_cell(path: Path) -> Cell:
    """Return the cell of a file.

    Raises:
        DataError: it is missing, or holds no cell.
    """
    if not path.is_file():
        raise DataError(f"the cell {path} does not exist; check the path")
    try:
        return Cell.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path} is no cell of this version ({where}: {first['msg']}); it must be what a study, or `write_cell`, "
            "wrote"
        ) from error


def is_cell(path: Path) -> bool:
    """Return whether a JSON file says that it is a cell, of whatever version; it may still be broken."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and {"format", "method", "benchmark", "greedy"} <= content.keys()


def write_cell(path: Path, cell: Cell) -> Path:
    """Write a cell, the same bytes for the same cell, and return the path."""
    content = cell.model_dump(mode="json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (_lines(content, depth=2) + "\n").encode())
    return path


def cell_of(
    evaluations: Path | Sequence[Path],
    *,
    method: str,
    seed: int | None,
    benchmark: str | None = None,
    training_dir: Path | None = None,
    annotations_dir: Path | None = None,
    starts: Container[Path] = (),
) -> Cell:
    """Return the cell of an evaluation.

    Args:
        evaluations: output of `cruxtune evaluate`, or two: the greedy responses of the first count, and the samples of
            whichever has them.
        method: name of the method.
        seed: seed of training, None for the start model.
        benchmark: name of the task; by default that of the problems in the manifest.
        training_dir: output of `cruxtune train` or `cruxtune rl` that was evaluated, None for the start model.
        annotations_dir: output of `cruxtune annotate` that it was trained on; by default where the training's manifest
            says. Without it the compute of annotation is unknown, and nothing else.
        starts: models that training is counted from, as `training_of` has them.

    Raises:
        StoreError: a directory is missing, of another stage or unfinished, or holds no rows.
        DataError: the two evaluations are not of the same problems under the same settings.
    """
    paths = [evaluations] if isinstance(evaluations, Path) else list(evaluations)
    manifests = [finished_manifest(path, "evaluate", "the evaluation") for path in paths]
    sources = [place for place, manifest in enumerate(manifests) if manifest["identity"]["samples"]]
    if len(paths) > 2 or (len(paths) == 2 and len(sources) != 1):
        raise DataError(
            f"{' and '.join(map(str, paths))} are evaluations of one model on one benchmark; one cell is made of one "
            "of them, or of one without samples and one with samples"
        )
    source = sources[0] if sources else 0
    greedy = [row for row in _rows(paths[0]) if row["temperature"] == 0]
    if not greedy:
        raise StoreError(f"{paths[0]} holds no rows; evaluate at least one problem")
    known = {row["id"] for row in greedy}
    samples: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(paths[source]) if sources else ():
        if row["temperature"] > 0:
            samples.setdefault(row["id"], []).append(row)
    if unknown := [name for name in samples if name not in known]:
        raise DataError(
            f"{paths[source]} has samples of {len(unknown)} problems that {paths[0]} does not have, the first "
            f"{unknown[0]}; evaluate the same problems"
        )
    training, settings, seconds = training_of(training_dir, annotations_dir, starts=starts)
    seconds["evaluate"] = round(sum(manifest["accounting"]["seconds"] for manifest in manifests), 3)
    return Cell(
        method=method,
        seed=seed,
        benchmark=benchmark or benchmark_of(manifests[0]),
        conditions=_conditions(paths, manifests, source),
        settings=settings,
        training=training,
        seconds=seconds,
        problems=[row["id"] for row in greedy],
        greedy=[int(row["correct"]) for row in greedy],
        length=[row["length"] for row in greedy],
        truncated=[_is_cut(row) for row in greedy],
        time_out=[_timed_out(row) for row in greedy],
        greedy_entropy=[round(row["entropy"], 4) for row in greedy],
        greedy_logprob=[round(row["logprob"], 4) for row in greedy],
        sampled=_sampled(samples) if samples else None,
    )


def benchmark_of(manifest: Mapping[str, Any]) -> str:
    """Return the name of what an evaluation's manifest says was evaluated: that of a benchmark, a task or a file.

    >>> names = ("benchmark:gsm8k", "gym:chain_sum", "runs/first/problems/heldout.jsonl", "org/data")
    >>> [benchmark_of({"settings": {"problems": {"problems": name}}}) for name in names]
    ['gsm8k', 'chain_sum', 'heldout', 'data']
    """
    name = str(manifest["settings"]["problems"]["problems"])
    kind, colon, rest = name.partition(":")
    if colon and "/" not in kind:
        return rest
    last = name.rstrip("/").rpartition("/")[2]
    return last.partition(".")[0] or last


def _conditions(paths: Sequence[Path], manifests: Sequence[Mapping[str, Any]], source: int) -> dict[str, Any]:
    identities = [manifest["identity"] for manifest in manifests]
    for path, identity in zip(paths, identities, strict=True):
        for name in _SHARED:
            if identity.get(name) != identities[0].get(name):
                raise DataError(
                    f"{path} was evaluated with {name} = {identity.get(name)}, and {paths[0]} with "
                    f"{identities[0].get(name)}; the two make one cell under the same conditions only"
                )
    sampling = {name: identities[source].get(name) for name in _SAMPLING}
    problems = {"problems": identities[0]["problems"], "sampled_problems": identities[source]["problems"]}
    return {**problems, **sampling, **{name: identities[0].get(name) for name in _SHARED}}


def _sampled(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Sampled:
    groups = list(samples.values())
    labels = [label_answers((row["correct"], row["extracted"]) for row in rows) for rows in groups]
    texts = [[row["text"] for row in rows] for rows in groups]
    right = [[row["text"] for row in rows if row["correct"]] for rows in groups]
    return Sampled(
        problems=list(samples),
        answers=labels,
        distinct_paths=[len(set(map(equation_path, some))) for some in right],
        distinct_texts=[len(set(map(plain_text, some))) for some in right],
        distinct_1=[round(distinct_n(some, 1), 4) for some in texts],
        distinct_2=[round(distinct_n(some, 2), 4) for some in texts],
        entropy=[_mean(row["entropy"] for row in rows) for rows in groups],
        answer_entropy=[round(answer_entropy(some), 4) for some in labels],
        length=[_mean(row["length"] for row in rows) for rows in groups],
        truncated=[sum(map(_is_cut, rows)) for rows in groups],
        time_out=[sum(map(_timed_out, rows)) for rows in groups],
    )


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    return read_rows(path, columns=_COLUMNS)


def _is_cut(row: Mapping[str, Any]) -> int:
    """Return whether a response did not end by itself: it met the token limit, or was caught in a loop before."""
    return int(row["finish_reason"] != "stop")


def _timed_out(row: Mapping[str, Any]) -> int:
    return int(row["reason"] in ("time-out", "memory", "crash"))


def _mean(values: Iterable[float]) -> float:
    return round(float(np.mean(list(values))), 4)


def _one_each(part: BaseModel, number: int, names: Iterable[str]) -> None:
    for name in names:
        if (found := len(getattr(part, name))) != number:
            raise ValueError(f"{name} has {found} entries for {number} problems")


def _lines(content: Mapping[str, Any], depth: int, indent: str = "") -> str:
    """Return JSON with a line per entry down to a depth, so that lists of numbers stay on one line."""
    inner = indent + "  "
    parts = []
    for name, value in content.items():
        nested = depth > 1 and isinstance(value, dict) and value
        text = _lines(value, depth - 1, inner) if nested else json.dumps(value, ensure_ascii=False)
        parts.append(f"{inner}{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
