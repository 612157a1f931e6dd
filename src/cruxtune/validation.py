"""Problems that are kept out of training to validate on: the same for every method, by question and never by row."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from cruxtune.benchmark_rows import refuse_test_problems
from cruxtune.chosen import Chosen, Entry, Weigh
from cruxtune.engines.sampling import seed_of
from cruxtune.errors import ConfigError, DataError
from cruxtune.problems import ProblemSource, load_problems
from cruxtune.records import Problem
from cruxtune.rows import normalised
from cruxtune.settings import explain
from cruxtune.stage_settings import ValidationSettings
from cruxtune.store import MANIFEST, read_manifest

_SEED_APART = 2_000_000
"""reasoning-gym draws problem i from seed + i: a seed that is far off gives other problems."""

_log = logging.getLogger("cruxtune")


@dataclass(frozen=True)
class Held:
    """Problems to validate on, rows of theirs from elsewhere, and the ids of training problems that are left out."""

    problems: list[Problem]
    entries: list[Entry]
    left_out: frozenset[str]


def hold_back(
    settings: ValidationSettings,
    training: Sequence[Problem],
    *,
    seed: int,
    selected: bool = False,
    weigh: Weigh | None = None,
    tokenizer: str | None = None,
    benchmarks_dir: Path | None = None,
) -> Held:
    """Return what is held back from the problems that training may use.

    A problem drawn at random, or one of a source of its own, takes every training problem of the same question with it.

    Args:
        settings: with `validation` set.
        training: all problems that training rows may be of, and others that were asked.
        seed: decides which problems are drawn.
        selected: a directory in `validation` is a selection, else annotations.
        weigh: makes weights of the critical masks of such annotations; None where no directory is taken.
        tokenizer: hash of the tokenizer that such a directory must have been made with.
        benchmarks_dir: where benchmark:NAME has its files.

    Raises:
        DataError: more problems than there are, or test problems of a benchmark.
        ConfigError: a source that cannot be read, or a directory that does not fit the training data.
    """
    given = settings.validation
    assert given is not None
    entries: list[Entry] = []
    if settings.drawn is not None:
        problems = draw(training, settings.drawn, seed)
    elif weigh is not None and (Path(given) / MANIFEST).is_file():
        chosen = _chosen(Path(given), selected)
        if chosen.tokenizer_hash != tokenizer:
            raise ConfigError(
                f"--validation {given} was made with another tokenizer than the training data, so that its ids mean "
                "other text; use annotations of a model with the same tokenizer"
            )
        problems = chosen.origin("--validation").problems
        entries = list(chosen.entries(None, weigh))
    else:
        try:
            source = ProblemSource.model_validate({**settings.validation_source, "problems": given})
        except ValidationError as error:
            raise explain(error, "--validation-source") from error
        problems = load_problems(source, seed=seed + _SEED_APART, benchmarks_dir=benchmarks_dir)
    # Whatever decides which weights are kept is trained on in a way.
    refuse_test_problems(problems, f"--validation {given}")
    questions = {normalised(problem.question) for problem in problems}
    left_out = frozenset(problem.id for problem in training if normalised(problem.question) in questions)
    if settings.drawn is None and left_out:
        _log.warning("%d training problems occur in --validation %s and are left out", len(left_out), given)
    return Held(problems, entries, left_out)


def draw(problems: Sequence[Problem], wanted: float, seed: int) -> list[Problem]:
    """Return a share (below 1) or a number of the distinct questions, in their order.

    Which ones depends on the seed and the questions alone, not on their order.

    Raises:
        DataError: none would be left to train on.

    >>> some = [Problem(str(n), f"{n} + 1?", str(n + 1)) for n in range(10)]
    >>> [problem.id for problem in draw(some, 0.2, seed=0)] == [problem.id for problem in draw(some, 2, seed=0)]
    True
    """
    distinct: dict[str, Problem] = {}
    for problem in problems:
        distinct.setdefault(normalised(problem.question), problem)
    number = int(wanted) if wanted >= 1 else max(1, round(wanted * len(distinct)))
    if number >= len(distinct):
        raise DataError(
            f"--validation {wanted:g} asks for {number} of {len(distinct)} distinct problems, which leaves none to "
            "train on; ask for fewer, or give more problems"
        )
    drawn = set(sorted(distinct, key=lambda question: seed_of("validation", seed, question))[:number])
    return [problem for question, problem in distinct.items() if question in drawn]


def _chosen(path: Path, selected: bool) -> Chosen:
    stage, wanted = read_manifest(path)["stage"], "select" if selected else "annotate"
    if stage != wanted:
        raise ConfigError(
            f"--validation {path} holds the output of `{stage}`, and what is trained on is that of `{wanted}`; "
            f"name a directory of `{wanted}`, so that both are weighed alike"
        )
    return Chosen(None, path) if selected else Chosen(path, None)
