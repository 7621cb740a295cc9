"""torchvision's trained weights, and what it declares of them: classes, normalisation, how images were evaluated."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision
from torch import nn

from stn_core.models.checkpoint import read_checkpoint
from stn_core.naming import did_you_mean, one_line


@dataclass(frozen=True)
class Declared:
    """What torchvision declares of trained weights.

    Attributes:
        name: of the enum's member, never its alias DEFAULT.
        mean, std: normalisation, in [0, 1] pixel units, one value per channel.
        resize: shorter side of the images after resizing, pixels.
        crop: side of the centre crop, pixels.
        interpolation: of the resizing.
        classes: names in the order of the logits.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int
    crop: int
    interpolation: str
    classes: tuple[str, ...]


def classifiers() -> list[str]:
    """Names of torchvision's image classifiers: not its detectors, segmenters, video or quantised networks."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def declared(network: str, weights: str) -> Declared:
    """What torchvision declares of weights, such as IMAGENET1K_V2 of resnet50. Raises ValueError: there are none."""
    member = _member(network, weights)
    transforms = member.transforms()
    return Declared(
        name=member.name,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        resize=transforms.resize_size[0],
        crop=transforms.crop_size[0],
        interpolation=transforms.interpolation.value,
        classes=tuple(member.meta["categories"]),
    )


def build_pretrained(network: str, weights: str) -> nn.Module:
    """A network of torchvision with its weights, from torch.hub's cache or, where they are not there, downloaded.

    Raises:
        ValueError: there are no such weights, they can be had from nowhere, or the file is damaged.
    """
    member = _member(network, weights)
    path = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urlparse(member.url).path).name)
    try:
        _download(member.url, path)
        content = path.read_bytes()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"model.weights {weights} of {network!r} are not at {path} and cannot be had from {member.url} "
            f"({one_line(error)}): put that file there, or name one as model.checkpoint"
        ) from error
    # Read as every checkpoint is, because torchvision would run what a file in the cache holds.
    read_checkpoint(content, str(path))
    try:
        built: nn.Module = torchvision.models.get_model(network, weights=member)
    except RuntimeError as error:
        raise ValueError(f"{path} holds other weights than {weights} of {network!r}: remove it") from error
    return built


def _member(network: str, weights: str) -> Any:
    if network not in classifiers():
        raise ValueError(f"model.weights are those of a torchvision.models classifier, and {network!r} is none")
    members = torchvision.models.get_model_weights(network)
    # Some were trained to be a part of detectors.
    valid = [member.name for member in members if member.meta["categories"]]
    if weights not in (*valid, "DEFAULT") or not valid:
        raise ValueError(
            f"model.weights: {network!r} has no {weights!r}{did_you_mean(weights, valid)}; "
            f"valid: {', '.join((*valid, 'DEFAULT'))}"
        )
    return members[weights]


def _download(url: str, path: Path) -> None:
    """Once per machine, however many processes ask at the same time."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            digest = torch.hub.HASH_REGEX.search(path.name)
            torch.hub.download_url_to_file(url, str(path), digest and digest[1], progress=False)
