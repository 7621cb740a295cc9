"""Two classes on either side of a plane: all that noise and attacks can do to it is known in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from stn_core.attacks import Target
from stn_core.noise import Noise

SHAPE = (1, 8, 8)


class Plane(nn.Module):
    """Logits (normal x + offset, 0): class 0 is on the side that the normal points to."""

    def __init__(self, seed: int = 0, offset: float = 0.0) -> None:
        super().__init__()
        self.normal = torch.randn(64, generator=torch.Generator().manual_seed(seed))
        self.offset = offset

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = images.flatten(1) @ self.normal + self.offset
        return torch.stack([first, torch.zeros_like(first)], dim=1)

    @property
    def length(self) -> float:
        return float(self.normal.norm())

    def margins(self, images: torch.Tensor) -> NDArray[np.float64]:
        return np.asarray((images.flatten(1).double() @ self.normal.double()).numpy() + self.offset)

    def distances(self, images: torch.Tensor) -> NDArray[np.float64]:
        """From the plane, in L2; negative on the other side."""
        return self.margins(images) / float(self.normal.double().norm())

    def vote(self, images: torch.Tensor, sigma: float) -> NDArray[np.float64]:
        """Class 0's probability under Gaussian noise."""
        return np.asarray(stats.norm.cdf(self.distances(images) / sigma))

    def at(self, distances: Sequence[float], seed: int = 1) -> torch.Tensor:
        """Images at these distances from the plane, far from 0 and 1."""
        random = torch.Generator().manual_seed(seed)
        images = 0.4 + 0.2 * torch.rand((len(distances), 64), generator=random)
        missing = torch.tensor(distances) - torch.from_numpy(self.distances(images)).float()
        images += missing[:, None] * self.normal / self.length
        assert images.min() > 0.2
        assert images.max() < 0.8
        return images.view(-1, *SHAPE)


def target_of(
    model: nn.Module,
    noise: Noise,
    images: int,
    *,
    draws: int = 16,
    labels: torch.Tensor | None = None,
    keys: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 4096,
) -> Target:
    """Of a first class of all images, unless labels say otherwise."""
    labels = torch.zeros(images, dtype=torch.int64) if labels is None else labels
    return Target(model, noise, labels, range(images) if keys is None else keys, seed, draws, batch_size)
