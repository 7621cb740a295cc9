"""Timing two ways of doing the same thing in turn, so that a machine's drifting speed cancels in their ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the benchmark's table.

    Attributes:
        name: what is measured.
        against: what it is divided by.
        ratio: how many times faster; the median over rounds.
        lowest, highest: the extremes over rounds.
        detail: absolute figures, for orientation.
        goal: what the ratio should be, such as "≥ 0.97"; empty where nothing was set.
    """

    name: str
    against: str
    ratio: float
    lowest: float
    highest: float
    detail: str
    goal: str = ""


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
