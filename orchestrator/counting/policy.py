"""What to do next with shards and workers: pure decisions from facts and the time. ``dispatch`` carries them out."""

from __future__ import annotations

import heapq
import statistics
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Policy:
    """When to try again, when to stop trying, and how long to wait.

    Attributes:
        workers: workers to keep alive, or to wait for; more once the cluster has room for more.
        in_flight: shards queued on a worker at a time; the second hides the driver's latency.
        max_attempts: failures, stalls and deaths of its worker after which a shard is given up.
        max_losses: times its worker was lost with the whole node, after which a shard is given up: machines that are
            taken away are nobody's fault, but a shard that takes them down would be tried for ever.
        max_start_deaths: workers in a row that died before they were ready, after which none can start.
        max_failures: shards that failed at first try since one was last counted, after which nothing works any more.
            Further tries do not count: those of a few bad shards come last, one after another.
        straggler_factor: a shard that takes this many times the median is run again by a worker with nothing to do.
        stall_s: seconds on one shard after which its worker is replaced; None waits ``stall_factor`` times the median,
            and at least ``stall_floor_s``.
        stall_factor, stall_floor_s: see ``stall_s``; after the floor, a shard is named even while no median is known.
        known: shards counted before the median counts for something.
    """

    workers: int
    in_flight: int = 2
    max_attempts: int = 3
    max_losses: int = 20
    max_start_deaths: int = 3
    max_failures: int = 12
    straggler_factor: float = 2.0
    stall_s: float | None = None
    stall_factor: float = 20.0
    stall_floor_s: float = 600.0
    known: int = 3


@dataclass
class Facts:
    """Where the work stands. ``queues``, ``since`` and ``counted`` change through its methods alone.

    Attributes:
        pending: shards on no worker, in the order to be done.
        queues: shards given to each worker that is ready; it works on the first.
        since: time at which each of them began the first of its queue, s.
        starting: workers that are not ready yet, be it that they wait for a node.
        room: workers that the cluster was seen to have room for.
        attempts: failures, stalls and deaths of each shard's worker.
        losses: times each shard's node was lost.
        durations: times that the last shards counted took, s.
        counted: shards that are done.
        given_up: shard to the reason of its last failure.
        start_deaths, start_losses: workers in a row that died, or were lost with their node, before they were ready.
        failures: shards that failed at first try since one was last counted.
        named: (worker, shard) that were said to be slow.
        at_work: workers that have each shard on some worker that is not counted: what a look at every queue would tell,
            kept because a thousand of them are looked at after every event.
    """

    pending: deque[int]
    queues: dict[int, list[int]] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)
    starting: set[int] = field(default_factory=set)
    room: int = 0
    attempts: Counter[int] = field(default_factory=Counter)
    losses: Counter[int] = field(default_factory=Counter)
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=99))
    counted: set[int] = field(default_factory=set)
    given_up: dict[int, str] = field(default_factory=dict)
    start_deaths: int = 0
    start_losses: int = 0
    failures: int = 0
    named: set[tuple[int, int]] = field(default_factory=set)
    at_work: Counter[int] = field(init=False)

    def __post_init__(self) -> None:
        self.at_work = Counter(shard for queue in self.queues.values() for shard in queue if shard not in self.counted)

    @classmethod
    def of(cls, shards: Iterable[int]) -> Facts:
        """The facts before anything has happened."""
        return cls(deque(dict.fromkeys(shards)))

    @property
    def open(self) -> bool:
        """Whether a shard is neither counted nor given up."""
        return bool(self.pending or self.at_work)

    def left(self) -> int:
        """Shards that are neither counted nor given up."""
        return len(self.pending) + len(self.at_work)

    def begun(self) -> list[tuple[int, int, float]]:
        """(worker, shard, time it began, s) of what is being worked on, by the other of two workers done or not."""
        return [(worker, queue[0], self.since[worker]) for worker, queue in self.queues.items() if queue]

    def holders(self, shard: int) -> int:
        """Workers that have been given a shard that is not counted, and not answered."""
        return self.at_work[shard]

    def ready(self, worker: int) -> None:
        """A worker is ready for work."""
        self.starting.discard(worker)
        self.queues[worker] = []

    def give(self, worker: int, shard: int, now: float) -> None:
        """A worker gets a shard, behind what it has."""
        if not self.queues[worker]:
            self.since[worker] = now
        self.queues[worker].append(shard)
        if shard not in self.counted:
            self.at_work[shard] += 1

    def take(self, worker: int, shard: int, now: float) -> None:
        """A worker has answered for a shard, and begins the next."""
        self.queues[worker].remove(shard)
        self.since[worker] = now
        self._put_down(shard)

    def count(self, shard: int) -> None:
        """A shard is counted, and nobody waits for it any more."""
        self.counted.add(shard)
        del self.at_work[shard]

    def forget(self, worker: int) -> list[int]:
        """A worker is gone. Returns what it had been given."""
        self.starting.discard(worker)
        self.since.pop(worker, None)
        queue = self.queues.pop(worker, [])
        for shard in queue:
            self._put_down(shard)
        return queue

    def _put_down(self, shard: int) -> None:
        if self.at_work[shard] > 1:
            self.at_work[shard] -= 1
        else:
            del self.at_work[shard]  # of a Counter, whether or not it is there

    def median_s(self, policy: Policy) -> float | None:
        """How long a shard takes; None before enough have been counted."""
        return statistics.median(self.durations) if len(self.durations) >= policy.known else None


