"""The noise of a draw: of its kind, a function of the draw's identity alone, and unrelated to every other draw's.

Every seed is fixed, so a test here either always passes or always fails. Five standard errors are allowed throughout:
a right generator would fail a check with probability 6e-7; the power against a wrong one is stated with each test.

Exact noise has its own tests: test_discrete_noise.py and test_splitting_noise.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats

from stn_core import DiscreteGaussian, Gaussian, Laplace, Uniform, interval_variates
from stn_core.noise import NOISE_VERSION, Draws
from tests.stn_core.identities import IDENTITY, OTHERS, draws_of_many_identities, many_draws, words_of

Additive = type[Gaussian] | type[Laplace] | type[Uniform]
Filling = Additive | type[DiscreteGaussian]

SHAPE = (3, 4, 4)

#: What each kind is at scale 1.
DISTRIBUTIONS = {Gaussian: stats.norm(), Laplace: stats.laplace(), Uniform: stats.uniform(-1, 2)}

#: Its even moments.
MOMENTS = {Gaussian: lambda k: special.factorial2(k - 1), Laplace: special.factorial, Uniform: lambda k: 1 / (k + 1)}

additive = pytest.mark.parametrize("kind", DISTRIBUTIONS)
filling = pytest.mark.parametrize("kind", [*DISTRIBUTIONS, DiscreteGaussian])


def noise_of(
    draws: Sequence[Draws], scale: float = 1.0, shape: tuple[int, ...] = SHAPE, kind: Filling = Gaussian
) -> NDArray[np.float32]:
    rows = torch.full((sum(draw.count for draw in draws), *shape), float("nan"))
    kind(scale).fill(rows, draws)
    return rows.numpy()


def standardised(kind: Additive, draws: Sequence[Draws]) -> NDArray[np.float64]:
    """Noise of standard deviation 1."""
    return noise_of(draws, kind=kind).astype(np.float64) / DISTRIBUTIONS[kind].std()


def excess(kind: Additive) -> float:
    """Standard error of a sample variance, times the root of the sample's size, at standard deviation 1."""
    return float(np.sqrt(MOMENTS[kind](4) / MOMENTS[kind](2) ** 2 - 1))


def assert_distributed(noise: NDArray[np.float64], kind: Additive) -> None:
    """Noise of scale 1: its first four moments, each within five standard errors, and its distribution function."""
    for order in range(1, 5):
        expected = 0 if order % 2 else MOMENTS[kind](order)
        error = np.sqrt((MOMENTS[kind](2 * order) - expected**2) / noise.size)
        assert abs((noise**order).mean() - expected) < 5 * error
    assert stats.kstest(noise, DISTRIBUTIONS[kind].cdf).pvalue > 6e-7


def test_many_draws_are_different_draws() -> None:
    assert len(set(many_draws(20_000))) == 20_000


@additive
def test_noise_is_of_its_kind(kind: Additive) -> None:
    """960 000 pixels of 20 000 draws. Five standard errors detect, with probability above 0.999, a mean off by 0.9 % of
    the standard deviation or a scale off by 1 % (of uniform noise 0.4 %); the test of the whole distribution, any
    distribution function off by 0.005."""
    scale = 0.2
    assert_distributed(noise_of(many_draws(20_000), scale, kind=kind).astype(np.float64).ravel() / scale, kind)


@additive
def test_noise_is_symmetric(kind: Additive) -> None:
    """960 000 pixels: positive ones by their number, where a chance off by 0.005 is found with probability above 0.999,
    and by the distribution of magnitudes, any distribution function off by 0.01."""
    noise = noise_of(many_draws(20_000), kind=kind).ravel()
    positive = int((noise > 0).sum())
    assert abs(positive - noise.size / 2) < 5 * np.sqrt(noise.size) / 2
    assert stats.ks_2samp(noise[noise > 0], -noise[noise < 0]).pvalue > 6e-7


