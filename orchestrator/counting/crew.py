"""What the main job needs of those who count: Ray's actors, or whoever else can."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from orchestrator.counting.dispatch import Observe, Pool
from orchestrator.spec import Resources
from workers.attacking import AttackJob
from workers.counting import CountJob

#: All that a worker is told of what it is to do.
Job = CountJob | AttackJob

Device = Literal["cpu", "cuda"]

#: What is done with a shard: all of it counted, or those of its images that could not be; or it is attacked.
Task = Literal["count", "retry", "attack"]


@dataclass(frozen=True)
class Crew:
    """Those who count, while they do.

    Attributes:
        pool: by which shards are handed to them.
        workers: how many to keep alive.
        observe: told of every event and decision, as metrics are.
    """

    pool: Pool
    workers: int
    observe: Observe = lambda news, facts: None


class Hire(Protocol):
    """``orchestrator.on_ray.actors.hire_actors``, or something in its place."""

    def __call__(
        self,
        make_job: Callable[[Device], Job],
        task: Task,
        resources: Resources,
        warn: Callable[[str], None],
    ) -> AbstractContextManager[Crew]: ...
