"""Worker processes: limits, deaths, order, threads and clean ends."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cruxtune
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
        "out_of_memory": 0,
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
        assert bomb == Verdict(False, "9^{9^{9^{9}}}", "time-out")
        assert verifier.verify("#### 3", math(3)).correct


def test_what_exceeded_a_limit_is_remembered() -> None:
    """Another text with the same answer has the same verdict at once: it costs neither a time limit nor a worker."""
    with Verifier(timeout=0.5, workers=2) as verifier:
        texts = [r"So \boxed{9^{9^{9^{9}}}}", "It makes 1 + 2", "#### 9^{9^{9^{9}}}", r"\boxed{9^{9^{9^{9}}}}"]
        reasons = [verifier.verify(text, math(3)).reason for text in texts[:2]]
        before = [worker.process.pid for worker in verifier._workers]
        reasons += [verifier.verify(text, math(3)).reason for text in texts[2:]]
        assert reasons == ["time-out", "last-number", "time-out", "time-out"]
        assert [worker.process.pid for worker in verifier._workers] == before
        assert verifier.counts()["timeouts"] == 3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
def test_memory(custom: Verifier) -> None:
    """A text that needs more memory than allowed is wrong, its worker is replaced, and the others are judged."""
    assert custom.verify("fine", CUSTOM) == RIGHT
    first = custom._workers[0].process
    verdicts = custom.verify_many([(text, CUSTOM) for text in ("fine", "fill", "pair")])
    assert [verdict.reason for verdict in verdicts] == ["custom", "memory", "custom"]
    assert [verdict.correct for verdict in verdicts] == [True, False, True]
    assert first.returncode is not None
    assert custom.counts()["out_of_memory"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
def test_memory_that_a_library_was_refused() -> None:
    """A symbolic comparison that Math-Verify gives up for want of memory says so, with what was extracted."""
    answer = r"\operatorname{ones}(900, 900)"
    with Verifier(timeout=60, workers=1, memory=0.01) as verifier:
        assert verifier.verify(rf"\boxed{{{answer}}}", math(3)) == Verdict(False, answer, "memory")
        assert verifier.verify("#### 3", math(3)).correct
    with Verifier(timeout=60, workers=1, memory=0) as verifier:
        assert verifier.verify(r"\boxed{\operatorname{ones}(900, 900)}", math(3)).reason == "boxed"


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


def children() -> set[int]:
    """Return the ids of this process's children, zombies included."""
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split() if pid}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_killed_workers_are_reaped() -> None:
    """However many workers were killed or died, no zombie remains, and none runs after a verifier is dropped."""
    before = children()
    verifier = Verifier(timeout=0.05, workers=2)
    bombs = [rf"\boxed{{{base}^{{{base}^{{{base}^{{{base}}}}}}}}}" for base in range(7, 11)]
    assert {verdict.reason for verdict in verifier.verify_many([(text, math(3)) for text in bombs])} == {"time-out"}
    assert children() - before == {worker.process.pid for worker in verifier._workers}
    del verifier  # never closed
    gc.collect()
    assert children() == before


USE = """
import sys, os, multiprocessing
from cruxtune.records import Problem
from cruxtune.verifiers import Verifier, verify

def right(number, verifier=None):
    problem = Problem(id="p", question="?", answer=str(number))
    many = [("#### 5", problem), (f"#### {number}", problem), (r"\\boxed{x+1}", problem)]
    verdicts = verifier.verify_many(many) if verifier else [verify(*one) for one in many]
    return [verdict.correct for verdict in verdicts] == [number == 5, True, False]

def child(number, verifier=None):
    sys.exit(0 if right(number, verifier) else 3)

def run(method, verifier=None):
    parts = [
        multiprocessing.get_context(method).Process(target=child, args=(number, verifier), daemon=True)
        for number in range(5, 8)
    ]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    return [part.exitcode for part in parts] == [0, 0, 0]
"""


def test_daemonic_parents() -> None:
    """Processes that may not have children of multiprocessing, as in data loaders, get verdicts, forked or spawned."""
    code = USE + (
        "if __name__ == '__main__':\n"
        "    own = Verifier(workers=1)\n"
        "    assert right(4, own) and right(4)\n"  # what is forked below has workers, which it must not touch
        "    assert run('fork', own) and run('fork')\n"
        "    assert right(4, own) and right(4)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_spawned_parents(tmp_path: Path) -> None:
    """Daemonic processes of the spawn method, as Ray's and notebooks' are, get verdicts from workers of their own."""
    script = tmp_path / "spawned.py"
    script.write_text(USE + "if __name__ == '__main__':\n    assert run('spawn')\n")
    subprocess.run([sys.executable, str(script)], check=True, timeout=120)


def test_running_event_loop() -> None:
    """Verdicts come while an event loop runs in the thread, as in a notebook, and in the threads that it starts."""

    async def ask() -> list[Verdict]:
        return [verify("#### 3", math(3)), *await asyncio.gather(*(asyncio.to_thread(verify, "3", math(3)),) * 3)]

    assert [verdict.correct for verdict in asyncio.run(ask())] == [True] * 4


def test_package_that_only_the_parent_finds(tmp_path: Path) -> None:
    """A parent that added the package's folder to its own search path gets verdicts."""
    folder = str(Path(cruxtune.__file__).parents[1])
    code = (
        f"import sys; sys.path[:0] = [{folder!r}, *{sys.path!r}]\n"
        "from cruxtune.records import Problem; from cruxtune.verifiers import Verifier\n"
        "with Verifier(workers=1) as v: print(v.verify('#### 1', Problem(id='p', question='?', answer='1')).correct)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_no_leak() -> None:
    """Over 100,000 answers, all different, of which each tenth needs algebra, neither side grows."""

    def resident(pid: int) -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) // 1024

    def some(start: int) -> list[tuple[str, Problem]]:
        return [
            (rf"\boxed{{x+{i}}}" if i % 10 == 0 else f"That is {i}.\n#### {i}", math(i + i % 2))
            for i in range(start, start + 5000)
        ]

    with Verifier(workers=1) as verifier:
        verifier.verify_many(some(0) + some(5000) + some(10_000))
        files = len(os.listdir("/proc/self/fd"))
        sizes = []
        for start in range(15_000, 115_000, 5000):
            verifier.verify_many(some(start))
            sizes.append((resident(os.getpid()), resident(verifier._workers[0].process.pid)))
        assert len(os.listdir("/proc/self/fd")) == files
    ours, theirs = zip(*sizes, strict=True)
    print(f"MiB of the parent: {ours}; of the worker: {theirs}")  # noqa: T201
    assert max(ours) - ours[0] < 20
    assert max(theirs) - theirs[0] < 100


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
