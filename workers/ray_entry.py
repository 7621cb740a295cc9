"""What Ray runs on a node to count: the actor. This module and `ray_training` alone in workers import ray."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.util.metrics
import torch

from stn_core.models import Normalized, weights_sha256
from stn_core.votes import count_votes
from workers import counts_table, layout, retries
from workers.committed import Committed, read_committed
from workers.counting import CountJob, Shard, count_images, load_model, part_of, prepared, read_images
from workers.images import ImageSet, Index, UnreadableImage, indexed, open_dataset
from workers.imports import importable
from workers.rounds import Ask, continued, first_round, next_round
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


class ShardActor:
    """What actors that work on a run's shards have in common: they check that they see what was planned, load the model
    once, and commit.

    Called from two threads, they read the images of one shard while another is at work.
    """

    def __init__(self, job: CountJob) -> None:
        check_pinned()
        importable(job.import_paths)
        torch.set_num_threads(job.threads)
        self._job = job
        self._working, self._committing = threading.Lock(), threading.Lock()
        self._stopped = False
        self._device = torch.device(job.device)
        self._store = job.store.open()
        self._images = self._open_images()
        model = load_model(job.model, job.num_classes, job.store.options)
        self._check(model)
        self._model = prepared(model, job.model, compile=job.compile, device=self._device)
        self._s3_retries = ray.util.metrics.Counter(retries.METRIC, retries.MEANING, tag_keys=("run",))
        self._s3_retries.set_default_tags({"run": job.store.run})
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

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Returns once no commit is under way; none begins afterwards."""
        with self._committing:
            self._stopped = True

    def _create(self, key: str, content: bytes) -> bool:
        """Commit an object; whether it is the one that counts."""
        with self._committing:
            if self._stopped:
                raise Stopped("the driver is stopping")
            first = self._store.create(key, content)
        if repeated := retries.take():
            self._s3_retries.inc(repeated)
        return first


class CountingActor(ShardActor):
    """Counts and commits the shards it is told."""

    def count(self, shard: int) -> Receipt:
        """Count what a shard's votes leave open, round by round, and commit each round, unless another worker has."""
        if not self._job.sequential:
            indices = self._job.shard_indices(shard)
            if self._store.exists(layout.counts(shard)):
                return Receipt(shard, len(indices), 0, 0, first=False)
            return self._go_on(shard, None)
        try:
            committed = read_committed(self._store, shard, later=True)
        except ObjectMissing:
            committed = None
        return self._go_on(shard, committed)

    def retry(self, shard: int) -> Receipt:
        """Count a shard's images that could not be counted before, and commit what votes there are now.

        A shard that was given up, as a whole or in a later round, is counted as any other.
        """
        try:
            committed = read_committed(self._store, shard)
        except ObjectMissing:
            return self.count(shard)
        if not committed.failed:
            return self.count(shard)
        ask = first_round(committed.failed, self._job.rule, self._job.selection_draws)
        table = self._votes(read_images(self._job, committed.failed, self._images), ask)
        usable = table.filter(pc.is_null(table["error"]))
        number = 1
        while len(usable) and not self._commit(layout.retry(shard, number), shard, usable):
            # Another retry was faster: what it has need not be kept twice.
            left = pa.array(read_committed(self._store, shard).failed, pa.int64())
            usable = usable.filter(pc.is_in(usable["index"], left))
            number += 1
        failed, passes = len(table) - table["error"].null_count, _passes(table)
        if self._job.sequential:
            passes += self._go_on(shard, read_committed(self._store, shard, later=True)).passes
        return Receipt(shard, len(table), failed, passes, first=True)

    def _go_on(self, shard: int, committed: Committed | None) -> Receipt:
        """Count and commit round after round, from what is committed, until nothing is asked for."""
        images: Shard | None = None
        passes, first = 0, False
        while (ask := self._asked(shard, committed)) is not None:
            if images is None or not np.isin(ask.indices, images.indices).all():
                images = read_images(self._job, ask.indices.tolist(), self._images)
            images = part_of(images, ask.indices)
            number = 0 if committed is None else len(committed.later) + 1
            if number and (lost := [text for text in images.errors if text is not None]):
                raise WrongInputs(f"an image of round {number - 1} cannot be read any more: {lost[0]}")
            table = self._votes(images, ask)
            passes += _passes(table)
            where = {} if committed is None else continued(number, ask)
            mine = self._commit(layout.counts(shard, number), shard, table, where)
            first = first or mine
            if not mine and self._job.sequential:  # what follows is decided by the votes that are there
                committed = read_committed(self._store, shard, later=True)
            elif committed is None:
                committed = Committed(table, {})
            else:
                committed = dataclasses.replace(committed, later=(*committed.later, table))
        assert committed is not None, "a first round has draws"
        return Receipt(shard, len(committed.table), len(committed.failed), passes, first)

    def _asked(self, shard: int, committed: Committed | None) -> Ask | None:
        job = self._job
        if committed is None:
            return first_round(job.shard_indices(shard), job.rule, job.selection_draws)
        if not job.sequential:
            return None
        return next_round(committed.table, committed.later, job.rule, job.protocol, job.num_classes)

    def _votes(self, images: Shard, ask: Ask) -> pa.Table:
        with self._working:
            torch.set_num_threads(self._job.threads)  # holds for the calling thread alone
            return count_images(self._job, images, ask, self._model, self._device)

    def _commit(self, key: str, shard: int, table: pa.Table, where: Mapping[str, Any] = MappingProxyType({})) -> bool:
        provenance = {**self._job.provenance, "shard": shard, "device": device_name(self._device), **where}
        return self._create(key, counts_table.encode(table, provenance))


def _passes(table: pa.Table) -> int:
    draws: int = pc.sum(table["draws"]).as_py() + pc.sum(table["selection_draws"]).as_py()
    return draws


def device_name(device: torch.device) -> str:
    """Which model of GPU, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
