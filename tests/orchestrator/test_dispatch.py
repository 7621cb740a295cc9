from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from random import Random
from unittest.mock import patch

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from orchestrator.counting.dispatch import (
    Counted,
    Died,
    Event,
    Failed,
    News,
    Outcome,
    Started,
    dispatch,
)
from orchestrator.counting.policy import Facts, Policy
from orchestrator.errors import WorkersError

#: What becomes of a shard that a worker begins: (shard, how often it was begun before) to "count", "fail" or "die".
Fate = Callable[[int, int], str]


class FakePool:
    """``dispatch.Pool`` that follows a script. Workers work through their queues in order, as actors do, and find what
    another has committed.

    Args:
        fate: what becomes of a shard that is begun.
        births: what becomes of the workers started, in order: "start" or "die"; "start" after the last.
        pick: which of the workers that could do something does it next; None takes the first.
    """

    def __init__(self, fate: Fate, births: Iterable[str] = (), pick: Random | None = None) -> None:
        self._fate, self._births, self._pick = fate, deque(births), pick
        self.starting: list[int] = []
        self.queues: dict[int, deque[int]] = {}
        self.started = 0
        self.begun: Counter[int] = Counter()
        self.committed: set[int] = set()
        self.submitted: list[tuple[int, int]] = []
        self.longest_queue = 0
        self.most_workers = 0
        self.events_calls = 0

    def clock(self) -> float:
        """Every event takes a second."""
        return float(self.events_calls)

    def start(self) -> int:
        worker = self.started
        self.started += 1
        self.starting.append(worker)
        self.most_workers = max(self.most_workers, len(self.starting) + len(self.queues))
        return worker

    def submit(self, worker: int, shard: int) -> None:
        assert worker in self.queues, "a shard was given to a worker that is not there"
        self.submitted.append((worker, shard))
        self.queues[worker].append(shard)
        self.longest_queue = max(self.longest_queue, len(self.queues[worker]))

    def end(self, worker: int) -> None:
        assert not self.queues.get(worker), "no worker stalls here"
        if worker in self.starting:
            self.starting.remove(worker)
        else:
            del self.queues[worker]

    def events(self, timeout_s: float) -> list[Event]:
        assert timeout_s > 0
        self.events_calls += 1
        assert self.events_calls < 20_000, "the loop does not end"
        able = [*self.starting, *(worker for worker, queue in self.queues.items() if queue)]
        assert able, "the loop waits for workers that have nothing to do"
        worker = able[0] if self._pick is None else self._pick.choice(able)
        return [self._birth(worker) if worker in self.starting else self._work(worker)]

    def _birth(self, worker: int) -> Event:
        self.starting.remove(worker)
        if self._births and self._births.popleft() == "die":
            return Died(worker, "out of memory at birth")
        self.queues[worker] = deque()
        return Started(worker)

    def _work(self, worker: int) -> Event:
        shard = self.queues[worker].popleft()
        if shard in self.committed:
            return Counted(worker, shard, images=1, failed=0, passes=0, first=False)
        fate = self._fate(shard, self.begun[shard])
        self.begun[shard] += 1
        if fate == "count":
            self.committed.add(shard)
            return Counted(worker, shard, images=1, failed=0, passes=1, first=True)
        if fate == "fail":
            return Failed(worker, shard, f"shard {shard} is cursed")
        del self.queues[worker]
        return Died(worker, "killed")


def always_counts(shard: int, before: int) -> str:
    return "count"


def only(fates: dict[int, str]) -> Fate:
    """These shards have that fate every time; all others are counted."""
    return lambda shard, before: fates.get(shard, "count")


def run(pool: FakePool, shards: Iterable[int], **policy: int) -> Outcome:
    return dispatch(shards, pool, Policy(**{"workers": 2, **policy}), clock=pool.clock)


# --- All goes well -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 5, 50])
def test_every_shard_is_counted_once(workers: int) -> None:
    pool = FakePool(always_counts)
    assert run(pool, range(20), workers=workers) == Outcome(set(range(20)), {})
    assert pool.begun == Counter(range(20))


