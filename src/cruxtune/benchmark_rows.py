"""Rows of the benchmarks, from local files or from their sources; and the guard that keeps their tests out of training.

Local files are `NAME/SPLIT.jsonl` or `.jsonl.gz` in `--benchmarks-dir`, in the fields of `cruxtune.problems`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from cruxtune.benchmarks import BENCHMARK, BENCHMARKS, table_question
from cruxtune.errors import ConfigError, DataError
from cruxtune.records import Problem
from cruxtune.sources import Rows, dataset_rows, file_rows

_PUBMEDQA_TEST = (
    "https://raw.githubusercontent.com/pubmedqa/pubmedqa/1cbae8e92f72f20c8d3747cbb3bf5bc53554d997"
    "/data/test_ground_truth.json"
)


def benchmark_rows(name: str, split: str, directory: Path | None) -> Rows:
    """Return the rows of a benchmark's split, in the fields of our problems.

    Args:
        name: one of `BENCHMARKS`.
        split: test, or train where there is one.
        directory: where the files are; None for the benchmark's source.

    Raises:
        ConfigError: there is no such split or file, or the source cannot be reached.
    """
    _check_split(name, split, directory)
    # Wherever they are from, the same problems are the same: ids and origin do not name the place.
    origin = f"{BENCHMARK}{name}/{split}"
    tolerance = BENCHMARKS[name].relative_tolerance
    common = {} if tolerance is None else {"relative_tolerance": tolerance}
    if directory is None:
        return Rows(origin, (), ((where, {**common, **row}) for where, row in _source_rows(name, split)))
    _, columns, rows = file_rows(str(_file(name, split, directory)), ())
    numbered = (
        (where, {"id": f"{name}/{split}/{index}", **common, **_without_options(row)})
        for index, (where, row) in enumerate(rows)
    )
    return Rows(origin, columns, numbered)


def require_files(names: Iterable[str], split: str, directory: Path | None) -> None:
    """Check that the files of benchmarks are there, before anything is spent on the first of them.

    Raises:
        ConfigError: naming every file that is missing.
    """
    if directory is None:
        return
    if not directory.is_dir():
        raise ConfigError(
            f"--benchmarks-dir {directory} is no directory; name the one with NAME/test.jsonl for each benchmark, or "
            "leave it out to load them from their sources."
        )
    missing = [name for name in names if local_file(name, split, directory) is None]
    if missing:
        files = ", ".join(f"{name}/{split}.jsonl" for name in missing)
        raise ConfigError(
            f"--benchmarks-dir {directory} has no {files} (nor with .gz); put the files there (docs/benchmarks.md has "
            "their fields), leave these benchmarks out, or leave out --benchmarks-dir to load them from their sources."
        )


def local_file(name: str, split: str, directory: Path) -> Path | None:
    """Return the file of a benchmark's split in a directory of benchmark files, None where there is none."""
    paths = (directory / name / f"{split}{suffix}" for suffix in (".jsonl", ".jsonl.gz"))
    return next((path for path in paths if path.is_file()), None)


def count_rows(name: str, split: str, directory: Path) -> int | None:
    """Return how many rows the file of a benchmark's split has, None where there is no file."""
    path = local_file(name, split, directory)
    if path is None:
        return None
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def test_problems(problems: Iterable[Problem]) -> dict[str, list[str]]:
    """Return the ids of problems that are of a benchmark's test split, by benchmark.

    They are known by their id (`gsm8k/test/17`, as benchmark files and `benchmark:` have it) or by their source, a
    dataset of the Hub and its split.

    >>> test_problems([Problem("gsm8k/test/3", "?", "1"), Problem("p", "?", "1", source="openai/gsm8k/main/test[:9]")])
    {'gsm8k': ['gsm8k/test/3', 'p']}
    """
    found: dict[str, list[str]] = {}
    for problem in problems:
        name = _test_of(problem)
        if name is not None:
            found.setdefault(name, []).append(problem.id)
    return found


