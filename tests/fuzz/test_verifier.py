"""The verifier on hostile answers: no hang, no crash, no code, bounded memory, 20,000 inputs."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cruxtune.records import Problem, Verdict
from cruxtune.verifiers import Verifier
from cruxtune.verifiers.answers import Rules, answers_equal
from cruxtune.verifiers.compare import judge
from cruxtune.verifiers.extract import clean
from cruxtune.verifiers.guard import is_arithmetic, math_verify
from cruxtune.verifiers.notation import tidy

from .corpus import BOMBS, CODE, CORPUS

SECONDS = 0.5
GIB = 0.5
TEXTS_AN_EXAMPLE = 40
EXAMPLES = 450
REASONS = {
    *("boxed", "hash", "tag", "phrase", "bare", "line", "last-number", "last-maths", "last-letter", "last-option"),
    *("last-line", "no-answer", "time-out", "memory"),
}

FORMS = [
    "{}",
    r"So \boxed{{{}}}.",
    "#### {}",
    "The answer is {}",
    "<think>hm</think>{}",
    "${}$",
    r"\[x = {}\]",
    "{}\n\n{}",
]
GOLDS = [
    Problem(id="number", question="?", answer="48231.5"),
    Problem(id="formula", question="?", answer=r"\frac{x^2+17}{\sqrt{31}}"),
    Problem(id="list", question="?", answer="-17.25, 48231, y+3", metadata={"unit": "km", "relative_tolerance": 0.001}),
    Problem(id="set", question="?", answer=r"(-\infty, 48231) \cup [3, 4823)"),
    Problem(id="words", question="?", answer="a pelican crossing"),
    Problem(id="choice", question="?", answer="zebra", kind="choice", choices=["quail", "zebra", "gnu", "yak"]),
    Problem(id="exact", question="?", answer="exactly this", kind="exact"),
    Problem(id="bomb", question="?", answer="9^{9^{9^9}} + y"),
]

_PIECES = [
    *(
        "0",
        "1",
        "7",
        "12",
        "3.5",
        "1/2",
        "x",
        "y",
        "pi",
        "e",
        "i",
        "a_1",
        "+",
        "-",
        "*",
        "/",
        "^",
        "_",
        "=",
        "<",
        ">",
        "!",
        "%",
        "|",
    ),
    *(
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "$",
        "\\",
        "&",
        ",",
        ";",
        ":",
        ".",
        " ",
        "\n",
        "and",
        "or",
        "not",
        "km",
        "th",
        "°",
        "′",
        "\x00",
    ),
    *(
        r"\frac{",
        r"\frac12",
        r"\sqrt{",
        r"\sqrt[3]{",
        r"\text{",
        r"\left(",
        r"\right)",
        r"\{",
        r"\}",
        r"\pi",
        r"\infty",
        r"\cup",
    ),
    *(
        r"\times",
        r"\cdot",
        r"\pm",
        r"\le",
        r"\in",
        r"\sin",
        r"\log_",
        r"\boxed{",
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        r"\\",
        r"\%",
    ),
    *(
        "}{",
        "}}",
        "^2",
        "^{-1}",
        "####",
        "the answer is",
        "A",
        "(B)",
        "yes",
        "None",
        "lambda",
        "__class__",
        "os.system",
        "'",
        '"',
        "`",
    ),
]
TEXTS = st.tuples(
    st.sampled_from(FORMS),
    st.one_of(
        st.lists(st.sampled_from(_PIECES), max_size=14).map("".join),
        st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=4)), max_size=8).map(" ".join),
        st.tuples(
            st.sampled_from([text for text in CORPUS if len(text) < 400 and text not in BOMBS]), st.integers(0, 400)
        ).map(lambda pair: pair[0][: pair[1]] or pair[0]),
    ),
).map(lambda pair: pair[0].replace("{}", pair[1]).replace("{{", "{").replace("}}", "}"))


class Watch:
    """The most memory that a verifier's workers take above what they hold when first seen, in MiB."""

    def __init__(self, verifier: Verifier) -> None:
        self.worst = 0
        self._verifier = verifier
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        first: dict[int, int] = {}
        while not self._stop.wait(0.02):
            for worker in list(self._verifier._workers):
                peak = _peak_mib(worker.process.pid)
                if peak and not worker.busy:
                    self.worst = max(self.worst, peak - first.setdefault(worker.process.pid, peak))

    def end(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()


def _peak_mib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:")), 0)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty working directory, for the workers too: whatever appears there was made by an answer."""
    before, path = Path.cwd(), tmp_path_factory.mktemp("canary")
    os.chdir(path)
    yield path
    os.chdir(before)


@pytest.fixture(scope="module")
def verifier(here: Path) -> Iterator[tuple[Verifier, Watch]]:
    """Two workers with limits of half a second and half a GiB, and how much memory they take."""
    with Verifier(timeout=SECONDS, memory=GIB, workers=2) as one:
        watch = Watch(one)
        yield one, watch
        watch.end()


def checked(verdicts: Sequence[Verdict], texts: Sequence[tuple[str, Problem]]) -> Counter[str]:
    """Return the verdicts by reason; none may be of a crash, or right."""
    for verdict, (text, problem) in zip(verdicts, texts, strict=True):
        assert verdict.reason in REASONS, (verdict.reason, problem.id, text[:300])
        # A letter may hit the right option by chance; nothing here is any of the other answers.
        assert not verdict.correct or problem.id == "choice", (verdict, problem.id, text[:300])
    return Counter(verdict.reason for verdict in verdicts)


@pytest.mark.slow
def test_corpus(verifier: tuple[Verifier, Watch], here: Path) -> None:
    """Every nasty string, bare and as an answer: judged wrong within its limit, however it is written, and not run."""
    assert len(set(CORPUS)) == len(CORPUS) >= 200
    one, watch = verifier
    tame = [text for text in CORPUS if text not in BOMBS]
    tries = [
        [
            (form.replace("{}", text), problem)
            for form in ("{}", "The answer is {}")
            for problem in (*GOLDS[:3], GOLDS[6])
        ]
        + [("\\boxed{" + text + "}", problem) for problem in (*GOLDS[:3], GOLDS[6])]
        for text in tame
    ]
    # A bomb costs its worker: one writing of each is enough, two at a time for the two workers.
    tries += [
        [("\\boxed{" + text + "}", GOLDS[0]) for text in BOMBS[start : start + 2]] for start in range(0, len(BOMBS), 2)
    ]
    reasons = Counter[str]()
    worst = ("", 0.0)
    for items in tries:
        started = time.monotonic()
        reasons += checked(one.verify_many(items), items)
        worst = max(worst, (items[0][0][:60], time.monotonic() - started), key=lambda pair: pair[1])
    print(f"{reasons.total():,} inputs: {dict(reasons)}; slowest {worst}; {watch.worst} MiB at most")  # noqa: T201
    # No more than a limit and the start of a worker, on however slow a machine, for each of a dozen texts at most.
    assert worst[1] < 60
    assert watch.worst < 1024 * GIB + 64
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_generated(verifier: tuple[Verifier, Watch], here: Path) -> None:
    """Texts put together from pieces of answers, markup and code: judged wrong, within the limits, and not run."""
    one, watch = verifier
    reasons = Counter[str]()

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(st.tuples(TEXTS, st.sampled_from(GOLDS)), min_size=TEXTS_AN_EXAMPLE, max_size=TEXTS_AN_EXAMPLE))
    def judged(items: list[tuple[str, Problem]]) -> None:
        nonlocal reasons
        reasons += checked(one.verify_many(items), items)

    judged()
    print(f"{reasons.total():,} inputs: {dict(reasons)}; {watch.worst} MiB at most")  # noqa: T201
    assert reasons.total() >= EXAMPLES * TEXTS_AN_EXAMPLE
    assert watch.worst < 1024 * GIB + 64
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_the_canary_would_sing(here: Path) -> None:
    """The corpus does run code where sympy's parser reads it unguarded: an empty directory is no accident."""
    script = (
        "import sys, contextlib; from sympy.parsing.sympy_parser import parse_expr\n"
        "for text in sys.argv[1:]:\n"
        "    with contextlib.suppress(Exception): parse_expr(text)\n"
    )
    try:
        subprocess.run([sys.executable, "-c", script, *CODE[:3]], cwd=here, check=False, timeout=60)
        assert (here / "canary").exists()
    finally:
        (here / "canary").unlink(missing_ok=True)