@additive
@pytest.mark.parametrize("scale", [1e-3, 0.1, 0.5, 3.0])
def test_noise_is_finite_and_stays_inside_its_support(kind: Additive, scale: float) -> None:
    noise = noise_of([Draws(7, 8, "estimation", 0, count=200)], scale, shape=(1000,), kind=kind)
    assert np.isfinite(noise).all()
    # 2**-24 is the least chance there is: as far as the module says that noise of 24 bits goes.
    reach = DISTRIBUTIONS[kind].isf(2.0**-25) + 1e-6 if kind is Laplace else {Gaussian: 5.78, Uniform: 1.0}[kind]
    assert np.abs(noise).max() <= np.float32(reach * scale)
    # It goes nearly that far, too: of 200 000 pixels one lies beyond this with probability above 1 - 1e-8.
    assert np.abs(noise).max() > DISTRIBUTIONS[kind].isf(0.5e-4) * scale


def test_uniform_noise_takes_odd_multiples_of_2_to_the_minus_24() -> None:
    """Inside (-1, 1), symmetric about a zero that it never hits, and of all 24 bits: each of the lowest eight bits of
    200 000 multiples is set in half of them, where a chance off by 0.01 is found with probability above 0.999."""
    noise = noise_of([Draws(7, 8, "estimation", 0, count=200)], shape=(1000,), kind=Uniform).astype(np.float64)
    multiples = noise.ravel() * 2**24
    np.testing.assert_array_equal(multiples, np.round(multiples))
    assert np.all(multiples.astype(np.int64) % 2 == 1)
    assert np.abs(noise).max() < 1
    ordinal = (multiples.astype(np.int64) + 2**24) >> 1
    for bit in range(8):
        assert abs((ordinal >> bit & 1).mean() - 0.5) < 2.5 / np.sqrt(noise.size)


def test_uniform_noise_is_the_philox_stream_of_its_identity() -> None:
    """numpy's own generator, set up draw by draw: 24 bits of each 32-bit number, in the middle of their interval."""
    for draw in (IDENTITY, *OTHERS):
        expected = ((words_of(draw, 75) >> 8) + 0.5) / 2**23 - 1
        np.testing.assert_array_equal(noise_of([draw], shape=(75,), kind=Uniform)[0], expected)


@pytest.mark.parametrize("pixels", [1, 15, 17, 75, 784, 70_001])
def test_gaussian_noise_is_the_box_muller_transform_of_the_philox_stream(pixels: int) -> None:
    """To the last bit, for rows narrower and wider than the blocks that are worked on, and for many parts."""
    draws = [Draws(7, key, "estimation", 3 * key, count=60 if pixels < 1000 else 1) for key in range(3)]
    noise = noise_of(draws, 0.37, shape=(pixels,))
    width = -(-pixels // 32) * 32
    row = 0
    for part in draws:
        for number in range(part.count):
            draw = Draws(part.seed, part.key, part.phase, part.number + number)
            uniform = (words_of(draw, width) >> 8).astype(np.float32) * np.float32(2**-24)
            first, second = uniform[: width // 2], uniform[width // 2 :]
            radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - first))
            angle = second * np.float32(2 * np.pi)
            expected = np.concatenate([radius * np.sin(angle), np.cos(angle) * radius])[:pixels] * np.float32(0.37)
            np.testing.assert_array_equal(noise[row].view(np.int32), expected.view(np.int32))
            row += 1


def test_laplace_noise_is_the_quantile_of_uniform_noise() -> None:
    """In double precision."""
    draws = [Draws(7, 8, "estimation", 0, count=20)]
    centred = noise_of(draws, shape=(1000,), kind=Uniform).astype(np.float64)
    noise = noise_of(draws, shape=(1000,), kind=Laplace)
    np.testing.assert_allclose(noise, stats.laplace.ppf((1 + centred) / 2), rtol=2e-6, atol=1e-12)


