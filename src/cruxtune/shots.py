"""Few-shot examples: problems with worked solutions that a prompt shows before its question."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import yaml

from cruxtune.benchmark_rows import refuse_test_problems
from cruxtune.errors import ConfigError
from cruxtune.problems import ProblemSource, fingerprint, load_problems
from cruxtune.records import Problem
from cruxtune.settings import PromptSettings

_DEFAULT_OF_FILES = 4
"""Examples of a user's own problems, unless --shots says how many."""


@cache
def own_examples() -> dict[str, tuple[Problem, ...]]:
    """Return our own examples by set: word, competition, table, medical and abstract.

    >>> {name: len(examples) for name, examples in own_examples().items()}
    {'word': 8, 'competition': 4, 'table': 4, 'medical': 5, 'abstract': 3}
    """
    sets = yaml.safe_load(Path(__file__).with_name("shots.yaml").read_bytes())
    return {
        name: tuple(
            Problem(f"{name}/{index}", kind="choice" if row.get("choices") else "math", **row)
            for index, row in enumerate(rows)
        )
        for name, rows in sets.items()
    }


class Shots:
    """The examples of prompt settings; none where no set is named.

    Raises:
        ConfigError: --shots without --examples, or more of them than there are.
        DataError: the examples are test problems of a benchmark, or cannot be read.
    """

    def __init__(self, settings: PromptSettings, *, chat: bool) -> None:
        self._pool: tuple[Problem, ...] = ()
        self.count = 0
        if settings.examples is None:
            if settings.shots:
                raise ConfigError(f"--shots {settings.shots} needs examples to show: name a set with --examples")
            return
        # Chat models are asked without examples unless the user wants them.
        self.count = settings.shots if settings.shots is not None else 0 if chat else _DEFAULT_OF_FILES
        own = own_examples().get(settings.examples)
        if own is None:
            # One more than needed: the question asked is not among its own examples.
            source = ProblemSource(problems=settings.examples)
            own = tuple(load_problems(source, limit=max(1, self.count) + 1, skip_bad=True))
            refuse_test_problems(own, f"--examples {settings.examples}")
        elif settings.shots is None and not chat:
            self.count = len(own)
        if self.count > len(own):
            raise ConfigError(
                f"--shots {self.count}, but --examples {settings.examples} has {len(own)} only; ask for fewer"
            )
        self._pool = own

    def before(self, problem: Problem) -> list[Problem]:
        """Return the examples for a problem: the first ones, itself left out."""
        return [example for example in self._pool if example.question != problem.question][: self.count]

    def any_answer(self, has: Callable[[str], bool]) -> bool:
        """Return whether the answer of any example that may be shown has a property."""
        return any(has(example.solution or "") for example in self._pool[: self.count + 1])

    def fingerprint(self) -> str | None:
        """Return what identifies the examples in manifests, None where there are none."""
        return f"sha256:{fingerprint(self._pool[: self.count + 1])}" if self.count else None
