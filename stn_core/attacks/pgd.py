"""Projected gradient ascent (Madry et al. 2018, section 2.1; for L2 with the gradient's direction)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

Norm = Literal["l2", "linf"]


@dataclass(frozen=True)
class PGD:
    """Steps uphill, each followed by a projection to the ball around the clean image and to [0, 1].

    Attributes:
        norm: in which perturbations are measured.
        epsilon: largest perturbation, in [0, 1] pixel units.
        steps: how many.
        step_size: length of each in the norm, in [0, 1] pixel units.
    """

    norm: Norm
    epsilon: float
    steps: int
    step_size: float

    def perturb(
        self, objective: Callable[[torch.Tensor], torch.Tensor], clean: torch.Tensor, offsets: torch.Tensor
    ) -> torch.Tensor:
        """Images near the clean ones whose objective is larger.

        Args:
            objective: of images (rows, channels, height, width), one value for each or their sum; rows must not
                depend on each other.
            clean: float32 images in [0, 1].
            offsets: where to start, relative to them.

        Returns:
            Images of the same shape, without a gradient.
        """
        images = self._project(clean + offsets, clean)
        for _ in range(self.steps):
            with torch.enable_grad():
                ascent = images.requires_grad_()
                (gradient,) = torch.autograd.grad(objective(ascent).sum(), ascent)
            images = self._project(images.detach() + self.step_size * self._direction(gradient), clean)
        return images

    def random_offsets(self, random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Where to start: uniform in the ball around zero, one for each of ``shape[0]`` images."""
        if self.norm == "linf":
            return random.uniform(-self.epsilon, self.epsilon, shape).astype(np.float32)
        normal = random.standard_normal(shape)
        axes = tuple(range(1, len(shape)))
        radius = random.random((shape[0], *(1 for _ in axes))) ** (1 / np.prod(shape[1:]))
        lengths = np.sqrt((normal**2).sum(axis=axes, keepdims=True))
        return (self.epsilon * radius * normal / lengths).astype(np.float32)

    def _direction(self, gradient: torch.Tensor) -> torch.Tensor:
        """The step of length one in the norm that rises most. None where the gradient is zero."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / _lengths(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)

    def _project(self, images: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        offsets = images - clean
        if self.norm == "linf":
            offsets = offsets.clamp(-self.epsilon, self.epsilon)
        else:
            offsets = offsets * (self.epsilon / _lengths(offsets).clamp_min(self.epsilon))
        # Clipping moves each pixel towards the clean one, and so leaves the ball in neither norm.
        return (clean + offsets).clamp(0, 1)


def _lengths(images: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(images.flatten(1), dim=1).view(-1, *(1 for _ in images.shape[1:]))
