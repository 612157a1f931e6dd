"""The gold answers of the benchmark files: which of them the verifier accepts, and where."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cruxtune.verifiers import Verifier

ROOT = Path(__file__).parents[2]
BENCHMARKS = Path(os.environ.get("CRUXTUNE_BENCHMARKS", ROOT.parent / "shared" / "benchmarks"))

# The least share of each form; docs/verification.md explains what is missing. A sample keeps the tests quick: the first
# rows of each file, and all of them in benchmarks/golds.py.
SHARES = [
    ("gsm8k/test.jsonl", 400, {"bare": 1.0, "boxed": 1.0, "rewritten": 1.0, "solution": 0.96}),
    ("math/test.jsonl.gz", 600, {"bare": 1.0, "boxed": 1.0, "rewritten": 0.99, "solution": 0.99}),
    ("math500/test.jsonl", 500, {"bare": 1.0, "boxed": 1.0, "rewritten": 0.99, "solution": 1.0}),
    ("svamp/test.jsonl", 1000, {"bare": 1.0, "boxed": 1.0, "rewritten": 1.0}),
    ("asdiv/test.jsonl", 2300, {"bare": 1.0, "boxed": 1.0, "rewritten": 0.995}),
    ("mawps/test.jsonl", 500, {"bare": 1.0, "boxed": 1.0, "rewritten": 1.0}),
    ("carp_en/test.jsonl", 400, {"bare": 1.0, "boxed": 1.0, "rewritten": 0.99, "solution": 0.6}),
    ("tabmwp/test.jsonl", 1000, {"bare": 1.0, "boxed": 1.0, "rewritten": 1.0, "solution": 0.7}),
    ("minerva_math/test.jsonl", 272, {"bare": 1.0, "boxed": 1.0, "rewritten": 0.99, "solution": 1.0}),
    ("gaokao2023en/test.jsonl", 385, {"bare": 1.0, "boxed": 1.0, "rewritten": 0.98}),
    ("olympiadbench/test.jsonl", 675, {"bare": 1.0, "boxed": 1.0, "rewritten": 0.99, "solution": 0.6}),
    ("college_math/test.jsonl", 300, {"bare": 1.0, "boxed": 1.0, "rewritten": 0.97}),
    ("medqa/test.jsonl", 400, {"bare": 1.0, "boxed": 1.0, "rewritten": 1.0}),
    ("mmlu_medical/test.jsonl", 400, {"bare": 1.0, "boxed": 1.0, "rewritten": 1.0}),
    ("pubmedqa/test.jsonl", 500, {"bare": 1.0, "boxed": 1.0, "rewritten": 1.0}),
]


@pytest.fixture(scope="module")
def golds(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    """The script that makes the table of docs/verification.md."""
    return benchmark_script("golds")


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    """A verifier for all files."""
    with Verifier(workers=2) as one:
        yield one


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows", "shares"), SHARES, ids=[name for name, *_ in SHARES])
def test_golds_are_accepted(
    golds: ModuleType, verifier: Verifier, name: str, rows: int, shares: dict[str, float]
) -> None:
    """Every gold answer is right by itself and boxed, nearly every one rewritten, and most in their own solutions."""
    path = BENCHMARKS / name
    if not path.exists():
        pytest.skip(f"the benchmark file {name} is not in {BENCHMARKS} (set CRUXTUNE_BENCHMARKS to its directory)")
    total, accepted, refused = golds.judged(path, verifier, rows)
    assert total["bare"] >= min(rows, 250)
    too_low = {form: accepted[form] / total[form] for form in shares if accepted[form] < shares[form] * total[form]}
    assert too_low == {}, [row for row in refused if row["form"] in too_low][:5]
    if "solution" not in shares and total["solution"]:
        # PubMedQA: the abstract's conclusion says neither yes nor no.
        assert name.startswith("pubmedqa")