@additive
def test_every_pixel_has_the_same_distribution(kind: Additive) -> None:
    """Each of 48 pixels over 20 000 draws: an offset of 0.07 standard deviations in one is found with probability above
    0.999."""
    noise = standardised(kind, many_draws(20_000))
    five = 5 / np.sqrt(len(noise))
    assert np.abs(noise.mean(axis=0)).max() < five
    assert np.abs(noise.var(axis=0) - 1).max() < five * excess(kind)


@additive
def test_pixels_of_a_draw_are_uncorrelated(kind: Additive) -> None:
    """All 1128 pairs of pixels over 20 000 draws: a correlation of 0.06 is found with probability above 0.999."""
    noise = standardised(kind, many_draws(20_000)).reshape(20_000, -1)
    off_diagonal = np.corrcoef(noise, rowvar=False)[np.triu_indices(noise.shape[1], k=1)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(len(noise))


@additive
def test_consecutive_draws_are_uncorrelated(kind: Additive) -> None:
    """At any shift of up to two draws: a correlation of 0.01 is found with probability above 0.999."""
    pixels = standardised(kind, [Draws(5, 6, "estimation", number) for number in range(20_000)]).ravel()
    for shift in range(1, 2 * 48 + 1):
        assert abs(pixels[shift:] @ pixels[:-shift]) < 5 * np.sqrt(pixels.size - shift)


@additive
@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_another_identity_gives_unrelated_noise(kind: Additive, other: Draws) -> None:
    """Over 120 000 pixels: a correlation of 0.025 is found with probability above 0.999, and a stretch of noise shared
    at any offset for certain, as no three pixels in a row occur in both."""
    one, two = noise_of([IDENTITY, other], shape=(120_000,), kind=kind)
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(one.size)
    triples = [np.lib.stride_tricks.sliding_window_view(row, 3).copy().view("V12").ravel() for row in (one, two)]
    assert set(triples[0].tolist()).isdisjoint(triples[1].tolist())


@filling
def test_noise_depends_on_nothing_but_identity(kind: Filling) -> None:
    draws = draws_of_many_identities()
    together = dict(zip(draws, noise_of(draws, kind=kind), strict=True))
    backwards = dict(zip(draws[::-1], noise_of(draws[::-1], kind=kind), strict=True))
    shuffled = [draws[i] for i in np.random.default_rng(0).permutation(len(draws))]
    interleaved = dict(zip(shuffled, noise_of(shuffled, kind=kind), strict=True))
    for draw in draws:
        alone = noise_of([draw], kind=kind)[0]
        for noise in (together, backwards, interleaved):
            np.testing.assert_array_equal(noise[draw], alone)


PINNED = {
    Gaussian: [[1.3954903, 0.13103007, 0.25015199, -1.2412175], [1.161708, 2.0345187, -0.75944489, 0.27318144]],
    Laplace: [[0.28106493, -1.7377805, -1.3241999, 0.1698861], [0.6184528, 2.1385865, 0.9522399, -1.859971]],
    Uniform: [[0.24502069, -0.8240896, -0.7339843, 0.15623909], [0.4612226, 0.8821787, 0.61412424, -0.84432286]],
    DiscreteGaussian: [[80, -345, -284, 50], [157, 399, 221, -362]],
}


@filling
def test_noise_of_version_1_is_pinned(kind: Filling) -> None:
    """Runs refuse to mix counts of two noise versions, so changed noise must be a new version: raise it, pin anew."""
    assert NOISE_VERSION == 1
    first = Draws(seed=0, key=0, phase="selection", number=0)
    np.testing.assert_allclose(noise_of([IDENTITY, first], shape=(4,), kind=kind), PINNED[kind], rtol=1e-6)


def test_device_seeds_are_64_bit_and_tell_identities_apart() -> None:
    draws = [*many_draws(20_000), *(Draws(d.seed, d.key, "selection", d.number) for d in many_draws(20_000))]
    seeds = {draw.hashes64()[0] for draw in draws}
    assert len(seeds) == len(draws)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert max(seeds) > 2**63


def test_device_seeds_of_consecutive_draws_are_those_of_each() -> None:
    together = Draws(1, 2, "estimation", 5, count=4).hashes64()
    assert together == [Draws(1, 2, "estimation", 5 + i).hashes64()[0] for i in range(4)]


@filling
def test_a_repeated_identity_gives_repeated_noise_in_one_call(kind: Filling) -> None:
    first, between, again = noise_of([IDENTITY, Draws(1, 2, "selection", 3), IDENTITY], kind=kind)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, between)


