"""What was chosen to train on: the output of `cruxtune annotate` or of `cruxtune select`, as rows for a trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cruxtune.benchmark_rows import refuse_test_problems
from cruxtune.errors import ConfigError, DataError
from cruxtune.masks import TrainingRow, training_row
from cruxtune.models import load_tokenizer
from cruxtune.prompts import tokenizer_hash
from cruxtune.records import Annotation
from cruxtune.selectors import critical, decided
from cruxtune.settings import ModelSettings, recorded
from cruxtune.store import finished_manifest, read_rows

Weigh = Callable[[Sequence[bool | None]], list[float]]
"""Makes weights of a critical mask."""


class Chosen:
    """A finished directory of annotations, or a selection made of them.

    `model` is the one that annotated, `identity` what the rows depend on, `response_tokens` how many tokens the
    responses have that `rows` has yielded.

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
        self.response_tokens = 0

    def rows(self, limit: int | None, weigh: Weigh = critical) -> Iterator[TrainingRow]:
        """Yield the row of each of the first `limit` responses.

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
            self.response_tokens += len(row["response_ids"])
            weights = row["weights"] if self.selected else weigh(_trainable(row))
            yield training_row(row["prompt_ids"], row["response_ids"], weights)
        if not used:
            raise DataError(
                f"{self.flag} {self.path}: none of {found} responses has a critical token, so there is nothing to "
                "train on; annotate more responses, or harder problems"
            )

    def tokenizer(self) -> Any:
        """Return the tokenizer of the model that annotated.

        Raises:
            ConfigError: it is another one now.
        """
        tokenizer = load_tokenizer(self.model)
        if tokenizer_hash(tokenizer) != self.tokenizer_hash:
            raise ConfigError(
                f"the tokenizer of {self.model.model} is no longer the one that made {self.flag} {self.path}; "
                "annotate again"
            )
        return tokenizer


def _trainable(row: Mapping[str, Any]) -> list[bool | None]:
    """Return the critical mask of an annotation, undecided tokens as not critical: nothing trains them as that."""
    mask: list[bool | None] = row["critical"]
    return decided(mask, [kept is False for kept in row.get("kept_correct") or [None] * len(mask)], False)
