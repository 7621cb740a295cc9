"""`stn train`: train a spec's model and leave its checkpoint where certification looks for it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.errors import SpecError, TrainingInterrupted
from orchestrator.on_ray.cluster import Capacity, cluster
from orchestrator.on_ray.training import fit
from orchestrator.planning.resolve import held_to_versions
from orchestrator.progress import meter
from orchestrator.spec import Spec
from orchestrator.training import epochs
from stn_core.dual import check_network
from stn_core.naming import one_line
from workers.counting import load_model
from workers.files import absolute, exists, parent_and_name, read_file
from workers.images import DatasetError, EncodedImages, ImageSet, open_dataset
from workers.selection import selected
from workers.settings import NEEDS, PLACES, Dataset, GaussianNoise, Noise, Training
from workers.store import S3Options, Store, StoreError, open_store
from workers.training import Epoch, TrainJob


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        checkpoint: the file or object written; a dict with "state_dict", "training" (settings) and "training_sha256".
            The figures of its epochs are beside it, see ``orchestrator.training.epochs``.
        epoch: the last epoch's figures; None if the checkpoint was there already.
    """

    checkpoint: Path | str
    epoch: Epoch | None


def train_spec(spec: Spec, only: NDArray[np.int64] | None = None) -> Trained:
    """Train a spec's model under a progress bar, from wherever an earlier call left it.

    Args:
        spec: what to train, on what, and where to leave it.
        only: as of ``prepare``.

    Raises:
        SpecError: as ``prepare`` and ``train_model``.
        StoreError: the checkpoint cannot be written.
        TrainingError: training failed for good.
    """
    ready = prepare(spec, only)
    if ready.done:
        return Trained(ready.checkpoint, None)
    epochs, start = ready.job.training.epochs, time.monotonic()
    with meter("training", epochs, "epochs") as progress:

        def observe(epoch: Epoch) -> None:
            measured = (
                ""
                if epoch.validation_clean is None
                else f", held out {epoch.validation_clean:.1%} clean and {epoch.validation_noisy:.1%} noisy"
            )
            progress.note(
                f"epoch {epoch.epoch}/{epochs}: loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.1%}{measured} "
                f"({time.monotonic() - start:.0f} s)"
            )
            progress.advance(1)

        return train_model(ready, observe=observe, warn=progress.note)


def train_model(ready: Ready, *, observe: Callable[[Epoch], None], warn: Callable[[str], None]) -> Trained:
    """Train, resuming whatever an earlier call for the same spec left behind.

    Args:
        ready: what ``prepare`` found.
        observe: told of every epoch.
        warn: told, in a line, what there is to wait for, and what went wrong and is tried again.

    Raises:
        SpecError: this machine has not the GPUs that are asked for.
        TrainingError: training failed for good.
    """
    job, checkpoint, digest, store = ready.job, ready.checkpoint, ready.digest, ready.store
    _, name = parent_and_name(checkpoint)
    if ready.done:
        return Trained(checkpoint, None)

    told: set[int] = set()

    def keep(figures: tuple[Epoch, ...]) -> None:
        with contextlib.suppress(StoreError):  # what matters is written again at the end
            store.replace(epochs.beside(name), epochs.encode(figures, digest))
        if figures[-1].epoch not in told:  # the last one before a worker was lost may come again
            told.add(figures[-1].epoch)
            observe(figures[-1])

    while True:
        # Machines may go as often as they like, as long as there is a new checkpoint now and then. What a failed try
        # leaves behind on the cluster, such as CPUs reserved, goes with the connection to it.
        try:
            content = _fit(ready, keep, warn)
            break
        except TrainingInterrupted as interruption:
            warn(f"{interruption}; going on after its newest checkpoint")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    figures = tuple(Epoch(**epoch) for epoch in state["epochs"])
    store.replace(epochs.beside(name), epochs.encode(figures, digest))
    file = io.BytesIO()
    torch.save({"state_dict": state["network"], "training": ready.settings, "training_sha256": digest}, file)
    if not store.create(name, file.getvalue()):
        _check_existing(checkpoint, job.storage or S3Options(), digest)
    return Trained(checkpoint, figures[-1])


