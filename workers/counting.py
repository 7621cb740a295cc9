"""Count one shard: read its images, let the model vote, make the rows. No cluster and no storage in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from stn_core.arithmetic import Precision
from stn_core.looks import Ints
from stn_core.models import (
    EXPORTED,
    UNCHANGED,
    Compiled,
    Constants,
    Normalized,
    build_network,
    build_pretrained,
    constants_of,
    declared,
    folded,
    load_weights,
    read_checkpoint,
    read_program,
)
from stn_core.naming import one_line
from stn_core.noise import Phase
from stn_core.stopping import Rule
from stn_core.votes import Tally, count_votes
from workers import counts_table
from workers.ahead import ahead
from workers.files import read_file
from workers.hub import fetched
from workers.images import ImageSet, Pixels, UnreadableImage
from workers.rounds import Ask
from workers.settings import Dataset, Model, Noise, Normalization, StoreSettings
from workers.store import S3Options, StoreError


@dataclass(frozen=True)
class CountJob:
    """All a node needs to count any shard of a run.

    Attributes:
        store: where the run is.
        dataset, model, noise: as in the spec.
        seed: of all noise.
        selection_draws: of each image, in the first round.
        rule: how many estimation draws an image's votes ask for.
        protocol: which class of an image the rule looks at.
        sequential: whether there may be more than one round of draws.
        num_classes: classes the model votes among.
        image_shape: (channels, height, width) every image must have, pixels.
        indices: the data set's indices that the run covers.
        shard_size: images per shard; the last may hold fewer.
        batch_size: rows per forward pass; None chooses.
        precision: arithmetic of the forward pass.
        compile: whether the network goes through torch.compile.
        device: "cpu" or "cuda".
        threads: CPU threads of one worker.
        plan_sha256: digest of the run's plan as the driver reads it.
        model_sha256, dataset_sha256: what the worker's own copies must amount to.
        import_paths: folders to import the user's modules from.
        provenance: what to write into each file's metadata.
        sample: an image's index in the data set, to be read before anything is counted: who cannot have one would
            record all as broken. None: none is known.
    """

    store: StoreSettings
    dataset: Dataset
    model: Model
    noise: Noise
    seed: int
    selection_draws: int
    rule: Rule
    protocol: str
    sequential: bool
    num_classes: int
    image_shape: tuple[int, int, int]
    indices: Sequence[int]
    shard_size: int
    batch_size: int | None
    precision: Precision
    compile: bool
    device: Literal["cpu", "cuda"]
    threads: int
    plan_sha256: str
    model_sha256: str
    dataset_sha256: str
    import_paths: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sample: int | None = None

    def shard_indices(self, shard: int) -> Sequence[int]:
        """The data set's indices in a shard."""
        return self.indices[shard * self.shard_size : (shard + 1) * self.shard_size]


def completed(model: Model) -> Model:
    """A model with what torchvision declares of its weights: their own name, and a normalisation where none is given.
    Raises ValueError."""
    if model.weights is None:
        return model
    facts = declared(model.name, model.weights)
    normalization = model.normalization or Normalization(mean=facts.mean, std=facts.std)
    return model.model_copy(update={"weights": facts.name, "normalization": normalization})


def load_model(model: Model, num_classes: int, options: S3Options | None = None) -> Normalized:
    """The model a spec names, weights loaded, normalisation inside; ``options`` are for object storage. Raises
    ValueError."""
    model = completed(model)
    constants = UNCHANGED
    if model.name == EXPORTED:
        network = _exported(model.checkpoint, options)
    elif model.weights is not None:
        path = fetched(declared(model.name, model.weights).url)
        network = build_pretrained(model.name, model.weights, path)
    else:
        network, constants = _built(model, num_classes, options)
    if _is_known(model):
        # Faster on every device. The user's own networks keep their layout: one that calls `view` could not bear it.
        network = network.to(memory_format=torch.channels_last)
    if model.normalization is not None:
        constants = model.normalization.mean, model.normalization.std
    return Normalized(network, *constants)


def prepared(model: Normalized, settings: Model, *, compile: bool, device: torch.device) -> nn.Module:
    """A loaded model as it counts: as fast as its logits can be had, but for rounding.

    Args:
        model: of ``load_model``; its digest is taken before.
        settings: what it was loaded by.
        compile: whether it goes through torch.compile.
        device: where it is to count.
    """
    # Following the user's own code with symbols for tensors may miss what it decides by them.
    network = folded(model.network) if _is_known(settings) else model.network
    ready = Normalized(network, *model.constants).to(device)
    return Compiled(ready) if compile else ready


def _is_known(model: Model) -> bool:
    """Whether the network is one of those by name, rather than the user's own."""
    return ":" not in model.name and model.name != EXPORTED


def _exported(checkpoint: Path | str | None, options: S3Options | None) -> nn.Module:
    if checkpoint is None:
        raise ValueError(f"model.name {EXPORTED} needs model.checkpoint, a file of torch.export.save")
    return read_program(_read(checkpoint, options), str(checkpoint))


