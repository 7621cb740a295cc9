"""Attack one shard's images, and let the classifier vote on what came of it. No cluster and no storage in here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from stn_core.arithmetic import Precision, arithmetic
from stn_core.attacks import Target
from stn_core.noise import DiscreteGaussian, Noise
from stn_core.votes import Tally, count_votes, default_batch_size
from workers import attempts_table, counts_table
from workers.attack_settings import Attack, Attacks
from workers.counting import CountJob, Shard

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class AttackJob:
    """All a node needs to attack any shard of a run in any of some ways.

    Attributes:
        count: the run: its images, network and noise.
        asked: how to attack, and to ask the classifier for its answers.
        names: of the attacks among those that are to be done.
        shards: of the run.
        sources_sha256: of each attack that is made on another network, what the weights of that must amount to.
        kept: images whose attacked versions are to be kept, by their number in the data set.
        provenance: of each attack, what to write into each file's metadata.
    """

    count: CountJob
    asked: Attacks
    names: tuple[str, ...]
    shards: int
    sources_sha256: Mapping[str, str]
    kept: frozenset[int]
    provenance: Mapping[str, Mapping[str, Any]]

    @property
    def votes(self) -> int:
        """On each attacked image; without noise all would be the same."""
        return 1 if self.count.noise.kind == "none" else self.asked.draws

    def number(self, name: str, shard: int) -> int:
        """By what the driver calls an attack on a shard: attacks one after the other, shards ascending."""
        return self.names.index(name) * self.shards + shard

    def work(self, number: int) -> tuple[str, int]:
        """The inverse of ``number``."""
        attack, shard = divmod(number, self.shards)
        return self.names[attack], shard


@dataclass(frozen=True)
class Attempts:
    """An attack on a shard's images.

    Attributes:
        table: by ``attempts_table.SCHEMA``, images in order, for each first itself and then the sizes ascending.
        passes: forward passes done: the attacker's, of which each may have a backward one, and the votes.
    """

    table: pa.Table
    passes: int


def attack_images(
    job: AttackJob, name: str, shard: Shard, model: nn.Module, source: nn.Module, device: torch.device
) -> Attempts:
    """Attack a shard's images and let the classifier vote on each attacked image, and on the clean one.

    Args:
        job: what is done.
        name: of the attack.
        shard: the images.
        model: the attacked classifier's network, with its normalisation, on ``device``.
        source: on which the images are made; the same where the attack is no transfer.
        device: where to compute.
    """
    attack = job.asked.attacks[name]
    noise = job.count.noise.build()
    usable = np.array([error is None for error in shard.errors], dtype=bool)
    sizes = (0.0, *attack.sizes)
    images: NDArray[Any] = np.zeros((len(sizes), 0, *job.count.image_shape), dtype=np.float32)
    passes = 0
    if shard.pixels:
        images, passes = _perturbed(job, attack, np.stack(shard.pixels), shard, usable, source, noise, device)
    tally = _votes(job, images, shard.keys[usable], noise, model, device)
    passes += tally.votes.shape[0] * job.votes
    return Attempts(_table(job, shard, usable, sizes, images, tally), passes)


def _perturbed(
    job: AttackJob,
    attack: Attack,
    pixels: NDArray[np.uint8],
    shard: Shard,
    usable: NDArray[np.bool_],
    source: nn.Module,
    noise: Noise,
    device: torch.device,
) -> tuple[NDArray[Any], int]:
    """For each size, 0 first, the attacked images, as the classifier takes them: (sizes, images, channels, height,
    width); and the attacker's passes."""
    averaged = attack.averages_over(noise)
    draws = attack.gradient_draws(averaged)
    clean = torch.from_numpy(pixels).float().div_(255)
    labels, keys = torch.from_numpy(shard.labels[usable].copy()), shard.keys[usable]
    rows = job.count.batch_size or default_batch_size(pixels[0].size, device)
    # As many at a time as fill a pass, and always as many: the last is repeated where there are no more.
    group = max(1, min(rows // draws, job.count.shard_size))
    method, found, passes = attack.build(), [], 0
    for begin in range(0, len(pixels), group):
        which = np.minimum(np.arange(begin, begin + group), len(pixels) - 1)
        target = Target(
            source,
            averaged,
            labels[which].to(device),
            [int(key) for key in keys[which]],
            job.asked.seed,
            draws,
            rows,
        )
        with arithmetic(_gradients_in(job.count.precision), device):
            attacked = method.perturb(target, clean[which].to(device), attack.sizes)
        found.append(attacked[:, : len(pixels) - begin].cpu())
        passes += target.passes
    whole = torch.cat([clean[None], torch.cat(found, dim=1)])
    if isinstance(noise, DiscreteGaussian):
        # Towards the clean image, and so not out of the ball.
        levels = torch.from_numpy(pixels).float()
        return (levels + (whole * 255 - levels).trunc()).to(torch.uint8).numpy(), passes
    return whole.numpy(), passes


def _gradients_in(precision: Precision) -> Precision:
    """What gradients are computed in: those of sure networks are too small for float16, and would be zero."""
    return "float32" if precision == "float16" else precision


def _votes(
    job: AttackJob, images: NDArray[Any], keys: NDArray[np.int64], noise: Noise, model: nn.Module, device: torch.device
) -> Tally:
    """Of each size and image, sizes first. All of an image's versions see the same noise."""
    count, asked = job.count, job.asked
    sizes, number = images.shape[:2]
    if not number:
        return Tally(np.zeros((0, count.num_classes), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    return count_votes(
        model,
        images.reshape(sizes * number, *images.shape[2:]),
        noise=noise,
        draws=job.votes,
        num_classes=count.num_classes,
        seed=asked.seed,
        keys=np.tile(keys, sizes),
        phase="prediction",
        batch_size=count.batch_size,
        device=device,
        precision=count.precision,
    )


def _table(
    job: AttackJob,
    shard: Shard,
    usable: NDArray[np.bool_],
    sizes: Sequence[float],
    images: NDArray[Any],
    tally: Tally,
) -> pa.Table:
    """Rows by image, then size; one that could not be attacked has as many, with ``error`` and no draws."""
    number = len(shard.indices)
    shape = (number, len(sizes))

    def spread(values: NDArray[Any]) -> NDArray[Any]:
        """Of (sizes x usable images, …) as tallies have them, a row for each row of the table, zeros for the others."""
        rows = np.zeros((*shape, *values.shape[1:]), dtype=values.dtype)
        rows[usable] = values.reshape(len(sizes), -1, *values.shape[1:]).swapaxes(0, 1)
        return rows.reshape(number * len(sizes), *values.shape[1:])

    distances = {norm: spread(values) for norm, values in _distances(images).items()}
    kept = np.isin(shard.indices, list(job.kept))
    pixels: list[bytes | None] = [None] * (number * len(sizes))
    for place, image in enumerate(np.flatnonzero(usable)):
        if kept[image]:
            for size in range(len(sizes)):
                pixels[image * len(sizes) + size] = _as_floats(images[size, place]).astype("<f4").tobytes()

    def of_image(values: Sequence[Any] | NDArray[Any]) -> NDArray[Any]:
        return np.repeat(np.asarray(values), len(sizes))

    return pa.table(
        {
            "index": of_image(np.array(shard.indices, dtype=np.int64)),
            "key": of_image(shard.keys),
            "label": of_image(shard.labels),
            "size": np.tile(np.array(sizes), number),
            **distances,
            "votes": counts_table.sparse(spread(tally.votes)),
            "draws": of_image(usable) * np.int64(job.votes),
            "invalid": spread(tally.invalid),
            "ties": spread(tally.ties),
            "pixels": pa.array(pixels, pa.binary()),
            "error": pa.array([error for error in shard.errors for _ in sizes], pa.string()),
        },
        schema=attempts_table.SCHEMA,
    )


def _as_floats(images: NDArray[Any]) -> Floats:
    """In [0, 1], as the network sees them before noise."""
    return (images.astype(np.float32) / np.float32(255)) if images.dtype == np.uint8 else images


def _distances(images: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """How far each attacked image is from the clean one, the first of its sizes; (sizes x images,) in each norm."""
    # Of levels, not of their rounded floats: those of neighbours are by 1e-5 nearer to each other, or farther apart.
    whole = images.astype(np.float64) / 255 if images.dtype == np.uint8 else images.astype(np.float64)
    apart = np.abs(whole - whole[:1]).reshape(images.shape[0] * images.shape[1], math.prod(images.shape[2:]))
    return {
        "l1": apart.sum(axis=1),
        "l2": np.sqrt((apart**2).sum(axis=1)),
        "linf": apart.max(axis=1, initial=0.0),
    }