def _fit(ready: Ready, observe: Callable[[tuple[Epoch, ...]], None], warn: Callable[[str], None]) -> bytes:
    job, (parent, _) = ready.job, parent_and_name(ready.checkpoint)
    with cluster(job.training.workers.min * job.cpus + 1) as capacity:
        gpu = on_gpus(job.training, capacity)
        for line in what_is_missing(job, capacity, gpu):
            warn(line)
        return fit(
            job,
            name=f"training-{ready.digest[:16]}",  # "train-…" had states without epochs
            storage=parent / "training" if isinstance(parent, Path) else f"{parent}/training",
            gpu=gpu,
            observe=observe,
        )


def on_gpus(training: Training, capacity: Capacity) -> bool:
    """Whether each worker has a GPU; otherwise none has.

    Raises:
        SpecError: they need more than a cluster that cannot grow has.
    """
    if training.gpus_per_worker == 0 or (training.gpus_per_worker == "auto" and not capacity.gpus):
        return False
    if capacity.gpus < training.workers.min and not capacity.may_grow:
        if not capacity.gpus:
            raise SpecError("training.gpus_per_worker asks for a GPU and this machine has none: set it to 0 or auto")
        few = f"training.workers is {training.workers.min}, and this machine has GPUs for {capacity.gpus}"
        raise SpecError(f"{few}: set it to that, or less")
    return True


def what_is_missing(job: TrainJob, capacity: Capacity, gpu: bool) -> Iterator[str]:
    """Lines for the user of a cluster that may grow: what training does not use, and what it waits for."""
    if not capacity.may_grow:
        return
    if job.training.gpus_per_worker == "auto" and not gpu:
        yield "the cluster has no GPU now: training on CPUs; set training.gpus_per_worker=1 to wait for GPUs"
    room, needed = capacity.room(job.cpus, float(gpu)), job.training.workers.min
    if room < needed:
        each = f"{job.cpus} CPUs{' and a GPU' if gpu else ''}"
        yield f"the cluster has room for {room} workers with {each} each: waiting until it has for {needed}"


@dataclass(frozen=True)
class Ready:
    """A training that nothing stands in the way of, as far as can be seen without training.

    Attributes:
        job: what the workers are told.
        checkpoint: the file or object to write.
        settings: what decides the weights.
        digest: of the settings.
        store: where the checkpoint goes.
        done: the checkpoint is there already.
    """

    job: TrainJob
    checkpoint: Path | str
    settings: dict[str, Any]
    digest: str
    store: Store
    done: bool


