"""The benchmarks by name: what they are, where they come from, and how a row of the source becomes one of ours.

A source is a dataset of the Hub, or a JSON Lines file of the repository that published the benchmark, at a fixed commit
(the paper's harness has sets that the Hub has with other problems or not at all). `cruxtune.benchmark_rows` loads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, Field

from cruxtune.errors import ConfigError
from cruxtune.sources import closest

BENCHMARK = "benchmark:"
"""What a problem source begins with that is one of these: `benchmark:gsm8k`."""

Row = Mapping[str, Any]

_HARNESS = (
    "https://raw.githubusercontent.com/QwenLM/Qwen2.5-Math/a45202bd16f1ec06f433442dc1152d0074773465/evaluation/data"
)
_MEDICAL_SUBJECTS = (
    *("anatomy", "clinical_knowledge", "college_biology", "college_medicine"),
    *("medical_genetics", "professional_medicine"),
)


class Split(NamedTuple):
    """A split of a benchmark: what it is called at the source, and how many rows it has there."""

    name: str
    rows: int


class Benchmark(NamedTuple):
    """One benchmark.

    `record` makes the fields of a problem from a row of the source. `configs` are the source's, whose rows follow one
    another. `examples` names the set of few-shot examples for base models (see `cruxtune.shots`). `relative_tolerance`
    is how far from a gold number an answer may be.
    """

    title: str
    licence: str
    source: str
    splits: Mapping[str, Split]
    record: Callable[[Row], dict[str, Any]]
    configs: Sequence[str | None] = (None,)
    kind: str = "math"
    examples: str = "word"
    relative_tolerance: float | None = None

    @property
    def shown_source(self) -> str:
        """Where it comes from, in few words."""
        return "QwenLM/Qwen2.5-Math on GitHub" if self.source.startswith(_HARNESS) else self.source


def _columns(**columns: str) -> Callable[[Row], dict[str, Any]]:
    """Return a function that renames columns: field of a problem = column of the source."""

    def record(row: Row) -> dict[str, Any]:
        return {name: row.get(column) for name, column in columns.items()}

    return record


def _math(row: Row) -> dict[str, Any]:
    r"""The answer is the content of the solution's last \boxed; where that is empty there is none."""
    answer = last_boxed(row["solution"])
    return {
        "question": row["problem"],
        "answer": answer,
        "solution": row["solution"],
        "subject": row["type"],
        "level": row.get("level"),
    }


def _svamp(row: Row) -> dict[str, Any]:
    body = row["Body"].strip()
    return {
        "question": f"{body}{'' if body.endswith('.') else '.'} {row['Question'].strip()}",
        "answer": row["Answer"],
        "subject": row["Type"],
        "source_id": row["ID"],
    }


def _asdiv(row: Row) -> dict[str, Any]:
    value, _, unit = row["answer"].partition(" (")
    return {
        "question": f"{row['body'].strip()} {row['question'].strip()}",
        "answer": row["answer"],
        "answer_value": value.strip(),
        "unit": unit.removesuffix(")") or None,
        "subject": row["solution_type"],
    }


def _tabmwp(row: Row) -> dict[str, Any]:
    choices = row["choices"] or None
    return {
        "question": table_question(row["table_title"], row["table"], row["question"]),
        "answer": row["answer"],
        "solution": row["solution"],
        "choices": choices,
        "answer_index": choices.index(row["answer"]) if choices and row["answer"] in choices else None,
        "unit": row["unit"],
        "answer_type": row["ans_type"],
    }


def table_question(title: str | None, table: str, question: str) -> str:
    """Return a question of TabMWP with its table, without options: prompts show them by letter."""
    return f"Table:{f' {title}' if title else ''}\n{table}\n\nQuestion: {question}"


def _college_math(row: Row) -> dict[str, Any]:
    return {
        "question": row["question"],
        "answer": row["answer"],
        "subject": row["data_topic"].rpartition(".")[2],
        "source_id": f"{row['data_source'].partition('.')[2]}/{row['question_number']}",
        "license": row["license"],
    }