def test_only_arithmetic_reaches_the_parser(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """What sympy's parser is given, of nasty answers and of honest ones, is digits, operators and brackets."""
    from sympy.parsing import sympy_parser

    math_verify()
    seen: list[str] = []
    inner: Callable[..., Any] = sympy_parser.stringify_expr

    def spied(text: str, *args: Any) -> Any:
        seen.append(text)
        return inner(text, *args)

    monkeypatch.setattr(sympy_parser, "stringify_expr", spied)
    honest = ["2*3+x", r"\frac{3}{4}", "4.5e33", "(1+2)/3", r"2\times 10^{5}", "0.1234", "50%", r"\sqrt{7.5}"]
    # Long ones and bombs need a worker's limits.
    for text in [*honest, *(text for text in CODE if len(text) < 200 and not re.search(r"10\*\*|\{", text))]:
        for problem in GOLDS[:3]:
            judge(rf"\boxed{{{text}}}", problem)
    assert len(seen) >= len(honest)
    assert [text for text in seen if not is_arithmetic(text)] == []
    assert list(here.iterdir()) == []


@settings(max_examples=300, deadline=None)
@given(
    gold=TEXTS,
    answer=TEXTS,
    rules=st.builds(Rules, relative_tolerance=st.floats(0, 0.99)),
)
def test_forms_never_raise(gold: str, answer: str, rules: Rules) -> None:
    """Taking answers apart raises for no text, and finds every text equal to itself unless nothing is left of it."""
    compare = functools.partial(answers_equal, same=str.__eq__, decimal=lambda _: None)
    assert compare(gold, answer, rules, {"unit": answer[:8], "tolerance": gold[:6]}) in (True, False)
    if tidy(clean(gold)):
        assert compare(gold, gold, rules, {})


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="0123456789.eE+-*/^%!<>=,()[]{} \n_ax'\"\\", max_size=30))
def test_guard(text: str) -> None:
    """Whatever the guard lets through has no names, attributes or strings in it."""
    if is_arithmetic(text):
        assert not re.search(r"[a-df-zA-DF-Z_'\"\\]", text)
        # An e is always inside of a number, so that it is no name.
        assert all(re.match(r"[0-9.]", text[match.start() - 1 : match.start()]) for match in re.finditer("[eE]", text))
