"""Projected gradient ascent against a smoothed classifier, as the paper attacks in L-infinity (section 6.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from stn_core.attacks.pgd import PGD, Norm
from stn_core.attacks.target import Objective, Target, cross_entropy_loss, margin_loss

Loss = Literal["cross_entropy", "margin"]

#: Cross-entropy is the paper's. Where a network is so sure that its slope is rounded to zero, the margin still has one.
LOSSES: dict[Loss, Objective] = {"cross_entropy": cross_entropy_loss, "margin": margin_loss}


@dataclass(frozen=True)
class ProjectedGradient:
    """Madry et al.'s attack with the gradient averaged over noise, for each size by itself.

    Attributes:
        norm: in which perturbations are measured.
        steps: uphill, from each start.
        step_size: of each, as a share of the size.
        restarts: random starts; of their ends the one with the least margin is taken, by fresh draws.
        loss: what is climbed.
    """

    norm: Norm
    steps: int
    step_size: float
    restarts: int = 1
    loss: Loss = "cross_entropy"

    def perturb(self, target: Target, clean: torch.Tensor, sizes: Sequence[float]) -> torch.Tensor:
        randoms = target.generators()
        return torch.stack([self._within(target, clean, size, randoms) for size in sizes])

    def _within(
        self, target: Target, clean: torch.Tensor, size: float, randoms: Sequence[np.random.Generator]
    ) -> torch.Tensor:
        search = PGD(self.norm, size, self.steps, self.step_size * size)
        found: torch.Tensor | None = None
        least = torch.full((len(clean),), torch.inf, device=clean.device)
        for _ in range(self.restarts):
            starts = np.concatenate([search.random_offsets(random, (1, *clean.shape[1:])) for random in randoms])
            images = search.climb(
                lambda images: target.gradient(images, LOSSES[self.loss]),
                clean,
                torch.from_numpy(starts).to(clean.device),
            )
            if self.restarts == 1:
                return images
            margins = target.margins(images)
            better = margins < least
            least = torch.where(better, margins, least)
            found = images if found is None else torch.where(better.view(-1, 1, 1, 1), images, found)
        assert found is not None, "there is at least one start"
        return found
