"""The main job without Ray: what is counted when, and what is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.counting.certification import Certification, certify_run
from orchestrator.reducing.standing import status_of
from orchestrator.spec import validate
from tests.orchestrator.inline import hire_failing, hire_inline
from tests.orchestrator.runs import digits_spec
from tests.workers.samples import encoded, noise_image
from workers import layout
from workers.ray_entry import CountingActor, Receipt
from workers.store import LocalStore

NOT_AN_IMAGE = b"not an image"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eight images of two classes; those of numbers 2 and 7 cannot be decoded."""
    folder = tmp_path / "images"
    for number in range(8):
        content = encoded(noise_image(number))
        path = folder / str(number // 4) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(NOT_AN_IMAGE.ljust(len(content)) if number in (2, 7) else content)
    return folder


def repair(images: Path, number: int) -> None:
    """The image's true content, which has the size of what was there."""
    (images / str(number // 4) / f"{number}.png").write_bytes(encoded(noise_image(number)))


@pytest.fixture
def spec(images: Path, tmp_path: Path) -> dict[str, Any]:
    """Shards of 3, 3 and 2 images."""
    return digits_spec(
        dataset={"kind": "image_folder", "path": str(images)},
        model={"name": "tests.networks:tiny_rgb", "num_classes": 10},
        resources={"shard_size": 3, "max_attempts": 1},
        store={"run": str(tmp_path / "run")},
    )


def certify(spec: dict[str, Any], *, retry_failed: bool = False, **hire: Any) -> Certification:
    return certify_run(validate(spec, "spec"), retry_failed=retry_failed, **{"hire": hire_inline, **hire})


def tables(run: str) -> dict[str, bytes]:
    store = LocalStore(Path(run))
    return {name: store.read(name) for name in (layout.CERTIFICATES, layout.CURVES)}


def work_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What workers will do: (task, shard, images)."""
    done: list[tuple[str, int, int]] = []
    for task in ("count", "retry"):
        real = getattr(CountingActor, task)

        def work(self: CountingActor, shard: int, task: str = task, real: Any = real) -> Receipt:
            receipt: Receipt = real(self, shard)
            done.append((task, shard, receipt.images))
            return receipt

        monkeypatch.setattr(CountingActor, task, work)
    return done


def test_retry_failed_takes_only_what_failed_and_ends_as_if_nothing_had(
    spec: dict[str, Any], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = certify(spec)
    assert (first.complete, first.reduced.summary.failed) == (False, 2)
    assert certify(spec).nothing_to_do, "failed images are final until they are asked for"

    repair(images, 2)
    done = work_of(monkeypatch)
    again = certify(spec, retry_failed=True)
    assert done == [("retry", 0, 1), ("retry", 2, 1)]
    assert (again.complete, again.reduced.summary.failed) == (False, 1)

    repair(images, 7)
    done.clear()
    assert certify(spec, retry_failed=True).complete
    assert done == [("retry", 2, 1)]
    assert status_of(LocalStore(tmp_path / "run")).complete
    assert certify(spec).nothing_to_do
    assert certify(spec, retry_failed=True).nothing_to_do

    undisturbed = {**spec, "store": {"run": str(tmp_path / "undisturbed")}}
    assert certify(undisturbed).complete
    assert tables(undisturbed["store"]["run"]) == tables(spec["store"]["run"])


def test_the_commit_of_a_retry_never_changes_the_shards_own(spec: dict[str, Any], images: Path, tmp_path: Path) -> None:
    certify(spec)
    store = LocalStore(tmp_path / "run")
    before = {stored.key: store.read(stored.key) for stored in store.list(layout.COUNTS)}
    repair(images, 2)
    certify(spec, retry_failed=True)
    after = {stored.key: store.read(stored.key) for stored in store.list(layout.COUNTS)}
    assert {key: after.pop(key) for key in before} == before
    assert [*after] == [layout.retry(0, 1)]


def test_a_retry_in_vain_writes_nothing(spec: dict[str, Any], tmp_path: Path) -> None:
    certify(spec)
    store = LocalStore(tmp_path / "run")
    before = [stored.key for stored in store.list(layout.COUNTS)]
    assert certify(spec, retry_failed=True).reduced.summary.failed == 2
    assert [stored.key for stored in store.list(layout.COUNTS)] == before


def test_retried_votes_are_seen_though_the_driver_died_before_it_published_them(
    spec: dict[str, Any], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certify(spec)
    repair(images, 2)
    repair(images, 7)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.counting.certification.reduce_run", die)
        with pytest.raises(KeyboardInterrupt):
            certify(spec, retry_failed=True)
    assert certify(spec).complete


def test_a_shard_that_was_given_up_is_tried_again_by_both(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert certify(spec, hire=hire_failing).given_up == {1: "a disk on fire"}
    store = LocalStore(tmp_path / "run")
    assert json.loads(store.read(layout.failed(1)))["reason"] == "a disk on fire"
    (tmp_path / "run" / layout.counts(2)).unlink()  # as if it had never been reached
    done = work_of(monkeypatch)
    certify(spec, retry_failed=True)
    # The whole of shard 1 was counted, by the task of the others; shard 2 was not asked for.
    assert [entry for entry in done if entry[0] == "retry"] == [("retry", 0, 1), ("retry", 1, 3)]
    assert not store.exists(layout.failed(1))
    assert not store.exists(layout.counts(2))
    done.clear()
    certify(spec)
    assert done == [("count", 2, 2)]
