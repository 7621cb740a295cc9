"""Small networks for tests, imported by specs as tests.networks:NAME. Weights are fixed by a seed."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import torch
from torch import nn


def tiny() -> nn.Module:
    """A 10-class network on (rows, 1, 28, 28) whose votes under noise are spread over several classes."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Conv2d(1, 8, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))


def chance() -> nn.Module:
    """``tiny`` with other weights each time."""
    network = tiny()
    torch.seed()
    nn.init.normal_(network[-1].weight)
    return network


def slow() -> nn.Module:
    """``tiny``, with a tenth of a second for every forward pass: long enough to be killed in the middle."""
    return nn.Sequential(_Pause(0.1), *tiny())


def stuck_once() -> nn.Module:
    """``tiny``, but the first Ray worker to vote hangs, having made the file at $STN_TESTS_STUCK."""
    return nn.Sequential(_StuckOnce(), *tiny())


def nan() -> nn.Module:
    """``tiny``, with NaN logits for rows whose first pixel is negative: about half of all draws on black pixels."""
    return _NanWhereNegative(tiny())


class _Pause(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self._seconds)
        return images


class _StuckOnce(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if "ray::" in Path("/proc/self/cmdline").read_text():
            with contextlib.suppress(FileExistsError):
                Path(os.environ["STN_TESTS_STUCK"]).open("x").close()
                time.sleep(3600)
        return images


class _NanWhereNegative(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._network(images)
        return logits.masked_fill((images[:, 0, 0, 0] < 0)[:, None], float("nan"))


def tiny_rgb() -> nn.Module:
    """A 10-class network on (rows, 3, 28, 28)."""
    torch.manual_seed(8)
    return nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))


def unseeded() -> nn.Module:
    """``tiny`` with weights of its own in every process."""
    torch.manual_seed(os.getpid())
    return nn.Sequential(nn.Conv2d(1, 8, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))


def only_in_the_driver() -> nn.Module:
    """``tiny``, but building it inside a Ray worker fails."""
    if "ray::" in Path("/proc/self/cmdline").read_text():
        raise RuntimeError("refuses to live in a worker")
    return tiny()
