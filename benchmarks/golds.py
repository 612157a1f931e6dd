"""Which gold answers of the benchmark files the verifier accepts: bare, boxed, rewritten, and in their own solutions.

    .venv/bin/python benchmarks/golds.py DIR [NAME/FILE ...]

DIR holds the files (`NAME/SPLIT.jsonl`, also .gz). The table goes to stdout, and what is not accepted to --json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from cruxtune.problems import ProblemSource, load_problems
from cruxtune.records import Problem
from cruxtune.verifiers import Verifier

FORMS = ("bare", "boxed", "rewritten", "solution")
TESTS = (
    *("gsm8k/test.jsonl", "math/test.jsonl.gz", "math500/test.jsonl", "svamp/test.jsonl", "asdiv/test.jsonl"),
    *("mawps/test.jsonl", "carp_en/test.jsonl", "tabmwp/test.jsonl", "minerva_math/test.jsonl"),
    *("gaokao2023en/test.jsonl", "olympiadbench/test.jsonl", "college_math/test.jsonl", "medqa/test.jsonl"),
    *("mmlu_medical/test.jsonl", "pubmedqa/test.jsonl"),
)


def cases(problem: Problem) -> list[tuple[str, str]]:
    """Return the texts that state a problem's gold answer, by form."""
    gold = problem.answer
    found = [("bare", gold), ("boxed", f"It follows that \\boxed{{{gold}}}."), ("rewritten", rewritten(problem))]
    return found + ([("solution", problem.solution)] if problem.solution else [])


def rewritten(problem: Problem) -> str:
    r"""Return a response with the gold answer in another spelling, so that no comparison of strings decides.

    Numbers get a decimal (5.0), fractions another macro, spaces go, lists without brackets are turned round, letters
    are put in brackets.
    """
    gold = problem.answer
    if problem.kind == "choice":
        return f"The best option is ({gold})." if len(gold) == 1 else f"**Answer: {gold.capitalize()}**"
    plain = gold.strip().rstrip(".")
    plain = plain.strip("$ ") if plain.count("$") <= 2 else plain
    if plain.replace(",", "").lstrip("-").isdecimal():
        return f"Thus it is \\boxed{{{plain}.0}}"
    items = [item.strip(" $") for item in plain.split(",")]
    if len(items) > 1 and not any(set(item) & set("([{") for item in items) and not plain.replace(",", "").isdecimal():
        plain = r",\ ".join(reversed(items))
    return r"Hence we have \boxed{" + plain.replace(r"\frac", r"\dfrac").replace(" + ", "+") + "}."


def judged(path: Path, verifier: Verifier, limit: int | None = None) -> tuple[Counter[str], Counter[str], list[Any]]:
    """Return, by form, how many golds there are and how many are accepted, and those that are not."""
    problems = load_problems(ProblemSource(problems=str(path)), limit=limit, skip_bad=True)
    texts = [(form, text, problem) for problem in problems for form, text in cases(problem)]
    verdicts = verifier.verify_many([(text, problem) for _, text, problem in texts])
    total, accepted, refused = Counter[str](), Counter[str](), []
    for (form, text, problem), verdict in zip(texts, verdicts, strict=True):
        total[form] += 1
        accepted[form] += verdict.correct
        if not verdict.correct:
            found = {"extracted": verdict.extracted, "reason": verdict.reason, "end": text[-200:]}
            refused.append({"id": problem.id, "form": form, "gold": problem.answer, **found})
    return total, accepted, refused


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*", default=TESTS)
    parser.add_argument("--json", type=Path, help="where what is not accepted goes")
    parser.add_argument("--limit", type=int, help="only the first N problems of each file")
    arguments = parser.parse_args()
    refused = {}
    print(
        "| benchmark | golds | bare | boxed | rewritten | in its solution |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    with Verifier() as verifier:
        for name in arguments.names:
            total, accepted, refused[name] = judged(arguments.directory / name, verifier, arguments.limit)
            shares = [f"{100 * accepted[form] / total[form]:.1f} %" if total[form] else "–" for form in FORMS]
            print(f"| {name.split('/')[0]} | {total['bare']:,} | {' | '.join(shares)} |")
            sys.stdout.flush()
            if arguments.json:
                arguments.json.write_text(json.dumps(refused, indent=1) + "\n")


if __name__ == "__main__":
    main()
