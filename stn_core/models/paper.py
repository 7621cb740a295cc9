"""The paper's two networks (section 6; the MNIST one is model A of Tramer et al. 2018, its reference [36])."""

from __future__ import annotations

from torch import nn


def mnist(num_classes: int = 10) -> nn.Module:
    """Two 5x5 convolutions of 64 filters and a dense layer of 128, for (rows, 1, 28, 28)."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 5),
        nn.ReLU(),
        nn.Conv2d(64, 64, 5),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * 20 * 20, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )


def cifar10(num_classes: int = 10) -> nn.Module:
    """Seven convolutions with max-pooling, ELU and global average, for (rows, 3, 32, 32)."""

    def convolution(inputs: int, outputs: int, size: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.ELU()]

    def pool() -> list[nn.Module]:
        return [nn.MaxPool2d(3, stride=2), nn.Dropout(0.5)]

    return nn.Sequential(
        *convolution(3, 96, 5),
        *convolution(96, 96, 1),
        *pool(),
        *convolution(96, 192, 5),
        *convolution(192, 192, 1),
        *pool(),
        *convolution(192, 256, 3),
        *convolution(256, 256, 1),
        nn.Conv2d(256, num_classes, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