def test_nothing_to_do_starts_nobody() -> None:
    pool = FakePool(always_counts)
    assert run(pool, []) == Outcome(set(), {})
    assert (pool.started, pool.events_calls) == (0, 0)


def test_no_more_workers_are_started_than_there_are_shards() -> None:
    pool = FakePool(always_counts)
    run(pool, [7, 3], workers=10)
    assert pool.started == 2


def test_workers_are_started_once_when_none_dies() -> None:
    pool = FakePool(always_counts)
    run(pool, range(100), workers=4)
    assert pool.started == 4


@pytest.mark.parametrize("in_flight", [1, 2, 5])
def test_no_worker_ever_holds_more_than_in_flight(in_flight: int) -> None:
    pool = FakePool(always_counts, pick=Random(1))
    run(pool, range(50), workers=3, in_flight=in_flight)
    assert pool.longest_queue == in_flight


def test_shards_are_begun_in_the_order_given() -> None:
    pool = FakePool(always_counts)
    run(pool, [5, 3, 9, 1], workers=1)
    assert [shard for _, shard in pool.submitted] == [5, 3, 9, 1]


def test_every_event_is_observed_in_order() -> None:
    seen: list[News] = []
    dispatch([0, 1], FakePool(only({1: "fail"})), Policy(workers=1, max_attempts=2), lambda news, _: seen.append(news))
    assert [type(event).__name__ for event in seen] == ["Started", "Counted", "Failed", "Failed", "GivenUp"]


def test_a_worker_that_starts_late_helps() -> None:
    class LateSecond(FakePool):
        """Its second worker is ready only after the first has counted ten shards."""

        def events(self, timeout_s: float) -> list[Event]:
            late = 1 in self.starting and sum(self.begun.values()) < 10
            if late:
                self.starting.remove(1)
            found = super().events(timeout_s)
            if late:
                self.starting.append(1)
            return found

    pool = LateSecond(always_counts, pick=Random(0))
    assert run(pool, range(40)).counted == set(range(40))
    assert {worker for worker, _ in pool.submitted} == {0, 1}


def test_a_worker_that_starts_when_all_is_handed_out_gets_nothing() -> None:
    class Late(FakePool):
        """The second worker is ready together with the last shard but one."""

        def events(self, timeout_s: float) -> list[Event]:
            if self.starting == [0, 1]:
                return [self._birth(0)]
            if self.begun.total() == 1:
                return [self._birth(1), self._work(0)]
            return [self._work(0)]

    pool = Late(always_counts)
    assert run(pool, [0, 1, 2]).counted == {0, 1, 2}
    assert {worker for worker, _ in pool.submitted} == {0}


# --- Shards that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_attempts", [1, 2, 3, 5])
def test_a_failing_shard_is_tried_max_attempts_times_and_the_others_finish(max_attempts: int) -> None:
    pool = FakePool(only({4: "fail"}))
    outcome = run(pool, range(10), max_attempts=max_attempts)
    assert outcome == Outcome(set(range(10)) - {4}, {4: "shard 4 is cursed"})
    assert pool.begun == Counter({**dict.fromkeys(range(10), 1), 4: max_attempts})
    assert pool.started == 2


def test_a_shard_that_fails_at_first_is_counted_in_the_end() -> None:
    pool = FakePool(lambda shard, before: "fail" if shard == 4 and before < 2 else "count")
    assert run(pool, range(10), max_attempts=3) == Outcome(set(range(10)), {})
    assert pool.begun[4] == 3


def test_a_failed_shard_is_tried_again_after_the_others() -> None:
    pool = FakePool(only({0: "fail"}))
    run(pool, range(4), workers=1, in_flight=1, max_attempts=2)
    assert [shard for _, shard in pool.submitted] == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("good", [set(), {0}, {0, 1, 2, 30}], ids=["none", "one", "some"])
def test_max_failures_in_a_row_end_it_all(good: set[int]) -> None:
    pool = FakePool(lambda shard, before: "count" if shard in good else "fail")
    with pytest.raises(WorkersError, match=r"5 shards in a row failed.* is cursed"):
        run(pool, range(1000), workers=1, in_flight=1, max_failures=5)
    assert pool.begun.total() <= 5 + len(good)


