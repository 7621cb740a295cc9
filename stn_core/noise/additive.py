"""Noise that is added to pixels in [0, 1], sampled in floating point.

On the CPU an image's noise is one counter-based Philox stream (numpy) under a 128-bit key hashed from (seed, phase,
image key). Every draw takes the same number of its counter's ticks, so a draw is a place in that stream: no two draws
share noise, and consecutive ones are drawn in one call. Uniforms have 24 bits. They become normals by the Box-Muller
transform (magnitudes end at 5.77 sigma, with a chance of 1e-8 a pixel beyond), Laplace variates by the quantile
function (ending at 16.6 scales). Processors with other vector units may round the last bit otherwise.

On CUDA it is torch's Philox generator, seeded by a 64-bit hash of the same four facts. The two devices give different
(equally valid) noise, and so may two models of GPU: torch spreads a large image over as many threads as the chip has
room for.

What this assumes: certificates are theorems about real numbers. Noise of limited precision and range, sums rounded to
float32, and a network's own rounding are not covered; ``stn_core.noise.discrete`` closes that gap.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from stn_core.noise.identity import UINT64_MAX, Draws

Pixels = np.ndarray


class _Additive(ABC):
    """Noise whose rows are filled first and added to the images afterwards."""

    @abstractmethod
    def fill(self, rows: torch.Tensor, draws: Iterable[Draws]) -> None:
        """Write the noise of each draw into its row of ``rows``.

        Args:
            rows: float32 tensor (draws, ...) on the CPU or a CUDA device, contiguous; overwritten.
            draws: the identity of each row, in order; their counts add up to the rows.

        Raises:
            ValueError: the draws do not fill the rows.
        """

    @abstractmethod
    def sample(self, random: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
        """Noise without identity, float32 of ``shape``, for training."""

    def perturb(self, rows: torch.Tensor, images: torch.Tensor, owner: torch.Tensor, draws: Iterable[Draws]) -> None:
        self.fill(rows, draws)
        # Scaled once an image, not once a row.
        rows += to_unit_range(images).index_select(0, owner)

    def disturb(self, images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        return to_unit_range(images) + self.sample(random, tuple(images.shape))


@dataclass(frozen=True)
class Gaussian(_Additive):
    """I.i.d. Gaussian noise N(0, sigma^2) on every pixel.

    Attributes:
        sigma: standard deviation, in pixel units where an image spans [0, 1].
    """

    sigma: float

    kind = "gaussian"

    def __post_init__(self) -> None:
        check_scale(self.sigma, "sigma")

    @property
    def scale(self) -> float:
        return self.sigma

    def fill(self, rows: torch.Tensor, draws: Iterable[Draws]) -> None:
        if rows.device.type == "cpu":
            _fill_normal(_as_matrix(rows), draws, self.sigma)
        else:
            for row, generator in _generators(rows, draws):
                row.normal_(generator=generator)
            rows.mul_(self.sigma)

    def sample(self, random: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(random.standard_normal(shape, dtype=np.float32)) * self.sigma


@dataclass(frozen=True)
class Laplace(_Additive):
    """I.i.d. Laplace noise on every pixel, of density exp(-|x| / scale) / (2 scale).

    Attributes:
        scale: the paper's lambda, in pixel units where an image spans [0, 1]; the standard deviation is sqrt(2) times
            as large.
    """

    scale: float

    kind = "laplace"

    def __post_init__(self) -> None:
        check_scale(self.scale, "scale")

    def fill(self, rows: torch.Tensor, draws: Iterable[Draws]) -> None:
        if rows.device.type == "cpu":
            for out, centred in _centred_uniform(_as_matrix(rows), draws):
                _laplace_quantile(centred)
                np.multiply(centred[:, : out.shape[1]], np.float32(self.scale), out=out)
        else:
            _fill_centred(rows, draws)
            magnitude = rows.abs().mul_(-1).add_(1).clamp_min_(2**-25).log_().mul_(-self.scale)
            rows.copy_(magnitude.copysign_(rows))

    def sample(self, random: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(random.laplace(scale=self.scale, size=shape).astype(np.float32))


@dataclass(frozen=True)
class Uniform(_Additive):
    """I.i.d. uniform noise on [-scale, scale] on every pixel.

    Attributes:
        scale: half the interval's length, in pixel units where an image spans [0, 1]; the standard deviation is
            1 / sqrt(3) times as large.
    """

    scale: float

    kind = "uniform"

    def __post_init__(self) -> None:
        check_scale(self.scale, "scale")

    def fill(self, rows: torch.Tensor, draws: Iterable[Draws]) -> None:
        if rows.device.type == "cpu":
            for out, centred in _centred_uniform(_as_matrix(rows), draws):
                np.multiply(centred[:, : out.shape[1]], np.float32(self.scale), out=out)
        else:
            _fill_centred(rows, draws)
            rows.mul_(self.scale)

    def sample(self, random: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(random.uniform(-self.scale, self.scale, shape).astype(np.float32))


def check_scale(value: float, name: Literal["sigma", "scale"]) -> None:
    """Raise ValueError unless ``value`` is a positive finite number."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")


def to_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels as float32 in [0, 1]; floating-point ones as they are."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels


#: Floats of one tick of Philox's counter: four 64-bit words, two floats each.
_FLOATS_PER_TICK = 8

#: Rows are padded to a multiple of this, so that both halves of a row are whole vectors of any processor: what a
#: vectorised function makes of an element then does not depend on the row's neighbours.
_PADDING = 32

