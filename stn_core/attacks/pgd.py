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

        def gradient(images: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                ascent = images.requires_grad_()
                (found,) = torch.autograd.grad(objective(ascent).sum(), ascent)
            return found

        return self.climb(gradient, clean, offsets)

    def climb(
        self, gradient: Callable[[torch.Tensor], torch.Tensor], clean: torch.Tensor, offsets: torch.Tensor
    ) -> torch.Tensor:
        """As ``perturb``, by the gradient of an objective, or what stands for it: images to as many gradients."""
        images = project(self.norm, self.epsilon, clean + offsets, clean)
        for _ in range(self.steps):
            step = self.step_size * self._direction(gradient(images))
            images = project(self.norm, self.epsilon, images.detach() + step, clean)
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
        return gradient / lengths(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)


def project(norm: Norm, epsilon: float, images: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Images moved into the ball of that size around the clean ones, and then into [0, 1]."""
    offsets = images - clean
    if norm == "linf":
        offsets = offsets.clamp(-epsilon, epsilon)
    else:
        offsets = offsets * (epsilon / lengths(offsets).clamp_min(epsilon))
    # Clipping moves each pixel towards the clean one, and so leaves the ball in neither norm.
    return (clean + offsets).clamp(0, 1)


def lengths(images: torch.Tensor) -> torch.Tensor:
    """The L2 norm of each image, in a shape that broadcasts to the images'."""
    return torch.linalg.vector_norm(images.flatten(1), dim=1).view(-1, *(1 for _ in images.shape[1:]))
