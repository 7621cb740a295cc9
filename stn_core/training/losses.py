"""One loss per training method. Each takes (model, clean images, noisy images, labels, gamma) and returns a scalar."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import cross_entropy


class Loss(Protocol):
    """A training method's loss.

    Args:
        model: maps images (rows, channels, height, width) to logits (rows, classes).
        clean: float32 images in [0, 1].
        noisy: the same images, each with fresh noise added.
        labels: int64 (rows,).
        gamma: weight of the method's regulariser; methods without one ignore it.

    Returns:
        Mean loss over the batch, a scalar.
    """

    def __call__(
        self, model: nn.Module, clean: torch.Tensor, noisy: torch.Tensor, labels: torch.Tensor, gamma: float
    ) -> torch.Tensor: ...


def stability(
    model: nn.Module, clean: torch.Tensor, noisy: torch.Tensor, labels: torch.Tensor, gamma: float
) -> torch.Tensor:
    """Stability training: cross-entropy on the clean image, plus gamma times the cross-entropy between the softmax of
    the clean and of the noisy image (the paper, section 5.1). One pass over both halves."""
    logits, logits_noisy = model(torch.cat([clean, noisy])).float().chunk(2)
    return cross_entropy(logits, labels) + gamma * cross_entropy(logits_noisy, logits.softmax(dim=1))


def gaussian(
    model: nn.Module, clean: torch.Tensor, noisy: torch.Tensor, labels: torch.Tensor, gamma: float
) -> torch.Tensor:
    """Noise augmentation: cross-entropy on the noisy image alone (the paper's "without stability training")."""
    return cross_entropy(model(noisy).float(), labels)


def clean(
    model: nn.Module, clean: torch.Tensor, noisy: torch.Tensor, labels: torch.Tensor, gamma: float
) -> torch.Tensor:
    """Ordinary training: cross-entropy on the clean image alone."""
    return cross_entropy(model(clean).float(), labels)


LOSSES: dict[str, Loss] = {"stn": stability, "gaussian": gaussian, "clean": clean}