@filling
@pytest.mark.parametrize("shape", [(1,), (1, 28, 28), (3, 5, 7), (3, 32, 32)])
def test_consecutive_draws_filled_at_once_are_those_filled_one_by_one(kind: Filling, shape: tuple[int, ...]) -> None:
    at_once = noise_of([Draws(1, 2, "estimation", 5, count=40)], shape=shape, kind=kind)
    one_by_one = noise_of([Draws(1, 2, "estimation", 5 + i) for i in range(40)], shape=shape, kind=kind)
    np.testing.assert_array_equal(at_once, one_by_one)
    parts = [Draws(1, 2, "estimation", 5, count=3), Draws(1, 2, "estimation", 8, count=37)]
    np.testing.assert_array_equal(at_once, noise_of(parts, shape=shape, kind=kind))


@filling
@pytest.mark.parametrize("pixels", [1, 2, 3, 5, 7])
def test_rows_of_few_or_odd_many_pixels_carry_nothing_over(kind: Filling, pixels: int) -> None:
    draws = [Draws(1, key, "estimation", number) for key in (1, 2) for number in range(4)]
    together = noise_of(draws, shape=(pixels,), kind=kind)
    assert len(np.unique(together, axis=0)) == len(draws)
    for row, draw in zip(together, draws, strict=True):
        np.testing.assert_array_equal(row, noise_of([draw], shape=(pixels,), kind=kind)[0])


@additive
@pytest.mark.parametrize("scale", [0.25, 0.1, 3.0])
def test_noise_is_proportional_to_its_scale(kind: Additive, scale: float) -> None:
    noise = noise_of([IDENTITY], scale, kind=kind)
    np.testing.assert_allclose(noise, scale * noise_of([IDENTITY], kind=kind), rtol=1e-6)
    assert kind(scale).scale == scale


@filling
@pytest.mark.parametrize("count", [1, 3])
def test_as_many_identities_as_rows_are_needed(kind: Filling, count: int) -> None:
    with pytest.raises(ValueError, match="draws"):
        kind(1.0).fill(torch.empty(2, *SHAPE), [IDENTITY] * count)


@filling
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), -float("inf")])
def test_scales_must_be_positive_and_finite(kind: Filling, value: float) -> None:
    with pytest.raises(ValueError, match="scale" if kind in (Laplace, Uniform) else "sigma"):
        kind(value)


