"""Weights from the tokens of one tokenizer onto those of another, by the characters that both stand for.

A token takes the largest weight of the tokens that it shares a character with; it is critical where one of them is. The
end-of-sequence token takes that of the other's. What has no character in common with anything has weight 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cruxtune.errors import ConfigError, DataError
from cruxtune.models import load_tokenizer
from cruxtune.prompts import character_spans, tokenizer_hash
from cruxtune.records import Response, Selection
from cruxtune.settings import ModelSettings, recorded
from cruxtune.stage_settings import RespondSettings
from cruxtune.store import finished_manifest, read_rows

Span = tuple[int, int]


def overlaps(ours: Sequence[Span], theirs: Sequence[Span]) -> list[list[int]]:
    """Return for each of our tokens the numbers of theirs that share a character with it.

    Spans are (start, end) in one text, both in order. If both last tokens have no text, they are each other's.

    >>> overlaps([(0, 2), (2, 4), (4, 4)], [(0, 1), (1, 3), (3, 4), (4, 4)])
    [[0, 1], [1, 2], [3]]
    """
    found: list[list[int]] = []
    first = 0
    for start, end in ours:
        while first < len(theirs) and theirs[first][1] <= start:
            first += 1
        shared, number = [], first
        while number < len(theirs) and theirs[number][0] < end:
            if max(start, theirs[number][0]) < min(end, theirs[number][1]):
                shared.append(number)
            number += 1
        found.append(shared)
    if ours and theirs and ours[-1][0] == ours[-1][1] and theirs[-1][0] == theirs[-1][1]:
        found[-1] = [len(theirs) - 1]
    return found


class Projection:
    """Puts selections of retokenised responses onto the tokens that these had as they were generated.

    `facts` are those of the responses' manifest, `model` is the one that made them.

    Raises:
        ConfigError: the annotations are of other responses, or a tokenizer is another one by now.
        StoreError: the responses are missing or unfinished.
    """

    def __init__(self, onto: Path, annotated: Mapping[str, Any]) -> None:
        manifest = finished_manifest(onto, "respond", "--onto")
        if annotated["identity"]["responses"] != manifest["fingerprint"]:
            raise ConfigError(
                f"--onto {onto} holds other responses than those that were annotated; name the directory that "
                "--responses of `cruxtune annotate` was"
            )
        self.facts: Mapping[str, Any] = manifest["facts"]
        self.fingerprint: str = manifest["fingerprint"]
        self.model: ModelSettings = recorded(RespondSettings, manifest["settings"], onto).model
        self.tokenizer = load_tokenizer(self.model)
        if tokenizer_hash(self.tokenizer) != self.facts["tokenizer"]:
            raise ConfigError(
                f"the tokenizer of {self.model.model} is no longer the one that made --onto {onto}; respond again"
            )
        responses = (Response.from_row(row) for row in read_rows(onto))
        self._responses = {response.key: response for response in responses}

    def onto(self, selection: Selection, tokenizer: Any) -> Selection:
        """Return a selection, whose ids are of `tokenizer`, on the tokens of the response as it was generated.

        Raises:
            DataError: the texts differ.
        """
        response = self._responses[selection.id, selection.sample]
        text, theirs = character_spans(tokenizer, selection.response_ids)
        whole, ours = character_spans(self.tokenizer, response.response_ids)
        # What a base model wrote behind its answer was not annotated.
        if not whole.startswith(text):
            raise DataError(
                f"problem {selection.id}, sample {selection.sample}: the text of the annotated tokens is not that of "
                "the response; annotate it again"
            )
        shared = overlaps(ours, theirs)
        marks = [[selection.critical[number] for number in numbers] for numbers in shared]
        open_ = [any(selection.undecided[number] for number in numbers) for numbers in shared]
        critical = [True if True in some else None if None in some or not some else False for some in marks]
        return replace(
            selection,
            prompt_ids=response.prompt_ids,
            response_ids=response.response_ids,
            weights=[max((selection.weights[number] for number in numbers), default=0.0) for numbers in shared],
            critical=critical,
            undecided=[known is None and some for known, some in zip(critical, open_, strict=True)],
        )
