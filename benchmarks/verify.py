"""The verifier beside Math-Verify called directly and beside mathruler (PRM800K's grader): rates and agreement.

Pairs of gold and prediction are made of the gold answers of benchmark files: each gold boxed as it is, in another
spelling, and another problem's gold in its place. Speed is measured on GSM8K's plain numbers, in pairs of repetitions;
agreement on all files. Ours runs in two worker processes with limits, the others in one process without; start-up and
imports are not counted, and nobody judges a pair twice. Without the files, the numbers are drawn from a seed.

    .venv/bin/python benchmarks/verify.py --benchmarks-dir DIR --json benchmarks/results/verify.json
    .venv/bin/pip install --no-deps --target DIR mathruler pylatexenc     # for --mathruler DIR
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from golds import TESTS, rewritten

from cruxtune.problems import ProblemSource, load_problems
from cruxtune.records import Problem
from cruxtune.verifiers import Verifier

PLAIN = "gsm8k/test.jsonl"
FORMS = ("as it is", "another spelling", "another problem's")
_LIMIT = 20.0
"""Seconds that another grader may take for one pair before it is killed, and the pair counted as not judged."""
_REPEATS = 5


class Pair(NamedTuple):
    """A prediction, the problem that it answers, and how it was made."""

    text: str
    problem: Problem
    form: str
    file: str


Grade = Callable[[str, str], bool]
"""From gold and prediction to a verdict."""


def pairs_of(file: str, problems: Sequence[Problem]) -> Iterator[Pair]:
    """Yield the pairs of a file's problems, as a solution that ends with a box."""
    golds = [problem.answer for problem in problems]
    for index, problem in enumerate(problems):
        other = next((gold for gold in golds[index + 1 :] + golds[:index] if gold != problem.answer), "0")
        texts = (f"So the answer is \\boxed{{{problem.answer}}}.", rewritten(problem), f"It is \\boxed{{{other}}}.")
        yield from (Pair(text, problem, form, file) for text, form in zip(texts, FORMS, strict=True))


def read(directory: Path | None, names: Iterable[str], limit: int | None) -> dict[str, list[Problem]]:
    """Return the problems with mathematical answers of each file, or made up ones where there are no files."""
    if directory is None:
        rng = random.Random(0)
        numbers = [rng.choice([rng.randrange(2, 5000), rng.randrange(100, 99999) / 100]) for _ in range(limit or 1319)]
        return {PLAIN: [Problem(id=str(n), question="?", answer=f"{value:,}") for n, value in enumerate(numbers)]}
    found = {}
    for name in names:
        problems = load_problems(ProblemSource(problems=str(directory / name)), seed=0, limit=None, skip_bad=True)
        found[name] = list(islice((one for one in problems if one.kind == "math"), limit))
    return {name: problems for name, problems in found.items() if problems}


def load_math_verify(_: Path | None) -> Grade:
    """Return Math-Verify as its readme calls it."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return lambda gold, text: bool(verify(parse(gold if "$" in gold else f"${gold}$"), parse(text)))


def load_mathruler(directory: Path | None) -> Grade:
    """Return mathruler as its readme calls it."""
    sys.path.append(str(directory))
    from mathruler.grader import extract_boxed_content, grade_answer

    return lambda gold, text: bool(grade_answer(extract_boxed_content(text), gold))


def _serve(load: Callable[[Path | None], Grade], directory: Path | None, pipe: Any) -> None:
    grade = load(directory)
    grade("1+x", r"\boxed{x+1}")
    pipe.send("ready")
    while True:
        items = pipe.recv()
        started = time.perf_counter()
        for gold, text in items:
            try:
                verdict: bool | None = grade(gold, text)
            except Exception:  # whatever a grader raises on an answer, it has no verdict
                verdict = None
            pipe.send(verdict)
        pipe.send(time.perf_counter() - started)


class Other:
    """Another grader in a process of its own, which is replaced where it hangs."""

    def __init__(self, load: Callable[[Path | None], Grade], directory: Path | None = None) -> None:
        self._arguments = (load, directory)
        self.hung = 0
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(*self._arguments, theirs), daemon=True)
        self._process.start()
        self._pipe.recv()

    def judge(self, pairs: Sequence[Pair]) -> tuple[list[bool | None], float]:
        """Return the verdicts, None where there is none, and the seconds that they took."""
        verdicts: list[bool | None] = []
        seconds = 0.0
        while len(verdicts) < len(pairs):
            self._pipe.send([(pair.problem.answer, pair.text) for pair in pairs[len(verdicts) :]])
            try:
                while len(verdicts) < len(pairs):
                    if not self._pipe.poll(_LIMIT):
                        raise TimeoutError
                    verdicts.append(self._pipe.recv())
                seconds += self._pipe.recv()
            except TimeoutError:
                self._process.kill()
                self.hung += 1
                verdicts.append(None)
                self._start()
        return verdicts, seconds

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def kind_of(answer: str) -> str:
    """Return what sort of answer a gold is, roughly: what disagreements are counted by."""
    plain = answer.replace("$", "").strip()
    for name, pattern in (
        ("number", r"-?[\d,]*\.?\d+"),
        ("fraction", r"-?(?:\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\}|\\frac\d\d|\d+\s*/\s*\d+)"),
        ("per cent", r".*\\?%"),
        ("interval, point or set", r"(?:\\left)?(?:[(\[]|\\\{).*,.*"),
        ("equation or relation", r".*(?:=|<|>|\\le|\\ge|\\in(?![a-z])).*"),
        ("list", r".*[,;].*|.*\bor\b.*"),
        ("words", r"(?:\\text\{)?[A-Za-z][A-Za-z .'-]{2,}\}?"),
        ("number with words or a unit", r"-?[\d,.]+\s*(?:\\[a-z]+|[a-zA-Z(^]).*"),
    ):
        if re.fullmatch(pattern, plain, re.DOTALL):
            return name
    return "formula"


def agreement(pairs: Sequence[Pair], ours: Sequence[bool], theirs: Sequence[bool | None]) -> dict[str, Any]:
    """Return the share of equal verdicts, in all and by file, and the others by kind of answer."""
    same = [one == other for one, other in zip(ours, theirs, strict=True)]
    files = Counter(pair.file for pair in pairs)
    equal = Counter(pair.file for pair, agrees in zip(pairs, same, strict=True) if agrees)
    kinds = Counter(
        f"{kind_of(pair.problem.answer)}, {pair.form}: {_who(one, other)}"
        for pair, one, other in zip(pairs, ours, theirs, strict=True)
        if one != other
    )
    return {
        "pairs": len(pairs),
        "agreement": sum(same) / len(pairs),
        "by_file": {name: round(equal[name] / count, 4) for name, count in files.items()},
        "disagreements": dict(kinds.most_common()),
    }


def _who(ours: bool, theirs: bool | None) -> str:
    return "they have no verdict" if theirs is None else "we accept" if ours else "they accept"


def throughput(verifier: Verifier, other: Other, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return both rates, medians over repetitions side by side, and their ratio; every repetition has its own pairs."""
    rates: list[tuple[float, float]] = []
    ours: list[bool] = []
    theirs: list[bool | None] = []
    share = len(pairs) // _REPEATS
    for repeat in range(_REPEATS):
        part = pairs[repeat * share : (repeat + 1) * share]
        started = time.perf_counter()
        verdicts = verifier.verify_many([(pair.text, pair.problem) for pair in part])
        mine = len(part) / (time.perf_counter() - started)
        direct, seconds = other.judge(part)
        rates.append((mine, len(part) / seconds))
        ours += [verdict.correct for verdict in verdicts]
        theirs += direct
    return {
        "pairs": len(ours),
        "verdicts_per_second": median(mine for mine, _ in rates),
        "math_verify_per_second": median(direct for _, direct in rates),
        "ratio_math_verify": median(mine / direct for mine, direct in rates),
        "agreement": sum(one == other for one, other in zip(ours, theirs, strict=True)) / len(ours),
    }


