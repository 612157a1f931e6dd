"""Problems: where they come from (JSON files, datasets, reasoning-gym), how they are split, and their fingerprint.

The fields of a row are those of a `Problem`, with `answer_index` (position of the gold option, from 0) and what
verifiers and reports can use (`METADATA_FIELDS`); every other column is ignored. `ProblemSource.fields` renames.
"""

from __future__ import annotations

import dataclasses
import difflib
import gzip
import hashlib
import json
import logging
import random
import re
import string
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from cruxtune.errors import ConfigError, DataError
from cruxtune.records import Problem

METADATA_FIELDS = (
    *("unit", "tolerance", "answer_type", "is_multiple_answer", "answer_value", "answer_text"),
    *("subject", "level", "source_id", "license", "note"),
)
"""Fields of a row that are kept in a problem's metadata."""

RECORD_FIELDS = ("id", "question", "answer", "solution", "choices", "answer_index", *METADATA_FIELDS)
"""Fields of a row that are read: what `ProblemSource.fields` maps."""

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_GYM = "gym:"
_GYM_COLUMNS = ("question", "answer", "solution", "dataset", "config", "entry")
# GSM8K's calculator calls, "<<48/2=24>>24": no text that a model should learn. Other sources have marks of their own
# without "=", which stay.
_CALCULATOR = re.compile(r"<<[^<>\n]*=[^<>\n]*>>")

_log = logging.getLogger("cruxtune")


class ProblemSource(BaseModel, extra="forbid", frozen=True):
    """Where problems come from, and how a row becomes a problem."""

    problems: str = Field(
        description="Problems: a .jsonl, .json (both also .gz) or .parquet file, gym:NAME for a task of reasoning-gym, "
        "or a Hugging Face dataset (Hub name or local directory)."
    )
    config: str | None = Field(
        None, description="Configuration of a Hugging Face dataset, where it has several (main for openai/gsm8k)."
    )
    split: str = Field("train", description="Split of a Hugging Face dataset; slices like train[:1000] work too.")
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


class _Rows(NamedTuple):
    """What a source holds: its name in ids, its columns, and its rows, each with the words that say where it is."""

    origin: str
    columns: Sequence[str]
    rows: Iterable[tuple[str, dict[str, Any]]]


