"""Noise, and the identity of every draw.

A draw's noise is a pure function of (seed, image key, phase, draw number). It depends on neither worker, batch nor
shard, so any shard can be counted anywhere, again, in any order, and see the same noise. One file per way of sampling.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch

from stn_core.noise.absent import NoNoise
from stn_core.noise.additive import Gaussian, Laplace, Uniform
from stn_core.noise.discrete import DiscreteGaussian
from stn_core.noise.identity import NOISE_VERSION, Draws, Phase, attack_generator, check_identity, interval_variates
from stn_core.noise.splitting import Splitting


class Noise(Protocol):
    """What ``count_votes`` accepts as noise."""

    @property
    def kind(self) -> str:
        """Name that certificates know it by."""

    @property
    def scale(self) -> float:
        """The size that radii are proportional to, in pixel units where an image spans [0, 1]."""

    def perturb(self, rows: torch.Tensor, images: torch.Tensor, owner: torch.Tensor, draws: Iterable[Draws]) -> None:
        """Write one noisy copy per row, for votes.

        Args:
            rows: float32 (rows, channels, height, width), contiguous; overwritten.
            images: uint8, or float32 in [0, 1], (images, channels, height, width), on the same device.
            owner: each row's image, int64 (rows,).
            draws: the identity of each row, in order; their counts add up to the rows.

        Raises:
            ValueError: the draws do not fill the rows, or the images do not suit the noise.
        """

    def disturb(self, images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        """Noisy copies without identity, for training: float32 of the images' shape.

        Args:
            images: uint8 (images, channels, height, width), on the CPU.
            random: where the noise comes from.
        """


__all__ = [
    "NOISE_VERSION",
    "DiscreteGaussian",
    "Draws",
    "Gaussian",
    "Laplace",
    "NoNoise",
    "Noise",
    "Phase",
    "Splitting",
    "Uniform",
    "attack_generator",
    "check_identity",
    "interval_variates",
]
