"""Problems: where they come from (JSON files, datasets, benchmarks, reasoning-gym), how they are split, a fingerprint.

The fields of a row are those of a `Problem`, with `answer_index` (position of the gold option, from 0) and what
verifiers and reports can use (`METADATA_FIELDS`); every other column is ignored. `ProblemSource.fields` renames.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from cruxtune.benchmark_rows import benchmark_rows
from cruxtune.benchmarks import BENCHMARK, one_benchmark
from cruxtune.errors import ConfigError, DataError
from cruxtune.records import PROBLEM_SCHEMA, Problem
from cruxtune.rows import RECORD_FIELDS, is_own, normalised, own_problem, problem_of, record_of, what_is_missing
from cruxtune.sources import GYM, GYM_COLUMNS, closest, dataset_rows, file_rows, gym_rows, is_file
from cruxtune.worked import Style

_log = logging.getLogger("cruxtune")


class ProblemSource(BaseModel, extra="forbid", frozen=True):
    """Where problems come from, and how a row becomes a problem."""

    problems: str = Field(
        description="Problems: a .jsonl, .json (both also .gz) or .parquet file, gym:NAME for a task of reasoning-gym, "
        "benchmark:NAME for the training split of a benchmark, or a Hugging Face dataset (Hub name or local directory)."
    )
    config: str | None = Field(
        None, description="Configuration of a Hugging Face dataset, where it has several (main for openai/gsm8k)."
    )
    split: str = Field(
        "train", description="Split of a Hugging Face dataset (slices like train[:1000] work too) or of a benchmark."
    )
    fields: dict[str, str] = Field(
        default_factory=dict,
        description="Field of a problem = column of the source where the names differ, e.g. question=problem; the "
        "fields are " + ", ".join(RECORD_FIELDS) + ".",
    )
    kind: Literal["auto", "math", "choice", "exact", "custom", "gym"] = Field(
        "auto",
        description="How answers are compared; auto is gym for reasoning-gym's tasks (their own scorer), choice for "
        "rows whose gold answer is one of their choices, else math.",
    )
    gym: dict[str, Any] = Field(
        default_factory=dict, description="Parameters of the reasoning-gym task as name=value, e.g. max_terms=4."
    )
    size: int = Field(500, gt=0, description="How many problems a reasoning-gym task generates.")
    solution_style: Style | None = Field(
        None,
        description="How worked solutions of a reasoning-gym task are written: in lines (the default), in sentences of "
        "varied wording, or checked (sentences, and the work done twice).",
    )


def load_problems(
    source: ProblemSource,
    *,
    seed: int = 0,
    limit: int | None = None,
    skip_bad: bool = False,
    benchmarks_dir: Path | None = None,
) -> list[Problem]:
    """Return the problems of a source, in its order.

    An id that a row lacks is `<source>/<row index>`. Numbers and booleans as gold answers become text. Of a gold answer
    in GSM8K's form, what follows the last `####` is the answer, and what precedes it the solution unless there is one.
    The gold of a multiple-choice row may be given as a letter, as an option's text, by `answer_index`, or as an integer
    `answer` (a position, as in MMLU); the problem has the letter.

    reasoning-gym draws problem i from `seed + i`: sources whose seeds differ by less than their size share problems,
    and small tasks repeat some. `split_problems` and `without_overlap` keep them apart.

    Rows of a benchmark without a gold answer (a few of the published files have some) are always left out.

    A row with the fields of `Problem`, as `Problem.to_row` gives them, is that problem again.

    Args:
        source: where the problems are.
        seed: reasoning-gym's seed; files and datasets have no use for it.
        limit: return the first so many only.
        skip_bad: drop rows without a question or a gold answer, and log how many, instead of stopping at the first.
        benchmarks_dir: where benchmark:NAME has its files; without it, it is loaded from its source.

    Raises:
        ConfigError: the source cannot be found or made, or its options do not fit it.
        DataError: a row that is no problem, two rows of one id, or no row at all.
    """
    if limit is not None and limit < 1:
        raise ConfigError(
            f"limit is {limit}, but at least one problem is needed: give --limit 1 or more, or leave it out."
        )
    _check_options(source)
    is_gym, is_benchmark = source.problems.startswith(GYM), source.problems.startswith(BENCHMARK)
    skip_bad = skip_bad or is_benchmark
    mapping = {name: source.fields.get(name, name) for name in (GYM_COLUMNS if is_gym else RECORD_FIELDS)}
    wanted = {*mapping.values(), *PROBLEM_SCHEMA.names}
    if is_gym:
        origin, columns, rows = gym_rows(source.problems, source.gym, source.size, seed, source.solution_style)
    elif is_benchmark:
        origin, columns, rows = benchmark_rows(one_benchmark(source.problems), source.split, benchmarks_dir)
    elif is_file(source.problems):
        origin, columns, rows = file_rows(source.problems, wanted)
    else:
        origin, columns, rows = dataset_rows(source.problems, source.config, source.split, wanted)
    for name, column in source.fields.items():
        if columns and column not in columns:
            raise ConfigError(
                f"{source.problems} has no column {column!r}, which --field {name}={column} takes {name} from."
                f"{closest(column, columns)} Its columns are {', '.join(columns)}."
            )
    problems: list[Problem] = []
    places: dict[str, str] = {}
    dropped: list[str] = []
    for index, (where, row) in enumerate(rows):
        if is_own(row) and not source.fields:
            problem = own_problem(row, source.kind, where)
        else:
            record = record_of(row, mapping)
            # reasoning-gym's scorers get along without a gold answer, and some of its tasks have none.
            complaint = what_is_missing(
                record, row, where, mapping, answer=not is_gym or source.kind not in ("auto", "gym")
            )
            if complaint and skip_bad:
                dropped.append(complaint)
                continue
            if complaint:
                raise DataError(f"{complaint}, or leave such rows out with --skip-bad.")
            problem = problem_of(record, source.kind, origin, f"{origin}/{index}", where)
        if problem.id in places:
            raise DataError(
                f"{where} has the id {problem.id!r}, which {places[problem.id]} has already. Ids tell problems apart: "
                "make them unique, or take them from another column with --field id=COLUMN."
            )
        places[problem.id] = where
        problems.append(problem)
        if len(problems) == limit:
            break
    if not problems:
        why = f"--skip-bad left out all {len(dropped)} rows; the first: {dropped[0]}" if dropped else "it is empty"
        raise DataError(f"{source.problems} (--problems) holds no problems: {why}.")
    if dropped and is_benchmark:
        _log.info("%d rows of %s have no gold answer and are left out.", len(dropped), source.problems)
    elif dropped:
        _log.warning("Left out %d rows of %s (--skip-bad); the first: %s.", len(dropped), source.problems, dropped[0])
    return problems


def split_problems(problems: Iterable[Problem], sizes: Sequence[int], *, seed: int) -> list[list[Problem]]:
    """Return disjoint splits of the given sizes, shuffled by seed, no question in more than one place.

    Questions are the same where their text is, but for case and white space; the first problem of a question stays, the
    later ones are dropped.

    Raises:
        DataError: there are fewer distinct questions than the sizes ask for.
    """
    distinct: dict[str, Problem] = {}
    total = 0
    for problem in problems:
        distinct.setdefault(normalised(problem.question), problem)
        total += 1
    if min(sizes, default=0) < 0 or sum(sizes) > len(distinct):
        raise DataError(
            f"Splits of {' + '.join(map(str, sizes))} problems cannot be made: there are {len(distinct)} distinct "
            f"questions among {total} problems, and no split has fewer than 0. Ask for fewer, or give more problems."
        )
    shuffled = list(distinct.values())
    random.Random(seed).shuffle(shuffled)
    remaining = iter(shuffled)
    return [[next(remaining) for _ in range(size)] for size in sizes]


def without_overlap(problems: Iterable[Problem], others: Iterable[Problem]) -> list[Problem]:
    """Return the problems whose question, but for case and white space, is none of the others'."""
    taken = {normalised(other.question) for other in others}
    return [problem for problem in problems if normalised(problem.question) not in taken]


