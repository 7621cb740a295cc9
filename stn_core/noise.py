"""Additive noise, and the identity of every draw.

A draw's noise is a pure function of (seed, image key, phase, draw number). It depends on neither worker, batch nor
shard, so any shard can be counted anywhere, again, in any order, and see the same noise.

On the CPU a draw is one counter-based Philox stream (numpy), addressed by a 128-bit key hashed from
(seed, phase, image key) and by the draw number as counter: no two draws share a stream. On CUDA it is torch's Philox
generator, seeded by a 64-bit hash of the same four facts. The two devices give different (equally valid) noise, and
so may two models of GPU: torch spreads a large image over as many threads as the chip has room for.
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

    def fill(self, rows: torch.Tensor, draws: Iterable[DrawId]) -> None:
        """Write the noise of each draw into its row of ``rows``.

        Args:
            rows: float32 tensor (draws, ...) on the CPU or a CUDA device, contiguous; overwritten.
            draws: the identity of each row, as many as there are rows.
        """
        if rows.device.type == "cpu":
            stream = _PhiloxStream()
            flat = rows.view(len(rows), -1).numpy()
            for row, draw in zip(flat, draws, strict=True):
                stream.at(draw).standard_normal(out=row, dtype=np.float32)
        else:
            generator = torch.Generator(rows.device)
            for row, draw in zip(rows, draws, strict=True):
                row.normal_(generator=generator.manual_seed(draw.hash64()))
        rows.mul_(self.sigma)


#: What ``count_votes`` accepts as noise.
Noise = Gaussian


@dataclass(frozen=True)
class DrawId:
    """Which draw: the four facts its noise depends on.

    Attributes:
        seed: the job's seed, 0 to 2**64 - 1.
        key: the image's identity, 0 to 2**64 - 1.
        phase: selection and estimation never share noise.
        number: the draw's number within image and phase, from 0.
    """

    seed: int
    key: int
    phase: Phase
    number: int

    def hash64(self) -> int:
        """64-bit seed of this draw, for generators that take no counter."""
        packed = struct.pack("<QQBQ", self.seed, self.key, _PHASE_NUMBER[self.phase], self.number)
        return int.from_bytes(hashlib.blake2b(packed, digest_size=8, person=b"stn-draw").digest(), "little")


def check_identity(seed: int, keys: Iterable[int]) -> None:
    """Raise ValueError unless seed and keys fit the 64 bits a draw's identity has for each."""
    if not 0 <= seed <= _UINT64_MAX:
        raise ValueError(f"seed must lie in 0 … 2**64 - 1, got {seed}")
    for key in keys:
        if not 0 <= key <= _UINT64_MAX:
            raise ValueError(f"keys must lie in 0 … 2**64 - 1, got {key}")


class _PhiloxStream:
    """One reusable numpy generator, moved to a draw's stream by setting key and counter.

    Moving costs under a microsecond; building a generator per draw costs ten times that.
    """

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._bits)
        # A fresh state has an empty buffer, so every assignment below also drops what the last draw left over.
        self._state = self._bits.state
        self._image: tuple[int, int, Phase] | None = None

    def at(self, draw: DrawId) -> np.random.Generator:
        image = (draw.seed, draw.key, draw.phase)
        if image != self._image:
            packed = struct.pack("<QQB", draw.seed, draw.key, _PHASE_NUMBER[draw.phase])
            digest = hashlib.blake2b(packed, digest_size=16, person=b"stn-image").digest()
            self._state["state"]["key"] = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
            self._image = image
        # The low counter words are the stream's own; the top word separates draws by 2**192 blocks.
        self._state["state"]["counter"] = np.array([0, 0, 0, draw.number], dtype=np.uint64)
        self._bits.state = self._state
        return self._generator
