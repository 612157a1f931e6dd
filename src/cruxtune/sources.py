"""Rows of problem sources: JSON and Parquet files, Hugging Face datasets, tasks of reasoning-gym.

What comes out is rows as the source has them; `cruxtune.problems` makes problems of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cruxtune.errors import ConfigError, DataError
from cruxtune.worked import Style, worked

GYM = "gym:"
"""What the name of a reasoning-gym task begins with."""

GYM_COLUMNS = ("question", "answer", "solution", "dataset", "config", "entry")
"""Columns of a reasoning-gym task's rows; the last three are what its scorer needs."""

_JSON, _JSON_LINES, _PARQUET = (".json", ".json.gz"), (".jsonl", ".jsonl.gz"), (".parquet",)


class Rows(NamedTuple):
    """What a source holds: its name in ids, its columns, and its rows, each with the words that say where it is."""

    origin: str
    columns: Sequence[str]
    rows: Iterable[tuple[str, dict[str, Any]]]


def closest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests the known names nearest to an unknown one, or nothing.

    >>> closest("chainsum", ["chain_sum", "countdown"])
    " Did you mean 'chain_sum'?"
    """
    matches = difflib.get_close_matches(name, known)
    return f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def is_file(problems: str) -> bool:
    """Return whether a source is a file, there or not: what is not a directory and is named or found to be one.

    >>> is_file("train.jsonl.gz"), is_file("openai/gsm8k")
    (True, False)
    """
    path = Path(problems).expanduser()
    return not path.is_dir() and (problems.endswith((*_JSON, *_JSON_LINES, *_PARQUET)) or path.is_file())


def file_rows(problems: str, wanted: Iterable[str]) -> Rows:
    """Return the rows of a JSON Lines, JSON or Parquet file.

    Args:
        problems: the path.
        wanted: columns to read, where a file can be read by columns.

    Raises:
        ConfigError: there is no such file, or its type is not known.
        DataError: the file is damaged, or a line of it is not a JSON object.
    """
    path = Path(problems).expanduser()
    if not path.is_file():
        raise ConfigError(f"There is no file {problems} (--problems). Check the path, as seen from {Path.cwd()}.")
    try:
        if problems.endswith(_PARQUET):
            file = pq.ParquetFile(path)
            names = file.schema_arrow.names
            return _table(problems, names, _parquet_rows(problems, file, _used(names, wanted)))
        if problems.endswith((*_JSON, *_JSON_LINES)):
            data = path.read_bytes()
            return _json_rows(problems, gzip.decompress(data) if problems.endswith(".gz") else data)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise _damaged(problems, error) from None
    raise ConfigError(
        f"{problems} (--problems) is a file of unknown type: its name must end with "
        f"{', '.join((*_JSON_LINES, *_JSON, *_PARQUET))}. Rename or convert it."
    )


def dataset_rows(
    problems: str, config: str | None, split: str, wanted: Iterable[str] | None = None, *, files: str | None = None
) -> Rows:
    """Return the rows of a Hugging Face dataset: one of the Hub, or a directory, also one that `save_to_disk` wrote.

    Args:
        problems: Hub name or directory; or json, for `files`.
        config: the dataset's configuration.
        split: the split, or a slice of it.
        wanted: columns to read, by default all; others may be images, which take long to decode.
        files: the address of a file, which `datasets` downloads once and keeps.

    Raises:
        ConfigError: there is no such dataset, configuration or split, or the Hub cannot be reached.
    """
    dataset = _dataset(problems, config, split, files)
    origin = "/".join(part for part in (problems, config, split) if part)
    names = dataset.column_names
    return _table(origin, names, dataset.select_columns(names if wanted is None else _used(names, wanted)))


def gym_rows(problems: str, parameters: Mapping[str, Any], size: int, seed: int, style: Style | None = None) -> Rows:
    """Return the entries of a reasoning-gym task, generated when they are asked for.

    A composite task's rows name the task that each entry is of, whose scorer it needs.

    Args:
        problems: `gym:` and the task's name.
        parameters: the task's parameters, but for size and seed.
        size: how many entries.
        seed: the task's seed.
        style: how worked solutions are written, by default in lines.

    Raises:
        ConfigError: there is no such task or parameter, the task does not work with the parameters given, or it has no
            worked solutions and a style for them.
    """
    import reasoning_gym  # a second or two, which other sources need not spend
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.factory import DATASETS

    name = problems.removeprefix(GYM)
    if name not in DATASETS:
        raise ConfigError(
            f"reasoning-gym has no task {name!r} (--problems {problems}).{closest(name, DATASETS)} "
            f"Its gallery (GALLERY.md in its repository) shows all {len(DATASETS)} tasks."
        )
    known = [item.name for item in dataclasses.fields(DATASETS[name][1]) if item.name not in ("size", "seed")]
    for parameter in parameters:
        if parameter not in known:
            raise ConfigError(
                f"The reasoning-gym task {name} has no parameter {parameter!r} (--gym).{closest(parameter, known)} "
                f"Its parameters are {', '.join(known)}; size and seed are set by --size and --seed."
            )
    config = {**parameters, "seed": seed, "size": size}
    configs = {name: config}
    try:
        if name == "composite":
            specs = [DatasetSpec(**{"weight": 1.0, "config": {}, **spec}) for spec in parameters.get("datasets", [])]
            config = {**config, "datasets": specs}
            configs = {spec.name: spec.config for spec in specs}
        dataset = reasoning_gym.create_dataset(name, **config)
    except Exception as error:  # assertions, type errors and whatever else a task's constructor meets
        raise _gym_failed(name, parameters, error) from None
    origin = f"{problems}/{seed}"

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for index in range(size):
            try:
                entry = dataset[index]
            except Exception as error:  # from parameters that the task did not check
                raise _gym_failed(name, parameters, error) from None
            facts = entry["metadata"]
            task = facts["source_dataset"] if name == "composite" else name
            solution = worked(task, facts, style or "lines")
            if style and (solution is None or task == "gsm_symbolic"):
                raise ConfigError(
                    f"--solution-style {style}: there are no worked solutions of ours for the reasoning-gym task "
                    f"{task}; leave it out"
                )
            values = (entry["question"], entry["answer"], solution, task, configs[task], entry)
            yield _row_of(index, origin), dict(zip(GYM_COLUMNS, values, strict=True))

    return Rows(origin, GYM_COLUMNS, rows())


def _row_of(index: int, name: str) -> str:
    return f"Row {index} of {name} (counted from 0)"


def _used(columns: Sequence[str], wanted: Iterable[str]) -> list[str]:
    """Return the wanted columns; where there are none, any, so that the rows are still there to complain of."""
    wanted = set(wanted)
    return [column for column in columns if column in wanted] or list(columns[:1])


def _table(name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Rows:
    """Return the rows of a table; None stands for the columns that were not read."""
    absent = dict.fromkeys(columns)
    return Rows(name, columns, ((_row_of(index, name), {**absent, **row}) for index, row in enumerate(rows)))


def _parquet_rows(name: str, file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield rows batch by batch, so that a limit spares reading the whole file."""
    try:
        for batch in file.iter_batches(columns=columns):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(name, error) from None