def test_many_bad_shards_far_apart_are_given_up_and_end_nothing() -> None:
    bad = set(range(0, 200, 10))
    outcome = run(FakePool(only(dict.fromkeys(bad, "fail"))), range(200), max_failures=5)
    assert outcome.given_up.keys() == bad


def test_one_success_in_between_starts_the_row_anew() -> None:
    # Four fail, one is counted, again and again: never five in a row.
    pool = FakePool(lambda shard, before: "count" if shard % 5 == 4 else "fail")
    outcome = run(pool, range(50), workers=1, max_attempts=1, max_failures=5)
    assert len(outcome.counted) == 10
    assert len(outcome.given_up) == 40


def test_a_few_bad_shards_among_many_good_ones_are_given_up_and_end_nothing() -> None:
    # Their second and third attempts come last, one after the other; 94 shards were counted before.
    bad = {5, 20, 40, 60, 80, 99}
    outcome = run(FakePool(only(dict.fromkeys(bad, "fail"))), range(100))
    assert outcome.counted == set(range(100)) - bad
    assert outcome.given_up.keys() == bad


# --- Workers that die ----------------------------------------------------------------------------------------------


def test_a_dying_workers_other_shards_are_not_charged() -> None:
    # Shard 0 kills its worker twice; shard 1 waits behind it each time, and has both its own attempts left.
    fates = {0: ["die", "count"], 1: ["fail", "count"]}
    pool = FakePool(lambda shard, before: fates[shard][before] if shard in fates else "count")
    outcome = run(pool, range(4), workers=1, in_flight=3, max_attempts=2)
    assert outcome == Outcome({0, 1, 2, 3}, {})
    assert pool.begun == Counter({0: 2, 1: 2, 2: 1, 3: 1})
    assert pool.started == 2


def test_a_dead_workers_waiting_shards_go_first_and_in_order() -> None:
    pool = FakePool(lambda shard, before: "die" if shard == 0 and before == 0 else "count")
    run(pool, range(5), workers=1, in_flight=3)
    assert [shard for worker, shard in pool.submitted if worker == 1] == [1, 2, 3, 4, 0]


@pytest.mark.parametrize("max_attempts", [1, 2, 3])
def test_a_shard_that_kills_its_worker_is_given_up_after_max_attempts(max_attempts: int) -> None:
    pool = FakePool(only({3: "die"}))
    outcome = run(pool, range(8), max_attempts=max_attempts)
    assert outcome.counted == set(range(8)) - {3}
    assert outcome.given_up == {3: "its worker died: killed"}
    assert pool.begun == Counter({**dict.fromkeys(range(8), 1), 3: max_attempts})


def test_failures_and_deaths_of_a_shard_add_up() -> None:
    pool = FakePool(lambda shard, before: ["fail", "die", "fail"][before] if shard == 1 else "count")
    outcome = run(pool, range(4), max_attempts=3)
    assert outcome.given_up == {1: "shard 1 is cursed"}
    assert pool.begun[1] == 3


def test_a_dead_worker_is_replaced_and_never_more_live_than_asked_for() -> None:
    pool = FakePool(lambda shard, before: "die" if shard % 10 == 0 and before == 0 else "count", pick=Random(2))
    assert run(pool, range(100), workers=3).counted == set(range(100))
    assert pool.started == 3 + 10
    assert pool.most_workers == 3


def test_an_idle_worker_may_die() -> None:
    class IdleDeath(FakePool):
        """Worker 1 dies while it has nothing to do."""

        def events(self, timeout_s: float) -> list[Event]:
            if self.queues.get(1) == deque() and self.begun.total():
                del self.queues[1]
                return [Died(1, "bored")]
            return super().events(timeout_s)

    pool = IdleDeath(lambda shard, before: "fail" if before < 2 else "count")
    assert run(pool, [0, 1], max_attempts=5) == Outcome({0, 1}, {})


# --- Workers that do not start -------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_start_deaths", [1, 2, 3])
def test_deaths_at_start_in_a_row_end_it_all(max_start_deaths: int) -> None:
    pool = FakePool(always_counts, births=["die"] * 10)
    with pytest.raises(WorkersError, match=f"{max_start_deaths} workers in a row died .*out of memory at birth"):
        run(pool, range(10), workers=1, max_start_deaths=max_start_deaths)
    assert pool.started == max_start_deaths
    assert pool.submitted == []


