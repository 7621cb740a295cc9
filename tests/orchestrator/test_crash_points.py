"""Killed at every point of its way through the store, a run is finished by the same command, and ends the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.object_store import BUCKET, ObjectStore
from tests.orchestrator.crashes import END, EXIT_COMPLETE, EXIT_INCOMPLETE, Attempt, attempt
from tests.orchestrator.runs import digits_spec, mnist_spec
from tests.workers.samples import encoded, noise_image
from workers.store import Store, open_store


@dataclass(frozen=True)
class Job:
    """Certifying the same again and again, in one place after the other.

    Attributes:
        spec: without its store.
        folder: where runs in folders, and logs, are kept.
        uri: what runs' places begin with.
        environment: of the processes.
        retry: whether with --retry-failed.
    """

    spec: Mapping[str, Any]
    folder: Path
    uri: str
    environment: Mapping[str, str] = field(default_factory=dict)
    retry: bool = False

    def attempt(self, name: str, crash_at: int | None = None) -> Attempt:
        spec = {**self.spec, "store": {"run": f"{self.uri}/{name}"}}
        return attempt(spec, self.folder, crash_at=crash_at, environment=self.environment, retry=self.retry)

    def store(self, name: str) -> Store:
        return open_store(f"{self.uri}/{name}")


def objects(store: Store) -> dict[str, bytes]:
    """All objects but the plan, which names its place, and what a crash may leave behind."""
    keys = [stored.key for stored in store.list("")]
    return {key: store.read(key) for key in keys if not key.startswith(("plan.json", ".probe/", "drivers/"))}


@pytest.fixture
def in_a_folder(few_digits: Path, tmp_path: Path) -> Job:
    spec = mnist_spec(few_digits, resources={"shard_size": 10})
    return Job(spec, tmp_path, f"{tmp_path}/runs")


@pytest.fixture
def in_object_storage(
    few_digits: Path, tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> Job:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    spec = mnist_spec(few_digits, resources={"shard_size": 10})
    return Job(spec, tmp_path, f"s3://{BUCKET}/crashes", object_store.environment)


FOLDER_POINTS = [
    "link plan.json",
    "unlink .tmp/*",
    "list counts/",
    "list failed/",
    "replace drivers/*",
    "unlink .tmp/*",
    "list drivers/",
    "link counts/round=0/shard-000000.parquet",
    "unlink .tmp/*",
    "link counts/round=0/shard-000001.parquet",
    "unlink .tmp/*",
    "unlink drivers/*",
    "list counts/",
    "unlink curves.parquet",
    "unlink partial/curves.parquet",
    "replace certificates.parquet",
    "unlink .tmp/*",
    "replace curves.parquet",
    "unlink .tmp/*",
    "unlink partial/certificates.parquet",
    END,
]

S3_POINTS = [
    "PutObject .probe/*",
    "PutObject .probe/*",
    "DeleteObject .probe/*",
    "PutObject plan.json",
    "ListObjectsV2 counts/",
    "ListObjectsV2 failed/",
    "PutObject drivers/*",
    "ListObjectsV2 drivers/",
    "PutObject counts/round=0/shard-000000.parquet",
    "PutObject counts/round=0/shard-000001.parquet",
    "DeleteObject drivers/*",
    "ListObjectsV2 counts/",
    "DeleteObject curves.parquet",
    "DeleteObject partial/curves.parquet",
    "PutObject certificates.parquet",
    "PutObject curves.parquet",
    "DeleteObject partial/certificates.parquet",
    END,
]


def crash_everywhere(job: Job, points: list[str]) -> None:
    """Kill at each point in turn; the same command afterwards must end as if nothing had happened."""
    undisturbed = job.attempt("undisturbed")
    assert undisturbed == Attempt(EXIT_COMPLETE, [point.replace("crashes/", "") for point in undisturbed.points])
    assert [named(point, "undisturbed") for point in undisturbed.points] == points
    expected = objects(job.store("undisturbed"))
    assert {"certificates.parquet", "curves.parquet"} < expected.keys()
    for number, point in enumerate(points):
        name = f"crash-{number}"
        killed = job.attempt(name, crash_at=number)
        assert killed.exitcode == -9, point
        assert [named(passed, name) for passed in killed.points] == points[: number + 1]
        finished = job.attempt(name)
        assert finished.exitcode == EXIT_COMPLETE, point
        assert objects(job.store(name)) == expected, point


def named(point: str, name: str) -> str:
    """A point without the place of the run."""
    return point.replace(f"{name}/", "")


@pytest.mark.timeout(600)
def test_killed_at_every_change_of_a_folder(in_a_folder: Job) -> None:
    crash_everywhere(in_a_folder, FOLDER_POINTS)


@pytest.mark.timeout(600)
def test_killed_at_every_request_to_object_storage(in_object_storage: Job) -> None:
    crash_everywhere(in_object_storage, S3_POINTS)


@pytest.mark.timeout(600)
def test_killed_while_failed_images_are_tried_again(tmp_path: Path) -> None:
    images = tmp_path / "images"
    contents = {f"{number % 2}/{number}.png": encoded(noise_image(number)) for number in range(6)}
    for name, content in contents.items():
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(content)
    spec = digits_spec(
        dataset={"kind": "image_folder", "path": str(images)},
        model={"name": "tests.networks:tiny_rgb", "num_classes": 10},
        resources={"shard_size": 3},
    )
    whole = Job(spec, tmp_path, f"{tmp_path}/runs")
    assert whole.attempt("whole").exitcode == EXIT_COMPLETE
    tables = {name: content for name, content in objects(whole.store("whole")).items() if "/" not in name}

    bad = images / "1/3.png"
    bad.write_bytes(b"not an image".ljust(len(contents["1/3.png"])))
    again = Job(spec, tmp_path, f"{tmp_path}/runs", retry=True)
    points: list[str] = []
    for number in range(100):
        bad.write_bytes(b"not an image".ljust(len(contents["1/3.png"])))
        name = f"crash-{number}"
        assert whole.attempt(name).exitcode == EXIT_INCOMPLETE
        bad.write_bytes(contents["1/3.png"])
        killed = again.attempt(name, crash_at=number)
        points.append(killed.points[-1])
        assert again.attempt(name).exitcode == EXIT_COMPLETE, killed.points[-1]
        found = objects(whole.store(name))
        assert {key: found[key] for key in tables} == tables, killed.points[-1]
        assert "partial/curves.parquet" not in found
        if killed.points[-1] == END:
            break
    assert "link counts/round=0/shard-000001.retry-000001.parquet" in points
    assert points[-1] == END