def fingerprint(problems: Iterable[Problem]) -> str:
    """Return the SHA-256 of the problems' rows as canonical JSON; their order counts.

    >>> fingerprint([])[:12]
    'e3b0c44298fc'
    """
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps(problem.to_row(), sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _check_options(source: ProblemSource) -> None:
    """Raise ConfigError for an option that the source would ignore: a mistake, not a wish."""
    what = _what(source.problems)
    for flag, given, used in (
        ("--config", source.config is not None, what == "a dataset"),
        ("--split", source.split != "train", what in ("a dataset", "a benchmark")),
        ("--field", bool(source.fields), what in ("a dataset", "a file")),
        ("--gym", bool(source.gym), what == "a reasoning-gym task"),
        ("--size", source.size != 500, what == "a reasoning-gym task"),
        ("--solution-style", source.solution_style is not None, what == "a reasoning-gym task"),
        ("--kind gym", source.kind == "gym", what == "a reasoning-gym task"),
    ):
        if given and not used:
            other = "reasoning-gym tasks (--problems gym:NAME)" if flag != "--field" else "files and datasets"
            other = "Hugging Face datasets" if flag in ("--config", "--split") else other
            raise ConfigError(f"{flag} is for {other}, but --problems {source.problems} is {what}: leave {flag} out.")
    for name in source.fields:
        if name not in RECORD_FIELDS:
            raise ConfigError(
                f"--field {name}={source.fields[name]} names a field {name!r} that problems do not have."
                f"{closest(name, RECORD_FIELDS)} The fields are {', '.join(RECORD_FIELDS)}."
            )
    for name in {"size", "seed"} & source.gym.keys():
        raise ConfigError(f"--gym {name}={source.gym[name]} is refused: {name} has a flag of its own, --{name}.")


def _what(problems: str) -> str:
    """Return what a source is, in words."""
    if problems.startswith(GYM):
        return "a reasoning-gym task"
    if problems.startswith(BENCHMARK):
        return "a benchmark"
    return "a file" if is_file(problems) else "a dataset"
