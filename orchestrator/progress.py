"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from orchestrator import logs

#: Seconds between two plain lines.
_INTERVAL_S = 5.0


class Meter(Protocol):
    """What long work reports to."""

    def advance(self, amount: int) -> None:
        """That much more is done."""

    def note(self, text: str, **fields: object) -> None:
        """Something worth a line of its own happened; ``fields`` say it to machines, see ``orchestrator.logs``."""


@contextmanager
def meter(description: str, total: int, unit: str) -> Iterator[Meter]:
    """A meter on standard error, for work of ``total`` units."""
    if logs.as_json():
        records = _Records(description, total, unit)
        yield records
        records.finish()
    elif sys.stderr.isatty():
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console) as progress:
            yield _Bar(progress, description, total, unit)
    else:
        lines = _Lines(description, total, unit)
        yield lines
        lines.finish()


class _Pace:
    """Rate and time left, over all that was done so far: commits come in bursts, and a short window would jump."""

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit = total, unit
        self._first: tuple[float, int] | None = None
        self._done = 0

    def see(self, done: int) -> None:
        """So much is done now. The clock starts with the first news: until then workers were starting."""
        self._done = done
        if self._first is None:
            self._first = (time.monotonic(), done)

    def text(self) -> str:
        start, before = self._first or (time.monotonic(), 0)
        seconds = time.monotonic() - start
        if self._done == before or seconds <= 0:
            return self._unit
        rate = (self._done - before) / seconds
        return f"{self._unit}, {rate:.3g}/s, {time_text((self._total - self._done) / rate)} left"


class _Bar:
    def __init__(self, progress: Progress, description: str, total: int, unit: str) -> None:
        self._progress = progress
        self._pace = _Pace(total, unit)
        self._task = progress.add_task(description, total=total, pace=unit)
        self._done = 0

    def advance(self, amount: int) -> None:
        self._done += amount
        self._pace.see(self._done)
        self._progress.update(self._task, advance=amount, pace=self._pace.text())

    def note(self, text: str, **fields: object) -> None:
        self._progress.console.print(text, markup=False, highlight=False)


class _Lines:
    def __init__(self, description: str, total: int, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._pace = _Pace(total, unit)
        self._done = self._printed_done = 0
        self._printed = time.monotonic()
        self._tell(f"{description}: {total} {unit}")

    def advance(self, amount: int) -> None:
        self._done += amount
        self._pace.see(self._done)
        if time.monotonic() - self._printed >= _INTERVAL_S:
            self._print()

    def note(self, text: str, **fields: object) -> None:
        print(text, file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self._done != self._printed_done:
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        self._printed_done = self._done
        self._tell(f"{self._description}: {self._done}/{self._total} {self._pace.text()}")

    def _tell(self, text: str) -> None:
        self.note(text, event="progress", doing=self._description, done=self._done, total=self._total, unit=self._unit)


class _Records(_Lines):
    def note(self, text: str, **fields: object) -> None:
        logs.record(text, **fields)


def time_text(seconds: float) -> str:
    """A duration for people: '42 s', '3 min 05 s', '2 h 07 min', '3 d 4 h'."""
    if math.isnan(seconds):
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
