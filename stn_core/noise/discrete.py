"""Gaussian noise on the pixel grid, drawn exactly: floating point cannot break the certificate (Voráček & Hein 2023).

Randomised smoothing is proved for real numbers, and sampled noise that is rounded, of limited range or added with
rounding is another distribution: certificates with it have been made false on purpose. Here the smoothed classifier is
that of ``g(y) = f(clip(round(255 y)) / 255)``: rounding and clipping belong to the base classifier, so the theorems for
Gaussian noise hold for g as it stands. Of an 8-bit image x the noisy copy is then

    clip(x + K, -M, 255 + M),   P(K = k) = Phi((k + 1/2) / (255 sigma)) - Phi((k - 1/2) / (255 sigma)),

with an integer K that is drawn from fair bits alone: a uniform real number's binary digits are compared with those of
the distribution function's steps, 32 first and 64 more whenever they do not decide. No probability is rounded. The
network sees a function of an integer, whatever its own arithmetic does.

What remains assumed: the generator's bits are fair (Philox, and BLAKE2b where more digits are needed), and the network
is a function, that is, a row's result does not depend on its neighbours in the batch.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from stn_core.noise.additive import Gaussian, check_scale, padded, philox_blocks
from stn_core.noise.identity import Draws

#: Grey levels above 0 of an 8-bit image.
LEVELS = 255

#: Noisy pixels are clipped this many sigma outside the range of pixels.
_CLIP_SIGMAS = 8

_FIRST_BITS, _MORE_BITS, _GUIDE_BITS = 32, 64, 16

#: Stands in the guide table where its 16 bits do not decide.
_UNDECIDED = np.float32(2**24)


@dataclass(frozen=True)
class DiscreteGaussian:
    """Gaussian noise rounded to the grid of 8-bit pixels, without error of sampling or arithmetic.

    Images must be uint8. On CUDA the noise is drawn on the CPU and copied.

    Attributes:
        sigma: standard deviation of the Gaussian before rounding, in pixel units where an image spans [0, 1].
    """

    sigma: float

    #: Certificates for Gaussian noise hold.
    kind = "gaussian"

    def __post_init__(self) -> None:
        check_scale(self.sigma, "sigma")
        if not 1e-6 <= self.sigma <= 64:
            raise ValueError(f"sigma must lie in 1e-6 … 64 for noise on the pixel grid, got {self.sigma!r}")

    @property
    def scale(self) -> float:
        return self.sigma

    @property
    def margin(self) -> int:
        """M: how far noisy pixels may lie outside the range of pixels, in grey levels."""
        return math.ceil(_CLIP_SIGMAS * LEVELS * self.sigma)

    def fill(self, rows: torch.Tensor, draws: Iterable[Draws]) -> None:
        """Write each draw's integers K into its row of ``rows``, float32 on the CPU, cut off where clipping hides
        it."""
        out = rows.view(len(rows), -1).numpy()
        steps = _steps(self.sigma, self.margin + LEVELS, _FIRST_BITS)
        guide = _guide(self.sigma, self.margin + LEVELS)
        pixels = out.shape[1]
        width = padded(pixels)
        for part, row, bits in philox_blocks(len(rows), width, draws):
            words = bits.random_raw(part.count * width // 2).view(np.uint32).reshape(part.count, width)[:, :pixels]
            noise = guide[words >> (_FIRST_BITS - _GUIDE_BITS)]
            open_rows, open_pixels = np.nonzero(noise == _UNDECIDED)
            undecided = words[open_rows, open_pixels]
            # Counted are the steps at or below the number: surely those below its digits, perhaps those equal to them.
            least = np.searchsorted(steps, undecided, side="left")
            equal = np.flatnonzero(np.searchsorted(steps, undecided, side="right") > least)
            for i in equal.tolist():
                draw, pixel = part.number + int(open_rows[i]), int(open_pixels[i])
                least[i] = self._count_steps(part, draw, pixel, int(undecided[i]))
            noise[open_rows, open_pixels] = least - (self.margin + LEVELS)
            out[row : row + part.count] = noise

    def perturb(self, rows: torch.Tensor, images: torch.Tensor, owner: torch.Tensor, draws: Iterable[Draws]) -> None:
        if images.dtype != torch.uint8:
            raise ValueError("noise on the pixel grid needs uint8 images: others do not lie on the grid")
        noise = rows if rows.device.type == "cpu" else torch.empty(rows.shape, dtype=torch.float32)
        self.fill(noise, draws)
        if noise is not rows:
            rows.copy_(noise)
        # Integers below 2**24: exact in float32 up to the division, which sees nothing but the integer.
        rows += images.float()[owner]
        rows.clamp_(-self.margin, LEVELS + self.margin).div_(LEVELS)

    def disturb(self, images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        # A network need not be trained exactly.
        return Gaussian(self.sigma).disturb(images, random)

    def _count_steps(self, part: Draws, draw: int, pixel: int, digits: int) -> int:
        """How many steps lie at or below the number that begins with ``digits``, looking at as many more as it
        takes."""
        bits = _FIRST_BITS
        for chunk in range(64):
            digits = digits << _MORE_BITS | part.bits(draw, pixel, chunk)
            bits += _MORE_BITS
            steps = _exact_steps(self.sigma, self.margin + LEVELS, bits)
            least = bisect.bisect_left(steps, digits)
            if least == bisect.bisect_right(steps, digits):
                return least
        raise AssertionError("4 000 fair bits in a row agreed with an irrational number's")


@lru_cache(maxsize=8)
def _exact_steps(sigma: float, reach: int, bits: int) -> list[int]:
    """The first ``bits`` binary digits of Phi((k + 1/2) / (255 sigma)), k = -reach … reach - 1, as integers."""
    # Comes with torch. Imported late: it takes a tenth of a second, and only this noise needs it.
    from mpmath import mp

    precision = bits + 64
    lower: list[int] = []
    with mp.workprec(precision):
        width = mp.mpf(sigma) * (2 * LEVELS) * mp.sqrt(2)
        for k in range(reach):
            tail = mp.ldexp(mp.erfc((2 * k + 1) / width) / 2, bits)
            digits = int(mp.floor(tail))
            # Far wider than mpmath's error, and never met: the digits that follow would be 40 equal ones.
            doubt = mp.ldexp(tail, -40 - bits)
            if not digits < tail - doubt < tail + doubt < digits + 1:
                raise AssertionError(f"sigma = {sigma}: step {k} is not settled by {precision} bits")
            lower.append(digits)
    # Phi(x) = 1 - Phi(-x), and no step is a whole number of units.
    return lower[::-1] + [2**bits - 1 - digits for digits in lower]


@lru_cache(maxsize=8)
def _steps(sigma: float, reach: int, bits: int) -> NDArray[np.uint32]:
    return np.array(_exact_steps(sigma, reach, bits), dtype=np.uint32)


@lru_cache(maxsize=8)
def _guide(sigma: float, reach: int) -> NDArray[np.float32]:
    """The noise by a number's first 16 bits, float32 (65 536,), or ``_UNDECIDED``."""
    steps = _steps(sigma, reach, _FIRST_BITS).astype(np.int64)
    below = np.searchsorted(steps, np.arange(2**_GUIDE_BITS + 1, dtype=np.int64) << (_FIRST_BITS - _GUIDE_BITS))
    return np.where(below[1:] == below[:-1], below[:-1] - reach, _UNDECIDED).astype(np.float32)
