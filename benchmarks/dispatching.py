"""The driver alone: shards a second that it can hand out and take back, whoever counts them."""

from __future__ import annotations

import time
import tracemalloc
from collections import deque
from collections.abc import Iterator

from benchmarks.measure import Row
from orchestrator.counting.dispatch import Counted, Event, Started, dispatch
from orchestrator.counting.policy import Policy

WORKERS = 1000
SHARDS = 200_000


class Instant:
    """``dispatch.Pool`` of workers that have counted a shard as soon as it is given to them.

    Args:
        news: events told at a time, at most: one is the worst case, since the driver decides anew after each call.
    """

    def __init__(self, news: int) -> None:
        self._news = news
        self._events: deque[Event] = deque()
        self._workers = 0

    def start(self) -> int:
        self._events.append(Started(self._workers))
        self._workers += 1
        return self._workers - 1

    def submit(self, worker: int, shard: int) -> None:
        self._events.append(Counted(worker, shard, images=64, failed=0, passes=64, first=True))

    def end(self, worker: int) -> None:
        self._events = deque(event for event in self._events if event.worker != worker)

    def events(self, timeout_s: float) -> list[Event]:
        return [self._events.popleft() for _ in range(min(self._news, len(self._events)))]


def rows() -> Iterator[Row]:
    """One event at a time, and as many as come in while a driver is busy; then memory."""
    for news in (1, 100):
        start = time.perf_counter()
        dispatch(range(SHARDS), Instant(news), Policy(WORKERS))
        rate = SHARDS / (time.perf_counter() - start)
        name = f"dispatch: {SHARDS} shards, {WORKERS} workers, {news} event{'s' if news > 1 else ''} at a time"
        yield Row(name, "a shard a second", rate, rate, rate, f"{1e6 / rate:.0f} µs a shard")
    small, large = (_peak(shards) for shards in (SHARDS // 10, SHARDS))
    each = (large - small) / (SHARDS - SHARDS // 10)
    detail = f"peak {large / 2**20:.0f} MiB at {SHARDS} shards"
    yield Row(f"dispatch: memory, {WORKERS} workers", "a byte a shard", each, each, each, detail)


def _peak(shards: int) -> int:
    """Most bytes that dispatching so many shards holds at a time."""
    tracemalloc.start()
    try:
        dispatch(range(shards), Instant(100), Policy(WORKERS))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
