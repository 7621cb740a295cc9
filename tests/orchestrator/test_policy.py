"""Scripted faults: what happens at which second, and exactly what is asked of the workers in answer."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.counting.dispatch import (
    Counted,
    Died,
    Event,
    Failed,
    GivenBack,
    News,
    Outcome,
    Room,
    RunAgain,
    Slow,
    Stalled,
    Started,
    dispatch,
)
from orchestrator.counting.policy import (
    Facts,
    Policy,
    assignments,
    hopeless,
    second_runs,
    stalled,
    surplus,
    workers_missing,
)
from orchestrator.errors import WorkersError


def ok(worker: int, shard: int, passes: int = 1) -> Counted:
    return Counted(worker, shard, images=1, failed=0, passes=passes, first=passes > 0)


@dataclass(frozen=True)
class Step:
    """At ``now`` seconds these events are known; in answer, these calls are made and no others."""

    now: float
    events: tuple[Event, ...]
    calls: tuple[str, ...]


@dataclass(frozen=True)
class Script:
    """``shards`` shards under ``policy``. The first step has no events: it is how the work begins."""

    shards: int
    policy: Policy
    steps: tuple[Step, ...]
    outcome: Outcome
    news: tuple[News, ...] = ()


class Scripted:
    """``dispatch.Pool`` and its clock, by a script."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._next = 1
        self._workers = 0
        self.now = script.steps[0].now
        self.calls: list[str] = []
        self.made: list[tuple[str, ...]] = []

    def start(self) -> int:
        self.calls.append(f"start {self._workers}")
        self._workers += 1
        return self._workers - 1

    def submit(self, worker: int, shard: int) -> None:
        self.calls.append(f"submit {worker} {shard}")

    def end(self, worker: int) -> None:
        self.calls.append(f"end {worker}")

    def events(self, timeout_s: float) -> list[Event]:
        self.made.append(tuple(self.calls))
        self.calls = []
        assert self._next < len(self._script.steps), "the script is over, the work is not"
        step = self._script.steps[self._next]
        self._next += 1
        self.now = step.now
        return list(step.events)

    def over(self) -> bool:
        return self._next == len(self._script.steps)


def steps(*rows: tuple[float, tuple[Event, ...], str]) -> tuple[Step, ...]:
    """Rows of (now, events, calls separated by commas)."""
    return tuple(Step(now, events, tuple(call for call in calls.split(", ") if call)) for now, events, calls in rows)


ONE = Policy(workers=1, in_flight=2)
TWO = Policy(workers=2, in_flight=2)
DEEP = Policy(workers=2, in_flight=1)