def load_problems(
    source: ProblemSource, *, seed: int = 0, limit: int | None = None, skip_bad: bool = False
) -> list[Problem]:
    """Return the problems of a source, in its order.

    An id that a row lacks is `<source>/<row index>`. Numbers and booleans as gold answers become text. Of a gold answer
    in GSM8K's form, what follows the last `####` is the answer, and what precedes it the solution unless there is one.
    The gold of a multiple-choice row may be given as a letter, as an option's text, by `answer_index`, or as an integer
    `answer` (a position, as in MMLU); the problem has the letter.

    reasoning-gym draws problem i from `seed + i`: sources whose seeds differ by less than their size share problems, and
    small tasks repeat some. `split_problems` and `without_overlap` keep them apart.

    Args:
        source: where the problems are.
        seed: reasoning-gym's seed; files and datasets have no use for it.
        limit: return the first so many only.
        skip_bad: drop rows without a question or a gold answer, and log how many, instead of stopping at the first.

    Raises:
        ConfigError: the source cannot be found or made, or its options do not fit it.
        DataError: a row that is no problem, two rows of one id, or no row at all.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}, but at least one problem is needed: give --limit 1 or more, or leave it out.")
    _check_options(source)
    is_gym = source.problems.startswith(_GYM)
    origin, columns, rows = _gym_rows(source, seed) if is_gym else _rows(source)
    names = dict.fromkeys(RECORD_FIELDS) | source.fields
    mapping = {name: name for name in _GYM_COLUMNS} if is_gym else {name: names[name] or name for name in RECORD_FIELDS}
    for name, column in source.fields.items():
        if column not in columns:
            raise ConfigError(
                f"{source.problems} has no column {column!r}, which --field {name}={column} takes {name} from."
                f"{_closest(column, columns)} Its columns are {', '.join(columns)}."
            )
    problems: list[Problem] = []
    places: dict[str, str] = {}
    dropped: list[str] = []
    for index, (where, row) in enumerate(rows):
        record = {name: row[column] for name, column in mapping.items() if not _is_blank(row.get(column))}
        if complaint := _incomplete(record, row, where, mapping, needs_answer=not (is_gym and source.kind == "auto")):
            if not skip_bad:
                raise DataError(f"{complaint}, or leave such rows out with --skip-bad.")
            dropped.append(complaint)
            continue
        problem = _problem(record, source.kind, origin, f"{origin}/{index}", where)
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
        why = f"all {len(dropped)} rows were left out (--skip-bad); the first: {dropped[0]}" if dropped else "it is empty"
        raise DataError(f"{source.problems} holds no problems: {why}. Check --problems and --field.")
    if dropped:
        _log.warning("Left out %d rows of %s (--skip-bad); the first: %s.", len(dropped), source.problems, dropped[0])
    return problems


def chain_sum_solution(expression: str) -> str:
    r"""Return a worked solution of a `chain_sum` expression, a line per step.

    reasoning-gym has worked solutions for `gsm_symbolic` only; these are ours.

    >>> chain_sum_solution("4 - 1 - 7")
    '4 - 1 = 3\n3 - 7 = -4\n#### -4'
    """
    first, *rest = expression.split()
    value, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = value + int(term) if sign == "+" else value - int(term)
        lines.append(f"{value} {sign} {term} = {after}")
        value = after
    return "\n".join([*lines, f"#### {value}"])


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
        distinct.setdefault(_normalised(problem.question), problem)
        total += 1
    if min(sizes, default=0) < 0 or sum(sizes) > len(distinct):
        raise DataError(
            f"Splits of {' + '.join(map(str, sizes))} problems cannot be made: there are {len(distinct)} distinct questions "
            f"among {total} problems, and no split may have fewer than 0. Ask for fewer, or give more problems."
        )
    shuffled = list(distinct.values())
    random.Random(seed).shuffle(shuffled)
    remaining = iter(shuffled)
    return [[next(remaining) for _ in range(size)] for size in sizes]


def without_overlap(problems: Iterable[Problem], others: Iterable[Problem]) -> list[Problem]:
    """Return the problems whose question, but for case and white space, is none of the others'."""
    taken = {_normalised(other.question) for other in others}
    return [problem for problem in problems if _normalised(problem.question) not in taken]


def fingerprint(problems: Iterable[Problem]) -> str:
    """Return the SHA-256 of the problems' rows as canonical JSON; their order counts.

    >>> fingerprint([])[:12]
    'e3b0c44298fc'
    """
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps(problem.to_row(), sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _normalised(question: str) -> str:
    return " ".join(question.casefold().split())


def _check_options(source: ProblemSource) -> None:
    """Raise ConfigError for an option that the source would ignore: a mistake, not a wish."""
    is_gym = source.problems.startswith(_GYM)
    is_file = not is_gym and _is_file(source.problems)
    for flag, given, used in (
        ("--config", source.config is not None, not is_gym and not is_file),
        ("--split", source.split != "train", not is_gym and not is_file),
        ("--field", bool(source.fields), not is_gym),
        ("--gym", bool(source.gym), is_gym),
        ("--size", source.size != 500, is_gym),
        ("--kind gym", source.kind == "gym", is_gym),
    ):
        if given and not used:
            what = "a reasoning-gym task" if is_gym else "a file" if is_file else "a dataset"
            other = "reasoning-gym tasks (--problems gym:NAME)" if not is_gym else "files and datasets"
            other = "Hugging Face datasets" if flag in ("--config", "--split") else other
            raise ConfigError(f"{flag} is for {other}, but --problems {source.problems} is {what}: leave {flag} out.")
    for name in source.fields:
        if name not in RECORD_FIELDS:
            raise ConfigError(
                f"--field {name}={source.fields[name]} names a field {name!r} that problems do not have."
                f"{_closest(name, RECORD_FIELDS)} The fields are {', '.join(RECORD_FIELDS)}."
            )
    for name in {"size", "seed"} & source.gym.keys():
        raise ConfigError(f"--gym {name}={source.gym[name]} is refused: {name} has a flag of its own, --{name}.")


def _closest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, known)
    return f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""


# Rows into problems


def _is_blank(value: Any) -> bool:
    """Return whether a row has no value here: null, white space, or the NaN that pandas writes for nothing."""
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and value != value)