def _olympiad(row: Row) -> dict[str, Any]:
    return {
        "question": row["question"],
        "answer": row["final_answer"][0],
        "solution": row["solution"][0],
        "subject": row["subfield"],
        "unit": row["unit"],
        "tolerance": row["error"],
        "answer_type": row["answer_type"],
        "is_multiple_answer": row["is_multiple_answer"],
        "source_id": row["id"],
    }


def _medqa(row: Row) -> dict[str, Any]:
    return {
        "question": row["question"],
        "choices": [row["options"][letter] for letter in sorted(row["options"])],
        "answer": row["answer_idx"],
        "answer_text": row["answer"],
        "subject": row["meta_info"],
    }


def _mmlu(row: Row) -> dict[str, Any]:
    return {
        "question": row["question"],
        "choices": list(row["choices"]),
        "answer_index": row["answer"],
        "subject": row["subject"],
    }


def _pubmedqa(row: Row) -> dict[str, Any]:
    contexts = "\n".join(row["context"]["contexts"])
    return {
        "question": f"{contexts}\n\nQuestion: {row['question']}",
        "choices": ["yes", "no", "maybe"],
        "answer": row["final_decision"],
        "solution": row["long_answer"],
        "source_id": row["pubid"],
    }


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark(
        "GSM8K",
        "MIT",
        "openai/gsm8k",
        {"test": Split("test", 1319), "train": Split("train", 7473)},
        _columns(question="question", answer="answer"),
        configs=("main",),
    ),
    "math": Benchmark(
        "MATH",
        "MIT",
        "DigitalLearningGmbH/MATH-lighteval",
        {"test": Split("test", 5000), "train": Split("train", 7500)},
        _math,
        examples="competition",
    ),
    "math500": Benchmark(
        "MATH-500",
        "MIT",
        "HuggingFaceH4/MATH-500",
        {"test": Split("test", 500)},
        _columns(
            question="problem",
            answer="answer",
            solution="solution",
            subject="subject",
            level="level",
            source_id="unique_id",
        ),
        examples="competition",
    ),
    "svamp": Benchmark("SVAMP", "MIT", f"{_HARNESS}/svamp/test.jsonl", {"test": Split("train", 1000)}, _svamp),
    "asdiv": Benchmark("ASDiv", "CC BY-NC 4.0", f"{_HARNESS}/asdiv/test.jsonl", {"test": Split("train", 2215)}, _asdiv),
    "mawps": Benchmark(
        "MAWPS",
        "not stated",
        f"{_HARNESS}/mawps/test.jsonl",
        {"test": Split("train", 2065)},
        _columns(question="input", answer="target", subject="type"),
    ),
    "carp_en": Benchmark(
        "CARP-En",
        "CC BY-NC-SA 4.0",
        f"{_HARNESS}/carp_en/test.jsonl",
        {"test": Split("train", 976)},
        _columns(question="content", answer="answer", solution="steps"),
        examples="competition",
    ),
    "tabmwp": Benchmark(
        "TabMWP",
        "CC BY-NC-SA 4.0",
        f"{_HARNESS}/tabmwp/test.jsonl",
        {"test": Split("train", 1000)},
        _tabmwp,
        kind="math, choice",
        examples="table",
    ),
    "minerva_math": Benchmark(
        "Minerva-Math",
        "not stated",
        f"{_HARNESS}/minerva_math/test.jsonl",
        {"test": Split("train", 272)},
        _math,
        examples="competition",
        # Golds are rounded to two or three digits; the grading that was published with them allows 1 %, too.
        relative_tolerance=0.01,
    ),
    "gaokao2023en": Benchmark(
        "Gaokao2023-En",
        "not stated",
        f"{_HARNESS}/gaokao2023en/test.jsonl",
        {"test": Split("train", 385)},
        _columns(question="question", answer="answer", source_id="source"),
        examples="competition",
    ),
    "olympiadbench": Benchmark(
        "OlympiadBench",
        "MIT",
        f"{_HARNESS}/olympiadbench/test.jsonl",
        {"test": Split("train", 675)},
        _olympiad,
        examples="competition",
    ),
    "college_math": Benchmark(
        "College-Math",
        "per row, part NC",
        f"{_HARNESS}/college_math/test.jsonl",
        {"test": Split("train", 2818)},
        _college_math,
        examples="competition",
    ),
    "medqa": Benchmark(
        "MedQA (USMLE, 4 options)",
        "MIT",
        "GBaker/MedQA-USMLE-4-options",
        {"test": Split("test", 1273), "train": Split("train", 10178)},
        _medqa,
        kind="choice",
        examples="medical",
    ),
    "mmlu_medical": Benchmark(
        "MMLU, six medical subjects",
        "MIT",
        "cais/mmlu",
        {"test": Split("test", 1089), "validation": Split("validation", 123), "dev": Split("dev", 30)},
        _mmlu,
        configs=_MEDICAL_SUBJECTS,
        kind="choice",
        examples="medical",
    ),
    "pubmedqa": Benchmark(
        "PubMedQA (PQA-L)",
        "MIT",
        "qiaojin/PubMedQA",
        {"test": Split("train", 500), "train": Split("train", 500)},
        _pubmedqa,
        configs=("pqa_labeled",),
        kind="choice",
        examples="abstract",
    ),
}

