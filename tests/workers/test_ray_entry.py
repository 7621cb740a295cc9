"""The counting actor as a plain object: what it commits, and what it does not."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from orchestrator.plan import Plan
from orchestrator.resolve import resolve
from orchestrator.spec import validate
from tests.orchestrator.runs import digits_spec
from workers import layout
from workers.ray_entry import CountingActor, Stopped, WrongInputs
from workers.store import LocalStore


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resolve(validate(digits_spec(), "spec")).plan


@pytest.fixture
def store(plan: Plan, tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path)
    store.create(layout.PLAN, plan.to_json())
    return store


def actor_of(plan: Plan, store: LocalStore, digest: str | None = None) -> CountingActor:
    own = hashlib.sha256(store.read(layout.PLAN)).hexdigest()
    return CountingActor(plan.job(store.uri, device="cpu", plan_sha256=digest or own))


@pytest.fixture
def actor(plan: Plan, store: LocalStore) -> CountingActor:
    return actor_of(plan, store)


def test_what_is_committed_is_not_counted_again(actor: CountingActor) -> None:
    first, second = actor.count(2), actor.count(2)
    assert (first.images, first.failed, first.passes, first.first) == (4, 0, 4 * 80, True)
    assert (second.images, second.passes, second.first) == (4, 0, False)


def test_a_worker_that_sees_another_plan_refuses_to_start(plan: Plan, store: LocalStore) -> None:
    with pytest.raises(WrongInputs, match=r"run at store\.run that this worker sees is not the one planned"):
        actor_of(plan, store, digest="0" * 64)


def test_nothing_is_committed_once_it_has_been_told_to_stop(actor: CountingActor, store: LocalStore) -> None:
    actor.stop()
    with pytest.raises(Stopped):
        actor.count(0)
    assert not store.exists(layout.counts(0))


def test_stop_waits_for_the_commit_that_is_under_way(
    actor: CountingActor, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, may_land, stopped = threading.Event(), threading.Event(), threading.Event()
    create = LocalStore.create

    def slow_create(self: LocalStore, key: str, content: bytes) -> bool:
        writing.set()
        assert may_land.wait(20)
        return create(self, key, content)

    monkeypatch.setattr(LocalStore, "create", slow_create)

    def stop() -> None:
        actor.stop()
        stopped.set()

    threads = [threading.Thread(target=actor.count, args=(0,)), threading.Thread(target=stop)]
    threads[0].start()
    assert writing.wait(20)
    threads[1].start()
    assert not stopped.wait(0.2)
    may_land.set()
    for thread in threads:
        thread.join(20)
    assert stopped.is_set()
    assert store.exists(layout.counts(0))
