"""Additive noise, and the identity of every draw.

A draw's noise is a pure function of (seed, image key, phase, draw number). It depends on neither worker, batch nor
shard, so any shard can be counted anywhere, again, in any order, and see the same noise.

On the CPU an image's noise is one counter-based Philox stream (numpy) under a 128-bit key hashed from (seed, phase,
image key). Every draw takes the same number of its counter's ticks, so a draw is a place in that stream: no two draws
share noise, and consecutive ones are drawn in one call. Uniforms become normals by the Box-Muller transform, in float32
like torch's own CPU generator: magnitudes end at 5.77 sigma, with a chance of 1e-8 a pixel beyond. Processors with
other vector units may round the last bit otherwise.

On CUDA it is torch's Philox generator, seeded by a 64-bit hash of the same four facts. The two devices give different
(equally valid) noise, and so may two models of GPU: torch spreads a large image over as many threads as the chip has
room for.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Phase = Literal["selection", "estimation"]

#: Changes whenever the mapping from a draw's identity to its noise does: a run records it and refuses to mix two.
NOISE_VERSION = 1

_PHASE_NUMBER: dict[Phase, int] = {"selection": 0, "estimation": 1}
_UINT64_MAX = 2**64 - 1


@dataclass(frozen=True)
class Gaussian:
    """I.i.d. Gaussian noise N(0, sigma^2) on every pixel.

    Attributes:
        sigma: standard deviation, in pixel units where an image spans [0, 1].
    """

    sigma: float

    kind = "gaussian"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma must be a positive finite number, got {self.sigma!r}")

    def fill(self, rows: torch.Tensor, draws: Iterable[Draws]) -> None:
        """Write the noise of each draw into its row of ``rows``.

        Args:
            rows: float32 tensor (draws, ...) on the CPU or a CUDA device, contiguous; overwritten.
            draws: the identity of each row, in order; their counts add up to the rows.

        Raises:
            ValueError: the draws do not fill the rows.
        """
        if rows.device.type == "cpu":
            _fill_normal(rows.view(len(rows), -1).numpy(), draws, self.sigma)
        else:
            generator = torch.Generator(rows.device)
            seeds = [seed for part in draws for seed in part.hashes64()]
            for row, seed in zip(rows, seeds, strict=True):
                row.normal_(generator=generator.manual_seed(seed)).mul_(self.sigma)


#: What ``count_votes`` accepts as noise.
Noise = Gaussian


@dataclass(frozen=True)
class Draws:
    """Which draws: the four facts their noise depends on, and how many follow each other.

    Attributes:
        seed: the job's seed, 0 to 2**64 - 1.
        key: the image's identity, 0 to 2**64 - 1.
        phase: selection and estimation never share noise.
        number: the first draw's number within image and phase, from 0.
        count: number of consecutive draws.
    """

    seed: int
    key: int
    phase: Phase
    number: int
    count: int = 1

    def hashes64(self) -> list[int]:
        """A 64-bit seed of each draw, for generators that take no counter."""
        return [self._hash(struct.pack("<Q", self.number + i), b"stn-draw", 8) for i in range(self.count)]

    def hash128(self) -> int:
        """A 128-bit key of the image and phase, for generators that take a counter."""
        return self._hash(b"", b"stn-image", 16)

    def _hash(self, number: bytes, purpose: bytes, size: int) -> int:
        packed = struct.pack("<QQB", self.seed, self.key, _PHASE_NUMBER[self.phase]) + number
        return int.from_bytes(hashlib.blake2b(packed, digest_size=size, person=purpose).digest(), "little")


def check_identity(seed: int, keys: Iterable[int]) -> None:
    """Raise ValueError unless seed and keys fit the 64 bits a draw's identity has for each."""
    if not 0 <= seed <= _UINT64_MAX:
        raise ValueError(f"seed must lie in 0 … 2**64 - 1, got {seed}")
    for key in keys:
        if not 0 <= key <= _UINT64_MAX:
            raise ValueError(f"keys must lie in 0 … 2**64 - 1, got {key}")


#: Floats of one tick of Philox's counter: four 64-bit words, two floats each.
_FLOATS_PER_TICK = 8

#: Rows are padded to a multiple of this, so that both halves of a row are whole vectors of any processor: what a
#: vectorised function makes of an element then does not depend on the row's neighbours.
_PADDING = 32

_TWO_PI = np.float32(2 * math.pi)


def _fill_normal(rows: np.ndarray, draws: Iterable[Draws], sigma: float) -> None:
    """Normal noise of each draw into its row of ``rows``, float32 (draws, pixels)."""
    pixels = rows.shape[1]
    padded = -(-pixels // _PADDING) * _PADDING
    ticks = padded // _FLOATS_PER_TICK
    uniform = np.empty((len(rows), padded), dtype=np.float32)
    bits = np.random.Philox(key=0)
    generator = np.random.Generator(bits)
    # A fresh state has an empty buffer, so every assignment below also drops what the last draw left over.
    state = bits.state
    row = 0
    for part in draws:
        counter, key = part.number * ticks, part.hash128()
        state["state"]["counter"] = np.array([counter & _UINT64_MAX, counter >> 64, 0, 0], dtype=np.uint64)
        state["state"]["key"] = np.array([key & _UINT64_MAX, key >> 64], dtype=np.uint64)
        bits.state = state
        if row + part.count > len(rows):
            raise ValueError(f"more draws than the {len(rows)} rows to fill")
        generator.random(out=uniform[row : row + part.count], dtype=np.float32)
        row += part.count
    if row != len(rows):
        raise ValueError(f"{row} draws for {len(rows)} rows")

    # Box-Muller: two uniforms, two normals. 1 - u lies in (0, 1], whose logarithm is finite.
    half = padded // 2
    radius, angle = uniform[:, :half], uniform[:, half:]
    np.subtract(np.float32(1), radius, out=radius)
    np.log(radius, out=radius)
    np.multiply(radius, np.float32(-2), out=radius)
    np.sqrt(radius, out=radius)
    np.multiply(angle, _TWO_PI, out=angle)
    sine = np.sin(angle)
    np.cos(angle, out=angle)
    np.multiply(angle, radius, out=angle)
    np.multiply(radius, sine, out=radius)
    np.multiply(uniform[:, :pixels], np.float32(sigma), out=rows)
