"""The identity of every draw: the four facts its noise is a pure function of."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: What draws are for. Those of different phases never share noise: who attacks an image knows nothing of the draws by
#: which the attacked image is classified afterwards.
Phase = Literal["selection", "estimation", "attack", "prediction"]

#: Changes whenever the mapping from a draw's identity to its noise does: a run records it and refuses to mix two.
NOISE_VERSION = 1

UINT64_MAX = 2**64 - 1

_PHASE_NUMBER: dict[Phase, int] = {"selection": 0, "estimation": 1, "attack": 2, "prediction": 3}


@dataclass(frozen=True)
class Draws:
    """Which draws: the four facts their noise depends on, and how many follow each other.

    Attributes:
        seed: the job's seed, 0 to 2**64 - 1.
        key: the image's identity, 0 to 2**64 - 1.
        phase: two of them never share noise.
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

    def bits(self, draw: int, pixel: int, chunk: int) -> int:
        """64 random bits of one pixel of the draw numbered ``draw``, for the rare case that its own do not suffice."""
        return self._hash(struct.pack("<QQQ", draw, pixel, chunk), b"stn-more-bits", 8)

    def _hash(self, rest: bytes, purpose: bytes, size: int) -> int:
        packed = struct.pack("<QQB", self.seed, self.key, _PHASE_NUMBER[self.phase]) + rest
        return int.from_bytes(hashlib.blake2b(packed, digest_size=size, person=purpose).digest(), "little")


def check_identity(seed: int, keys: Iterable[int]) -> None:
    """Raise ValueError unless seed and keys fit the 64 bits a draw's identity has for each."""
    if not 0 <= seed <= UINT64_MAX:
        raise ValueError(f"seed must lie in 0 … 2**64 - 1, got {seed}")
    for key in keys:
        if not 0 <= key <= UINT64_MAX:
            raise ValueError(f"keys must lie in 0 … 2**64 - 1, got {key}")


def attack_generator(seed: int, key: int) -> np.random.Generator:
    """Where an attack on an image takes its own choices from, such as where to begin: independent of all noise.

    Args:
        seed: the attack's seed.
        key: the image's identity.

    Raises:
        ValueError: one of them does not fit 64 bits.
    """
    check_identity(seed, [key])
    packed = struct.pack("<QQ", seed, key)
    words = hashlib.blake2b(packed, digest_size=16, person=b"stn-attack").digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(words, "little")))


def interval_variates(seed: int, keys: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in (0, 1] per image, uniform and independent of all noise: for randomised intervals.

    Args:
        seed: the job's seed.
        keys: the images' identities, (images,).

    Returns:
        float64 (images,): multiples of 2**-53.
    """
    check_identity(seed, map(int, keys))
    hashes = (
        hashlib.blake2b(struct.pack("<QQ", seed, int(key)), digest_size=8, person=b"stn-interval").digest()
        for key in keys
    )
    words = np.frombuffer(b"".join(hashes), dtype="<u8")
    return ((words >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53