def _incomplete(
    record: Mapping[str, Any], row: Mapping[str, Any], where: str, mapping: Mapping[str, str], needs_answer: bool
) -> str | None:
    """Return what is said of a row without a question or gold answer, up to its last clause."""
    answer = record.get("answer")
    if isinstance(answer, str) and _is_blank(answer.rpartition("####")[2]):
        answer = None
    by_index = "choices" in record and "answer_index" in record
    if "question" not in record:
        name = "question"
    elif answer is None and needs_answer and not by_index:
        name = "answer"
    else:
        return None
    column = mapping[name]
    state = "is empty" if column in row else "is missing"
    return (
        f"{where}: {column!r}, the {name} of the problem, {state}; its columns are {', '.join(row) or '(none)'}. "
        f"Correct the row, name the right column with --field {name}=COLUMN"
    )


def _problem(record: Mapping[str, Any], kind: str, origin: str, default_id: str, where: str) -> Problem:
    if not isinstance(record["question"], str):
        raise _wrong_type("question", record["question"], "text", where)
    solution = record.get("solution")
    if not isinstance(solution, str | None):
        raise _wrong_type("solution", solution, "text", where)
    answer = _scalar(record, "answer", "", where)
    before, mark, after = answer.rpartition("####")
    # A gym task's answer is its scorer's business, whatever it contains.
    if mark and "entry" not in record:
        answer, solution = after.strip(), solution or before.strip() or None
    metadata = {name: _plain(record[name]) for name in (*METADATA_FIELDS, "dataset", "config", "entry") if name in record}
    choices = _choices(record, where)
    if choices and kind in ("auto", "choice"):
        index = _gold_option({**record, "answer": answer} if mark else record, choices, where)
        if index is not None:
            kind, given, answer = "choice", answer, _label(index, choices)
            if _same(given, choices[index]) and given != answer:
                metadata.setdefault("answer_text", given)
        elif kind == "choice":
            raise DataError(
                f"{where}: the answer {answer!r} is none of the {len(choices)} choices. For kind choice it is a letter, an "
                "option's text, or a position in answer_index: correct the row, or give --kind math or exact."
            )
    if kind == "auto":
        kind = "gym" if "entry" in record else "math"
    problem = Problem(
        id=_scalar(record, "id", default_id, where),
        question=record["question"],
        answer=answer,
        kind=kind,
        choices=choices,
        solution=_CALCULATOR.sub("", solution) if solution else None,
        source=origin,
        metadata=metadata,
    )
    try:
        json.dumps(problem.to_row(), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} has text that is not Unicode ({error.reason}): it cannot be stored. Correct it.") from None
    return problem


def _wrong_type(name: str, value: Any, wanted: str, where: str) -> DataError:
    return DataError(
        f"{where}: {name} is {str(value)[:60]!r}, of type {type(value).__name__}, but must be {wanted}. "
        f"Correct the row, or name another column with --field {name}=COLUMN."
    )


def _scalar(record: Mapping[str, Any], name: str, default: str, where: str) -> str:
    """Return a text, number or boolean as text."""
    value = record.get(name, default)
    if not isinstance(value, str | int | float | Decimal):
        raise _wrong_type(name, value, "text, a number or a boolean", where)
    return str(value)


def _choices(record: Mapping[str, Any], where: str) -> list[str] | None:
    choices = record.get("choices")
    # An empty list is what Arrow files have for rows without choices.
    if choices is None or choices == []:
        return None
    if not isinstance(choices, list) or not all(isinstance(text, str | int | float) for text in choices):
        raise _wrong_type("choices", choices, "a list of texts", where)
    if len(choices) > len(string.ascii_uppercase):
        raise DataError(f"{where} has {len(choices)} choices, but there are letters for 26 only: leave some out.")
    return [str(text) for text in choices]