def show(name: str, found: dict[str, Any], examples: int, rows: Iterable[tuple[Pair, bool, bool | None]]) -> None:
    """Print one grader's agreement with ours."""
    print(f"\n{name}: {100 * found['agreement']:.2f} % of {found['pairs']:,} verdicts are the same")
    for kind, count in islice(found["disagreements"].items(), 25):
        print(f"  {count:5,}  {kind}")
    shown = Counter[str]()
    for pair, one, other in rows:
        kind = kind_of(pair.problem.answer)
        if one != other and shown[kind] < examples:
            shown[kind] += 1
            print(
                f"    {pair.problem.id}: gold {pair.problem.answer!r}, {pair.text[-90:]!r}: ours {one}, theirs {other}"
            )


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--benchmarks-dir",
        type=Path,
        default=os.environ.get("CRUXTUNE_BENCHMARKS"),
        help="directory with NAME/SPLIT.jsonl (default: CRUXTUNE_BENCHMARKS)",
    )
    parser.add_argument("--mathruler", type=Path, metavar="DIR", help="where mathruler and pylatexenc are installed")
    parser.add_argument("--quick", action="store_true", help="only 100 problems of each file; GSM8K whole")
    parser.add_argument("--examples", type=int, default=0, help="print up to N disagreements of each kind of answer")
    parser.add_argument("--json", type=Path, help="file for the numbers; no text of the files goes there")
    options = parser.parse_args()
    directory = options.benchmarks_dir
    plain = [pair for name, ones in read(directory, [PLAIN], None).items() for pair in pairs_of(name, ones)]
    random.Random(0).shuffle(plain)
    files = read(directory, TESTS, 100 if options.quick else None)
    pairs = [pair for name, problems in files.items() for pair in pairs_of(name, problems)]
    result: dict[str, Any] = {"files": len(files) if directory else 0, "quick": options.quick}
    direct = Other(load_math_verify)
    with Verifier(workers=2) as verifier:
        verifier.verify_many(
            [(f"#### {n}+x", pair.problem) for n, pair in enumerate(plain[:40])]
        )  # both workers are up
        result |= throughput(verifier, direct, plain)
        print(
            f"plain answers: {result['verdicts_per_second']:,.0f} verdicts/s, Math-Verify "
            f"{result['math_verify_per_second']:,.0f}/s: {result['ratio_math_verify']:.1f} times as many, "
            f"{100 * result['agreement']:.2f} % of {result['pairs']:,} the same"
        )
        ours = [verdict.correct for verdict in verifier.verify_many([(pair.text, pair.problem) for pair in pairs])]
        result["cut_off"] = {name: verifier.counts()[name] for name in ("timeouts", "out_of_memory", "crashes")}
    others = {"math_verify": direct}
    if options.mathruler:
        others["mathruler"] = Other(load_mathruler, options.mathruler)
    for name, other in others.items():
        theirs, seconds = other.judge(pairs)
        found = agreement(pairs, ours, theirs)
        result[f"all_{name}"] = {**found, "pairs_per_second": len(pairs) / seconds, "hung": other.hung}
        show(name, found, options.examples, zip(pairs, ours, theirs, strict=True))
        other.close()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
