"""Random search by squares (Andriushchenko et al. 2020, "Square Attack"): it needs answers only, no gradients.

Where noise or a network hides its gradients from the other attacks, this one still sees what changes the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stn_core.attacks.pgd import Norm, project
from stn_core.attacks.target import Target

Floats = NDArray[np.float32]

#: The share of pixels in a window is halved after each of these queries out of 10 000 (section 3.2).
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

#: Tiles on each side of the image that an L2 perturbation begins with.
_TILES = 5


@dataclass(frozen=True)
class Square:
    """Square Attack, untargeted, on the margin averaged over noise, for each size by itself.

    A query changes one square window of each image, and is kept where the mean margin falls. Both images are asked
    about over the same fresh draws each time. A best margin kept from earlier would be the luckiest of many: soon no
    better image could beat it. And over common draws a window's own effect is seen where noise alone varies more.

    Attributes:
        norm: in which perturbations are measured.
        queries: windows tried, two times ``Target.draws`` passes each.
        share: of an image's pixels in the first window, in (0, 1]: the paper's p.
    """

    norm: Norm
    queries: int
    share: float = 0.8

    def perturb(self, target: Target, clean: torch.Tensor, sizes: Sequence[float]) -> torch.Tensor:
        randoms = target.generators()
        return torch.stack([self._within(target, clean, size, randoms) for size in sizes])

    def _within(
        self, target: Target, clean: torch.Tensor, size: float, randoms: Sequence[np.random.Generator]
    ) -> torch.Tensor:
        def near(offsets: list[Floats]) -> torch.Tensor:
            return project(self.norm, size, clean + torch.from_numpy(np.stack(offsets)).to(clean.device), clean)

        start, change = (_stripes, _window) if self.norm == "linf" else (_tiles, _moved)
        pixels = clean.cpu().numpy()
        found = near([start(random, each.shape, size) for random, each in zip(randoms, pixels, strict=True)])
        for query in range(self.queries):
            side = window_side(clean.shape[2:], self.share * share_left(query, self.queries))
            offsets = (found - clean).cpu().numpy()
            candidate = near([change(*each, side, size) for each in zip(randoms, pixels, offsets, strict=True)])
            before, after = target.margins(found, candidate)
            found = torch.where((after < before).view(-1, 1, 1, 1), candidate, found)
        return found


def share_left(query: int, queries: int) -> float:
    """What is left of the first window's share of pixels at a query, of so many: the paper's schedule, stretched."""
    return 0.5 ** sum(query * 10_000 > after * queries for after in _HALVED_AFTER)


def window_side(image: Sequence[int], share: float) -> int:
    """Pixels on each side of a window with that share of an image (height, width); it fits into it."""
    return min(max(1, round(math.sqrt(share * math.prod(image)))), *image)


def _stripes(random: np.random.Generator, shape: tuple[int, ...], size: float) -> Floats:
    """Where to begin in L-infinity: vertical stripes, one pixel wide, of the size with random signs."""
    channels, _, width = shape
    return np.broadcast_to(size * _signs(random, (channels, 1, width)), shape)


def _window(random: np.random.Generator, pixels: Floats, offsets: Floats, side: int, size: float) -> Floats:
    """A window set to the size, with a random sign in each channel."""
    changed = offsets.copy()
    window = (slice(None), *_place(random, offsets.shape, side))
    moves = size * _signs(random, (len(offsets), 1, 1))
    # Asking about the same image again would be a query wasted: of grey images every other one.
    same = np.clip(pixels[window] + moves, 0, 1) - pixels[window]
    changed[window] = -moves if np.allclose(same, offsets[window], rtol=0, atol=1e-6) else moves
    return changed


def _tiles(random: np.random.Generator, shape: tuple[int, ...], size: float) -> Floats:
    """Where to begin in L2: bumps side by side, with random signs."""
    channels, height, width = shape
    offsets = np.zeros(shape, dtype=np.float32)
    side = max(1, min(height, width) // _TILES)
    for top in range(0, height - side + 1, side):
        for left in range(0, width - side + 1, side):
            bump = _bump(random, side) * _signs(random, (channels, 1, 1))
            offsets[:, top : top + side, left : left + side] = bump
    return size * offsets / np.linalg.norm(offsets)


def _moved(random: np.random.Generator, _: Floats, offsets: Floats, side: int, size: float) -> Floats:
    """The paper's algorithm 3: what two windows weigh, and what the size leaves, goes into one as another bump."""
    changed = offsets.copy()
    into, emptied = (_place(random, offsets.shape, side) for _ in range(2))
    unused = max(0.0, size**2 - float((offsets**2).sum())) / len(offsets)
    union = np.zeros(offsets.shape[1:], dtype=bool)
    union[into] = union[emptied] = True
    available = np.sqrt((offsets**2 * union).sum(axis=(1, 2), keepdims=True) + unused)
    bump = _bump(random, side)
    mixed = _signs(random, (len(offsets), 1, 1)) * bump / np.linalg.norm(bump) + _unit(offsets[:, *into])
    changed[:, *emptied] = 0
    changed[:, *into] = available * _unit(mixed)
    return changed


def _unit(windows: Floats) -> Floats:
    """Each channel scaled to length one; zeros stay."""
    norms = np.sqrt((windows**2).sum(axis=(1, 2), keepdims=True))
    return windows / np.maximum(norms, np.finfo(np.float32).tiny)


def _bump(random: np.random.Generator, side: int) -> Floats:
    """Two halves of opposite signs, each highest in its middle, upright or lying; (side, side)."""
    half = side // 2
    bump = np.concatenate([_pyramid(half, side), -_pyramid(side - half, side)])
    return bump.T if random.integers(2) else bump


def _pyramid(height: int, width: int) -> Floats:
    """The paper's eta, of a rectangle no higher than wide: at distance d from its middle, 1 / k^2 summed over k from
    d + 1 to 1 + width // 2; (height, width)."""
    terms = 1 / np.arange(1, width // 2 + 2, dtype=np.float32) ** 2
    sums = terms[::-1].cumsum()[::-1]
    rows, columns = (np.abs(np.arange(length) - length // 2) for length in (height, width))
    return sums[np.maximum(rows[:, None], columns)]


def _place(random: np.random.Generator, shape: tuple[int, ...], side: int) -> tuple[slice, slice]:
    """A window of an image (channels, height, width), anywhere."""
    top, left = (int(random.integers(length - side + 1)) for length in shape[1:])
    return slice(top, top + side), slice(left, left + side)


def _signs(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return (2 * random.integers(2, size=shape) - 1).astype(np.float32)
