"""ImageNet's validation set without the GPUs: the real index, plan, driver, store and reducer, for recorded votes.

A thousand simulated workers commit tables of votes that a made-up network left, in place of counting; images are read
by the driver alone. And the index of a data set of fourteen million.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from benchmarks.measure import Row, alone
from benchmarks.runs import population, votes_table
from orchestrator.counting.certification import certify_run
from orchestrator.counting.crew import Crew, Device, Task
from orchestrator.counting.dispatch import Counted, Event, Started
from orchestrator.spec import Resources, validate
from stn_core.models.classes import imagenet_wnids
from workers import counts_table, layout
from workers.counting import CountJob
from workers.datasets.index import Entry, build
from workers.images import open_dataset
from workers.store import Store

WORKERS = 1000
IMAGES_PER_CLASS = 50
DRAWS = 1000
MANY = 14_000_000


class Recorded:
    """``dispatch.Pool`` of simulated workers: each commits a shard of recorded votes when its turn comes."""

    def __init__(self, job: CountJob) -> None:
        self._job, self._store = job, job.store.open()
        self._labels = open_dataset(job.dataset).labels
        self._votes = population(1000, DRAWS)
        self._events: deque[Event] = deque()
        self._queue: deque[tuple[int, int]] = deque()
        self._workers = 0

    def start(self) -> int:
        self._workers += 1
        self._events.append(Started(self._workers))
        return self._workers

    def submit(self, worker: int, shard: int) -> None:
        self._queue.append((worker, shard))

    def end(self, worker: int) -> None:
        self._queue = deque(entry for entry in self._queue if entry[0] != worker)

    def events(self, timeout_s: float) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        # Some of those at work finish at a time.
        for _ in range(min(len(self._queue), 50)):
            worker, shard = self._queue.popleft()
            events.append(Counted(worker, shard, *self._commit(shard)))
        return events

    def _commit(self, shard: int) -> tuple[int, int, int, bool]:
        indices = np.array(self._job.shard_indices(shard))
        table = votes_table(indices, self._labels[indices], self._votes, DRAWS)
        content = counts_table.encode(table, {**self._job.provenance, "shard": shard, "device": "none"})
        first = self._store.create(layout.counts(shard), content)
        return len(indices), 0, len(indices) * DRAWS, first


@contextmanager
def recorded(
    make_job: Callable[[Device], CountJob], task: Task, resources: Resources, warn: Callable[[str], None]
) -> Iterator[Crew]:
    yield Crew(Recorded(make_job("cpu")), WORKERS)


def rows() -> Iterator[Row]:
    """The whole job, the same job again, and a large index."""
    with tempfile.TemporaryDirectory(prefix="stn-bench-") as folder:
        images = write_images(Path(folder, "val"))
        checkpoint = Path(folder, "resnet50.pt")
        from torchvision.models import resnet50

        torch.save(resnet50().state_dict(), checkpoint)
        first, again = (alone(job, folder) for _ in range(2))
    shards = first["shards"]
    rate = shards / first["seconds"]
    yield Row(
        f"certify: {images} images x 1 000 classes, n = {DRAWS}, recorded votes, {WORKERS} workers",
        "a shard of 10 images a second",
        *(rate, rate, rate),
        f"{first['seconds']:.0f} s with index, plan and reduce, peak {first['peak']:.2f} GiB",
    )
    rate = shards / again["seconds"]
    yield Row(
        f"certify again: {shards} shards and nothing to do",
        "a shard a second",
        *(rate, rate, rate),
        f"{again['seconds']:.1f} s, peak {again['peak']:.2f} GiB",
    )
    found = alone(index, str(MANY))
    rate = MANY / found["seconds"]
    yield Row(
        f"index of {MANY} images",
        "an image a second",
        *(rate, rate, rate),
        f"{found['bytes'] / MANY:.1f} bytes an image stored, peak {found['peak']:.2f} GiB, "
        f"of which {found['before']:.2f} are libraries",
    )


def job(folder: str) -> dict[str, Any]:
    """Certify the folder's images by recorded votes."""
    sections = {
        "dataset": {"kind": "image_folder", "path": f"{folder}/val", "resize": 256, "crop": 224},
        "model": {"name": "resnet50", "checkpoint": f"{folder}/resnet50.pt"},
        "noise": {"sigma": 0.5},
        "sampling": {"draws": DRAWS},
        "radii": {"stop": 2, "step": 0.05},
        "store": {"run": f"{folder}/run"},
    }
    result = certify_run(validate(sections, "benchmark"), hire=recorded)
    assert result.complete
    return {"shards": sum(1 for _ in _store(folder).list(layout.COUNTS))}


def index(images: str) -> dict[str, Any]:
    """The index of so many images of 21 841 classes."""
    per_class = int(images) // 21_841 + 1
    names = (f"n{at // per_class:08d}/n{at // per_class:08d}_{at * 7919 % 100_000}.JPEG" for at in range(int(images)))
    entries = (Entry(name, at // per_class, name, 0, 100_000 + at * 37 % 90_000) for at, name in enumerate(names))
    return {"bytes": build(entries, None, "").content.size}


def write_images(folder: Path) -> int:
    """JPEGs of ImageNet's usual size in a thousand class folders: some of them, linked under all names."""
    rng, files = np.random.default_rng(0), []
    folder.mkdir()
    for number in range(20):
        pixels = Image.fromarray(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8))
        files.append(folder / f"{number}.jpeg")
        pixels.filter(ImageFilter.GaussianBlur(0.6)).save(files[-1], quality=88)
    for wnid in imagenet_wnids():
        (folder / wnid).mkdir()
        for number in range(IMAGES_PER_CLASS):
            os.link(files[number % len(files)], folder / wnid / f"{number:08d}.JPEG")
    return len(imagenet_wnids()) * IMAGES_PER_CLASS


def _store(folder: str) -> Store:
    from workers.store import open_store

    return open_store(f"{folder}/run")
