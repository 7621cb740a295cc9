"""Normalisation as part of the model, so that noise is added to pixels in [0, 1] and never to normalised values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from stn_core.models.pretrained import classifiers

#: Mean and standard deviation per channel, in [0, 1] pixel units.
Constants = tuple[tuple[float, ...], tuple[float, ...]]

#: No normalisation.
UNCHANGED: Constants = ((0.0,), (1.0,))

#: The usual constants, and those of Cohen et al. 2019, whose checkpoints apply but do not hold them.
_IMAGENET: Constants = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR10: Constants = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def constants_of(arch: str | None) -> Constants | None:
    """What a checkpoint of Cohen et al. normalises by, from the ``arch`` that it names; None for none of theirs."""
    if arch in ("cifar_resnet20", "cifar_resnet110"):
        return _CIFAR10
    return _IMAGENET if arch in classifiers() else None


class Normalized(nn.Module):
    """A network behind a per-channel (x - mean) / std.

    Args:
        network: maps normalised images (rows, channels, height, width) to logits.
        mean: one value per channel, in [0, 1] pixel units.
        std: one positive value per channel.

    Attributes:
        constants: mean and std as they were given.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float] = UNCHANGED[0], std: Sequence[float] = UNCHANGED[1]
    ) -> None:
        super().__init__()
        self.network = network
        self.constants: Constants = (tuple(mean), tuple(std))
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network((images - self.mean) / self.std)
        return logits
