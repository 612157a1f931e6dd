"""What was chosen to train on: the output of `cruxtune annotate` or of `cruxtune select`, as rows for a trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cruxtune.benchmark_rows import refuse_test_problems
from cruxtune.errors import ConfigError, DataError, StoreError
from cruxtune.masks import TrainingRow, training_row
from cruxtune.models import load_tokenizer
from cruxtune.prompts import tokenizer_hash
from cruxtune.records import PROBLEM_SCHEMA, Annotation, Problem
from cruxtune.selectors import critical, decided
from cruxtune.settings import ModelSettings, recorded
from cruxtune.stage_settings import RespondSettings
from cruxtune.store import finished_manifest, read_rows

Weigh = Callable[[Sequence[bool | None]], list[float]]
"""Makes weights of a critical mask."""


@dataclass(frozen=True)
class Entry:
    """A training row, the id of its problem, and what is known of its response's tokens (of a solution, nothing)."""

    id: str
    row: TrainingRow
    critical: list[bool | None]

    @property
    def response_length(self) -> int:
        """How many tokens the response has."""
        return len(self.critical)


@dataclass(frozen=True)
class Origin:
    """The responses that were annotated: every problem that was asked, in order, and how."""

    problems: list[Problem]
    settings: RespondSettings


class Chosen:
    """A finished directory of annotations, or a selection made of them.

    `model` is the one that annotated, `identity` what the rows depend on.

    Raises:
        StoreError: there is no such directory, or it is unfinished.
    """

    def __init__(self, annotations: Path | None, selection: Path | None) -> None:
        path = selection or annotations
        assert path is not None
        self.path = path
        self.selected = selection is not None
        stage, self.flag = ("select", "--selection") if self.selected else ("annotate", "--annotations")
        self.manifest = finished_manifest(path, stage, self.flag)
        self.model: ModelSettings = recorded(ModelSettings, self.manifest["settings"]["model"], path)
        self.identity: dict[str, str] = {self.flag[2:]: self.manifest["fingerprint"]}
        self.tokenizer_hash: str = self.manifest["facts"]["tokenizer"]

    def rows(self, limit: int | None, weigh: Weigh = critical) -> Iterator[TrainingRow]:
        """Yield the row of each of the first `limit` responses; see `entries`."""
        return (entry.row for entry in self.entries(limit, weigh))

    def entries(self, limit: int | None, weigh: Weigh = critical) -> Iterator[Entry]:
        """Yield each of the first `limit` responses.

        Annotations without a critical token are left out, so that all methods see the same rows; `weigh` says what the
        others are trained on. A selection has its own weights, all of them 0 where it keeps nothing of a response.

        Raises:
            DataError: no response has a critical token, or some are to test problems of a benchmark.
        """
        found, used = 0, 0
        for row in islice(read_rows(self.path), limit):
            found += 1
            if not self.selected:
                # Selections are made of annotations, for which `select` has checked this.
                refuse_test_problems([Annotation.from_row(row).response.problem], f"{self.flag} {self.path}")
                if not any(row["critical"]):
                    continue
            used += 1
            weights = row["weights"] if self.selected else weigh(_trainable(row))
            training = training_row(row["prompt_ids"], row["response_ids"], weights)
            yield Entry(row["id"], training, row["critical"])
        if not used:
            raise DataError(
                f"{self.flag} {self.path}: none of {found} responses has a critical token, so there is nothing to "
                "train on; annotate more responses, or harder problems"
            )

    def origin(self, what_for: str) -> Origin:
        """Return the responses that were annotated; `what_for` is the flag that needs them.

        Raises:
            StoreError: they (or the annotations of a selection) are gone, or were made anew since.
        """
        manifest, path = self.manifest, self.path
        for stage, below in (("select", "annotate"), ("annotate", "respond")):
            if manifest["stage"] != stage:
                continue
            key = {"annotate": "annotations", "respond": "responses"}[below]
            wanted = manifest["identity"][key]
            path = Path(manifest["settings"][key])
            flag = f"{what_for} needs what {self.flag} {self.path} was made from, and"
            manifest = finished_manifest(path, below, flag)
            if manifest["fingerprint"] != wanted:
                raise StoreError(f"{flag} {path} was made anew since then; run the stages after it again")
        problems = {row["id"]: Problem.from_row(row) for row in read_rows(path, columns=PROBLEM_SCHEMA.names)}
        return Origin(list(problems.values()), recorded(RespondSettings, manifest["settings"], path))

    def tokenizer(self) -> Any:
        """Return the tokenizer of the model that annotated.

        Raises:
            ConfigError: it is another one now.
        """
        return tokenizer_that_made(f"{self.flag} {self.path}", self.model, self.tokenizer_hash)


def tokenizer_that_made(what: str, model: ModelSettings, expected: str) -> Any:
    """Return a model's tokenizer, which `what` was made with; `expected` is its hash from then.

    Raises:
        ConfigError: it is another one now.
    """
    tokenizer = load_tokenizer(model)
    if tokenizer_hash(tokenizer) != expected:
        raise ConfigError(f"the tokenizer of {model.model} is no longer the one that made {what}; annotate again")
    return tokenizer


def _trainable(row: Mapping[str, Any]) -> list[bool | None]:
    """Return the critical mask of an annotation, undecided tokens as not critical: nothing trains them as that."""
    mask: list[bool | None] = row["critical"]
    return decided(mask, [kept is False for kept in row.get("kept_correct") or [None] * len(mask)], False)
