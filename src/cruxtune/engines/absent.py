"""The engine of a policy of which only the tokenizer is loaded: it has done nothing, and can do nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from cruxtune.engines.base import Usage


class AbsentEngine:
    """An engine without a model, for work on texts that are there already.

    >>> AbsentEngine([2], context_length=None).usage.tokens_emitted
    0
    """

    def __init__(self, eos_ids: Sequence[int], *, context_length: int | None) -> None:
        self.eos_ids = frozenset(eos_ids)
        self.context_length = context_length
        self.usage = Usage()

    def tune(self, remembered: Mapping[str, float] | None = None) -> dict[str, float]:
        """Return nothing: there is nothing to settle."""
        return {}

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise RuntimeError("no model is loaded: this work was to need its tokenizer only")

    generate = score = branches = _refuse
