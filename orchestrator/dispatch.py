"""Hand shards to workers until all are counted or given up. Ray is not known here: a ``Pool`` is."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.errors import WorkersError


@dataclass(frozen=True)
class Started:
    """A worker is ready for work."""

    worker: int


@dataclass(frozen=True)
class Counted:
    """A worker committed a shard, or found it committed.

    Attributes:
        worker: by whom.
        shard: which.
        images: images in the shard.
        failed: those of them that could not be counted.
        passes: forward passes done.
        first: False if another worker's commit had landed before.
    """

    worker: int
    shard: int
    images: int
    failed: int
    passes: int
    first: bool


@dataclass(frozen=True)
class Failed:
    """A worker could not do a shard, and lives on."""

    worker: int
    shard: int
    reason: str


@dataclass(frozen=True)
class Died:
    """A worker is gone, with all it had been given."""

    worker: int
    reason: str


Event = Started | Counted | Failed | Died


class Pool(Protocol):
    """Workers somewhere."""

    def start(self) -> int:
        """Begin to start a worker; its name, at once. ``Started`` or ``Died`` follows."""

    def submit(self, worker: int, shard: int) -> None:
        """Queue a shard on a worker. ``Counted``, ``Failed`` or the worker's ``Died`` follows."""

    def events(self, timeout_s: float) -> list[Event]:
        """What happened; waits at most that long for something to."""


@dataclass(frozen=True)
class Policy:
    """When to stop trying.

    Attributes:
        workers: workers to keep alive.
        in_flight: shards queued on a worker at a time; the second hides the driver's latency.
        max_attempts: failures and deaths after which a shard is given up.
        max_start_deaths: workers in a row that died before they were ready, after which none can start.
        max_failures: shards that failed at first try since one was last counted, after which nothing works any more.
            Further tries do not count: those of a few bad shards come last, one after another.
    """

    workers: int
    in_flight: int = 2
    max_attempts: int = 3
    max_start_deaths: int = 3
    max_failures: int = 12


@dataclass
class Outcome:
    """What became of the shards.

    Attributes:
        counted: shards counted, here or by another driver.
        given_up: shard to the reason of its last failure.
    """

    counted: set[int] = field(default_factory=set)
    given_up: dict[int, str] = field(default_factory=dict)


def dispatch(
    shards: Iterable[int], pool: Pool, policy: Policy, observe: Callable[[Event], None] = lambda event: None
) -> Outcome:
    """Count every shard once, or give it up.

    Args:
        shards: what is to be done.
        pool: by whom.
        policy: how long to try.
        observe: told of every event, for progress and logs.

    Returns:
        Outcome; ``counted`` and ``given_up`` together are all of ``shards``.

    Raises:
        WorkersError: workers cannot start, or fail at everything.
    """
    pending = deque(dict.fromkeys(shards))
    total = len(pending)
    queues: dict[int, list[int]] = {}
    starting: set[int] = set()
    attempts: Counter[int] = Counter()
    start_deaths = failures = 0
    outcome = Outcome()

    def failed(shard: int, reason: str) -> None:
        nonlocal failures
        attempts[shard] += 1
        failures += attempts[shard] == 1
        if failures >= policy.max_failures:
            raise WorkersError(f"{failures} shards in a row failed, none was counted in between; the last: {reason}")
        if attempts[shard] >= policy.max_attempts:
            outcome.given_up[shard] = reason
        else:
            pending.append(shard)

    while len(outcome.counted) + len(outcome.given_up) < total:
        wanted = min(policy.workers, len(pending) + sum(map(len, queues.values())))
        while len(queues) + len(starting) < wanted:
            starting.add(pool.start())
        for worker, shard in assignments(queues, pending, policy.in_flight):
            queues[worker].append(shard)
            pool.submit(worker, shard)
        for event in pool.events(timeout_s=1.0):
            observe(event)
            match event:
                case Started(worker):
                    start_deaths = 0
                    starting.discard(worker)
                    queues[worker] = []
                case Counted(worker, shard):
                    failures = 0
                    queues[worker].remove(shard)
                    outcome.counted.add(shard)
                case Failed(worker, shard, reason):
                    queues[worker].remove(shard)
                    failed(shard, reason)
                case Died(worker, reason) if worker in starting:
                    starting.discard(worker)
                    start_deaths += 1
                    if start_deaths >= policy.max_start_deaths:
                        raise WorkersError(f"{start_deaths} workers in a row died while starting; the last: {reason}")
                case Died(worker, reason):
                    # The first in the queue was being counted, and may be what killed the worker; the rest was not.
                    queue = queues.pop(worker, [])
                    pending.extendleft(reversed(queue[1:]))
                    if queue:
                        failed(queue[0], f"its worker died: {reason}")
    return outcome


def assignments(queues: dict[int, list[int]], pending: deque[int], in_flight: int) -> list[tuple[int, int]]:
    """Take shards from ``pending`` for the workers with the shortest queues, until all hold ``in_flight``."""
    lengths = {worker: len(queue) for worker, queue in queues.items()}
    chosen = []
    while pending and lengths:
        worker = min(lengths, key=lambda name: lengths[name])
        if lengths[worker] >= in_flight:
            break
        chosen.append((worker, pending.popleft()))
        lengths[worker] += 1
    return chosen