@additive
def test_noise_is_added_to_pixels_in_unit_range(kind: Additive) -> None:
    """To 8-bit pixels over 255, or floating-point ones as they are; each row to its own image."""
    images = torch.randint(0, 256, (3, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    owner = torch.tensor([0, 0, 2, 1, 2])
    draws = [Draws(1, 2, "estimation", 0, count=2), *(Draws(1, key, "estimation", 0) for key in (3, 4, 5))]
    expected = images.numpy()[owner] / 255 + noise_of(draws, 0.3, kind=kind)
    for pixels in (images, images / 255):
        rows = torch.empty(5, *SHAPE)
        kind(0.3).perturb(rows, pixels, owner, draws)
        np.testing.assert_allclose(rows.numpy(), expected, rtol=0, atol=1e-6)


@additive
def test_training_noise_is_of_its_kind(kind: Additive) -> None:
    """300 000 pixels: a mean off by 2 % of the standard deviation, a scale off by 2 % and a distribution function off
    by 0.01 are found with probability above 0.999."""
    images = torch.randint(0, 256, (100, 3, 10, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    noisy = kind(0.3).disturb(images, np.random.default_rng(3))
    assert noisy.dtype == torch.float32
    assert noisy.shape == images.shape
    noise = (noisy.double().numpy() - images.numpy() / 255) / 0.3
    assert_distributed(noise.ravel(), kind)
    # Nor does it depend on the pixels.
    assert abs(np.corrcoef(noise.ravel(), images.numpy().ravel())[0, 1]) < 5 / np.sqrt(noise.size)


@filling
def test_training_noise_comes_from_the_generator_alone(kind: Filling) -> None:
    images = torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    random = np.random.default_rng(3)
    first, second = kind(0.3).disturb(images, random), kind(0.3).disturb(images, random)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(first, kind(0.3).disturb(images, np.random.default_rng(3)))
    assert not torch.isclose(first, second).any()


def test_interval_variates_are_uniform_on_0_excluded_to_1() -> None:
    """100 000 images: any distribution function off by 0.014 is found with probability above 0.999."""
    variates = interval_variates(1, np.arange(100_000))
    assert variates.dtype == np.float64
    assert stats.kstest(variates, "uniform").pvalue > 6e-7
    assert 0 < variates.min() < 1e-3
    assert 1 - 1e-3 < variates.max() <= 1
    # Neighbouring keys and seeds are unrelated: a correlation of 0.03 is found with probability above 0.999.
    for other in (variates[1:], interval_variates(2, np.arange(100_000))):
        assert abs(np.corrcoef(variates[: len(other)], other)[0, 1]) < 5 / np.sqrt(len(other))


def test_interval_variates_are_multiples_of_2_to_the_minus_53() -> None:
    multiples = interval_variates(1, np.arange(10_000)) * 2**53
    np.testing.assert_array_equal(multiples, np.round(multiples))
    assert np.any(multiples % 2 == 1)


def test_interval_variates_belong_to_seed_and_key_wherever_they_stand() -> None:
    keys = [0, 1, 2**63, 2**64 - 1]
    variates = np.array([interval_variates(seed, keys) for seed in (0, 1, 2**64 - 1)])
    assert len(np.unique(variates)) == variates.size
    for seed, row in zip((0, 1, 2**64 - 1), variates, strict=True):
        np.testing.assert_array_equal(interval_variates(seed, keys[::-1]), row[::-1])
        np.testing.assert_array_equal([interval_variates(seed, [key])[0] for key in keys], row)
    assert interval_variates(0, []).shape == (0,)


@additive
def test_interval_variates_are_unrelated_to_noise(kind: Additive) -> None:
    """Of 20 000 images, to each of the first draw's 8 pixels of either phase: a correlation of 0.07 is found with
    probability above 0.999, of the noise itself, its magnitude or its sign."""
    variates = interval_variates(1, np.arange(20_000))
    for phase in ("selection", "estimation"):
        noise = noise_of([Draws(1, key, phase, 0) for key in range(20_000)], shape=(8,), kind=kind)
        for aspect in (noise, np.abs(noise), np.sign(noise)):
            correlations = np.corrcoef(np.column_stack([variates, aspect]), rowvar=False)[0, 1:]
            assert np.abs(correlations).max() < 5 / np.sqrt(len(variates))


def test_interval_variates_are_pinned() -> None:
    """Radii of randomised intervals depend on them: a report must come out the same again."""
    pinned = [
        [0.8992526653613403, 0.8145946645281803, 0.976023027865002],
        [0.1382869981732563, 0.16862266186318198, 0.48845162707355894],
    ]
    np.testing.assert_array_equal([interval_variates(seed, [0, 1, 2**64 - 1]) for seed in (0, 7)], pinned)


@pytest.mark.parametrize(("seed", "keys"), [(-1, [0]), (2**64, [0]), (0, [-1]), (0, [1, 2**64])], ids=str)
def test_interval_variates_refuse_what_is_no_64_bit_number(seed: int, keys: list[int]) -> None:
    with pytest.raises(ValueError, match="seed" if keys == [0] else "keys"):
        interval_variates(seed, keys)
