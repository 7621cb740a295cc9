"""From a spec to a plan: open what it names, check that it fits, take fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import orchestrator
import stn_core
import workers
from orchestrator.errors import SpecError
from orchestrator.planning.plans import Plan
from orchestrator.spec import Spec
from stn_core.models import EXPORTED, UNCHANGED, Normalized, declared, disagreement, weights_sha256
from stn_core.naming import one_line
from workers.counting import completed, load_model
from workers.files import absolute, exists
from workers.images import DatasetError, ImageSet, Index, UnreadableImage, open_dataset
from workers.selection import selected
from workers.settings import PLACES, Encoded, ImageNet, Model, Normalization
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


def resolve(spec: Spec, known: Index | None = None) -> Resolved:
    """Open the data set and the model a spec names, check that they fit, and make the plan.

    Args:
        spec: what is asked for.
        known: the data set's index as the run has it, if it does.

    Raises:
        SpecError: something named does not exist or does not fit, or the job was submitted with other versions.
    """
    held_to_versions()
    spec = _with_absolute_paths(spec).model_copy(update={"attack": None})  # which is no part of what a run is
    _check_checkpoint(spec)
    try:
        spec = _with_declared(spec)
        images = open_dataset(spec.dataset, spec.store.options, known)
        indices = selected(spec.dataset, len(images))
        num_classes = spec.model.num_classes or images.num_classes
        model = load_model(spec.model, num_classes, spec.store.options)
        _check_repeatable(spec, model, num_classes)
    except (DatasetError, ValueError) as error:
        raise SpecError(str(error)) from error
    spec = _with_normalization(spec, model)
    sample, shape = _usual_shape(images, indices)
    _check_model(spec.model, model, shape, num_classes, images.classes)
    size = spec.resources.shard_size
    plan = Plan(
        spec=spec,
        dataset_size=len(images),
        num_classes=num_classes,
        image_shape=shape,
        shard_size=_shard_size(spec, len(indices)) if size == "auto" else size,
        model_sha256=weights_sha256(model.network),
        dataset_sha256=images.fingerprint,
        code_sha256=code_sha256(),
        versions=versions(),
    )
    return Resolved(plan, images, model, sample)


def _shard_size(spec: Spec, images: int) -> int:
    """Images in a shard, where the spec names no number and the run has so many."""
    sampling = spec.sampling
    if sampling.mode == "adaptive":
        # Each round is a commit, so there is little to lose; the more images, the fuller its last batch. Yet each of a
        # fleet's workers is to have some.
        return max(16, min(64, images // 64))
    # About ten thousand forward passes: seconds to minutes of work.
    return max(1, min(64, 10_000 // (sampling.draws + sampling.selection_draws)))


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
    for section, key in (*(("dataset", place) for place in sorted(PLACES)), ("model", "checkpoint")):
        if isinstance(values[section].get(key), Path):
            try:
                values[section][key] = absolute(values[section][key])
            except RuntimeError as error:
                raise SpecError(f"{section}.{key} {values[section][key]}: {one_line(error)}") from error
    return Spec.model_validate(values)


def _with_declared(spec: Spec) -> Spec:
    """With what torchvision declares of the weights a spec names, as far as the spec leaves it open: normalisation, and
    how images are evaluated. ImageNet's are by the usual 256 and 224 otherwise. Raises ValueError."""
    model, dataset = completed(spec.model), spec.dataset
    if isinstance(dataset, Encoded) and dataset.resize is None and dataset.crop is None:
        evaluation: dict[str, Any] = {}
        if model.weights is not None:
            facts = declared(model.name, model.weights)
            interpolation = dataset.interpolation or facts.interpolation
            evaluation = {"resize": facts.resize, "crop": facts.crop, "interpolation": interpolation}
        elif isinstance(dataset, ImageNet):
            evaluation = {"resize": 256, "crop": 224}
        dataset = dataset.model_copy(update=evaluation)
    return spec.model_copy(update={"model": model, "dataset": dataset})


def _with_normalization(spec: Spec, model: Normalized) -> Spec:
    """With the normalisation that the model's checkpoint is known to have been saved with."""
    mean, std = model.constants
    if spec.model.normalization is not None or model.constants == UNCHANGED:
        return spec
    normalization = Normalization(mean=mean, std=std)
    return spec.model_copy(update={"model": spec.model.model_copy(update={"normalization": normalization})})


def _check_repeatable(spec: Spec, model: Normalized, num_classes: int) -> None:
    """Workers make an imported network of their own: it must be the same each time. Raises ValueError."""
    if ":" not in spec.model.name or spec.model.checkpoint is not None:
        return
    again = load_model(spec.model, num_classes, spec.store.options)
    if weights_sha256(again.network) != weights_sha256(model.network):
        raise ValueError(
            f"model.name {spec.model.name!r} has other weights each time: name a model.checkpoint, or seed them"
        )


def _check_checkpoint(spec: Spec) -> None:
    """A named network without weights would vote at random; an imported one may bring its own."""
    checkpoint = spec.model.checkpoint
    if checkpoint is None and spec.model.weights is None and ":" not in spec.model.name and spec.model.name != EXPORTED:
        raise SpecError(f"model.checkpoint is missing: the weights of {spec.model.name!r} would be random")
    if checkpoint is not None and not exists(checkpoint, spec.store.options):
        hint = "run `stn train` first, or name another file" if spec.training else "name another file"
        raise SpecError(f"no checkpoint at model.checkpoint {checkpoint}: {hint}")


def _usual_shape(images: ImageSet, indices: Sequence[int]) -> tuple[int, tuple[int, int, int]]:
    """The shape most of the first images have, and one of them. Others are recorded as failed, and broken ones too."""
    shapes: dict[tuple[int, int, int], list[int]] = {}
    reason = "it is empty"
    for index in indices[:20]:
        try:
            channels, height, width = images.read(index).shape
            shapes.setdefault((channels, height, width), []).append(index)
        except UnreadableImage as error:
            reason = f"its first images cannot be used: image {index}: {error}"
        except (OSError, StoreError, DatasetError) as error:
            raise SpecError(f"dataset: image {index} cannot be read: {one_line(error)}") from error
    if not shapes:
        raise SpecError(f"no images to certify in dataset: {reason}")
    shape = max(shapes, key=lambda shape: len(shapes[shape]))
    return shapes[shape][0], shape


def _check_model(
    section: Model,
    model: Normalized,
    shape: tuple[int, int, int],
    num_classes: int,
    names: tuple[str, ...] | None,
) -> None:
    try:
        with torch.inference_mode():
            logits = model.eval()(torch.zeros((2, *shape)))
    except Exception as error:  # the user's network may raise anything
        raise SpecError(
            f"model.name {section.name!r} (with model.normalization) cannot take images of shape {shape}: "
            f"{one_line(error)}"
        ) from error
    if not isinstance(logits, torch.Tensor):
        raise SpecError(f"model.name {section.name!r} must return a tensor of logits, got {type(logits).__name__}")
    found = tuple(logits.shape)
    classes = None if section.weights is None else declared(section.name, section.weights).classes
    reason = disagreement(names, found[-1] if len(found) == 2 else 0, classes)
    if reason:
        raise SpecError(f"model and dataset disagree about classes: {reason}")
    if found != (2, num_classes):
        raise SpecError(
            f"model.name gives outputs of shape {found[1:]} per image, the data set has {num_classes} classes: "
            "set model.num_classes, or use another model"
        )
