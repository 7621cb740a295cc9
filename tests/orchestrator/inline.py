"""The real workers in the driver's own process: what they do without Ray, which has tests of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.counting.crew import Crew, Device, Job, Task
from orchestrator.counting.dispatch import Counted, Event, Failed, Started
from orchestrator.on_ray.cluster import Capacity
from orchestrator.spec import Resources
from workers.attacking import AttackJob
from workers.ray_attacking import AttackingActor
from workers.ray_entry import CountingActor, ShardActor
from workers.training import STATE, Epoch, TrainJob, train


class InlinePool:
    """One worker, which works when events are asked for; what it raises ends the driver."""

    def __init__(self, actor: ShardActor, task: Task) -> None:
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


def actor_of(job: Job) -> ShardActor:
    """The worker that does such a job, in this process."""
    return AttackingActor(job) if isinstance(job, AttackJob) else CountingActor(job)


@contextmanager
def hire_inline(
    make_job: Callable[[Device], Job], task: Task, resources: Resources, warn: Callable[[str], None]
) -> Iterator[Crew]:
    yield Crew(InlinePool(actor_of(make_job("cpu")), task), 1)


@contextmanager
def hire_failing(
    make_job: Callable[[Device], Job], task: Task, resources: Resources, warn: Callable[[str], None]
) -> Iterator[Crew]:
    """A worker that fails at shard 1, and at nothing else."""

    class Failing(InlinePool):
        def events(self, timeout_s: float) -> list[Event]:
            if self._queue and self._queue[0] == 1:
                return [Failed(0, self._queue.popleft(), "a disk on fire")]
            return super().events(timeout_s)

    yield Crew(Failing(actor_of(make_job("cpu")), task), 1)


class _Session:
    """``workers.training.Session`` for one worker."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def __init__(self, observe: Callable[[tuple[Epoch, ...]], None]) -> None:
        self.state = b""
        self._observe = observe

    def prepare(self, model: nn.Module) -> nn.Module:
        return model

    def restored(self) -> bytes | None:
        return None

    def report(self, epochs: Sequence[Epoch], checkpoint: Path | None) -> None:
        assert checkpoint is not None
        self.state = (checkpoint / STATE).read_bytes()
        self._observe(tuple(epochs))

    def save(self, checkpoint: Path | None) -> None:
        assert checkpoint is not None

    def first_says(self, word: bool) -> bool:
        return word


def fit_inline(job: TrainJob, *, observe: Callable[[tuple[Epoch, ...]], None], **_: Any) -> bytes:
    """In place of ``orchestrator.on_ray.training.fit``."""
    session = _Session(observe)
    train(job, session)
    return session.state


@contextmanager
def no_cluster(cpus: int) -> Iterator[Capacity]:
    """In place of ``orchestrator.on_ray.cluster.cluster``."""
    yield Capacity(((cpus, 0),))