def refuse_test_problems(problems: Iterable[Problem], what: str) -> None:
    """Refuse to train on test problems of a benchmark: no score on it would mean anything afterwards.

    Args:
        problems: what would be trained on.
        what: words for where they are from, with the flag.

    Raises:
        DataError: some of them are of a test split.
    """
    for name, ids in test_problems(problems).items():
        trainable = "train" in BENCHMARKS[name].splits
        instead = (
            f"train on its training split (--problems {BENCHMARK}{name})" if trainable else "it has no training split"
        )
        raise DataError(
            f"{what}: {len(ids)} of the problems are of the test split of {BENCHMARKS[name].title}, first {ids[0]}. "
            f"Test problems are for evaluation alone and are never trained on: {instead}, or train on other problems."
        )


def _check_split(name: str, split: str, directory: Path | None) -> None:
    benchmark = BENCHMARKS[name]
    if split not in benchmark.splits:
        where = f"{benchmark.title} (--problems {BENCHMARK}{name})"
        if split == "train":
            raise ConfigError(f"{where} has no train split: it is for evaluation only. Train on other problems.")
        raise ConfigError(
            f"{where} has no split {split!r} (--split): its splits are {', '.join(benchmark.splits)}. Name one of them."
        )
    if split == "train" and directory is not None and local_file(name, split, directory) is None:
        raise ConfigError(
            f"{benchmark.title} ({BENCHMARK}{name}) has no training split in --benchmarks-dir {directory}: there is no "
            f"{name}/train.jsonl (nor with .gz). Leave out --benchmarks-dir to load it from its source, or use "
            "other problems; a test split is never trained on."
        )


def _file(name: str, split: str, directory: Path) -> Path:
    require_files([name], split, directory)
    path = local_file(name, split, directory)
    assert path is not None
    return path


def _without_options(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of TabMWP without the options in its question."""
    if row.get("choices") and row.get("table") and row.get("question_only"):
        return {**row, "question": table_question(row.get("table_title"), row["table"], row["question_only"])}
    return row


def _source_rows(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    benchmark = BENCHMARKS[name]
    there = benchmark.splits[split].name
    tested = _pubmedqa_test_ids() if name == "pubmedqa" else None
    index = 0
    for config in benchmark.configs:
        try:
            if benchmark.source.startswith("https:"):
                _, _, rows = dataset_rows("json", None, there, files=benchmark.source)
            else:
                _, _, rows = dataset_rows(benchmark.source, config, there)
        except ConfigError as error:
            raise ConfigError(
                f"{benchmark.title} ({BENCHMARK}{name}) cannot be loaded from {benchmark.source}: {error} Benchmarks "
                "can also be read from local files: --benchmarks-dir DIR."
            ) from None
        for where, row in rows:
            if tested is not None and (str(row["pubid"]) in tested) != (split == "test"):
                continue
            yield where, {**benchmark.record(row), "id": f"{name}/{split}/{index}"}
            index += 1


def _pubmedqa_test_ids() -> set[str]:
    """Return the ids of PubMedQA's 500 test problems: at the Hub they lie among the others."""
    try:
        with urlopen(_PUBMEDQA_TEST, timeout=60) as answer:
            return set(json.load(answer))
    except (URLError, OSError, ValueError) as error:
        raise ConfigError(
            f"The list of PubMedQA's test problems cannot be loaded from {_PUBMEDQA_TEST} ({error}). Check the "
            "network, or read local files with --benchmarks-dir DIR."
        ) from None


def _test_of(problem: Problem) -> str | None:
    """Return the benchmark whose test split a problem is of."""
    name, _, rest = problem.id.partition("/")
    if name in BENCHMARKS and rest.startswith("test/"):
        return name
    for name, benchmark in BENCHMARKS.items():
        prefix, _, splits = problem.source.rpartition("/")
        if prefix == benchmark.source or prefix in [f"{benchmark.source}/{config}" for config in benchmark.configs]:
            here = {part.partition("[")[0].strip() for part in splits.split("+")}
            if benchmark.splits["test"].name in here:
                return name
    return None