GROUPS: dict[str, tuple[str, ...]] = {
    "paper": (
        *("gsm8k", "math", "svamp", "asdiv", "mawps", "carp_en", "tabmwp"),
        *("minerva_math", "gaokao2023en", "olympiadbench", "college_math"),
    ),
    "medical": ("medqa", "mmlu_medical", "pubmedqa"),
}
"""Names for several benchmarks: the eleven of the paper, and the medical ones."""


def benchmark_names(text: str) -> tuple[str, ...]:
    """Return the benchmarks of a list with commas, each once; case, hyphens and underscores do not matter.

    Raises:
        ConfigError: a name that there is no benchmark for.

    >>> benchmark_names("GSM8K,math-500, gsm8k")
    ('gsm8k', 'math500')
    >>> len(benchmark_names("paper"))
    11
    """
    known = {_plain(name): (name,) for name in BENCHMARKS} | GROUPS
    names: list[str] = []
    for given in filter(None, (part.strip() for part in text.split(","))):
        if _plain(given) not in known:
            raise ConfigError(
                f"There is no benchmark {given!r}.{closest(given, [*BENCHMARKS, *GROUPS])} "
                f"There are {', '.join(BENCHMARKS)}; paper stands for the eleven of the paper, medical for the last "
                "three. `cruxtune benchmarks` shows them all."
            )
        names.extend(known[_plain(given)])
    if not names:
        raise ConfigError(f"{text!r} names no benchmark; give some of {', '.join([*BENCHMARKS, *GROUPS])}.")
    return tuple(dict.fromkeys(names))


def one_benchmark(problems: str) -> str:
    """Return the name in a problem source `benchmark:NAME`.

    Raises:
        ConfigError: it names no benchmark, or several.

    >>> one_benchmark("benchmark:MATH-500")
    'math500'
    """
    names = benchmark_names(problems.removeprefix(BENCHMARK))
    if len(names) != 1:
        raise ConfigError(
            f"--problems {problems} stands for {len(names)} benchmarks, but problems come from one; to evaluate on "
            "several give --benchmarks."
        )
    return names[0]


def known_benchmarks(value: str | None) -> str | None:
    """Return a list of benchmarks as it is; what is wrong with it is one of the settings' errors."""
    try:
        benchmark_names(value if value is not None else "paper")
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return value


BenchmarkList = Annotated[str | None, AfterValidator(known_benchmarks)]
"""Names of benchmarks with commas."""


class BenchmarkSettings(BaseModel, extra="forbid", frozen=True):
    """Where benchmarks are."""

    benchmarks_dir: Path | None = Field(
        None,
        description="Directory with NAME/SPLIT.jsonl (or .jsonl.gz) of each benchmark; by default they are loaded from "
        "their sources, see `cruxtune benchmarks`.",
    )


def last_boxed(text: str) -> str:
    r"""Return the content of a text's last \boxed or \fbox, "" where there is none.

    >>> last_boxed(r"so \boxed{1} or \boxed{\frac{1}{2}}."), last_boxed(r"it is \boxed 3 then")
    ('\\frac{1}{2}', '3')
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return ""
    rest = text[start:].removeprefix("\\boxed").removeprefix("\\fbox")
    if not rest.startswith("{"):
        return re.split(r"[\s$]", rest.lstrip(), maxsplit=1)[0]
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place]
    return ""


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.casefold())
