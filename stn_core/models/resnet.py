"""Residual networks for small images (He et al. 2016, section 4.2), as Cohen et al. 2019 certify them.

Parameters carry the names of that lineage's published checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import relu


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            None
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shortcut = images if self.downsample is None else self.downsample(images)
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(images))))) + shortcut)


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels, for (rows, 3, 32, 32).

    Args:
        depth: layers with weights, 6 n + 2: each stage has n blocks.
        num_classes: outputs.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"a network of depth {depth} cannot be built: it must be 6 n + 2, such as 20 or 110")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, by the outputs
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(images))))))
        logits: torch.Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(inputs, outputs, stride), *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def cifar_resnet20(num_classes: int = 10) -> nn.Module:
    """ResNet-20, 0.27 million parameters."""
    return CifarResNet(20, num_classes)


def cifar_resnet110(num_classes: int = 10) -> nn.Module:
    """ResNet-110, 1.7 million parameters: CIFAR-10's of Cohen et al."""
    return CifarResNet(110, num_classes)
