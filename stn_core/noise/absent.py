"""No noise at all: an ordinary classifier, to attack beside smoothed ones. Nothing can be certified of it by votes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from stn_core.noise.additive import to_unit_range
from stn_core.noise.identity import Draws


@dataclass(frozen=True)
class NoNoise:
    """The paper's sigma = 0: every draw is the image itself, so that one of them is all there is."""

    kind = "none"
    scale = 0.0

    def perturb(self, rows: torch.Tensor, images: torch.Tensor, owner: torch.Tensor, draws: Iterable[Draws]) -> None:
        if sum(part.count for part in draws) != len(rows):
            raise ValueError(f"the draws do not fill the {len(rows)} rows")
        rows.copy_(to_unit_range(images).index_select(0, owner))

    def disturb(self, images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        return to_unit_range(images)