def _gold_option(record: Mapping[str, Any], choices: Sequence[str], where: str) -> int | None:
    """Return the gold option's position, None where the answer names none."""
    given, index = record.get("answer"), record.get("answer_index")
    answer = str(given if given is not None else "")
    named = [position for position, text in enumerate(choices) if _same(text, answer)]
    letter = answer.strip(" ().").upper()
    lettered = string.ascii_uppercase[: len(choices)].find(letter) if len(letter) == 1 else -1
    if index is None and isinstance(given, int) and not isinstance(given, bool):
        index = given
        if named and index not in named:
            raise DataError(
                f"{where}: the answer {given} may be the option {choices[named[0]]!r} or the option at position {given}, "
                "counted from 0. Say which: --field answer_index=answer for positions, else write the answer as text."
            )
    if index is None:
        # The text goes first, as it does in the verifier: an option "A" need not be the first.
        return named[0] if named else lettered if lettered >= 0 else None
    # pandas writes a column of integers with gaps as floats.
    if isinstance(index, bool) or not isinstance(index, int | float) or index != int(index):
        raise _wrong_type("answer_index", index, "an integer", where)
    index = int(index)
    if not 0 <= index < len(choices):
        raise DataError(
            f"{where}: the gold option is at position {index}, but there are {len(choices)} choices, counted from 0. Correct "
            "the row, or write the answer as text."
        )
    if index not in (*named, lettered) and (named or lettered >= 0) and answer != str(index):
        raise DataError(
            f"{where}: the answer {answer!r} and answer_index {index} ({choices[index]!r}) name different options. "
            "Correct one of them; answer_index counts from 0."
        )
    return index


def _label(index: int, choices: Sequence[str]) -> str:
    """Return an option's letter, or its text where the letter would be read as the text of another option."""
    letter = string.ascii_uppercase[index]
    return choices[index] if any(_same(text, letter) for text in choices) else letter


def _same(a: str, b: str) -> bool:
    return _normalised(a) == _normalised(b)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: tuples and sets as lists, NumPy's numbers as Python's, anything else as text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value), key=repr)
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)


# Sources


def _is_file(problems: str) -> bool:
    return not Path(problems).expanduser().is_dir() and (
        problems.endswith(_SUFFIXES) or Path(problems).expanduser().is_file()
    )


def _rows(source: ProblemSource) -> _Rows:
    wanted = {source.fields.get(name, name) for name in RECORD_FIELDS}
    if not _is_file(source.problems):
        return _dataset_rows(source, wanted)
    path = Path(source.problems).expanduser()
    if not path.is_file():
        raise ConfigError(f"There is no file {source.problems} (--problems). Check the path, seen from {Path.cwd()}.")
    if not source.problems.endswith(_SUFFIXES):
        raise ConfigError(
            f"The type of the file {source.problems} (--problems) is not known: its name must end with "
            f"{', '.join(_SUFFIXES)}. Rename or convert it."
        )
    try:
        if path.suffix == ".parquet":
            return _parquet_rows(source.problems, path, wanted)
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{source.problems} (--problems) cannot be read: {_short(error)}. Is the file whole?") from None
    return _json_rows(source.problems, data)