def test_a_worker_that_starts_in_between_starts_the_row_anew() -> None:
    # Each started worker is killed by its shard, so that another is needed: two deaths, a start, two deaths, a start …
    pool = FakePool(lambda shard, before: "die" if before < 2 else "count", births=["die", "die", "start"] * 10)
    assert run(pool, [0], workers=1, max_start_deaths=3, max_attempts=3) == Outcome({0}, {})
    assert pool.started == 9


def test_deaths_at_work_are_no_deaths_at_start() -> None:
    pool = FakePool(lambda shard, before: "die" if before == 0 else "count")
    assert run(pool, range(10), workers=1, max_start_deaths=1).counted == set(range(10))
    assert pool.started == 11


# --- Whatever happens ----------------------------------------------------------------------------------------------


@given(
    shards=st.integers(0, 30),
    workers=st.integers(1, 6),
    in_flight=st.integers(1, 4),
    max_attempts=st.integers(1, 4),
    trouble=st.integers(0, 9),
    births=st.lists(st.sampled_from(["start", "die"]), max_size=20),
    random=st.randoms(use_true_random=False),
)
def test_counted_and_given_up_are_all_shards_and_none_is_both(
    shards: int, workers: int, in_flight: int, max_attempts: int, trouble: int, births: list[str], random: Random
) -> None:
    def fate(shard: int, before: int) -> str:
        return random.choice(["fail", "die"]) if random.randrange(10) < trouble else "count"

    counted: list[int] = []
    bad: Counter[int] = Counter()

    def observe(event: News, _: Facts) -> None:
        match event:
            case Counted():
                counted.append(event.shard)
            case Failed():
                bad[event.shard] += 1

    pool = FakePool(fate, births, random)
    policy = Policy(workers, in_flight, max_attempts, max_start_deaths=100, max_failures=10_000)
    outcome = dispatch(range(shards), pool, policy, observe, pool.clock)
    assert outcome.counted | outcome.given_up.keys() == set(range(shards))
    assert not outcome.counted & outcome.given_up.keys()
    assert sorted(counted) == sorted(outcome.counted)
    assert all(pool.begun[shard] == max_attempts for shard in outcome.given_up)
    assert all(1 <= pool.begun[shard] <= max_attempts for shard in outcome.counted)
    assert all(bad[shard] <= max_attempts for shard in range(shards))
    assert pool.longest_queue <= in_flight
    assert pool.most_workers <= workers


@given(
    shards=st.integers(0, 30),
    workers=st.integers(1, 6),
    in_flight=st.integers(1, 4),
    trouble=st.integers(0, 9),
    random=st.randoms(use_true_random=False),
)
def test_what_is_known_of_shards_at_work_is_what_the_queues_say(
    shards: int, workers: int, in_flight: int, trouble: int, random: Random
) -> None:
    facts = Facts.of(range(shards))
    shared = 0

    class Looking(FakePool):
        """Holds what the driver has kept against a look at every queue, before each event."""

        def events(self, timeout_s: float) -> list[Event]:
            nonlocal shared
            held = Counter(shard for queue in facts.queues.values() for shard in queue)
            assert facts.at_work == Counter({shard: held[shard] for shard in held if shard not in facts.counted})
            assert facts.left() == len(facts.pending) + len(set(held) - facts.counted)
            assert facts.open == bool(facts.pending or set(held) - facts.counted)
            shared = max(shared, *held.values(), 0)
            return super().events(timeout_s)

    def fate(shard: int, before: int) -> str:
        return random.choice(["fail", "die"]) if random.randrange(10) < trouble else "count"

    pool = Looking(fate, pick=random)
    policy = Policy(workers, in_flight, max_start_deaths=100, max_failures=10_000, straggler_factor=0.5)
    with patch.object(Facts, "of", lambda shards: facts):
        dispatch(range(shards), pool, policy, clock=pool.clock)
    assert not facts.open
    assert not facts.at_work
    event("a shard on two workers" if shared > 1 else "none on two")
