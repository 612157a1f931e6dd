"""From the row of a source to a problem: what each field may hold, and which option of a choice is gold."""

from __future__ import annotations

import contextlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from cruxtune.errors import DataError
from cruxtune.records import KINDS, PROBLEM_SCHEMA, Problem

METADATA_FIELDS = (
    *("unit", "tolerance", "relative_tolerance", "answer_type", "is_multiple_answer", "answer_value", "answer_text"),
    *("subject", "level", "source_id", "license", "note"),
)
"""Fields of a row that are kept in a problem's metadata."""

RECORD_FIELDS = ("id", "question", "answer", "solution", "choices", "answer_index", *METADATA_FIELDS)
"""Fields of a row that are read: what `ProblemSource.fields` maps."""

# GSM8K's calculator calls, "<<48/2=24>>24": no text that a model should learn. Other sources have marks of their own
# without "=", which stay.
_CALCULATOR = re.compile(r"<<[^<>\n]*=[^<>\n]*>>")


def normalised(text: str) -> str:
    r"""Return a text with case and white space evened out; questions that agree in it are one question.

    >>> normalised("What is\n 1 + 1? ")
    'what is 1 + 1?'
    """
    return " ".join(text.casefold().split())


def record_of(row: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields that a row has a value for, from the columns that they are mapped to."""
    return {name: row[column] for name, column in mapping.items() if not _is_blank(row.get(column))}


def is_own(row: Mapping[str, Any]) -> bool:
    """Return whether a row is a problem as `Problem.to_row` gives it: exactly these fields."""
    return row.keys() == set(PROBLEM_SCHEMA.names)


def own_problem(row: Mapping[str, Any], kind: str, where: str) -> Problem:
    """Return the problem of a row that `is_own`, with the kind that is given unless that is auto.

    The metadata may be an object, as well as JSON text.

    Raises:
        DataError: a field of another type than a problem has.
    """
    for name in ("id", "question", "answer", "kind", "source"):
        if not isinstance(row[name], str):
            raise _wrong_type(name, row[name], "text", where)
    if row["kind"] not in KINDS:
        raise _wrong_type("kind", row["kind"], f"one of {', '.join(KINDS)}", where)
    metadata = row["metadata"]
    if isinstance(metadata, str):
        # What is no JSON stays text, which is refused like anything else that is no object.
        with contextlib.suppress(ValueError):
            metadata = json.loads(metadata)
    if not isinstance(metadata, dict):
        raise _wrong_type("metadata", metadata, "an object, or one as JSON", where)
    fields = {
        "kind": row["kind"] if kind == "auto" else kind,
        "choices": _choices(row, where),
        "solution": _solution(row, where),
        "metadata": metadata,
    }
    return _storable(Problem(**{**row, **fields}), where)


def _is_blank(value: Any) -> bool:
    """Return whether a row has no value here: null, white space, or the NaN that pandas writes for nothing."""
    return (
        value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and value != value)
    )


def what_is_missing(
    record: Mapping[str, Any], row: Mapping[str, Any], where: str, mapping: Mapping[str, str], *, answer: bool
) -> str | None:
    """Return what is to be said of a row without a question, or (if asked) without a gold answer; None if it has them.

    The sentence is left open, for what else can be done to follow.
    """
    given = record.get("answer")
    answered = not _is_blank(given.rpartition("####")[2] if isinstance(given, str) else given)
    if "question" not in record:
        name = "question"
    elif answer and not answered and not (record.get("choices") and "answer_index" in record):
        name = "answer"
    else:
        return None
    column = mapping[name]
    state = "is empty" if column in row else "is missing"
    return (
        f"{where}: {column!r}, the {name} of the problem, {state}; the row's columns are {', '.join(row) or '(none)'}. "
        f"Correct the row, name the right column with --field {name}=COLUMN"
    )


def problem_of(record: Mapping[str, Any], kind: str, origin: str, default_id: str, where: str) -> Problem:
    """Return the problem of a record in which nothing is missing.

    Args:
        record: fields by name.
        kind: the kind of answer, or auto.
        origin: the problem's source.
        default_id: the id, unless the record has one.
        where: words for the row in messages.

    Raises:
        DataError: a field of a wrong type, or a gold option that is none of the choices.
    """
    if not isinstance(record["question"], str):
        raise _wrong_type("question", record["question"], "text", where)
    solution = _solution(record, where)
    answer = _scalar(record, "answer", "", where)
    before, mark, after = answer.rpartition("####")
    # What a gym task's answer contains is its scorer's business.
    if mark and "entry" not in record:
        answer, solution = after.strip(), solution or before.strip() or None
        record = {**record, "answer": answer}
    names = (*METADATA_FIELDS, "dataset", "config", "entry")
    metadata = {name: _plain(record[name]) for name in names if name in record}
    choices = _choices(record, where)
    if choices:
        index = _gold_option(record, choices, where) if kind in ("auto", "choice") or not answer else None
        if index is not None and kind in ("auto", "choice"):
            kind, given, answer = "choice", answer, _label(index, choices)
            if _same(given, choices[index]) and given != answer:
                metadata.setdefault("answer_text", given)
        elif index is not None:
            answer = choices[index]
        elif kind == "choice":
            raise DataError(
                f"{where}: the answer {answer!r} is none of the {len(choices)} choices. For kind choice it is a "
                "letter, an option's text, or a position in answer_index: correct the row, or give another --kind."
            )
    problem = Problem(
        id=_scalar(record, "id", default_id, where),
        question=record["question"],
        answer=answer,
        kind=kind if kind != "auto" else "gym" if "entry" in record else "math",
        choices=choices,
        solution=_CALCULATOR.sub("", solution) if solution else None,
        source=origin,
        metadata=metadata,
    )
    return _storable(problem, where)


def _storable(problem: Problem, where: str) -> Problem:
    """Return the problem if it can be written as UTF-8: JSON may hold halves of surrogate pairs."""
    try:
        json.dumps(problem.to_row(), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} has text that is not Unicode and cannot be stored: {error.reason}. Correct it."
        ) from None
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


def _solution(record: Mapping[str, Any], where: str) -> str | None:
    solution = record.get("solution")
    if not isinstance(solution, str | None):
        raise _wrong_type("solution", solution, "text", where)
    return solution


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
                f"{where}: the answer {given} may be the option {choices[named[0]]!r} or the option at position "
                f"{given}, counted from 0. Say which: --field answer_index=answer for positions, else write "
                "the answer as text."
            )
    if index is None:
        # The text goes first, as it does in the verifier: an option "A" need not be the first.
        return named[0] if named else lettered if lettered >= 0 else None
    # pandas writes a column of integers with gaps as floats.
    if isinstance(index, bool) or not (isinstance(index, int) or (isinstance(index, float) and index.is_integer())):
        raise _wrong_type("answer_index", index, "an integer", where)
    index = int(index)
    if not 0 <= index < len(choices):
        raise DataError(
            f"{where}: the gold option is at position {index}, but there are {len(choices)} choices, counted "
            "from 0. Correct the row, or write the answer as text."
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
    return normalised(a) == normalised(b)


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
