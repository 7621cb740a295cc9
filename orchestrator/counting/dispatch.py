"""Hand shards to workers until all are counted or given up. Ray is not known here: a ``Pool`` is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from orchestrator.counting import policy as decide
from orchestrator.counting.policy import Facts, Policy
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
        passes: forward passes done; 0 where the shard was found committed.
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
    """A worker is gone, with all it had been given.

    Attributes:
        worker: which.
        reason: what is known of its death.
        node_lost: whether its whole node went with it: a machine taken away is no failure of a shard.
    """

    worker: int
    reason: str
    node_lost: bool = False


@dataclass(frozen=True)
class Room:
    """The cluster has grown, and has room for that many workers."""

    workers: int


@dataclass(frozen=True)
class RunAgain:
    """A shard that another worker has not finished was given to an idle one too."""

    worker: int
    shard: int


@dataclass(frozen=True)
class Stalled:
    """A worker was at one shard for too long, and is replaced."""

    worker: int
    shard: int
    seconds: float


@dataclass(frozen=True)
class Slow:
    """A worker has been at one shard for long, and nothing tells yet whether for too long."""

    worker: int
    shard: int
    seconds: float


@dataclass(frozen=True)
class GivenBack:
    """A worker was ended, since there is nothing left for it to do."""

    worker: int


@dataclass(frozen=True)
class GivenUp:
    """A shard is not tried again.

    Attributes:
        shard: which.
        reason: of its last failure.
    """

    shard: int
    reason: str


#: What happens to workers.
Event = Started | Counted | Failed | Died | Room
#: What is told to an observer: what happened, and what was decided.
News = Event | RunAgain | GivenBack | Stalled | Slow | GivenUp
#: Told of every event and decision, with the facts before it.
Observe = Callable[[News, Facts], None]


class Pool(Protocol):
    """Workers somewhere."""

    def start(self) -> int:
        """Begin to start a worker; its name, at once. ``Started`` or ``Died`` follows."""

    def submit(self, worker: int, shard: int) -> None:
        """Queue a shard on a worker. ``Counted``, ``Failed`` or the worker's ``Died`` follows."""

    def end(self, worker: int) -> None:
        """End a worker, whatever it is doing. No event of it follows."""

    def events(self, timeout_s: float) -> list[Event]:
        """What happened; waits at most that long for something to."""


@dataclass(frozen=True)
class Outcome:
    """What became of the shards.

    Attributes:
        counted: shards counted, here or by another driver.
        given_up: shard to the reason of its last failure.
    """

    counted: set[int]
    given_up: dict[int, str]


