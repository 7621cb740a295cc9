"""torchvision's trained weights, and what it declares of them: classes, normalisation, how images were evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from stn_core.models.checkpoint import read_checkpoint
from stn_core.naming import did_you_mean


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
        url: of the file.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int
    crop: int
    interpolation: str
    classes: tuple[str, ...]
    url: str


def torchvision_models() -> ModuleType:
    """``torchvision.models``. To import it takes a second, which other networks' workers need not wait for."""
    import torchvision.models

    return torchvision.models


def classifiers() -> list[str]:
    """Names of torchvision's image classifiers: not its detectors, segmenters, video or quantised networks."""
    names: list[str] = torchvision_models().list_models(module=torchvision_models())
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
        url=member.url,
    )


def build_pretrained(network: str, weights: str, path: Path) -> nn.Module:
    """A network of torchvision with its weights, which are at ``path``, torch.hub's place for them.

    Raises:
        ValueError: there are no such weights, or the file holds others.
    """
    member = _member(network, weights)
    # Read here as every checkpoint is, and by nobody else: torchvision would run what a file in that place holds.
    state = read_checkpoint(path.read_bytes(), str(path)).state
    member.get_state_dict = lambda **_: dict(state)
    try:
        built: nn.Module = torchvision_models().get_model(network, weights=member)
    except (RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds other weights than {weights} of {network!r}: remove it") from error
    finally:
        del member.get_state_dict
    return built


def _member(network: str, weights: str) -> Any:
    if network not in classifiers():
        raise ValueError(f"model.weights are those of a torchvision.models classifier, and {network!r} is none")
    members = torchvision_models().get_model_weights(network)
    # Some were trained to be a part of detectors.
    valid = [member.name for member in members if member.meta["categories"]]
    if weights not in (*valid, "DEFAULT") or not valid:
        raise ValueError(
            f"model.weights: {network!r} has no {weights!r}{did_you_mean(weights, valid)}; "
            f"valid: {', '.join((*valid, 'DEFAULT'))}"
        )
    return members[weights]
