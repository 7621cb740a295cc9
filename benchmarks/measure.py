"""Timing two ways of doing the same thing in turn, so that a machine's drifting speed cancels in their ratio; and
functions and commands in processes of their own, as users run them."""

from __future__ import annotations

import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the benchmark's table.

    Attributes:
        name: what is measured.
        against: what it is divided by.
        ratio: how many times faster; the median over rounds.
        lowest, highest: the extremes over rounds.
        detail: absolute figures, for orientation.
        goal: what the ratio should be: "≥ 0.97", "≤ 1.05" or "0.8 - 1.2"; empty where nothing was set.
    """

    name: str
    against: str
    ratio: float
    lowest: float
    highest: float
    detail: str
    goal: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the ratio is what it should be; None where nothing was set."""
        numbers = [float(number) for number in re.findall(r"[\d.]+", self.goal)]
        match self.goal[:1], numbers:
            case "", _:
                return None
            case "≥", [least]:
                return self.ratio >= least
            case "≤", [most]:
                return self.ratio <= most
            case first, [least, most] if first.isdigit():
                return least <= self.ratio <= most
        raise ValueError(f"no goal: {self.goal!r}")


def single(name: str, against: str, ratio: float, detail: str, goal: str = "") -> Row:
    """A row of one measurement."""
    return Row(name, against, ratio, ratio, ratio, detail, goal)


def compare(
    name: str,
    ours: Callable[[], object],
    against: str,
    other: Callable[[], object],
    *,
    rounds: int,
    detail: str = "",
    goal: str = "",
) -> Row:
    """Run both once to warm up, then ``rounds`` times in turn."""
    ours(), other()
    ratios, seconds = [], []
    for _ in range(rounds):
        own, theirs = _seconds(ours), _seconds(other)
        seconds.append(own)
        ratios.append(theirs / own)
    text = f"{statistics.median(seconds):.3g} s{', ' + detail if detail else ''}"
    return Row(name, against, statistics.median(ratios), min(ratios), max(ratios), text, goal)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alone(function: Callable[[str], dict[str, Any]], argument: str) -> dict[str, Any]:
    """A module's function in a process of its own: what it returns, its ``seconds``, and its memory in GiB, ``before``
    it and at its ``peak``."""
    code = (
        "import sys; from benchmarks.measure import report; "
        f"report({function.__module__!r}, {function.__name__!r}, {argument!r})"
    )
    found: dict[str, Any] = json.loads(run([sys.executable, "-c", code]).splitlines()[-1])
    return found


def report(module: str, function: str, argument: str) -> None:
    """In that process: run, and print what came out."""
    work = getattr(importlib.import_module(module), function)
    before, start = _peak_gib(), time.perf_counter()
    found = work(argument)
    seconds = time.perf_counter() - start
    print(json.dumps({**found, "seconds": seconds, "before": before, "peak": _peak_gib()}))


def run(command: Sequence[str]) -> str:
    """A command's output. It runs as a user runs it: without the allocator's settings that counting here has."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout


def _peak_gib() -> float:
    """Of this process; what the kernel tells a parent of its children includes the parent's own."""
    return int(Path("/proc/self/status").read_text().rsplit("VmHWM:", 1)[1].split()[0]) / 2**20
