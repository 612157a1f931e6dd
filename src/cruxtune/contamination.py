"""Problems to train on that occur in a benchmark: found, listed, left out.

Two questions are the same problem here where they share 13 words in a row (the measure of the GPT-3 report); questions
of fewer than 13 words where all of their text is the same. Words are compared without case, punctuation and LaTeX's
markup, and without the code of figures.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, Field

from cruxtune.benchmark_rows import require_files
from cruxtune.benchmarks import BENCHMARK, BenchmarkList, BenchmarkSettings, benchmark_names, known_benchmarks
from cruxtune.errors import DataError
from cruxtune.problems import ProblemSource, load_problems
from cruxtune.records import Problem

NGRAM = 13
"""Words in a row that two different problems do not share by chance."""

_log = logging.getLogger("cruxtune")

_FIGURES = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")
_NO_TEXT = re.compile(r"\s+|\$|(?<!\d)[.,;:?!'\"]|[.,;:?!'\"](?!\d)")


class TrainingProblemsSettings(BenchmarkSettings):
    """What is kept out of the problems to train on."""

    decontaminate: BenchmarkList = Field(
        None,
        description="Leave out problems that occur in these benchmarks, e.g. gsm8k,math or paper; "
        "see `cruxtune contamination`.",
    )


class ContaminationSettings(BaseModel, extra="forbid", frozen=True):
    """Which problems of a training set occur in benchmarks."""

    problems: ProblemSource
    benchmarks: Annotated[str, AfterValidator(known_benchmarks)] = Field(
        "paper", description="Benchmarks to look in, e.g. gsm8k,math500, or paper for the eleven."
    )
    files: BenchmarkSettings = BenchmarkSettings()
    output: Path | None = Field(None, description="JSON Lines file to write the findings to; by default stdout.")
    seed: int = Field(0, ge=0, description="Seed of reasoning-gym's tasks.")
    limit: int | None = Field(None, gt=0, description="Look for the first N problems only.")


class Finding(NamedTuple):
    """A problem that occurs in a benchmark.

    `overlap` is the share of its 13-grams that the benchmark has (1 for a short question), `like` the benchmark's
    problem that has most of them, `shared` words that both have.
    """

    id: str
    benchmark: str
    like: str
    overlap: float
    shared: str


class Index:
    """The questions of one benchmark by their 13-grams."""

    def __init__(self, name: str, problems: Iterable[Problem]) -> None:
        self._name = name
        self._homes: dict[int | str, str] = {}
        for problem in problems:
            for key in _keys(problem.question):
                self._homes.setdefault(key, problem.id)

    def find(self, problem: Problem) -> Finding | None:
        """Return where a problem occurs in the benchmark, None where it does not."""
        keys = _keys(problem.question)
        homes = [self._homes[key] for key in keys if key in self._homes]
        if not homes:
            return None
        first = next(place for place, key in enumerate(keys) if key in self._homes)
        shared = " ".join(words(problem.question)[first : first + NGRAM])
        like = Counter(homes).most_common(1)[0][0]
        return Finding(problem.id, self._name, like, round(len(homes) / len(keys), 3), shared)


def words(text: str) -> list[str]:
    r"""Return the words and numbers of a text, without case, punctuation and the names of LaTeX's commands.

    >>> words(r"Find $\frac{1}{2}$ of 3.50 Euros!")
    ['find', '1', '2', 'of', '3.50', 'euros']
    """
    text = _FIGURES.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return _WORD.findall(re.sub(r"\\[a-z]+", " ", text))


def find_contaminated(problems: Sequence[Problem], benchmarks: Mapping[str, Iterable[Problem]]) -> list[Finding]:
    """Return where problems occur in benchmarks (by name), in the order of the problems.

    >>> find_contaminated([Problem("a", "What is 1 + 1?", "2")], {"b": [Problem("b/0", "what is 1+1 ?", "2")]})
    [Finding(id='a', benchmark='b', like='b/0', overlap=1.0, shared='what is 1 1')]
    """
    indices = [Index(name, others) for name, others in benchmarks.items()]
    found = (index.find(problem) for problem in problems for index in indices)
    return [finding for finding in found if finding is not None]


def load_benchmarks(text: str, directory: Path | None) -> dict[str, list[Problem]]:
    """Return the test problems of benchmarks that are given as a list with commas.

    Raises:
        ConfigError: a benchmark that there is not, or that cannot be loaded.
    """
    names = benchmark_names(text)
    require_files(names, "test", directory)
    return {
        name: load_problems(ProblemSource(problems=BENCHMARK + name, split="test"), benchmarks_dir=directory)
        for name in names
    }


def training_problems(
    source: ProblemSource,
    settings: TrainingProblemsSettings,
    *,
    seed: int,
    limit: int | None = None,
    skip_bad: bool = False,
) -> tuple[list[Problem], dict[str, Any]]:
    """Return the problems of a source without those that occur in `settings.decontaminate`, and notes for the manifest.

    Raises:
        ConfigError: as `load_problems`.
        DataError: as `load_problems`, or no problem is left.
    """
    directory = settings.benchmarks_dir
    if settings.decontaminate is None:
        return load_problems(source, seed=seed, limit=limit, skip_bad=skip_bad, benchmarks_dir=directory), {}
    problems = load_problems(source, seed=seed, skip_bad=skip_bad, benchmarks_dir=directory)
    kept, notes = decontaminated(problems, settings.decontaminate, directory)
    return kept[:limit], notes


def decontaminated(
    problems: Sequence[Problem], benchmarks: str, directory: Path | None
) -> tuple[list[Problem], dict[str, Any]]:
    """Return the problems that occur in none of the benchmarks, and how many did, for the manifest.

    Raises:
        DataError: all of them occur in one.
    """
    found = find_contaminated(problems, load_benchmarks(benchmarks, directory))
    bad = {finding.id for finding in found}
    kept = [problem for problem in problems if problem.id not in bad]
    if not kept:
        raise DataError(
            f"--decontaminate {benchmarks}: all {len(problems)} problems occur in these benchmarks, the first as "
            f"{found[0].like}; none is left to train on: use other problems"
        )
    if bad:
        _log.warning(
            "left out %d of %d problems that occur in benchmarks (--decontaminate %s), the first %s as %s",
            len(bad),
            len(problems),
            benchmarks,
            found[0].id,
            found[0].like,
        )
    counts = dict.fromkeys(benchmark_names(benchmarks), 0) | Counter(finding.benchmark for finding in found)
    return kept, {"contamination": {"problems": len(problems), "left_out": len(bad), "by_benchmark": counts}}


def _keys(question: str) -> list[int | str]:
    """Return the hashes of a question's 13-grams; of a shorter one the text itself, operators included."""
    found = words(question)
    if len(found) < NGRAM:
        return [_NO_TEXT.sub("", unicodedata.normalize("NFKC", question).casefold())]
    return [hash(tuple(found[start : start + NGRAM])) for start in range(len(found) - NGRAM + 1)]