def dispatch(
    shards: Iterable[int],
    pool: Pool,
    policy: Policy,
    observe: Observe = lambda news, facts: None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Count every shard, or give it up.

    Args:
        shards: what is to be done.
        pool: by whom.
        policy: how long to try.
        observe: told of every event and decision, for progress, logs and metrics.
        clock: the time, s.

    Returns:
        Outcome; ``counted`` and ``given_up`` together are all of ``shards``, and no shard is in both.

    Raises:
        WorkersError: workers cannot start, or fail at everything.
    """
    facts = Facts.of(shards)
    told: set[int] = set()
    while facts.open:
        _act(facts, pool, policy, observe, clock())
        for event in pool.events(timeout_s=1.0):
            if not (isinstance(event, Counted) and event.shard in facts.counted):  # of two runs, one is told
                observe(event, facts)
            learn(facts, event, policy, clock())
        _end_stalled(facts, pool, policy, observe, clock())
        for shard in facts.given_up.keys() - told:
            observe(GivenUp(shard, facts.given_up[shard]), facts)
        told = set(facts.given_up)
    return Outcome(facts.counted, facts.given_up)


def _act(facts: Facts, pool: Pool, policy: Policy, observe: Observe, now: float) -> None:
    """Carry out what the policy decides, and note it among the facts."""
    for worker, shard, seconds in decide.slow(facts, policy, now):
        observe(Slow(worker, shard, seconds), facts)
        facts.named.add((worker, shard))
    for _ in range(decide.workers_missing(facts, policy)):
        facts.starting.add(pool.start())
    for worker, shard in decide.assignments(facts.queues, facts.pending, policy.in_flight):
        facts.pending.popleft()
        _give(facts, pool, worker, shard, now)
    for worker, shard in decide.second_runs(facts, policy, now):
        observe(RunAgain(worker, shard), facts)
        _give(facts, pool, worker, shard, now)
    for worker in decide.surplus(facts, policy):
        observe(GivenBack(worker), facts)
        pool.end(worker)
        facts.forget(worker)


def _end_stalled(facts: Facts, pool: Pool, policy: Policy, observe: Observe, now: float) -> None:
    for worker, shard, seconds in decide.stalled(facts, policy, now):
        observe(Stalled(worker, shard, seconds), facts)
        pool.end(worker)
        _lose(facts, worker, f"no result after {seconds:.0f} s", policy)


def _give(facts: Facts, pool: Pool, worker: int, shard: int, now: float) -> None:
    facts.give(worker, shard, now)
    pool.submit(worker, shard)


def learn(facts: Facts, event: Event, policy: Policy, now: float) -> None:
    """Add an event to the facts. Raises WorkersError where it shows that nothing works any more."""
    match event:
        case Room(workers):
            facts.room = max(facts.room, workers)
        case Started(worker):
            facts.start_deaths = facts.start_losses = 0
            facts.ready(worker)
        case Counted(worker, shard):
            facts.failures = 0
            if event.passes:
                facts.durations.append(now - facts.since[worker])
            facts.take(worker, shard, now)
            facts.count(shard)
        case Failed(worker, shard, reason):
            facts.take(worker, shard, now)
            facts.attempts[shard] += 1
            _failed(facts, shard, reason, policy)
        case Died(worker, reason, node_lost) if worker in facts.starting:
            facts.starting.discard(worker)
            _died_starting(facts, reason, policy, node_lost)
        case Died(worker, reason, node_lost):
            what = "its node was lost" if node_lost else "its worker died"
            _lose(facts, worker, f"{what}: {reason}", policy, node_lost=node_lost)


def _lose(facts: Facts, worker: int, reason: str, policy: Policy, *, node_lost: bool = False) -> None:
    """A worker is gone. The first in its queue was at work, and may be what killed it; the rest was not."""
    queue = facts.forget(worker)
    left = [shard for shard in queue[1:] if shard not in facts.counted and not facts.holders(shard)]
    facts.pending.extendleft(reversed(left))
    if queue:
        (facts.losses if node_lost else facts.attempts)[queue[0]] += 1
        _failed(facts, queue[0], reason, policy, node_lost=node_lost)


def _failed(facts: Facts, shard: int, reason: str, policy: Policy, *, node_lost: bool = False) -> None:
    """A run of a shard came to nothing: try again, give it up, or leave it to the other worker that has it."""
    if shard in facts.counted:
        return
    if not node_lost:
        facts.failures += facts.attempts[shard] == 1
        if facts.failures >= policy.max_failures:
            raise WorkersError(
                f"{facts.failures} shards in a row failed, none was counted in between; the last: {reason}"
            )
    if facts.holders(shard):
        return
    if decide.hopeless(shard, facts, policy):
        facts.given_up[shard] = reason
    elif node_lost:
        facts.pending.appendleft(shard)
    else:
        facts.pending.append(shard)


def _died_starting(facts: Facts, reason: str, policy: Policy, node_lost: bool) -> None:
    if node_lost:
        facts.start_losses += 1
        if facts.start_losses >= policy.max_losses:
            raise WorkersError(f"{facts.start_losses} nodes in a row were lost while workers started on them; {reason}")
        return
    facts.start_deaths += 1
    if facts.start_deaths >= policy.max_start_deaths:
        raise WorkersError(f"{facts.start_deaths} workers in a row died while starting; the last: {reason}")
