"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

#: Seconds between two plain lines.
_INTERVAL_S = 5.0


class Meter(Protocol):
    """What long work reports to."""

    def advance(self, amount: int) -> None:
        """That much more is done."""

    def note(self, text: str) -> None:
        """Something worth a line of its own happened."""


@contextmanager
def meter(description: str, total: int, unit: str) -> Iterator[Meter]:
    """A meter on standard error, for work of ``total`` units."""
    if sys.stderr.isatty():
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit + " {task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            yield _Bar(progress, progress.add_task(description, total=total, rate=""), console)
    else:
        lines = _Lines(description, total, unit)
        yield lines
        lines.finish()


class _Bar:
    def __init__(self, progress: Progress, task: object, console: Console) -> None:
        self._progress, self._task, self._console = progress, task, console

    def advance(self, amount: int) -> None:
        self._progress.advance(self._task, amount)  # type: ignore[arg-type]
        speed = next(task for task in self._progress.tasks if task.id == self._task).speed
        self._progress.update(self._task, rate=f"{speed:.1f}/s" if speed else "")  # type: ignore[arg-type]

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)


class _Lines:
    def __init__(self, description: str, total: int, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done = self._printed_done = 0
        self._start = self._printed = time.monotonic()
        self.note(f"{description}: {total} {unit}")

    def advance(self, amount: int) -> None:
        self._done += amount
        if time.monotonic() - self._printed >= _INTERVAL_S:
            self._print()

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self._done != self._printed_done:
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        self._printed_done = self._done
        rate = self._done / max(self._printed - self._start, 1e-9)
        left = (self._total - self._done) / rate if rate else float("nan")
        self.note(f"{self._description}: {self._done}/{self._total} {self._unit}, {rate:.1f}/s, {time_text(left)} left")


def time_text(seconds: float) -> str:
    """A duration for people: '42 s', '3 min 05 s', '2 h 07 min', '3 d 4 h'."""
    if seconds != seconds:
        return "unknown"
    whole = round(seconds)
    minutes, s = divmod(whole, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h} h"
    if hours:
        return f"{hours} h {m:02d} min"
    return f"{minutes} min {s:02d} s" if minutes else f"{s} s"
