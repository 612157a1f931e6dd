"""Progress where stderr is no terminal: few lines, with what is done, how fast, and what is left."""

from __future__ import annotations

import time

import pytest

from cruxtune import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress sees, in seconds; set its only entry."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_half_minute_says_what_is_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """Between the lines nothing is written; rate and time left follow from what this run did. No line is broken."""
    with progress.bar("respond", 100, "responses", note=lambda: "1000 tokens/s, 93 % of drafts right") as advance:
        for _ in range(40):
            clock[0] += 1
            advance(1)
    line = "respond: 30/100, 1.0 responses/s, 1 min 10 s left (1000 tokens/s, 93 % of drafts right)\n"
    assert capsys.readouterr().err == line


def test_the_last_line_is_always_written(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """A log says that a stage ended, however short it was; slow work is told in seconds an item."""
    with progress.bar("train", 2, "steps") as advance:
        clock[0] += 8
        advance(1)
        clock[0] += 8
        advance(1)
    assert capsys.readouterr().err == "train: 2/2, 8.0 s/step\n"


def test_what_an_earlier_run_did_says_nothing_of_the_speed(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """After a resume the rate is this run's, and the count is of all."""
    with progress.bar("annotate", 100, "rollouts", done=90) as advance:
        clock[0] += 40
        advance(4)
    assert capsys.readouterr().err == "annotate: 94/100, 10.0 s/rollout, 1 min left\n"


def test_advancing_by_nothing_divides_by_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """A group that was settled without work is no error."""
    with progress.bar("annotate", 5, "rollouts") as advance:
        clock[0] += 31
        advance(0)
        advance(5)
    assert capsys.readouterr().err.splitlines()[0].startswith("annotate: 0/5")
    with progress.bar("annotate", 0, "rollouts") as advance:
        advance(0)
