"""Verdicts on answers that somebody else's program gave: a JSON Lines file in, the same rows with verdicts out.

The output appears whole or not at all. Until it does, what is finished lies beside it in a file whose name carries the
hash of the input and of the settings, so that the same command goes on there, and another one starts afresh.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

from cruxtune.errors import ConfigError, DataError, StoreError
from cruxtune.progress import bar
from cruxtune.records import KINDS, Problem
from cruxtune.rows import METADATA_FIELDS, problem_of
from cruxtune.runner import open_verifier
from cruxtune.stage_settings import GradeSettings
from cruxtune.verifiers import Verifier

BAD_LINE = "bad-line"
"""The reason of a row that could not be graded; it has an `error` beside it, and is neither correct nor not."""

FIELDS = ("gold", "prediction", "kind", "choices", "answer_index", "metadata", *METADATA_FIELDS)
"""Fields of a row that are read: what `GradeSettings.fields` maps."""

_CHUNK = 512


def grade(settings: GradeSettings) -> dict[str, Any]:
    """Write every row of the file with `correct`, `extracted` and `reason`; return the counts.

    The result has `rows`, `correct`, `bad` (rows that could not be graded) with the `first_error`, `reasons` (for each
    its count and how many of them are correct), `seconds` and `output`.

    Raises:
        ConfigError: there is no such file, or a field is mapped that no row has.
        StoreError: the output is there already, or cannot be written.
        VerifierError: the user's function cannot be imported.
    """
    output = settings.output or settings.file.with_name(settings.file.name.split(".json")[0] + ".graded.jsonl")
    for name in settings.fields:
        if name not in FIELDS:
            raise ConfigError(f"--field {name}={settings.fields[name]}: the fields are {', '.join(FIELDS)}")
    if output.exists() and not settings.overwrite:
        raise StoreError(f"--output {output} is there already; choose another file, or replace it with --overwrite")
    digest, total = _survey(settings)
    part = output.with_name(f".{output.name}.{digest[:12]}.part")
    started = time.monotonic()
    try:
        done = _finished(part)
        with (
            open_verifier(settings.verifier) as verifier,
            part.open("ab") as sink,
            bar("grade", total, "answers", done=len(done)) as advance,
        ):
            counts = Counter((row["reason"], row["correct"]) for row in done)
            first_error = next((row["error"] for row in done if row["reason"] == BAD_LINE), None)
            lines = islice(_lines(settings), len(done), None)
            while chunk := list(islice(lines, _CHUNK)):
                rows = _graded(chunk, settings, verifier)
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                # Halves of surrogate pairs, which JSON may hold and UTF-8 not, stay the escapes that they were.
                sink.write(text.encode(errors="backslashreplace"))
                sink.flush()
                os.fsync(sink.fileno())
                counts.update((row["reason"], row["correct"]) for row in rows)
                first_error = first_error or next((row["error"] for row in rows if row["reason"] == BAD_LINE), None)
                advance(len(rows))
        part.replace(output)
    except OSError as error:
        raise StoreError(f"--output {output} cannot be written ({error.strerror}); choose another file") from error
    return {
        "rows": counts.total(),
        "correct": sum(count for (_, correct), count in counts.items() if correct),
        "bad": counts[BAD_LINE, None],
        "first_error": first_error,
        "reasons": {
            reason: {"count": counts[reason, True] + counts[reason, False], "correct": counts[reason, True]}
            for reason in sorted({reason for reason, correct in counts if correct is not None})
        },
        "seconds": round(time.monotonic() - started, 3),
        "output": str(output),
    }


def _survey(settings: GradeSettings) -> tuple[str, int]:
    """Return the hash of the input and of what decides the verdicts, and the number of rows."""
    decisive = settings.model_dump(mode="json", exclude={"file", "output", "overwrite", "skip_bad"})
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
    total = 0
    for _, line in _lines(settings):
        digest.update(line)
        total += 1
    if not total:
        raise ConfigError(f"{settings.file} has no rows: it must be JSON Lines of gold and prediction")
    return digest.hexdigest(), total


def _lines(settings: GradeSettings) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers."""
    try:
        with _opened(settings.file) as file:
            numbered = ((number, line) for number, line in enumerate(file, 1) if line.strip())
            yield from islice(numbered, settings.limit)
    except (OSError, EOFError) as error:
        raise ConfigError(f"{settings.file} cannot be read: {error}; check the path") from None


def _opened(path: Path) -> IO[bytes]:
    return gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _finished(part: Path) -> list[dict[str, Any]]:
    """Return the rows of an interrupted run, and cut off a last one that is not whole."""
    if not part.exists():
        return []
    data = part.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(part, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _graded(chunk: list[tuple[int, bytes]], settings: GradeSettings, verifier: Verifier) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cases: list[tuple[int, str, Problem]] = []
    for number, line in chunk:
        where = f"Line {number} of {settings.file}"
        row: Any = None
        try:
            row = _parsed(line, where)
            cases.append((len(rows), *_case(row, settings, where)))
            rows.append(row)
        except DataError as error:
            bad = {"correct": None, "extracted": None, "reason": BAD_LINE, "error": str(error)}
            rows.append({**(row if isinstance(row, dict) else {"line": number}), **bad})
    verdicts = verifier.verify_many([(text, problem) for _, text, problem in cases])
    for (place, _, _), verdict in zip(cases, verdicts, strict=True):
        rows[place] = {
            **rows[place],
            "correct": verdict.correct,
            "extracted": verdict.extracted,
            "reason": verdict.reason,
        }
    return rows


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    # Not UTF-8; an integer of thousands of digits; brackets without end.
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(row, dict):
        raise DataError(f'{where} is {str(row)[:60]!r}, but must be an object: {{"gold": …, "prediction": …}}')
    return row


def _case(row: Mapping[str, Any], settings: GradeSettings, where: str) -> tuple[str, Problem]:
    """Return the text to be judged and the problem that it answers."""
    mapping = {name: settings.fields.get(name, name) for name in FIELDS}
    given = {name: row[column] for name, column in mapping.items() if column in row}
    for name in ("gold", "prediction"):
        if name not in given:
            raise DataError(
                f"{where}: {mapping[name]!r}, the {name}, is missing; name its column with --field {name}=…"
            )
    text = given["prediction"]
    # No prediction is a response without an answer, not a mistake in the file.
    if not isinstance(text, str | int | float | None) or isinstance(text, bool):
        raise DataError(f"{where}: the prediction is of type {type(text).__name__}, but must be text or a number")
    gold = given["gold"]
    if gold is None or not str(gold).strip():
        raise DataError(f"{where}: the gold answer is empty, so that no prediction could be right")
    kind = given.get("kind") or settings.kind
    if kind not in ("auto", *KINDS):
        raise DataError(f"{where}: the kind {kind!r} is none of {', '.join(KINDS)}")
    if kind == "custom" and settings.verifier.verifier is None:
        raise DataError(f"{where} has kind custom, which --verifier module:function judges; none is given")
    metadata = given.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise DataError(f"{where}: metadata is of type {type(metadata).__name__}, but must be an object")
    if kind == "gym" and not (isinstance(metadata.get("dataset"), str) and isinstance(metadata.get("entry"), dict)):
        raise DataError(f"{where} has kind gym, so its metadata must have `dataset` and `entry`")
    record = {**metadata, **given, "answer": gold, "question": "-"}
    problem = problem_of(record, str(kind), str(settings.file), where, where)
    return "" if text is None else str(text), problem
