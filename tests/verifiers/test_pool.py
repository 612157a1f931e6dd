"""Worker processes: limits, deaths, order, threads and clean ends."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cruxtune.verifiers
from cruxtune.errors import VerifierError
from cruxtune.records import Problem, Verdict
from cruxtune.verifiers import Verifier, verify


def math(index: int) -> Problem:
    """Return a problem whose answer is its number."""
    return Problem(id=f"p{index}", question="?", answer=str(index))


CUSTOM = Problem(id="c", question="?", answer="fine", kind="custom", metadata={"a": [1]})
RIGHT = Verdict(True, None, "custom")
WRONG = Verdict(False, None, "custom")


@pytest.fixture
def custom(monkeypatch: pytest.MonkeyPatch) -> Iterator[Verifier]:
    """A verifier with one worker and the user's function of checks.py, limit 0.5 s."""
    monkeypatch.chdir(Path(__file__).parent)
    with Verifier(timeout=0.5, workers=1, function="checks:by_text") as verifier:
        yield verifier


@pytest.fixture(scope="module")
def two() -> Iterator[Verifier]:
    """A verifier with two workers."""
    with Verifier(workers=2) as verifier:
        yield verifier


def test_verify_many_keeps_order(two: Verifier) -> None:
    """Verdicts come in the order of the texts, equal texts included, over several workers."""
    before = two.counts()
    items = [(f"#### {i if i % 3 else i + 1}", math(i)) for i in range(500)] + [("It is 7.", math(7))] * 3
    verdicts = two.verify_many(items)
    assert [verdict.correct for verdict in verdicts] == [i % 3 != 0 for i in range(500)] + [True] * 3
    assert {name: count - before[name] for name, count in two.counts().items()} == {
        "verdicts": 503,
        "fallback": 3,
        "timeouts": 0,
        "crashes": 0,
    }


def test_nothing_to_verify(two: Verifier) -> None:
    """No texts, no verdicts."""
    assert two.verify_many([]) == []


def test_long_and_odd_texts(two: Verifier) -> None:
    """Texts longer than a pipe's buffer, with lone surrogates or line separators, come through."""
    texts = ["x " * 500_000 + "#### 5", "\ud800 \u2028 #### 5", "#### 5\r\n\x00"]
    verdicts = two.verify_many([(text, math(5)) for text in texts])
    assert [verdict.correct for verdict in verdicts] == [True, True, True]


def test_threads(two: Verifier) -> None:
    """Calls from several threads get each their own verdicts."""
    results: dict[int, list[Verdict]] = {}

    def call(number: int) -> None:
        results[number] = two.verify_many([(f"#### {number}", math(i)) for i in range(40)])

    threads = [threading.Thread(target=call, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(6):
        assert [verdict.correct for verdict in results[number]] == [i == number for i in range(40)]


def test_symbolic_bomb() -> None:
    """A power tower that would fill the memory ends at the limit, and the next text is judged."""
    with Verifier(timeout=0.5, workers=1) as verifier:
        bomb = verifier.verify("#### 9^{9^{9^{9}}}", math(3))
        assert bomb == Verdict(False, None, "time-out")
        assert verifier.verify("#### 3", math(3)).correct


def test_custom(custom: Verifier) -> None:
    """The user's function decides; what it prints does not reach the protocol, and it has no input to read."""
    assert custom.verify_many([("fine", CUSTOM), ("bad", CUSTOM), ("pair", CUSTOM)]) == [
        RIGHT,
        WRONG,
        Verdict(True, "fine", "custom"),
    ]


def test_time_out(custom: Verifier) -> None:
    """A text that takes too long is wrong; the texts before and behind it get their verdicts."""
    texts = ["fine", "bad", "sleep", "fine ", "pair"]
    assert custom.verify("fine", CUSTOM) == RIGHT  # so that the time below has no start in it
    start = time.monotonic()
    verdicts = custom.verify_many([(text, CUSTOM) for text in texts])
    assert [verdict.reason for verdict in verdicts] == ["custom", "custom", "time-out", "custom", "custom"]
    assert [verdict.correct for verdict in verdicts] == [True, False, False, False, True]
    assert 0.5 <= time.monotonic() - start < 10
    assert custom.counts()["timeouts"] == 1


def test_crash(custom: Verifier, caplog: pytest.LogCaptureFixture) -> None:
    """A text that ends the worker is wrong; the next is judged by a new worker, and the log says what happened."""
    verdicts = custom.verify_many([("exit", CUSTOM), ("fine", CUSTOM)])
    assert verdicts == [Verdict(False, None, "crash"), RIGHT]
    assert custom.verify("fine", CUSTOM) == RIGHT
    assert custom.counts()["crashes"] == 1
    assert "exit status 3" in caplog.text


def test_death_between_calls(custom: Verifier) -> None:
    """A worker that was killed while it had nothing to do is replaced, at no text's cost."""
    assert custom.verify("fine", CUSTOM) == RIGHT
    process = custom._workers[0].process
    process.kill()
    process.wait()
    assert custom.verify("fine", CUSTOM) == RIGHT


@pytest.mark.parametrize("text", ["raise", "odd"])
def test_custom_error(custom: Verifier, caplog: pytest.LogCaptureFixture, text: str) -> None:
    """An exception, or a result that is neither true nor false, makes the text wrong; its traceback is logged."""
    assert custom.verify(text, CUSTOM) == Verdict(False, None, "custom-error")
    assert custom.verify("fine", CUSTOM) == RIGHT
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_such_module:check", "--verifier no_such_module:check: cannot import 'check' from module 'no_such_module'"),
        ("checks:no_such_name", "cannot import 'no_such_name' from module 'checks'"),
        ("checks:not_callable", "is not a function"),
        ("checks", "not of the form module:function"),
        (None, "Pass --verifier module:function"),
    ],
)
def test_custom_import_error(monkeypatch: pytest.MonkeyPatch, function: str | None, message: str) -> None:
    """A function that cannot be imported is reported with its module and the flag to correct."""
    monkeypatch.chdir(Path(__file__).parent)
    with Verifier(workers=1, function=function) as verifier, pytest.raises(VerifierError, match=message):
        verifier.verify("fine", CUSTOM)


