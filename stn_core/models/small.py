"""Small networks, beyond the paper's: one that is quicker and surer of noisy digits, and two for the dual bound."""

from __future__ import annotations

from torch import nn


def mnist_small(num_classes: int = 10) -> nn.Module:
    """Five 3x3 convolutions of 32 and 64 filters, each batch-normalised, for (rows, 1, 28, 28); 0.13 million
    parameters."""
    return nn.Sequential(
        *_convolution(1, 32),
        *_convolution(32, 32, stride=2),
        *_convolution(32, 64),
        *_convolution(64, 64, stride=2),
        *_convolution(64, 64),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, num_classes),
    )


def mnist_shallow(num_classes: int = 10) -> nn.Module:
    """One 5x5 convolution of 16 filters, for (rows, 1, 28, 28): small enough for ``stn_core.dual``."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 9 * 9, num_classes),
    )


def cifar10_shallow(num_classes: int = 10) -> nn.Module:
    """One 5x5 convolution of 32 filters, for (rows, 3, 32, 32): small enough for ``stn_core.dual``."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, stride=3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 10 * 10, num_classes),
    )


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]
