"""The counting actor as a plain object: what it commits, and what it does not."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
import torch

from orchestrator.planning.plans import Plan
from orchestrator.planning.resolve import resolve
from orchestrator.spec import validate
from tests.orchestrator.runs import digits_spec
from tests.workers.samples import encoded, noise_image, write_folder
from workers import layout
from workers.images import EncodedImages, Pixels
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


def test_the_next_shards_images_are_read_while_one_is_counted(actor: CountingActor) -> None:
    counting, may_go_on, read_meanwhile = threading.Event(), threading.Event(), threading.Event()
    network, read = actor._model.forward, actor._images.read

    def blocking(images: torch.Tensor) -> torch.Tensor:
        counting.set()
        assert may_go_on.wait(20)
        return network(images)

    def watched(index: int) -> Pixels:
        if counting.is_set():
            read_meanwhile.set()
        return read(index)

    actor._model.forward, actor._images.read = blocking, watched  # type: ignore[method-assign]
    threads = [threading.Thread(target=actor.count, args=(shard,)) for shard in (0, 1)]
    threads[0].start()
    assert counting.wait(20)
    threads[1].start()
    assert read_meanwhile.wait(20)
    assert not actor._store.exists(layout.counts(0))
    may_go_on.set()
    for thread in threads:
        thread.join(20)
    assert all(actor._store.exists(layout.counts(shard)) for shard in (0, 1))


def test_a_worker_that_cannot_read_what_the_driver_could_refuses_to_start(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", {f"{c}/{n}.png": encoded(noise_image(n)) for c in "ab" for n in range(4)})
    network = {"name": "tests.networks:tiny_rgb", "num_classes": 10}
    content = digits_spec(dataset={"kind": "image_folder", "path": str(data)}, model=network)
    resolved = resolve(validate(content, "spec"))
    store = LocalStore(tmp_path / "run")
    store.create(layout.PLAN, resolved.plan.to_json())
    assert isinstance(resolved.images, EncodedImages)
    digest = hashlib.sha256(store.read(layout.PLAN)).hexdigest()
    job = resolved.plan.job(store.uri, device="cpu", plan_sha256=digest, sample=resolved.sample)
    with pytest.raises(WrongInputs, match="does not see the run"):
        CountingActor(job)
    store.create(layout.INDEX, resolved.images.index.content.to_pybytes())
    CountingActor(job)
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(WrongInputs, match=r"cannot read the data set's image 0: a/0.png cannot be read: No such file"):
        CountingActor(job)


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