def prepare(spec: Spec, only: NDArray[np.int64] | None = None) -> Ready:
    """Open the data, build the network, look whether the checkpoint can be written or is there.

    Args:
        spec: what to train, on what.
        only: of the selected training images, the positions of those to train on; None: all.

    Raises:
        SpecError: the spec has no training section or checkpoint, or they do not fit.
        StoreError: the checkpoint cannot be written.
    """
    training, checkpoint = spec.training, spec.model.checkpoint
    if training is None:
        raise SpecError("training is missing: `stn train` needs that section, see examples/demo.yaml")
    if checkpoint is None:
        raise SpecError("model.checkpoint is missing: `stn train` writes the weights there")
    if str(checkpoint).endswith(".safetensors"):
        raise SpecError(f"model.checkpoint {checkpoint}: `stn train` writes PyTorch's format, name it .pt")
    held_to_versions()
    checkpoint = _absolute("model.checkpoint", checkpoint)
    job, fingerprint = _job(spec, training, only)
    settings = {
        "model": spec.model.model_dump(mode="json", exclude={"checkpoint", "weights"}),
        "training": decisive(training),
        **(_noise(job.noise) if training.method in NEEDS["sigma"] else {}),
        "gamma": training.weight,
        "dataset_sha256": fingerprint,
        **({} if only is None else {"only_sha256": hashlib.sha256(only.astype("<i8").tobytes()).hexdigest()}),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    options = spec.store.options
    parent, _ = parent_and_name(checkpoint)
    store = open_store(str(parent), options)
    done = exists(checkpoint, options)
    if done:
        _check_existing(checkpoint, options, digest)
    else:
        store.probe()  # before hours are spent on what cannot be written
        store.check_exclusive()
    return Ready(job, checkpoint, settings, digest, store, done)


#: Settings that came later. Checkpoints trained before, without them, stay known by the others.
_LATER = ("augment", "attack", "radius", "warmup", "draws", "random_crop", "optimizer", "schedule")


#: Settings that decide nothing but how long it takes, and what is measured meanwhile.
_INDECISIVE = ("workers", "threads_per_worker", "gpus_per_worker", "checkpoint_s", "loaders", "validation")


def _noise(noise: Noise) -> dict[str, Any]:
    # Other kinds of noise came later; checkpoints trained before stay known by sigma alone.
    return {"sigma": noise.sigma} if noise.kind == "gaussian" else {"noise": noise.model_dump(mode="json")}


def decisive(training: Training) -> dict[str, Any]:
    """What decides the weights: neither paths nor workers do, nor what is measured meanwhile."""
    elsewhere = {*PLACES, "interpolation", "mode"}  # the data set's fingerprint tells of it
    settings = training.model_dump(
        mode="json",
        exclude={**dict.fromkeys(_INDECISIVE, True), "dataset": elsewhere},
    )
    if settings["dataset"]["indices"] is None:
        del settings["dataset"]["indices"]
    default = {name: Training.model_fields[name].default for name in _LATER}
    return {name: value for name, value in settings.items() if name not in default or value != default[name]}


def _job(spec: Spec, training: Training, only: NDArray[np.int64] | None) -> tuple[TrainJob, str]:
    training = training.model_copy(
        update={
            "dataset": _found("training.dataset", training.dataset),
            "validation": training.validation and _found("training.validation", training.validation),
        }
    )
    images = _opened("training", training.dataset, spec)
    validation = None
    if training.validation is not None:
        validation = _opened("training.validation", training.validation, spec)
    num_classes = spec.model.num_classes or images.num_classes
    try:
        model = load_model(spec.model.model_copy(update={"checkpoint": None}), num_classes)
        if training.method == "dual":
            check_network(model.network)
            if spec.model.normalization is not None:
                raise ValueError("method dual bounds networks of pixels as they are: remove model.normalization")
    except ValueError as error:
        raise SpecError(f"training: {error}") from error
    _check_labels("training.dataset", images, num_classes)
    found = len(selected(training.dataset, len(images))) if only is None else len(only)
    if found < training.workers.max:
        raise SpecError(f"training.dataset has {found} images for training.workers {training.workers.max}: set fewer")
    if validation is not None:
        _check_labels("training.validation", validation, num_classes)
    job = TrainJob(
        model=spec.model,
        training=training,
        num_classes=num_classes,
        noise=spec.noise if training.sigma is None else GaussianNoise(sigma=training.sigma),
        threads=training.threads_per_worker,
        only=only,
        import_paths=(str(Path.cwd()),),
        storage=spec.store.options,
        index=images.index if isinstance(images, EncodedImages) else None,
        validation_index=validation.index if isinstance(validation, EncodedImages) else None,
    )
    return job, images.fingerprint


def _found(key: str, dataset: Dataset) -> Dataset:
    places = {name: getattr(dataset, name, None) for name in PLACES}
    found = {name: _absolute(f"{key}.{name}", place) for name, place in places.items() if isinstance(place, Path)}
    return dataset.model_copy(update=found)


def _opened(key: str, dataset: Dataset, spec: Spec) -> ImageSet:
    try:
        return open_dataset(dataset, spec.store.options)
    except (DatasetError, ValueError) as error:
        raise SpecError(f"{key}: {error}") from error


def _check_labels(key: str, images: ImageSet, num_classes: int) -> None:
    for label in (images.labels.min(), images.labels.max()):
        if not 0 <= label < num_classes:
            raise SpecError(f"{key} has label {label}, the model {num_classes} classes: set model.num_classes")


def _absolute(key: str, place: Path | str) -> Path | str:
    try:
        return absolute(place)
    except RuntimeError as error:
        raise SpecError(f"{key} {place}: {one_line(error)}") from error


def _check_existing(checkpoint: Path | str, options: S3Options, digest: str) -> None:
    try:
        content = torch.load(io.BytesIO(read_file(checkpoint, options)), map_location="cpu", weights_only=True)
    except StoreError:
        raise
    except Exception as error:  # whatever is wrong with the file, it is not ours to overwrite
        raise SpecError(f"model.checkpoint {checkpoint} exists and is no checkpoint of `stn train`") from error
    if not isinstance(content, dict) or content.get("training_sha256") != digest:
        raise SpecError(
            f"model.checkpoint {checkpoint} was trained with other settings; name another file, or remove it to retrain"
        )
