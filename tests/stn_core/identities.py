"""Identities of draws, for the tests of every kind of noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stn_core.noise import Draws

IDENTITY = Draws(seed=1, key=2, phase="estimation", number=3)

#: Each differs from IDENTITY in something that noise must depend on.
OTHERS = [
    Draws(seed=2, key=2, phase="estimation", number=3),
    Draws(seed=1, key=3, phase="estimation", number=3),
    Draws(seed=2, key=1, phase="estimation", number=3),
    Draws(seed=1, key=2, phase="selection", number=3),
    Draws(seed=1, key=2, phase="estimation", number=4),
    Draws(seed=1, key=3, phase="estimation", number=2),
    Draws(seed=1, key=2, phase="estimation", number=3 + 2**32),
    Draws(seed=1 + 2**32, key=2, phase="estimation", number=3),
    Draws(seed=1, key=2 + 2**63, phase="estimation", number=3),
]


def many_draws(count: int) -> list[Draws]:
    """``count`` draws of ten images, ten at a time."""
    return [
        Draws(seed=20, key=100 + i // 10 % 10, phase="estimation", number=i // 100 * 10 + i % 10) for i in range(count)
    ]


def draws_of_many_identities() -> list[Draws]:
    return [
        Draws(seed, key, phase, number)
        for seed in (1, 2)
        for key in (0, 2**64 - 1)
        for phase in ("selection", "estimation")
        for number in (0, 1, 7)
    ]


def words_of(draw: Draws, pixels: int) -> NDArray[np.int64]:
    """The 32-bit numbers of a single draw's pixels, from a generator of its own.

    A draw takes whole multiples of 32 numbers of its image's Philox stream; a tick of the counter gives eight.
    """
    ticks = -(-pixels // 32) * 4
    random = np.random.Philox(counter=draw.number * ticks, key=draw.hash128())
    return np.array([half for word in random.random_raw(4 * ticks).tolist() for half in (word % 2**32, word >> 32)])[
        :pixels
    ]
