"""What Ray runs on a node to count: the actor. This module and `ray_training` alone in workers import ray."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.util.metrics
import torch

from stn_core.models import Normalized, weights_sha256
from stn_core.votes import count_votes
from workers import counts_table, layout, retries
from workers.committed import read_committed
from workers.counting import CountJob, count_images, load_model, prepared, read_images
from workers.images import ImageSet, Index, UnreadableImage, indexed, open_dataset
from workers.imports import importable
from workers.settings import Encoded
from workers.store import ObjectMissing
from workers.versions import check_pinned


@dataclass(frozen=True)
class Receipt:
    """What a worker tells the driver of a shard it counted. The votes themselves are in the store.

    Attributes:
        shard: the shard's number.
        images: images in the shard.
        failed: those of them that could not be counted.
        passes: forward passes done, one per noisy image.
        first: whether this worker's commit was the one that counts; another had landed before otherwise.
    """

    shard: int
    images: int
    failed: int
    passes: int
    first: bool


class WrongInputs(Exception):
    """A worker would count something else than was planned."""


class Stopped(Exception):
    """A worker has been told to commit nothing more."""


class CountingActor:
    """Loads the model once, then counts and commits the shards it is told.

    Called from two threads, it reads the images of one shard while another is being counted.
    """

    def __init__(self, job: CountJob) -> None:
        check_pinned()
        importable(job.import_paths)
        torch.set_num_threads(job.threads)
        self._job = job
        self._counting, self._committing = threading.Lock(), threading.Lock()
        self._stopped = False
        self._device = torch.device(job.device)
        self._store = job.store.open()
        self._images = self._open_images()
        model = load_model(job.model, job.num_classes, job.store.options)
        self._check(model)
        self._model = prepared(model, job.model, compile=job.compile, device=self._device)
        if job.compile:
            # Here rather than in the first shard: it takes its time, and may fail.
            count_votes(
                self._model,
                np.zeros((1, *job.image_shape), np.uint8),
                noise=job.noise.build(),
                draws=1,
                num_classes=job.num_classes,
                seed=0,
                keys=[0],
                batch_size=job.batch_size,
                device=self._device,
                precision=job.precision,
            )
        self._s3_retries = ray.util.metrics.Counter(retries.METRIC, retries.MEANING, tag_keys=("run",))
        self._s3_retries.set_default_tags({"run": job.store.run})

    def _open_images(self) -> ImageSet:
        dataset, options = self._job.dataset, self._job.store.options
        if not isinstance(dataset, Encoded):
            return open_dataset(dataset, options)
        try:
            return indexed(dataset, options, Index(self._store.read(layout.INDEX)))
        except ObjectMissing:
            raise self._unseen() from None

    def _unseen(self) -> WrongInputs:
        return WrongInputs(f"this node does not see the run at {self._job.store.run}: is the folder shared?")

    def _check(self, model: Normalized) -> None:
        """Raise WrongInputs unless this node sees the run, the weights and the data that were planned."""
        try:
            plan = self._store.read(layout.PLAN)
        except ObjectMissing:
            raise self._unseen() from None
        found = {
            "run at store.run": (hashlib.sha256(plan).hexdigest(), self._job.plan_sha256),
            "model's weights": (weights_sha256(model.network), self._job.model_sha256),
            "data set": (self._images.fingerprint, self._job.dataset_sha256),
        }
        for what, (own, planned) in found.items():
            if own != planned:
                raise WrongInputs(f"the {what} that this worker sees is not the one planned (sha-256 {own[:12]})")
        if self._job.sample is not None:
            try:
                self._images.read(self._job.sample)
            except UnreadableImage as error:
                raise WrongInputs(f"this node cannot read the data set's image {self._job.sample}: {error}") from error

    def ready(self) -> None:
        """Returns once the actor is up; a failure to start surfaces here."""

    def count(self, shard: int) -> Receipt:
        """Count a shard and commit its votes, unless another worker has."""
        indices = self._job.shard_indices(shard)
        key = layout.counts(shard)
        if self._store.exists(key):
            return Receipt(shard, len(indices), 0, 0, first=False)
        table = self._votes(indices)
        return self._receipt(shard, table, self._commit(key, shard, table))

    def retry(self, shard: int) -> Receipt:
        """Count a shard's images that could not be counted before, and commit what votes there are now.

        A shard that was given up as a whole is counted as any other.
        """
        try:
            committed = read_committed(self._store, shard)
        except ObjectMissing:
            return self.count(shard)
        table = self._votes(committed.failed)
        usable = table.filter(pc.is_null(table["error"]))
        number = 1
        while len(usable) and not self._commit(layout.retry(shard, number), shard, usable):
            # Another retry was faster: what it has need not be kept twice.
            left = pa.array(read_committed(self._store, shard).failed, pa.int64())
            usable = usable.filter(pc.is_in(usable["index"], left))
            number += 1
        return self._receipt(shard, table, first=True)

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Returns once no commit is under way; none begins afterwards."""
        with self._committing:
            self._stopped = True

    def _votes(self, indices: Sequence[int]) -> pa.Table:
        shard = read_images(self._job, indices, self._images)
        with self._counting:
            torch.set_num_threads(self._job.threads)  # holds for the calling thread alone
            return count_images(self._job, shard, self._model, self._device)

    def _commit(self, key: str, shard: int, table: pa.Table) -> bool:
        provenance = {**self._job.provenance, "shard": shard, "device": _device_name(self._device)}
        content = counts_table.encode(table, provenance)
        with self._committing:
            if self._stopped:
                raise Stopped("the driver is stopping")
            first = self._store.create(key, content)
        if repeated := retries.take():
            self._s3_retries.inc(repeated)
        return first

    def _receipt(self, shard: int, table: pa.Table, first: bool) -> Receipt:
        draws = sum(table["draws"].to_pylist()) + sum(table["selection_draws"].to_pylist())
        return Receipt(shard, table.num_rows, table.num_rows - table["error"].null_count, draws, first)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
