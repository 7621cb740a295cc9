"""The noise of a draw: Gaussian, a function of the draw's identity alone, and unrelated to every other draw's.

Every seed is fixed, so a test here either always passes or always fails. Five standard errors are allowed throughout:
a right generator would fail a check with probability 6e-7; the power against a wrong one is stated with each test.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from stn_core import Gaussian
from stn_core.noise import NOISE_VERSION, Draws

SHAPE = (3, 4, 4)
IDENTITY = Draws(seed=1, key=2, phase="estimation", number=3)


def noise_of(draws: Sequence[Draws], sigma: float = 1.0, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    rows = torch.full((sum(draw.count for draw in draws), *shape), float("nan"))
    Gaussian(sigma).fill(rows, draws)
    return rows.numpy()


def many_draws(count: int) -> list[Draws]:
    """``count`` draws of ten images, ten at a time."""
    return [
        Draws(seed=20, key=100 + i // 10 % 10, phase="estimation", number=i // 100 * 10 + i % 10) for i in range(count)
    ]


def test_many_draws_are_different_draws() -> None:
    assert len(set(many_draws(20_000))) == 20_000


def test_noise_is_gaussian() -> None:
    """960 000 pixels of 20 000 draws. Five standard errors detect a mean off by 0.01 or a scale off by 0.7 % of sigma
    with probability above 0.999; the test of the whole distribution, any distribution function off by 0.005."""
    sigma = 0.25
    noise = noise_of(many_draws(20_000), sigma).astype(np.float64).ravel() / sigma
    five = 5 / np.sqrt(noise.size)
    assert abs(noise.mean()) < five
    assert abs(noise.var() - 1) < five * np.sqrt(2)
    assert abs(stats.skew(noise)) < five * np.sqrt(6)
    assert abs(stats.kurtosis(noise)) < five * np.sqrt(24)
    assert stats.kstest(noise, "norm").pvalue > 6e-7


def test_every_pixel_has_the_same_distribution() -> None:
    """Each of 48 pixels over 20 000 draws: an offset of 0.07 sigma in one is found with probability above 0.999."""
    noise = noise_of(many_draws(20_000)).astype(np.float64)
    five = 5 / np.sqrt(len(noise))
    assert np.abs(noise.mean(axis=0)).max() < five
    assert np.abs(noise.var(axis=0) - 1).max() < five * np.sqrt(2)


def test_pixels_of_a_draw_are_uncorrelated() -> None:
    """All 1128 pairs of pixels over 20 000 draws: a correlation of 0.06 is found with probability above 0.999."""
    noise = noise_of(many_draws(20_000)).reshape(20_000, -1)
    off_diagonal = np.corrcoef(noise, rowvar=False)[np.triu_indices(noise.shape[1], k=1)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(len(noise))


def test_consecutive_draws_are_uncorrelated() -> None:
    """At any shift of up to two draws: a correlation of 0.01 is found with probability above 0.999."""
    pixels = noise_of([Draws(5, 6, "estimation", number) for number in range(20_000)]).astype(np.float64).ravel()
    for shift in range(1, 2 * 48 + 1):
        products = pixels[shift:] * pixels[:-shift]
        assert abs(products.mean()) < 5 / np.sqrt(products.size)


@pytest.mark.parametrize(
    "other",
    [
        Draws(seed=2, key=2, phase="estimation", number=3),
        Draws(seed=1, key=3, phase="estimation", number=3),
        Draws(seed=2, key=1, phase="estimation", number=3),
        Draws(seed=1, key=2, phase="selection", number=3),
        Draws(seed=1, key=2, phase="estimation", number=4),
        Draws(seed=1, key=3, phase="estimation", number=2),
        Draws(seed=1, key=2, phase="estimation", number=3 + 2**32),
        Draws(seed=1 + 2**32, key=2, phase="estimation", number=3),
        Draws(seed=1, key=2 + 2**63, phase="estimation", number=3),
    ],
    ids=str,
)
def test_another_identity_gives_unrelated_noise(other: Draws) -> None:
    """Over 120 000 pixels: a correlation of 0.025 is found with probability above 0.999, and a stretch of noise shared
    at any offset for certain, as no three pixels in a row occur in both."""
    one, two = noise_of([IDENTITY, other], shape=(120_000,))
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(one.size)
    assert not set(zip(one, one[1:], one[2:], strict=False)) & set(zip(two, two[1:], two[2:], strict=False))


def test_noise_depends_on_nothing_but_identity() -> None:
    draws = [
        Draws(seed, key, phase, number)
        for seed in (1, 2)
        for key in (0, 2**64 - 1)
        for phase in ("selection", "estimation")
        for number in (0, 1, 7)
    ]
    together = dict(zip(draws, noise_of(draws), strict=True))
    backwards = dict(zip(draws[::-1], noise_of(draws[::-1]), strict=True))
    shuffled = [draws[i] for i in np.random.default_rng(0).permutation(len(draws))]
    interleaved = dict(zip(shuffled, noise_of(shuffled), strict=True))
    for draw in draws:
        alone = noise_of([draw])[0]
        for noise in (together, backwards, interleaved):
            np.testing.assert_array_equal(noise[draw], alone)


def test_noise_of_version_1_is_pinned() -> None:
    """Runs refuse to mix counts of two noise versions, so changed noise must be a new version: raise it, pin anew."""
    assert NOISE_VERSION == 1
    first = Draws(seed=0, key=0, phase="selection", number=0)
    pinned = [[1.3954903, 0.13103007, 0.25015199, -1.2412175], [1.161708, 2.0345187, -0.75944489, 0.27318144]]
    np.testing.assert_allclose(noise_of([IDENTITY, first], shape=(4,)), pinned, rtol=1e-6)


def test_device_seeds_are_64_bit_and_tell_identities_apart() -> None:
    draws = [*many_draws(20_000), *(Draws(d.seed, d.key, "selection", d.number) for d in many_draws(20_000))]
    seeds = {draw.hashes64()[0] for draw in draws}
    assert len(seeds) == len(draws)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert max(seeds) > 2**63


def test_a_repeated_identity_gives_repeated_noise_in_one_call() -> None:
    first, between, again = noise_of([IDENTITY, Draws(1, 2, "selection", 3), IDENTITY])
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, between)


@pytest.mark.parametrize("shape", [(1,), (1, 28, 28), (3, 5, 7), (3, 32, 32)])
def test_consecutive_draws_filled_at_once_are_those_filled_one_by_one(shape: tuple[int, ...]) -> None:
    at_once = noise_of([Draws(1, 2, "estimation", 5, count=40)], shape=shape)
    np.testing.assert_array_equal(at_once, noise_of([Draws(1, 2, "estimation", 5 + i) for i in range(40)], shape=shape))
    parts = [Draws(1, 2, "estimation", 5, count=3), Draws(1, 2, "estimation", 8, count=37)]
    np.testing.assert_array_equal(at_once, noise_of(parts, shape=shape))


@pytest.mark.parametrize("pixels", [1, 2, 3, 5, 7])
def test_rows_of_few_or_odd_many_pixels_carry_nothing_over(pixels: int) -> None:
    draws = [Draws(1, key, "estimation", number) for key in (1, 2) for number in range(4)]
    together = noise_of(draws, shape=(pixels,))
    for row, draw in zip(together, draws, strict=True):
        np.testing.assert_array_equal(row, noise_of([draw], shape=(pixels,))[0])


@pytest.mark.parametrize("sigma", [0.25, 0.1, 3.0])
def test_noise_scales_with_sigma(sigma: float) -> None:
    np.testing.assert_allclose(noise_of([IDENTITY], sigma), sigma * noise_of([IDENTITY]), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_identities_as_rows_are_needed(count: int) -> None:
    with pytest.raises(ValueError, match="draws"):
        Gaussian(1.0).fill(torch.empty(2, *SHAPE), [IDENTITY] * count)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_sigma_must_be_positive_and_finite(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma"):
        Gaussian(sigma)