SCRIPTS = {
    "a failure is tried again, after the others": Script(
        3,
        Policy(workers=1, in_flight=1),
        steps(
            (0, (), "start 0"),
            (1, (Started(0),), "submit 0 0"),
            (2, (Failed(0, 0, "disk"),), "submit 0 1"),
            (3, (ok(0, 1),), "submit 0 2"),
            (4, (ok(0, 2),), "submit 0 0"),
            (5, (ok(0, 0),), ""),
        ),
        Outcome({0, 1, 2}, {}),
    ),
    "a shard is given up after three failures, with the last reason": Script(
        1,
        ONE,
        steps(
            (0, (), "start 0"),
            (1, (Started(0),), "submit 0 0"),
            (2, (Failed(0, 0, "first"),), "submit 0 0"),
            (3, (Failed(0, 0, "second"),), "submit 0 0"),
            (4, (Failed(0, 0, "third"),), ""),
        ),
        Outcome(set(), {0: "third"}),
    ),
    "work that is killed for its memory does not loop": Script(
        2,
        Policy(workers=1, in_flight=2, max_attempts=2),
        steps(
            (0, (), "start 0"),
            (1, (Started(0),), "submit 0 0, submit 0 1"),
            (2, (Died(0, "out of memory"),), "start 1"),
            # Shard 1 only waited: it goes first, uncharged.
            (3, (Started(1),), "submit 1 1, submit 1 0"),
            (4, (ok(1, 1),), ""),
            (5, (Died(1, "out of memory"),), ""),
        ),
        Outcome({1}, {0: "its worker died: out of memory"}),
    ),
    "a lost node is no attempt, and its shards go first": Script(
        3,
        Policy(workers=1, in_flight=2, max_attempts=1),
        steps(
            (0, (), "start 0"),
            (1, (Started(0),), "submit 0 0, submit 0 1"),
            (2, (Died(0, "preempted", node_lost=True),), "start 1"),
            (3, (Died(1, "preempted", node_lost=True),), "start 2"),
            (4, (Started(2),), "submit 2 0, submit 2 1"),
            (5, (Died(2, "preempted", node_lost=True),), "start 3"),
            (6, (Started(3),), "submit 3 0, submit 3 1"),
            (7, (ok(3, 0), ok(3, 1)), "submit 3 2"),
            (8, (ok(3, 2),), ""),
        ),
        Outcome({0, 1, 2}, {}),
    ),
    "a shard that takes its node down every time is given up": Script(
        1,
        Policy(workers=1, max_losses=2),
        steps(
            (0, (), "start 0"),
            (1, (Started(0),), "submit 0 0"),
            (2, (Died(0, "gone", node_lost=True),), "start 1"),
            (3, (Started(1),), "submit 1 0"),
            (4, (Died(1, "gone again", node_lost=True),), ""),
        ),
        Outcome(set(), {0: "its node was lost: gone again"}),
    ),
    "a straggler is run again by an idle worker, and the second commit ends it": Script(
        5,
        DEEP,
        steps(
            (0, (), "start 0, start 1"),
            (0, (Started(0), Started(1)), "submit 0 0, submit 1 1"),
            (10, (ok(0, 0),), "submit 0 2"),
            (20, (ok(0, 2),), "submit 0 3"),
            (20.0, (), ""),
            (30, (ok(0, 3),), "submit 0 4"),
            # Shard 1 has taken 40 s, four times the median: but nobody is idle before.
            (40, (ok(0, 4),), "submit 0 1"),
            (50, (ok(0, 1),), ""),
        ),
        Outcome({0, 1, 2, 3, 4}, {}),
        (RunAgain(0, 1),),
    ),
    "no second run before twice the median, and never a third": Script(
        5,
        Policy(workers=3, in_flight=1),
        steps(
            (0, (), "start 0, start 1, start 2"),
            (0, (Started(0), Started(1), Started(2)), "submit 0 0, submit 1 1, submit 2 2"),
            (10, (ok(0, 0), ok(1, 1)), "submit 0 3, submit 1 4"),
            (20, (ok(0, 3),), ""),
            (20.5, (), "submit 0 2"),
            (21, (ok(1, 4),), "end 1"),  # the last shard has two workers
            (60, (), ""),
            (61, (Failed(0, 2, "disk"),), "submit 0 2"),
            (90, (ok(2, 2),), ""),
        ),
        Outcome({0, 1, 2, 3, 4}, {}),
        (RunAgain(0, 2), GivenBack(1), RunAgain(0, 2)),
    ),
    "what waits behind a slow shard is taken by an idle worker": Script(
        3,
        TWO,
        steps(
            (0, (), "start 0, start 1"),
            (0, (Started(0), Started(1)), "submit 0 0, submit 1 1, submit 0 2"),
            (5, (ok(1, 1),), "submit 1 2"),
            (9, (ok(1, 2),), ""),
            (10, (ok(0, 0),), ""),
        ),
        Outcome({0, 1, 2}, {}),
        (RunAgain(1, 2),),
    ),
    "of two runs one fails: the other one counts": Script(
        3,
        TWO,
        steps(
            (0, (), "start 0, start 1"),
            (0, (Started(0), Started(1)), "submit 0 0, submit 1 1, submit 0 2"),
            (5, (ok(1, 1),), "submit 1 2"),
            (6, (Failed(1, 2, "disk"),), "submit 1 2"),
            (9, (Failed(1, 2, "disk"),), ""),
            (10, (ok(0, 0),), "end 1"),
            (20, (ok(0, 2),), ""),
        ),
        Outcome({0, 1, 2}, {}),
        (RunAgain(1, 2), RunAgain(1, 2), GivenBack(1)),
    ),
    "of two runs both fail: two attempts": Script(
        3,
        Policy(workers=2, in_flight=2, max_attempts=2),
        steps(
            (0, (), "start 0, start 1"),
            (0, (Started(0), Started(1)), "submit 0 0, submit 1 1, submit 0 2"),
            (5, (ok(1, 1),), "submit 1 2"),
            (6, (ok(0, 0),), ""),
            (7, (Failed(1, 2, "disk"),), "end 1"),
            (8, (Failed(0, 2, "memory"),), ""),
        ),
        Outcome({0, 1}, {2: "memory"}),
        (RunAgain(1, 2), GivenBack(1)),
    ),
    "with one attempt allowed nothing is run twice": Script(
        3,
        Policy(workers=2, in_flight=2, max_attempts=1),
        steps(
            (0, (), "start 0, start 1"),
            (0, (Started(0), Started(1)), "submit 0 0, submit 1 1, submit 0 2"),
            (5, (ok(1, 1),), ""),
            (6, (ok(0, 0),), "end 1"),
            (8, (ok(0, 2),), ""),
        ),
        Outcome({0, 1, 2}, {}),
        (GivenBack(1),),
    ),
    "a stalled shard is named after twenty medians, its worker replaced": Script(
        6,
        Policy(workers=2, in_flight=1, stall_floor_s=100),
        steps(
            (0, (), "start 0, start 1"),
            (0, (Started(0), Started(1)), "submit 0 0, submit 1 1"),
            (10, (ok(0, 0),), "submit 0 2"),
            (20, (ok(0, 2),), "submit 0 3"),
            (30, (ok(0, 3),), "submit 0 4"),
            (40, (Failed(0, 4, "x"),), "submit 0 5"),
            (50, (ok(0, 5),), "submit 0 4"),
            (60, (Failed(0, 4, "x"),), "submit 0 4"),
            (70, (Failed(0, 4, "gave up"),), "submit 0 1"),
            # Both have it now. 200 s = 20 medians.
            (200, (), ""),
            # One shard is left, and one worker has it: no third worker.
            (201, (), "end 1"),
            (260, (ok(0, 1),), ""),
        ),
        Outcome({0, 1, 2, 3, 5}, {4: "gave up"}),
        (RunAgain(0, 1), Stalled(1, 1, 201)),
    ),
    "stall_s holds from the first shard on, and a stall is an attempt": Script(
        2,
        Policy(workers=1, in_flight=2, max_attempts=2, stall_s=30),
        steps(
            (0, (), "start 0"),
            (5, (Started(0),), "submit 0 0, submit 0 1"),
            (35, (), ""),
            (35.5, (), "end 0, start 1"),
            (40, (Started(1),), "submit 1 1, submit 1 0"),
            (60, (ok(1, 1),), ""),
            (90, (), ""),
            (90.5, (), "end 1"),
        ),
        Outcome({1}, {0: "no result after 30 s"}),
        (Stalled(0, 0, 30.5), Stalled(1, 0, 30.5)),
    ),
    "before anything is known a slow shard is named, once, and nobody is replaced": Script(
        1,
        ONE,
        steps(
            (0, (), "start 0"),
            (1, (Started(0),), "submit 0 0"),
            (601, (), ""),
            (602, (), ""),
            (100_000, (), ""),
            (100_001, (ok(0, 0),), ""),
        ),
        Outcome({0}, {}),
        (Slow(0, 0, 601),),
    ),
    "a worker stuck at what another has counted is replaced too": Script(
        5,
        Policy(workers=2, in_flight=1, stall_floor_s=10, stall_factor=1),
        steps(
            (0, (), "start 0, start 1"),
            (0, (Started(0), Started(1)), "submit 0 0, submit 1 1"),
            (1, (ok(0, 0),), "submit 0 2"),
            (2, (ok(0, 2),), "submit 0 3"),
            (3, (Failed(0, 3, "x"),), "submit 0 4"),
            (9, (ok(0, 4),), "submit 0 3"),
            (10, (Failed(0, 3, "x"),), "submit 0 3"),
            (11, (ok(0, 3),), "end 1, submit 0 1"),
            (12, (ok(0, 1),), ""),
        ),
        Outcome({0, 1, 2, 3, 4}, {}),
        (Stalled(1, 1, 11),),
    ),
    "work begins with who is there, ends without who never came, and gives back who has nothing to do": Script(
        6,
        Policy(workers=4, in_flight=1),
        steps(
            (0, (), "start 0, start 1, start 2, start 3"),
            (1, (Started(0),), "submit 0 0"),
            (2, (ok(0, 0),), "submit 0 1"),
            (3, (Started(1), ok(0, 1)), "submit 0 2, submit 1 3"),
            # Three are left, and two workers ready: one more would be of use.
            (4, (ok(0, 2),), "submit 0 4, end 3"),
            (5, (ok(0, 4),), "submit 0 5, end 2"),
            # One has nothing to do, and stays: the last may turn out a straggler.
            (6, (ok(1, 3),), ""),
            (8, (), "submit 1 5"),
            (9, (ok(1, 5),), ""),
        ),
        Outcome({0, 1, 2, 3, 4, 5}, {}),
        (GivenBack(3), GivenBack(2), RunAgain(1, 5)),
    ),
    "idle workers stay as long as there is a shard for each to run again": Script(
        4,
        Policy(workers=4, in_flight=1),
        steps(
            (0, (), "start 0, start 1, start 2, start 3"),
            (0, (Started(0), Started(1), Started(2), Started(3)), "submit 0 0, submit 1 1, submit 2 2, submit 3 3"),
            (10, (ok(0, 0),), ""),
            (11, (ok(1, 1),), ""),
            (12, (ok(2, 2),), "end 0, end 1"),
            (24, (), "submit 2 3"),
            (30, (ok(2, 3),), ""),
        ),
        Outcome({0, 1, 2, 3}, {}),
        (GivenBack(0), GivenBack(1), RunAgain(2, 3)),
    ),
    "nobody is kept for a second run that is not allowed": Script(
        3,
        Policy(workers=3, in_flight=1, max_attempts=1),
        steps(
            (0, (), "start 0, start 1, start 2"),
            (0, (Started(0), Started(1), Started(2)), "submit 0 0, submit 1 1, submit 2 2"),
            (1, (ok(2, 2),), "end 2"),
            (2, (ok(1, 1),), "end 1"),
            (3, (ok(0, 0),), ""),
        ),
        Outcome({0, 1, 2}, {}),
        (GivenBack(2), GivenBack(1)),
    ),
    "a cluster that has grown is used, up to one worker for a shard": Script(
        4,
        Policy(workers=1, in_flight=1),
        steps(
            (0, (), "start 0"),
            (1, (Started(0), Room(3)), "start 1, start 2, submit 0 0"),
            (2, (Room(9),), "start 3"),
            # Room that is lost may come back: a worker lost with it is waited for.
            (3, (Room(2),), ""),
            (4, (Started(1), Started(2), Started(3)), "submit 1 1, submit 2 2, submit 3 3"),
            (5, tuple(ok(worker, worker) for worker in range(4)), ""),
        ),
        Outcome({0, 1, 2, 3}, {}),
    ),
    "what another driver has committed tells nothing of how long shards take": Script(
        5,
        Policy(workers=1, in_flight=1, stall_floor_s=10, stall_factor=1),
        steps(
            (0, (), "start 0"),
            (0, (Started(0),), "submit 0 0"),
            (0, (ok(0, 0, passes=0),), "submit 0 1"),
            (0, (ok(0, 1, passes=0),), "submit 0 2"),
            (0, (ok(0, 2, passes=0),), "submit 0 3"),
            (500, (ok(0, 3),), "submit 0 4"),
            (1000, (ok(0, 4),), ""),
        ),
        Outcome({0, 1, 2, 3, 4}, {}),
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_exactly_these_calls_are_made(name: str) -> None:
    script = SCRIPTS[name]
    pool = Scripted(script)
    seen: list[News] = []
    outcome = dispatch(
        range(script.shards), pool, script.policy, lambda news, _: seen.append(news), clock=lambda: pool.now
    )
    assert pool.over(), "the work ended before the script"
    assert [*pool.made, tuple(pool.calls)] == [step.calls for step in script.steps]
    assert outcome == script.outcome
    assert tuple(news for news in seen if isinstance(news, RunAgain | GivenBack | Stalled | Slow)) == script.news


@pytest.mark.parametrize("losses", [1, 3])
def test_nodes_lost_while_workers_start_are_no_deaths_at_start_until_there_are_too_many(losses: int) -> None:
    policy = Policy(workers=1, max_start_deaths=1, max_losses=losses)
    script = Script(
        1,
        policy,
        steps(
            (0, (), "start 0"),
            *(
                (now, (Died(now - 1, "gone", node_lost=True),), "" if now == losses else f"start {now}")
                for now in range(1, losses + 1)
            ),
        ),
        Outcome(set(), {}),
    )
    pool = Scripted(script)
    with pytest.raises(WorkersError, match=f"{losses} nodes in a row were lost"):
        dispatch(range(1), pool, policy, clock=lambda: pool.now)
    assert pool.over()


@given(lengths=st.lists(st.integers(0, 4), max_size=6), shards=st.integers(0, 30), in_flight=st.integers(1, 4))
def test_assignments_fill_the_shortest_queues_first(lengths: list[int], shards: int, in_flight: int) -> None:
    queues = {worker: [100] * min(length, in_flight) for worker, length in enumerate(lengths)}
    chosen = assignments(queues, range(shards), in_flight)
    assert [shard for _, shard in chosen] == list(range(len(chosen)))
    filled = Counter({worker: len(queue) for worker, queue in queues.items()})
    for worker, _ in chosen:
        assert filled[worker] == min(filled.values())
        filled[worker] += 1
    assert max(filled.values(), default=0) <= in_flight
    assert len(chosen) == shards or all(filled[worker] == in_flight for worker in queues)


@given(
    lengths=st.dictionaries(st.integers(0, 9), st.integers(0, 4), max_size=6),
    shards=st.integers(0, 30),
    in_flight=st.integers(1, 4),
)
def test_assignments_are_those_of_a_look_at_every_queue_for_every_shard(
    lengths: dict[int, int], shards: int, in_flight: int
) -> None:
    expected, filled = [], dict(lengths)
    for shard in range(shards):
        worker = min(filled, key=lambda name: filled[name], default=None)
        if worker is None or filled[worker] >= in_flight:
            break
        expected.append((worker, shard))
        filled[worker] += 1
    assert (
        assignments({worker: [100] * length for worker, length in lengths.items()}, range(shards), in_flight)
        == expected
    )


@st.composite
def facts(draw: st.DrawFn) -> Facts:
    """Any standing of up to six workers, each holding up to three shards of its own or another's."""
    queues = {
        worker: draw(st.lists(st.integers(0, 9), max_size=3, unique=True)) for worker in range(draw(st.integers(0, 6)))
    }
    return Facts(
        pending=deque(draw(st.lists(st.integers(10, 12), max_size=2, unique=True))),
        queues=queues,
        since={worker: draw(st.floats(0, 100)) for worker in queues},
        attempts=Counter({shard: draw(st.integers(0, 3)) for shard in range(10)}),
        durations=deque(draw(st.lists(st.floats(0.1, 50), max_size=6))),
        counted=draw(st.sets(st.integers(0, 9), max_size=4)),
    )


@given(facts=facts(), now=st.floats(100, 10_000))
def test_second_runs_use_idle_workers_alone_and_never_cost_the_last_attempt(facts: Facts, now: float) -> None:
    policy = Policy(workers=6)
    chosen = second_runs(facts, policy, now)
    assert not (facts.pending and chosen)
    assert len({worker for worker, _ in chosen}) == len({shard for _, shard in chosen}) == len(chosen)
    for worker, shard in chosen:
        assert facts.queues[worker] == []
        assert facts.holders(shard) == 1
        assert shard not in facts.counted
        facts.attempts[shard] += 1
        assert not hopeless(shard, facts, policy)


@given(facts=facts(), starting=st.sets(st.integers(6, 12)), attempts=st.integers(1, 3))
def test_who_is_given_back_is_not_at_work_and_is_not_missed(facts: Facts, starting: set[int], attempts: int) -> None:
    policy = Policy(workers=20, max_attempts=attempts)
    facts.starting |= starting
    ended = surplus(facts, policy)
    assert len(set(ended)) == len(ended)
    for worker in ended:
        assert not facts.queues.get(worker)
        facts.forget(worker)
    assert surplus(facts, policy) == []
    if ended:
        assert workers_missing(facts, policy) == 0


@given(facts=facts(), now=st.floats(100, 10_000), later=st.floats(0, 10_000))
def test_who_is_stalled_stays_stalled(facts: Facts, now: float, later: float) -> None:
    policy = Policy(workers=6, stall_floor_s=20)
    found = {(worker, shard) for worker, shard, _ in stalled(facts, policy, now)}
    assert found <= {(worker, shard) for worker, shard, _ in stalled(facts, policy, now + later)}
    assert not found or len(facts.durations) >= policy.known


@given(facts=facts(), now=st.floats(0, 10_000), limit=st.none() | st.floats(0, 200))
def test_the_stalled_are_those_of_a_look_at_every_worker(facts: Facts, now: float, limit: float | None) -> None:
    policy = Policy(workers=6, stall_s=limit, stall_floor_s=20)
    median = facts.median_s(policy)
    longest = limit if limit is not None else None if median is None else max(20, 20 * median)
    begun = [(worker, queue[0], now - facts.since[worker]) for worker, queue in facts.queues.items() if queue]
    expected = [] if longest is None else [entry for entry in begun if entry[2] > longest]
    assert stalled(facts, policy, now) == expected
