"""The real worker in the driver's own process: what it does to the store without Ray, which has tests of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.crew import Crew, Device, Task
from orchestrator.dispatch import Counted, Event, Started
from orchestrator.spec import Resources
from workers.counting import CountJob
from workers.ray_entry import CountingActor


class InlinePool:
    """One worker, which works when events are asked for; what it raises ends the driver."""

    def __init__(self, actor: CountingActor, task: Task) -> None:
        self._work = getattr(actor, task)
        self._queue: deque[int] = deque()
        self._ready = False

    def start(self) -> int:
        return 0

    def submit(self, worker: int, shard: int) -> None:
        self._queue.append(shard)

    def end(self, worker: int) -> None:
        raise AssertionError("nothing stalls here")

    def events(self, timeout_s: float) -> list[Event]:
        if not self._ready:
            self._ready = True
            return [Started(0)]
        receipt = self._work(self._queue.popleft())
        return [Counted(0, receipt.shard, receipt.images, receipt.failed, receipt.passes, receipt.first)]


@contextmanager
def hire_inline(
    make_job: Callable[[Device], CountJob], task: Task, resources: Resources, warn: Callable[[str], None]
) -> Iterator[Crew]:
    yield Crew(InlinePool(CountingActor(make_job("cpu")), task), 1)
