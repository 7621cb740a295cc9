from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from orchestrator.counting.presence import announced
from orchestrator.errors import RunError
from orchestrator.reducing.standing import Status, images_per_second, status_of
from tests.orchestrator.runs import MadeRun
from workers import layout
from workers.store import LocalStore, StoredObject


def committed_at(store: LocalStore, times: dict[int, float]) -> None:
    """Make it look as if the shards had been committed at these times."""
    for shard, time in times.items():
        os.utime(Path(store.uri) / layout.counts(shard), (time, time))


def give_up(store: LocalStore, shard: int, reason: str) -> None:
    record = {"shard": shard, "attempts": 3, "reason": reason}
    store.replace(layout.failed(shard), json.dumps(record).encode())


def test_an_empty_run(made: MadeRun, tmp_path: Path) -> None:
    assert status_of(made.write(tmp_path, [])) == Status(
        run=str(tmp_path),
        adaptive=False,
        complete=False,
        images=20,
        counted=0,
        failed=0,
        failures={},
        shards=3,
        shards_committed=0,
        shards_given_up={},
        undecided=0,
        passes=0,
        passes_planned=20 * 80,
        images_per_s=None,
        seconds_left=None,
        last_commit=None,
        drivers=(),
    )


def test_a_partial_run(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path, [0, 2])
    committed_at(store, {2: 1000, 0: 1010})
    found = status_of(store)
    assert (found.complete, found.counted, found.failed) == (False, 12, 0)
    assert (found.shards, found.shards_committed) == (3, 2)
    assert (found.passes, found.passes_planned) == (12 * 80, 20 * 80)
    assert found.last_commit == 1010
    # The 4 images of the first commit mark the start; 8 came in the ten seconds after it; 8 are left.
    assert found.images_per_s == pytest.approx(0.8)
    assert found.seconds_left == pytest.approx(10)


def test_a_complete_run(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path)
    committed_at(store, {0: 1000, 1: 1004, 2: 1006})
    found = status_of(store)
    assert (found.complete, found.counted, found.shards_committed) == (True, 20, 3)
    assert found.passes == found.passes_planned
    assert found.images_per_s == pytest.approx(2)
    assert found.seconds_left is None


def test_a_run_whose_images_failed(with_failures: MadeRun, tmp_path: Path) -> None:
    found = status_of(with_failures.write(tmp_path))
    assert (found.complete, found.images, found.counted, found.failed) == (False, 8, 6, 2)
    assert found.shards_committed == found.shards == 3
    assert found.passes == 6 * 80
    assert found.seconds_left is None


def test_votes_of_an_older_version_count_as_any(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path / "run")
    expected = status_of(store)
    for stored in list(store.list(layout.COUNTS)):
        store.replace(stored.key, made.encoded_as_version_1(layout.shard_of(stored.key) or 0))
    found = status_of(store)
    assert (found.complete, found.counted, found.passes) == (True, expected.counted, expected.passes)


@pytest.mark.parametrize("name", ["laplace", "splitting"])
def test_the_status_of_a_run_under_any_noise(by_noise: dict[str, MadeRun], tmp_path: Path, name: str) -> None:
    found = status_of(by_noise[name].write(tmp_path, [0, 2]))
    passes = 204 if name == "splitting" else 80
    assert (found.counted, found.images, found.passes, found.passes_planned) == (12, 20, 12 * passes, 20 * passes)


def test_a_run_whose_shards_were_given_up(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path, [0])
    give_up(store, 1, "out of memory")
    give_up(store, 2, "its worker died: killed")
    found = status_of(store)
    assert found.shards_given_up == {1: "out of memory", 2: "its worker died: killed"}
    assert (found.complete, found.counted, found.failed) == (False, 8, 0)


def test_a_status_is_json(made: MadeRun, tmp_path: Path) -> None:
    assert json.loads(json.dumps(vars(status_of(made.write(tmp_path)))))["images"] == 20


def test_where_there_is_no_run_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run at"):
        status_of(LocalStore(tmp_path))


def test_a_damaged_shard_is_named(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path, [0, 2])
    store.create(layout.counts(1), b"junk")
    with pytest.raises(RunError, match="shard-000001"):
        status_of(store)


@pytest.mark.parametrize("record", [b"", b"junk", b"[]", b"{}"])
def test_a_damaged_record_of_a_failure_is_named(made: MadeRun, tmp_path: Path, record: bytes) -> None:
    store = made.write(tmp_path)
    store.create(layout.failed(1), record)
    with pytest.raises(RunError, match="shard-000001"):
        status_of(store)


# --- The rate ------------------------------------------------------------------------------------------------------


def commits(*times: float) -> list[StoredObject]:
    return [StoredObject(layout.counts(shard), 1, time) for shard, time in enumerate(times)]


def test_there_is_no_rate_before_two_commits_at_different_times(made: MadeRun) -> None:
    assert images_per_second([], made.plan) is None
    assert images_per_second(commits(5), made.plan) is None
    assert images_per_second(commits(5, 5), made.plan) is None


def test_the_rate_counts_images_after_the_first_commit_in_time(made: MadeRun) -> None:
    assert images_per_second(commits(0, 1), made.plan) == 8
    assert images_per_second(commits(0, 1, 2), made.plan) == (8 + 4) / 2
    assert images_per_second(commits(2, 1, 0), made.plan) == (8 + 8) / 2


def test_the_rate_is_of_the_last_fifty_commits(made: MadeRun) -> None:
    # Long ago one shard in 1000 s, of late one in 2 s.
    old = [StoredObject(layout.counts(0), 1, 1000.0 * number) for number in range(10)]
    new = [StoredObject(layout.counts(1), 1, 9000.0 + 2 * number) for number in range(1, 51)]
    assert images_per_second(old + new, made.plan) == 8 / 2


def test_the_drivers_at_work_are_told(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path, [])
    with announced(store, lambda line: None):
        (driver,) = status_of(store).drivers
        assert (driver.pid, driver.host) == (os.getpid(), platform.node())
        (record,) = store.list(layout.DRIVERS)
        os.utime(tmp_path / record.key, (1000, 1000))
        assert status_of(store).drivers == (), "it has shown no life for long"
    assert status_of(store).drivers == ()
