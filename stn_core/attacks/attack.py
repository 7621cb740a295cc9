"""What all attacks on finished classifiers have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from stn_core.attacks.pgd import Norm
from stn_core.attacks.target import Target


class Attack(Protocol):
    """A way to look for perturbations that change the answer. It runs to its end whatever it finds: what becomes of one
    image does not depend on the others."""

    @property
    def norm(self) -> Norm:
        """In which the size of perturbations is measured."""

    def perturb(self, target: Target, clean: torch.Tensor, sizes: Sequence[float]) -> torch.Tensor:
        """For each size and image, a perturbed image no farther from the clean one than that size.

        Args:
            target: whom to attack; it knows the images' labels and what each may take its choices from.
            clean: float32 images in [0, 1], (images, channels, height, width), on the target's device.
            sizes: of the perturbations in the norm, in [0, 1] pixel units, positive, increasing.

        Returns:
            float32 images in [0, 1], (sizes, images, channels, height, width).
        """
