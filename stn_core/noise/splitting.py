"""Splitting noise, enumerated: a smoothed classifier without chance (Levine & Feizi 2021).

A pixel's value is replaced by the middle of the interval it lies in, where [0, 1] is split at offset + multiples of 2
scale. Over a uniform offset, the probability that two values fall into different intervals is at most their distance
over 2 scale, so every class's probability is 1 / (2 scale)-Lipschitz in L1, however the pixels' offsets depend on each
other. With 8-bit pixels there are 2 scale x 255 offsets that differ; pixels share one, each shifted by a number of its
own that is fixed by the seed, the same for all images. All offsets together are all there is: votes are exact
probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from stn_core.noise.additive import check_scale
from stn_core.noise.identity import Draws

#: Grey levels above 0 of an 8-bit image.
LEVELS = 255


@dataclass(frozen=True)
class Splitting:
    """Splitting noise on 8-bit pixels. Draw number j has the j-th offset: ``draws`` of them are all.

    Attributes:
        scale: Levine & Feizi's lambda, in pixel units where an image spans [0, 1]: half the distance of two splits.
            2 scale x 255 must be a whole number of grey levels.
    """

    scale: float

    kind = "splitting"

    def __post_init__(self) -> None:
        check_scale(self.scale, "scale")
        offsets = 2 * LEVELS * self.scale
        if not (2 <= offsets + 1e-6 <= 10**9 and abs(offsets - round(offsets)) <= 1e-6):
            near = round(min(max(2, offsets), 10**9)) / (2 * LEVELS)
            raise ValueError(
                f"splitting noise needs 510 x scale to be a whole number, at least 2, got scale = {self.scale!r}; "
                f"the nearest is {near!r}"
            )
        # Radii are proportional to it: a third, written with too many threes or too few, is meant to be a third.
        object.__setattr__(self, "scale", round(offsets) / (2 * LEVELS))

    @property
    def draws(self) -> int:
        """Number of different offsets."""
        return round(2 * LEVELS * self.scale)

    def perturb(self, rows: torch.Tensor, images: torch.Tensor, owner: torch.Tensor, draws: Iterable[Draws]) -> None:
        if images.dtype != torch.uint8:
            raise ValueError("splitting noise needs uint8 images: others have more offsets than can be enumerated")
        parts = list(draws)
        numbers = [part.number + i for part in parts for i in range(part.count)]
        if len(numbers) != len(rows):
            raise ValueError(f"{len(numbers)} draws for {len(rows)} rows")
        shifts = torch.from_numpy(_shifts(parts[0].seed, self.draws, rows[0].numel())).to(rows.device)
        offset = torch.tensor(numbers, device=rows.device).view(-1, 1) + shifts
        rows.copy_(self.split(images.to(torch.int64)[owner].flatten(1), offset).view_as(rows))

    def disturb(self, images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        return self.split(images.to(torch.int64), torch.from_numpy(random.integers(0, self.draws, tuple(images.shape))))

    def split(self, pixels: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """The middle of each pixel's interval, float32 in [0, 1].

        Args:
            pixels: grey levels, int64.
            offsets: where the splits of each pixel begin, in grey levels, int64 of a shape that broadcasts to pixels'.
        """
        # In half grey levels: splits lie at odd numbers, pixels at even ones, so none is hit.
        period = 2 * self.draws
        above = (2 * pixels - (2 * offsets + 1)) % period
        low = (2 * pixels - above).clamp_min(0)
        high = (2 * pixels - above + period).clamp_max(2 * LEVELS)
        return (low + high).float().div_(4 * LEVELS)


@lru_cache(maxsize=8)
def _shifts(seed: int, draws: int, pixels: int) -> NDArray[np.int64]:
    """Each pixel's own shift of the common offset, int64 (pixels,)."""
    words = np.random.Philox(key=seed).random_raw(pixels)
    return (words % np.uint64(draws)).astype(np.int64)