def test_worker_that_cannot_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker that fails at its start is an error that shows its last output."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no interpreter here >&2\nexit 7\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with Verifier(workers=1) as verifier, pytest.raises(VerifierError, match=r"exit status 7.*no interpreter here"):
        verifier.verify("#### 1", math(1))


def test_close_leaves_no_process() -> None:
    """After close every worker has ended and been reaped; a second close does nothing; a call is refused."""
    verifier = Verifier(workers=2)
    verifier.verify_many([(f"#### {i}", math(i)) for i in range(20)])
    processes = [worker.process for worker in verifier._workers]
    assert len(processes) == 2
    verifier.close()
    verifier.close()
    for process in processes:
        assert process.returncode == 0
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)
    with pytest.raises(RuntimeError, match="closed"):
        verifier.verify("#### 1", math(1))


def test_workers_end_with_their_parent() -> None:
    """When the parent is killed, its workers end by themselves."""
    code = (
        "import os; from cruxtune.records import Problem; from cruxtune.verifiers import Verifier\n"
        "v = Verifier(workers=1); v.verify('#### 1', Problem(id='p', question='?', answer='1'))\n"
        "print(v._workers[0].process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60).stdout)
    deadline = time.monotonic() + 10
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        # An orphan that nobody reaps stays as a zombie where process 1 is no init.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_imports_are_light() -> None:
    """Importing the package loads neither sympy nor torch, and a worker's code never loads torch."""
    code = (
        "import sys, cruxtune.verifiers\n"
        "assert not {'sympy', 'math_verify', 'torch', 'transformers'} & set(sys.modules)\n"
        "import cruxtune.verifiers.worker; from cruxtune.verifiers.compare import judge, prepare\n"
        "from cruxtune.records import Problem; p = Problem(id='p', question='?', answer='x+1')\n"
        "prepare(p); assert judge('#### 1+x', p).correct; import reasoning_gym\n"
        "assert 'sympy' in sys.modules and not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_invalid_settings() -> None:
    """A limit or a number of workers that cannot work is refused."""
    with pytest.raises(ValueError, match="timeout"):
        Verifier(timeout=0)
    with pytest.raises(ValueError, match="workers"):
        Verifier(workers=0)


def test_verify_once() -> None:
    """The module's function keeps one verifier per setting."""
    assert verify("It is 3.", math(3)) == Verdict(True, "3", "last-number")
    assert verify("It is 3.", math(3), strict=True) == Verdict(False, None, "no-answer")
    count = len(cruxtune.verifiers._verifiers)
    assert verify("It is 4.", math(3), strict=True, timeout=5.0).correct is False
    assert len(cruxtune.verifiers._verifiers) == count