#: Numbers that are worked on at a time: arrays of them stay in the processor's cache, and in the allocator's pool.
_BLOCK = 2**16

_TWO_PI = np.float32(2 * math.pi)


def _as_matrix(rows: torch.Tensor) -> Pixels:
    return rows.view(len(rows), -1).numpy()


def padded(pixels: int) -> int:
    """Numbers drawn for one row of ``pixels``: whole ticks, whole vectors."""
    return -(-pixels // _PADDING) * _PADDING


def philox_blocks(rows: int, width: int, draws: Iterable[Draws]) -> Iterable[tuple[Draws, int, np.random.Philox]]:
    """Each part of ``draws`` with its first row and a generator of 32-bit numbers that stands where the part begins.

    ``width`` numbers, a multiple of eight, belong to every row. Raises ValueError if the draws do not fill the rows.
    """
    ticks = width // _FLOATS_PER_TICK
    bits = np.random.Philox(key=0)
    # A fresh state has an empty buffer, so every assignment below also drops what the last draw left over.
    state = bits.state
    counter, key = state["state"]["counter"], state["state"]["key"]
    row = 0
    for part in draws:
        counter[1], counter[0] = divmod(part.number * ticks, UINT64_MAX + 1)
        key[1], key[0] = divmod(part.hash128(), UINT64_MAX + 1)
        bits.state = state
        if row + part.count > rows:
            raise ValueError(f"more draws than the {rows} rows to fill")
        yield part, row, bits
        row += part.count
    if row != rows:
        raise ValueError(f"{row} draws for {rows} rows")


def _blocks(rows: int, width: int, draws: Iterable[Draws]) -> Iterable[tuple[slice, Pixels]]:
    """24 random bits of each number, rows together that fit the processor's cache: which rows, int32 (rows, width).

    The arrays are overwritten by the next block.
    """
    block = np.empty((max(1, min(rows, _BLOCK // width)), width), dtype=np.uint32)
    signed = block.view(np.int32)  # which numpy turns into floats faster
    begin = end = 0
    for part, row, bits in philox_blocks(rows, width, draws):
        while end < row + part.count:
            count = min(row + part.count - end, begin + len(block) - end)
            words = bits.random_raw(count * width // 2).view(np.uint32).reshape(count, width)
            np.right_shift(words, 8, out=block[end - begin : end - begin + count])
            end += count
            if end == begin + len(block):
                yield slice(begin, end), signed
                begin = end
    if end > begin:
        yield slice(begin, end), signed[: end - begin]


def _centred_uniform(rows: Pixels, draws: Iterable[Draws]) -> Iterable[tuple[Pixels, Pixels]]:
    """Rows that fit the processor's cache, with odd multiples of 2**-24 in (-1, 1) for them, float32 (rows, padded
    pixels): symmetric about a zero they never hit."""
    for which, bits in _blocks(len(rows), padded(rows.shape[1]), draws):
        centred = bits.astype(np.float32)
        np.multiply(centred, np.float32(2**-23), out=centred)
        np.add(centred, np.float32(2**-24 - 1), out=centred)
        yield rows[which], centred


def _laplace_quantile(centred: Pixels) -> None:
    """Laplace variates of scale 1 from centred uniforms v, in place: -sign(v) log(1 - |v|)."""
    magnitude = np.abs(centred)
    np.subtract(np.float32(1), magnitude, out=magnitude)
    np.log(magnitude, out=magnitude)
    np.negative(magnitude, out=magnitude)
    np.copysign(magnitude, centred, out=centred)


def _fill_normal(rows: Pixels, draws: Iterable[Draws], sigma: float) -> None:
    """Normal noise of each draw into its row of ``rows``, float32 (draws, pixels)."""
    width = padded(rows.shape[1])
    half = width // 2
    for which, bits in _blocks(len(rows), width, draws):
        # Box-Muller: two uniforms u = k / 2**24, two normals. 1 - u lies in (0, 1], whose logarithm is finite.
        # Scaling by powers of two is exact, wherever it stands.
        radius, angle = bits[:, :half].astype(np.float32), bits[:, half:].astype(np.float32)
        np.subtract(np.float32(2**24), radius, out=radius)
        np.multiply(radius, np.float32(2**-24), out=radius)
        np.log(radius, out=radius)
        np.multiply(radius, np.float32(-2), out=radius)
        np.sqrt(radius, out=radius)
        np.multiply(angle, _TWO_PI * np.float32(2**-24), out=angle)
        sine = np.sin(angle)
        np.cos(angle, out=angle)
        np.multiply(sine, radius, out=sine)
        np.multiply(angle, radius, out=angle)
        out = rows[which]
        for normal, into in ((sine, out[:, :half]), (angle, out[:, half:])):
            np.multiply(normal[:, : into.shape[1]], np.float32(sigma), out=into)


def _generators(rows: torch.Tensor, draws: Iterable[Draws]) -> Iterable[tuple[torch.Tensor, torch.Generator]]:
    """Each row with the generator of its draw, for devices that take no counter."""
    generator = torch.Generator(rows.device)
    seeds = [seed for part in draws for seed in part.hashes64()]
    if len(seeds) != len(rows):
        raise ValueError(f"{len(seeds)} draws for {len(rows)} rows")
    for row, seed in zip(rows, seeds, strict=True):
        yield row, generator.manual_seed(seed)


def _fill_centred(rows: torch.Tensor, draws: Iterable[Draws]) -> None:
    """Uniforms on [-1, 1] into ``rows``, on a device."""
    for row, generator in _generators(rows, draws):
        row.uniform_(-1, 1, generator=generator)