def _json_rows(name: str, data: bytes) -> _Rows:
    """Return the rows of JSON Lines, or of one JSON array whatever the file is called."""
    # Everything is parsed at once: only then are the columns known, and a mapped column may begin anywhere.
    if data.lstrip().startswith(b"["):
        items = _parsed(data, f"{name} (--problems)")
        rows = [(f"Row {index} of {name} (counted from 0)", item) for index, item in enumerate(items)]
    else:
        lines = ((f"Line {number} of {name}", line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip())
        rows = [(where, _parsed(line, where)) for where, line in lines]
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where} is {str(row)[:60]!r}, but must be an object like {{\"question\": …, \"answer\": …}}.")
    return _Rows(name, list(dict.fromkeys(column for _, row in rows for column in row)), rows)


def _parsed(data: bytes, where: str) -> Any:
    try:
        # A byte order mark is no part of the text.
        return json.loads(data.removeprefix(b"\xef\xbb\xbf").decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {_short(error)}. Correct or remove it.") from None


def _parquet_rows(name: str, path: Path, wanted: set[str]) -> _Rows:
    file = pq.ParquetFile(path)
    names: list[str] = file.schema_arrow.names
    used = [column for column in names if column in wanted] or names[:1]
    return _table_rows(name, name, names, lambda: (row for b in file.iter_batches(columns=used) for row in b.to_pylist()))


def _table_rows(
    origin: str, name: str, columns: Sequence[str], read: Callable[[], Iterable[dict[str, Any]]]
) -> _Rows:
    """Return rows of a table of which only some columns are read: the others may be images; None stands for them."""

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for index, row in enumerate(read()):
            yield f"Row {index} of {name} (counted from 0)", {**dict.fromkeys(columns), **row}

    return _Rows(origin, columns, rows())


def _dataset_rows(source: ProblemSource, wanted: set[str]) -> _Rows:
    dataset = _dataset(source)
    names: list[str] = dataset.column_names
    selected = dataset.select_columns([column for column in names if column in wanted] or names[:1])
    origin = "/".join(part for part in (source.problems, source.config, source.split) if part)
    return _table_rows(origin, origin, names, lambda: selected)


def _dataset(source: ProblemSource) -> Any:
    """Return a dataset of the Hub or a directory; the latter may be one that `save_to_disk` wrote."""
    import datasets  # loads pandas and the Hub's client: a second that files and gym tasks need not spend

    path = Path(source.problems).expanduser()
    name = str(path) if path.is_dir() else source.problems
    try:
        if not (path / "dataset_dict.json").is_file() and not (path / "state.json").is_file():
            return datasets.load_dataset(name, source.config, split=source.split)
        saved = datasets.load_from_disk(name)
    # Whatever it is that datasets, the Hub's client or a file reader raises: the source cannot be had.
    except Exception as error:
        kind = "directory" if path.is_dir() else "dataset (there is no such file or directory, so the Hub was asked)"
        raise ConfigError(
            f"--problems {source.problems} cannot be loaded as a {kind}: {_short(error)}. Check the name, --config "
            f"({source.config or 'not given'}) and --split ({source.split}), and whether the Hub can be reached."
        ) from None
    splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    if source.split not in splits:
        raise ConfigError(f"{source.problems} has no split {source.split!r}; --split may be {', '.join(splits)}.")
    return splits[source.split]


def _short(error: BaseException) -> str:
    """Return what an error says, in one line of bearable length."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "…"


def _gym_rows(source: ProblemSource, seed: int) -> _Rows:
    """Return the entries of a reasoning-gym task, lazily."""
    name = source.problems.removeprefix(_GYM)
    dataset, configs = _gym_dataset(name, source, seed)
    origin = f"{source.problems}/{seed}"

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for index in range(source.size):
            try:
                entry = dataset[index]
            except Exception as error:  # a task's own code, with parameters that it did not check
                raise _gym_failed(source, error) from None
            facts = entry["metadata"]
            task = facts["source_dataset"] if name == "composite" else name
            solution = chain_sum_solution(facts["expression"]) if task == "chain_sum" else facts.get("answer_cot")
            values = (entry["question"], entry["answer"], solution, task, configs[task], entry)
            yield f"Row {index} of {origin} (counted from 0)", dict(zip(_GYM_COLUMNS, values, strict=True))

    return _Rows(origin, _GYM_COLUMNS, rows())


def _gym_dataset(name: str, source: ProblemSource, seed: int) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Return a task's dataset, and the configuration of every task in it (several in a composite one)."""
    import reasoning_gym  # a second or two, which other sources need not spend
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise ConfigError(
            f"reasoning-gym has no task {name!r} (--problems {source.problems}).{_closest(name, DATASETS)} "
            f"Its {len(DATASETS)} tasks are listed in its documentation (GALLERY.md)."
        )
    known = [item.name for item in dataclasses.fields(DATASETS[name][1]) if item.name not in ("size", "seed")]
    for parameter in source.gym:
        if parameter not in known:
            raise ConfigError(
                f"The reasoning-gym task {name} has no parameter {parameter!r} (--gym).{_closest(parameter, known)} "
                f"Its parameters are {', '.join(known)}."
            )
    config = {**source.gym, "seed": seed, "size": source.size}
    try:
        if name != "composite":
            return reasoning_gym.create_dataset(name, **config), {name: config}
        specs = [DatasetSpec(**{"weight": 1.0, "config": {}, **spec}) for spec in source.gym.get("datasets", [])]
        # Scoring needs a task's own parameters, neither its seed nor its size.
        return reasoning_gym.create_dataset(name, **{**config, "datasets": specs}), {s.name: s.config for s in specs}
    except Exception as error:  # assertions, type errors and whatever else a task's constructor meets
        raise _gym_failed(source, error) from None


def _gym_failed(source: ProblemSource, error: Exception) -> ConfigError:
    given = ", ".join(f"{name}={value}" for name, value in source.gym.items()) or "no parameters"
    return ConfigError(
        f"The reasoning-gym task {source.problems.removeprefix(_GYM)} does not work with {given} (--gym): {_short(error)}."
    )
