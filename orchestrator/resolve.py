"""From a spec to a plan: open what it names, check that it fits, take fingerprints."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

import orchestrator
import stn_core
import workers
from orchestrator.errors import SpecError
from orchestrator.plan import Plan
from orchestrator.spec import Spec
from stn_core.models import Normalized, weights_sha256
from stn_core.naming import one_line
from workers.counting import load_model
from workers.files import absolute, exists
from workers.images import DatasetError, ImageSet, UnreadableImage, open_dataset, selected
from workers.store import StoreError
from workers.versions import OtherVersions, check_pinned, versions


@dataclass(frozen=True)
class Resolved:
    """A plan with what was opened to make it.

    Attributes:
        plan: the plan.
        images: the data set.
        model: the model, weights loaded, on the CPU.
        sample: one readable image's index.
    """

    plan: Plan
    images: ImageSet
    model: Normalized
    sample: int


def resolve(spec: Spec) -> Resolved:
    """Open the data set and the model a spec names, check that they fit, and make the plan.

    Raises:
        SpecError: something named does not exist or does not fit, or the job was submitted with other versions.
    """
    held_to_versions()
    spec = _with_absolute_paths(spec)
    _check_checkpoint(spec)
    try:
        images = open_dataset(spec.dataset, spec.store.options)
        num_classes = spec.model.num_classes or images.num_classes
        model = load_model(spec.model, num_classes, spec.store.options)
    except (DatasetError, ValueError) as error:
        raise SpecError(str(error)) from error
    indices = selected(spec.dataset, len(images))
    sample, shape = _usual_shape(images, indices)
    _check_model(spec.model.name, model, shape, num_classes)
    draws = spec.sampling.draws + spec.sampling.selection_draws
    size = spec.resources.shard_size
    plan = Plan(
        spec=spec,
        dataset_size=len(images),
        num_classes=num_classes,
        image_shape=shape,
        # About ten thousand forward passes a shard: seconds to minutes of work, and little to lose.
        shard_size=max(1, min(64, 10_000 // draws)) if size == "auto" else size,
        model_sha256=weights_sha256(model.network),
        dataset_sha256=images.fingerprint,
        code_sha256=code_sha256(),
        versions=versions(),
    )
    return Resolved(plan, images, model, sample)


def held_to_versions() -> None:
    """Raise SpecError if this job was submitted with other versions than this process has."""
    try:
        check_pinned()
    except OtherVersions as error:
        raise SpecError(str(error)) from error


def code_sha256() -> str:
    """Digest of this project's own source files."""
    digest = hashlib.sha256()
    for package in (stn_core, workers, orchestrator):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{root.name}/{path.relative_to(root).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _with_absolute_paths(spec: Spec) -> Spec:
    """Paths as any node sees them: a worker's working directory is not the driver's."""
    values = spec.model_dump()
    for section, key in (("dataset", "path"), ("model", "checkpoint")):
        if values[section].get(key) is not None:
            try:
                values[section][key] = absolute(values[section][key])
            except RuntimeError as error:
                raise SpecError(f"{section}.{key} {values[section][key]}: {one_line(error)}") from error
    return Spec.model_validate(values)


def _check_checkpoint(spec: Spec) -> None:
    """A named network without weights would vote at random; an imported one may bring its own."""
    checkpoint = spec.model.checkpoint
    if checkpoint is None and ":" not in spec.model.name:
        raise SpecError(f"model.checkpoint is missing: the weights of {spec.model.name!r} would be random")
    if checkpoint is not None and not exists(checkpoint, spec.store.options):
        hint = "run `stn train` first, or name another file" if spec.training else "name another file"
        raise SpecError(f"no checkpoint at model.checkpoint {checkpoint}: {hint}")


def _usual_shape(images: ImageSet, indices: range) -> tuple[int, tuple[int, int, int]]:
    """The shape most of the first images have, and one of them. Others are recorded as failed, and broken ones too."""
    shapes: dict[tuple[int, int, int], list[int]] = {}
    reason = "it is empty"
    for index in indices[:20]:
        try:
            channels, height, width = images.read(index).shape
            shapes.setdefault((channels, height, width), []).append(index)
        except UnreadableImage as error:
            reason = f"its first images cannot be used: image {index}: {error}"
        except (OSError, StoreError) as error:
            raise SpecError(f"dataset: image {index} cannot be read: {one_line(error)}") from error
    if not shapes:
        raise SpecError(f"no images to certify in dataset: {reason}")
    shape = max(shapes, key=lambda shape: len(shapes[shape]))
    return shapes[shape][0], shape


def _check_model(name: str, model: Normalized, shape: tuple[int, int, int], num_classes: int) -> None:
    try:
        with torch.inference_mode():
            logits = model.eval()(torch.zeros((2, *shape)))
    except Exception as error:  # the user's network may raise anything
        raise SpecError(
            f"model.name {name!r} (with model.normalization) cannot take images of shape {shape}: {one_line(error)}"
        ) from error
    if not isinstance(logits, torch.Tensor):
        raise SpecError(f"model.name {name!r} must return a tensor of logits, got {type(logits).__name__}")
    found = tuple(logits.shape)
    if found != (2, num_classes):
        raise SpecError(
            f"model.name gives outputs of shape {found[1:]} per image, the data set has {num_classes} classes: "
            "set model.num_classes, or use another model"
        )