def _built(model: Model, num_classes: int, options: S3Options | None) -> tuple[nn.Module, Constants]:
    """A network by name with the weights of its checkpoint, if any, and the normalisation that it was saved behind."""
    network = build_network(model.name, num_classes)
    if model.checkpoint is None:
        return network, UNCHANGED
    source = str(model.checkpoint)
    if source.endswith(".pt2"):
        raise ValueError(f"{source} is a program of torch.export by its name: set model.name to {EXPORTED}")
    saved = read_checkpoint(_read(model.checkpoint, options), source)
    if saved.arch is not None and ":" not in model.name and saved.arch != model.name:
        raise ValueError(f"{source} holds a network of arch {saved.arch!r}, and model.name is {model.name!r}")
    behind_a_layer = load_weights(network, saved)
    if not behind_a_layer or model.normalization is not None:
        return network, UNCHANGED
    constants = constants_of(saved.arch)
    if constants is None:
        raise ValueError(
            f"{source} holds a network that was saved behind a layer without weights: "
            "set model.normalization to what that layer does"
        )
    return network, constants


def _read(place: Path | str, options: S3Options | None) -> bytes:
    try:
        return read_file(place, options)
    except FileNotFoundError:
        raise ValueError(f"no checkpoint at {place}") from None
    except OSError as error:
        raise ValueError(f"{place} is no readable checkpoint of plain tensors ({one_line(error)})") from error
    except StoreError as error:
        raise ValueError(f"model.checkpoint: {error}") from error


@dataclass(frozen=True)
class Shard:
    """Images of a shard, in memory.

    Attributes:
        indices: of all of them, in the data set.
        keys: their identities, int64 (images,).
        labels: int64 (images,).
        errors: why an image cannot be counted; None where it can.
        pixels: of those that can, uint8 (channels, height, width) each.
    """

    indices: Sequence[int]
    keys: NDArray[np.int64]
    labels: NDArray[np.int64]
    errors: Sequence[str | None]
    pixels: Sequence[Pixels]


def part_of(shard: Shard, indices: Ints) -> Shard:
    """Some of a shard's images, by their number in the data set, ascending."""
    places = np.searchsorted(np.array(shard.indices), indices)
    pixels = iter(shard.pixels)
    held = [next(pixels) if error is None else None for error in shard.errors]
    chosen = [held[place] for place in places]
    return Shard(
        indices=indices.tolist(),
        keys=shard.keys[places],
        labels=shard.labels[places],
        errors=[shard.errors[place] for place in places],
        pixels=[one for one in chosen if one is not None],
    )


def read_images(job: CountJob, indices: Sequence[int], images: ImageSet) -> Shard:
    """These images of the data set, in their order, several at a time.

    One that cannot be read, has another shape, or a label outside the classes is an error of its own.
    """

    def read(index: int) -> Pixels | str:
        try:
            return _usable(job, images, index)
        except UnreadableImage as error:
            return str(error)

    found = list(ahead(read, indices))
    return Shard(
        indices=indices,
        keys=np.array([images.key(index) for index in indices], dtype=np.int64),
        labels=images.labels[np.array(indices, dtype=np.int64)],
        errors=[one if isinstance(one, str) else None for one in found],
        pixels=[one for one in found if not isinstance(one, str)],
    )


def count_images(job: CountJob, shard: Shard, ask: Ask, model: nn.Module, device: torch.device) -> pa.Table:
    """Rows of a shard's images, in their order. One that could not be read gets a row with ``error`` and no draws.

    Args:
        job: what is counted.
        shard: the images that ``ask`` names.
        ask: which draws of each.
        model: with its normalisation, on ``device``.
        device: where to count.
    """
    indices, keys, errors, pixels = shard.indices, shard.keys, shard.errors, shard.pixels
    counted = np.array([error is None for error in errors], dtype=bool)

    tallies: dict[Phase, Tally] = {}
    nothing = np.zeros_like(ask.draws)
    phases: dict[Phase, tuple[Ints, Ints]] = {
        "selection": (nothing, nothing + ask.selection_draws),
        "estimation": (ask.first_draw, ask.draws),
    }
    for phase, (first_draw, draws) in phases.items():
        whole = Tally(np.zeros((len(indices), job.num_classes), np.int64), *np.zeros((2, len(indices)), np.int64))
        if pixels and draws.any():
            tally = count_votes(
                model,
                np.stack(pixels),
                noise=job.noise.build(),
                draws=draws[counted],
                first_draw=first_draw[counted],
                num_classes=job.num_classes,
                seed=job.seed,
                keys=keys[counted],
                phase=phase,
                batch_size=job.batch_size,
                device=device,
                precision=job.precision,
            )
            whole.votes[counted], whole.invalid[counted], whole.ties[counted] = tally.votes, tally.invalid, tally.ties
        tallies[phase] = whole
    selection, estimation = tallies["selection"], tallies["estimation"]
    return pa.table(
        {
            "index": np.array(indices, dtype=np.int64),
            "key": keys,
            "label": shard.labels,
            "selection": counts_table.sparse(selection.votes),
            "estimation": counts_table.sparse(estimation.votes),
            "selection_draws": counted * np.int64(ask.selection_draws),
            "draws": counted * ask.draws,
            "selection_invalid": selection.invalid,
            "invalid": estimation.invalid,
            "selection_ties": selection.ties,
            "ties": estimation.ties,
            "error": pa.array(errors, pa.string()),
        },
        schema=counts_table.SCHEMA,
    )


def _usable(job: CountJob, images: ImageSet, index: int) -> Pixels:
    label = int(images.labels[index])
    if not 0 <= label < job.num_classes:
        raise UnreadableImage(f"label {label} lies outside the model's classes 0 … {job.num_classes - 1}")
    pixels = images.read(index)
    if pixels.shape != job.image_shape:
        raise UnreadableImage(f"is {pixels.shape} (channels, height, width), the run's images are {job.image_shape}")
    return pixels