def _damaged(name: str, error: Exception) -> DataError:
    return DataError(f"{name} (--problems) cannot be read: {_short(error)}. Check that the file is whole.")


def _json_rows(name: str, data: bytes) -> Rows:
    """Return the rows of JSON Lines, or of the array that a `.json` file may hold instead."""
    # Everything is parsed at once: only then are the columns known, since a field may begin in any row.
    data = data.removeprefix(b"\xef\xbb\xbf")
    if name.endswith(_JSON) and data.lstrip().startswith(b"["):
        rows = [(_row_of(index, name), row) for index, row in enumerate(_parsed(data, name, 1))]
    else:
        lines = ((number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip())
        rows = [(f"Line {number} of {name}", _parsed(line, name, number)) for number, line in lines]
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(
                f'{where} is {str(row)[:60]!r}, but must be an object such as {{"question": …, "answer": …}}.'
            )
    return Rows(name, list(dict.fromkeys(column for _, row in rows for column in row)), rows)


def _parsed(data: bytes, name: str, line: int) -> Any:
    """Return the value of JSON text that begins at a line of a file."""
    try:
        return json.loads(data.decode())
    except json.JSONDecodeError as error:
        line, why = line + error.lineno - 1, f"{error.msg} (column {error.colno})"
    # Not UTF-8; an integer of thousands of digits; brackets without end.
    except (ValueError, RecursionError) as error:
        why = _short(error)
    raise DataError(f"Line {line} of {name} is not JSON: {why}. Correct or remove it.")


def _dataset(problems: str, config: str | None, split: str, files: str | None) -> Any:
    import datasets  # pandas and the Hub's client: a second that other sources need not spend

    path = Path(problems).expanduser()
    name = str(path) if path.is_dir() else problems
    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    try:
        if not saved:
            return datasets.load_dataset(name, config, split=split, data_files=files)
        found = datasets.load_from_disk(name)
    # Whatever datasets, the Hub's client or a file reader raises: the source cannot be had.
    except Exception as error:
        looked = "" if path.is_dir() else " It is no file or directory here, so the Hub was asked."
        raise ConfigError(
            f"The dataset {problems} (--problems) cannot be loaded with --config {config or '(none)'} and "
            f"--split {split}: {_short(error)}.{looked} Correct what is wrong, or give a file or directory."
        ) from None
    # A single dataset has no split but the one that it was saved from, if that is known.
    splits = found if isinstance(found, dict) else {str(found.split or "train"): found}
    if split not in splits:
        raise ConfigError(f"The dataset {problems} (--problems) has no --split {split!r}. It has {', '.join(splits)}.")
    return splits[split]


def _gym_failed(name: str, parameters: Mapping[str, Any], error: Exception) -> ConfigError:
    given = ", ".join(f"{key}={value}" for key, value in parameters.items()) or "its own parameters"
    return ConfigError(f"The reasoning-gym task {name} fails with {given} (--gym): {_short(error)}. Change them.")


def _short(error: BaseException) -> str:
    """Return what an error says, in one line of bearable length."""
    text = " ".join(str(error).split()).rstrip(".!") or type(error).__name__
    if isinstance(error, LookupError):  # which says no more than the key
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 300 else text[:300] + "…"