def workers_missing(facts: Facts, policy: Policy) -> int:
    """Workers to start: never more than there are shards that are not done."""
    wanted = max(policy.workers, facts.room)
    return max(0, min(wanted, facts.left()) - len(facts.queues) - len(facts.starting))


def surplus(facts: Facts, policy: Policy) -> list[int]:
    """Workers to end, since fewer shards are left: an autoscaler takes their nodes away.

    Those that are not ready yet go once the others have a shard each. Of those with nothing to do, as many stay as
    there are shards at work that may be run again: each of them may turn out a straggler.
    """
    left = facts.left()
    if left >= len(facts.queues) + len(facts.starting):
        return []
    starting = sorted(facts.starting, reverse=True)[: max(0, len(facts.queues) + len(facts.starting) - left)]
    again = sum(_may_run_again(shard, facts, policy) for shard in facts.at_work)
    idle = [worker for worker, queue in facts.queues.items() if not queue]
    return starting + idle[: max(0, len(facts.queues) - left - again)]


def assignments(queues: Mapping[int, list[int]], pending: Iterable[int], in_flight: int) -> list[tuple[int, int]]:
    """(worker, shard): the first of ``pending``, each for the shortest queue, until all hold ``in_flight``."""
    # Of equally short queues the first takes it.
    room = [
        (len(queue), place, worker) for place, (worker, queue) in enumerate(queues.items()) if len(queue) < in_flight
    ]
    heapq.heapify(room)
    chosen = []
    for shard in pending if room else ():
        length, place, worker = room[0]
        chosen.append((worker, shard))
        if length + 1 < in_flight:
            heapq.heapreplace(room, (length + 1, place, worker))
        else:
            heapq.heappop(room)
        if not room:
            break
    return chosen


def second_runs(facts: Facts, policy: Policy, now: float) -> list[tuple[int, int]]:
    """(idle worker, shard) to run once more while its first worker still has it; the first commit wins.

    Only where nothing is pending: shards that wait behind another one, then stragglers, the longest first.
    """
    if facts.pending:
        return []
    idle = [worker for worker, queue in facts.queues.items() if not queue]
    if not idle:
        return []
    begun = sorted(facts.begun(), key=lambda entry: entry[2])
    chosen = [shard for worker, _, _ in begun for shard in facts.queues[worker][1:]]
    median = facts.median_s(policy)
    if median is not None:
        chosen += [shard for _, shard, since in begun if now - since > policy.straggler_factor * median]
    alone = [shard for shard in dict.fromkeys(chosen) if _may_run_again(shard, facts, policy)]
    return list(zip(idle, alone, strict=False))


def _may_run_again(shard: int, facts: Facts, policy: Policy) -> bool:
    """Whether a shard that a worker has may be given to another too."""
    # A second run is one more attempt: both may fail.
    attempts_left = facts.attempts[shard] + 2 <= policy.max_attempts
    return attempts_left and shard not in facts.counted and facts.holders(shard) == 1


def stalled(facts: Facts, policy: Policy, now: float) -> list[tuple[int, int, float]]:
    """(worker, shard, seconds) of workers that have been at one shard for so long that they are to be replaced."""
    limit = policy.stall_s
    if limit is None:
        median = facts.median_s(policy)
        limit = None if median is None else max(policy.stall_floor_s, policy.stall_factor * median)
    # No first in a queue was begun before the least of these: mostly that settles it.
    if limit is None or now - min(facts.since.values(), default=now) <= limit:
        return []
    return [(worker, shard, now - since) for worker, shard, since in facts.begun() if now - since > limit]


def slow(facts: Facts, policy: Policy, now: float) -> list[tuple[int, int, float]]:
    """(worker, shard, seconds) to be named, once each: long at work, and no median to say whether too long."""
    if policy.stall_s is not None or facts.median_s(policy) is not None:
        return []
    return [
        (worker, shard, now - since)
        for worker, shard, since in facts.begun()
        if now - since > policy.stall_floor_s and (worker, shard) not in facts.named
    ]


def hopeless(shard: int, facts: Facts, policy: Policy) -> bool:
    """Whether a shard has failed, or lost its node, so often that it is given up."""
    return facts.attempts[shard] >= policy.max_attempts or facts.losses[shard] >= policy.max_losses
