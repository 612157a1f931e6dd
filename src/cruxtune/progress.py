"""Progress on stderr: what is done, the rate, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

stderr = Console(stderr=True, highlight=False)
"""Where people are told things; results for programs go to files and stdout."""

_LOG_EVERY = 30.0
"""Seconds between the lines that replace the bar where stderr is no terminal."""


class _Rate(ProgressColumn):
    """Items a second (or seconds an item, where slower)."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(_rate(task.finished_speed or task.speed, self._unit), style="progress.data.speed")


@contextmanager
def bar(
    title: str, total: int, unit: str, done: int = 0, note: Callable[[], str] | None = None
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar and yield the function that advances it.

    `note` gives what else there is to say at the moment. Where stderr is no terminal, a line is written every half
    minute instead.
    """
    if not stderr.is_terminal:
        yield _lines(title, total, unit, done, note)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=stderr) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")

        def advance(count: int) -> None:
            progress.update(task, advance=count, note=note() if note else "")

        yield advance


def _lines(title: str, total: int, unit: str, done: int, note: Callable[[], str] | None) -> Callable[[int], None]:
    started = last = time.monotonic()
    first = done

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last < _LOG_EVERY and done < total:
            return
        last = now
        speed = (done - first) / max(now - started, 1e-9)
        left = f", {duration((total - done) / speed)} left" if speed and done < total else ""
        more = f" ({note()})" if note else ""
        stderr.print(f"{title}: {done}/{total}, {_rate(speed, unit)}{left}{more}", soft_wrap=True)

    return advance


def _rate(speed: float | None, unit: str) -> str:
    if not speed:
        return ""
    return f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit.removesuffix('s')}"


def duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> duration(4.2), duration(75), duration(3720)
    ('4 s', '1 min 15 s', '1 h 2 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
