"""`stn train`: train a spec's model and leave its checkpoint where certification looks for it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from orchestrator.cluster import cluster, fit
from orchestrator.errors import SpecError
from orchestrator.spec import Spec
from stn_core.naming import one_line
from workers.counting import load_model
from workers.files import absolute, exists, parent_and_name, read_file
from workers.images import DatasetError, open_dataset
from workers.settings import GaussianNoise, Training
from workers.store import S3Options, StoreError, open_store
from workers.training import Epoch, TrainJob

#: The paper does not state its own; see docs/architecture.md.
DEFAULT_GAMMA = 1.0


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        checkpoint: the file or object written; a dict with "state_dict", "training" (settings) and "training_sha256".
        epoch: the last epoch's figures; None if the checkpoint was there already.
    """

    checkpoint: Path | str
    epoch: Epoch | None


def train_model(spec: Spec, *, observe: Callable[[Epoch], None]) -> Trained:
    """Train, resuming whatever an earlier call of the same spec left behind.

    Raises:
        SpecError: the spec has no training section or checkpoint, or they do not fit.
        TrainingError: training failed for good.
    """
    training, checkpoint = spec.training, spec.model.checkpoint
    if training is None:
        raise SpecError("training is missing: `stn train` needs that section, see examples/demo.yaml")
    if checkpoint is None:
        raise SpecError("model.checkpoint is missing: `stn train` writes the weights there")
    if str(checkpoint).endswith(".safetensors"):
        raise SpecError(f"model.checkpoint {checkpoint}: `stn train` writes PyTorch's format, name it .pt")
    checkpoint = _absolute("model.checkpoint", checkpoint)
    job, fingerprint = _job(spec, training)
    settings = {
        "model": spec.model.model_dump(mode="json", exclude={"checkpoint"}),
        "training": training.model_dump(
            mode="json", exclude={"workers": True, "threads_per_worker": True, "dataset": {"path"}}
        ),
        # Other kinds of noise came later; checkpoints trained before stay known by sigma alone.
        **(
            {"sigma": job.noise.sigma} if job.noise.kind == "gaussian" else {"noise": job.noise.model_dump(mode="json")}
        ),
        "gamma": job.gamma,
        "dataset_sha256": fingerprint,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    options = spec.store.options
    parent, name = parent_and_name(checkpoint)
    if exists(checkpoint, options):
        _check_existing(checkpoint, options, digest)
        return Trained(checkpoint, None)
    store = open_store(str(parent), options)
    store.probe()  # before hours are spent on what cannot be written
    store.check_exclusive()

    with cluster(job.training.workers * job.threads + 1) as capacity:
        content, epoch = fit(
            job,
            name=f"train-{digest[:16]}",
            storage=parent / "training" if isinstance(parent, Path) else f"{parent}/training",
            gpu=capacity.gpus >= training.workers,
            observe=observe,
        )
    network = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["network"]
    file = io.BytesIO()
    torch.save({"state_dict": network, "training": settings, "training_sha256": digest}, file)
    if not store.create(name, file.getvalue()):
        _check_existing(checkpoint, options, digest)
    return Trained(checkpoint, epoch)


def _job(spec: Spec, training: Training) -> tuple[TrainJob, str]:
    dataset = training.dataset
    path = getattr(dataset, "path", None)
    if path is not None:
        dataset = dataset.model_copy(update={"path": _absolute("training.dataset.path", path)})
    try:
        images = open_dataset(dataset, spec.store.options)
        num_classes = spec.model.num_classes or images.num_classes
        load_model(spec.model.model_copy(update={"checkpoint": None}), num_classes)
    except (DatasetError, ValueError) as error:
        raise SpecError(f"training: {error}") from error
    if images.labels.max() >= num_classes:
        raise SpecError(f"training.dataset has label {images.labels.max()}, the model {num_classes} classes")
    job = TrainJob(
        model=spec.model,
        training=training.model_copy(update={"dataset": dataset}),
        num_classes=num_classes,
        noise=spec.noise if training.sigma is None else GaussianNoise(sigma=training.sigma),
        gamma=training.gamma if training.gamma is not None else DEFAULT_GAMMA,
        threads=training.threads_per_worker,
        import_paths=(str(Path.cwd()),),
        storage=spec.store.options,
    )
    return job, images.fingerprint


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
