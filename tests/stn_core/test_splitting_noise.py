"""Splitting noise, against its definition in fractions, and its theorem. Both hold exactly: nothing is left to chance.

Levine & Feizi 2021, "Improved, Deterministic Smoothing for L1 Certified Robustness": theorem 2 (the smoothed classifier
is 1 / (2 lambda)-Lipschitz in L1 however the splits of the pixels depend on each other) and its discrete case.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from stn_core import Splitting, certify, count_votes
from stn_core.noise import Draws

#: Numbers of offsets: the least, odd and even ones, as many as there are grey levels, and more.
OFFSETS = [2, 3, 12, 51, 102, 255, 520]

LEVELS = torch.arange(256)


def splitting(offsets: int) -> Splitting:
    return Splitting(offsets / 510)


def middle(level: int, offset: int, offsets: int) -> Fraction:
    """The definition: [0, 1] is split at s + 2 lambda n for all n; the middle of the interval that a pixel lies in."""
    pixel, length = Fraction(level, 255), Fraction(offsets, 255)
    split = Fraction(2 * offset + 1, 510)
    while split > pixel:
        split -= length
    while split + length < pixel:
        split += length
    assert split < pixel < split + length
    return (max(split, Fraction(0)) + min(split + length, Fraction(1))) / 2


@cache
def table(offsets: int) -> NDArray[np.float32]:
    """Middles by the definition, float32 (offsets, 256)."""
    return np.array([[float(middle(x, s, offsets)) for x in range(256)] for s in range(offsets)], dtype=np.float32)


def perturb(noise: Splitting, images: torch.Tensor, draws: Iterable[Draws], owner: Sequence[int]) -> torch.Tensor:
    rows = torch.full((len(owner), *images.shape[1:]), float("nan"))
    noise.perturb(rows, images, torch.tensor(owner), draws)
    return rows


def all_draws(noise: Splitting, images: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """Every draw of every image: (images, draws, ...)."""
    rows = perturb(
        noise,
        images,
        [Draws(seed, key, "estimation", 0, count=noise.draws) for key in range(len(images))],
        np.repeat(np.arange(len(images)), noise.draws).tolist(),
    )
    return rows.view(len(images), noise.draws, *images.shape[1:])


def grey(pixels: Sequence[int] | NDArray[np.int64]) -> torch.Tensor:
    """Images of the given pixels, (images, 1, 1, pixels)."""
    array = torch.as_tensor(np.asarray(pixels), dtype=torch.uint8)
    return array.view(len(array), 1, 1, -1)


class Wild(nn.Module):
    """A network that changes with every interval a pixel moves to: nothing about it is smooth, all of it is noise."""

    def __init__(self, pixels: int, classes: int, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self._into = 300 * torch.randn(pixels, 16, generator=random)
        self._out = torch.randn(16, classes, generator=random)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = (images.flatten(1).double()[:, :, None] * self._into).sum(dim=1).sin()
        return (hidden[:, :, None] * self._out).sum(dim=1)


def votes_of(
    model: nn.Module, images: torch.Tensor, noise: Splitting, classes: int, seed: int = 1
) -> NDArray[np.int64]:
    tally = count_votes(
        model, images, noise=noise, draws=noise.draws, num_classes=classes, seed=seed, keys=range(len(images))
    )
    assert not tally.invalid.any()
    return tally.votes


# --- The definition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offsets", OFFSETS)
def test_pixels_go_to_the_middle_of_their_interval(offsets: int) -> None:
    """All 256 grey levels under all offsets, to the last bit of float32."""
    noise = splitting(offsets)
    assert noise.draws == offsets
    split = noise.split(LEVELS, torch.arange(offsets)[:, None])
    assert split.dtype == torch.float32
    np.testing.assert_array_equal(split.numpy(), table(offsets))
    assert split.min() >= 0
    assert split.max() <= 1
    # Offsets are the same a whole number of intervals further.
    assert torch.equal(split, noise.split(LEVELS, torch.arange(offsets, 2 * offsets)[:, None]))
    assert torch.equal(split, noise.split(LEVELS, torch.arange(-3 * offsets, -2 * offsets)[:, None]))


@pytest.mark.parametrize("offsets", OFFSETS)
def test_every_offset_appears_exactly_once_in_every_pixel(offsets: int) -> None:
    """By what becomes of all 256 grey levels. From one draw to the next a pixel's offset grows by one, around."""
    noise = splitting(offsets)
    pixels = 5
    rows = all_draws(noise, grey(np.arange(256).repeat(pixels).reshape(256, pixels)))[:, :, 0, 0]
    by_offset = table(offsets)
    for pixel in range(pixels):
        by_draw = rows[:, :, pixel].T.numpy()
        starts = [s for s in range(offsets) if np.array_equal(np.roll(by_offset, -s, axis=0), by_draw)]
        assert len(starts) == 1
        assert sorted(map(bytes, by_draw)) == sorted(map(bytes, by_offset))


@pytest.mark.parametrize("offsets", OFFSETS)
def test_grey_levels_are_told_apart_in_proportion_to_their_distance(offsets: int) -> None:
    """All pairs: in exactly min(1, |a - b| / (510 scale)) of all draws, at every pixel."""
    rows = all_draws(splitting(offsets), grey(np.arange(256).repeat(3).reshape(256, 3)))[:, :, 0, 0]
    distance = (LEVELS[:, None] - LEVELS).abs().clamp_max(offsets)
    for pixel in range(3):
        middles = rows[:, :, pixel]
        apart = torch.stack([(middles != one).sum(dim=1) for one in middles])
        assert torch.equal(apart, distance)


# --- The theorem ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offsets", [2, 12, 51, 127, 300])
def test_votes_are_lipschitz(offsets: int) -> None:
    """|p(x) - p(x')| <= ||x - x'||_1 / (2 scale) in integers: votes of a class differ by at most the sum of differences
    in grey levels. Random images of 6 pixels and ones near them, in one pixel or many; a wild network comes close."""
    random = np.random.default_rng(offsets)
    noise = splitting(offsets)
    ones = random.integers(0, 256, (120, 6))
    reach = random.integers(1, max(2, offsets // 2), 120)[:, None] * (random.random((120, 6)) < random.random((120, 1)))
    others = np.clip(ones + random.integers(-reach, reach + 1), 0, 255)
    model = Wild(6, 3, seed=offsets)
    votes, changed = votes_of(model, grey(ones), noise, 3), votes_of(model, grey(others), noise, 3)
    distance = np.abs(ones - others).sum(axis=1)
    gaps = np.abs(votes - changed).max(axis=1)
    assert np.all(gaps <= distance)
    moved = (distance > 0) & (distance < offsets)
    assert (gaps[moved] > 0).mean() > 0.3
    assert len(np.unique((ones != others).sum(axis=1))) == 7


def neighbours(pixels: Sequence[int], distance: int) -> NDArray[np.int64]:
    """All grid images of L1 distance at most ``distance`` grey levels, itself first."""
    moves = [
        move
        for move in itertools.product(range(-distance, distance + 1), repeat=len(pixels))
        if sum(map(abs, move)) <= distance
    ]
    images = np.array(sorted(moves, key=lambda move: sum(map(abs, move)))) + pixels
    return images[((images >= 0) & (images <= 255)).all(axis=1)]


@pytest.mark.parametrize("seed", range(6))
def test_no_perturbation_within_the_radius_changes_the_prediction(seed: int) -> None:
    """Brute force, for the surest of 300 images: every image of three pixels within its radius."""
    noise = splitting(14)
    model = Wild(3, 3, seed)
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (300, 3))
    votes = votes_of(model, grey(images), noise, 3)
    certified = certify(votes, certificate="splitting", protocol="exact", noise=noise, alpha=0.5)
    widest = int(np.argmax(certified.radius))
    levels = int(Fraction(certified.radius[widest]) * 255)
    assert levels >= 3
    around = neighbours(images[widest].tolist(), levels)
    assert len(around) > 60
    predictions = votes_of(model, grey(around), noise, 3).argmax(axis=1)
    assert np.all(predictions == certified.prediction[widest])


@pytest.mark.parametrize("offsets", [2, 12, 51, 102, 255])
def test_radii_are_as_large_as_they_may_be(offsets: int) -> None:
    """A threshold on one pixel: all 256 images against all others. Nothing within the radius of an image is classified
    otherwise, and one grey level beyond it some images are."""

    class Threshold(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            above = (images[:, 0, 0, 0] > 0.5).float()
            return torch.stack([1 - above, above], dim=1)

    noise = splitting(offsets)
    votes = votes_of(Threshold(), grey(np.arange(256)), noise, 2)
    certified = certify(votes, certificate="splitting", protocol="exact", noise=noise, alpha=0.5)
    predictions = votes.argmax(axis=1)
    assert set(predictions.tolist()) == {0, 1}
    nearest = np.array(
        [min(abs(a - b) for b in range(256) if predictions[a] != predictions[b]) for a in range(256)], dtype=np.int64
    )
    sure = ~certified.abstain
    assert np.all(certified.radius[sure] < nearest[sure] / 255)
    assert np.any(certified.radius[sure] > (nearest[sure] - 1 - 1e-9) / 255)
    # Radii are whole and half grey levels, rounded down.
    gap = np.abs(votes[:, 0] - votes[:, 1])
    np.testing.assert_allclose(certified.radius, gap / 510, atol=1e-15)
    assert np.all(certified.radius[sure] < gap[sure] / 510)


@pytest.mark.parametrize("scale", [0.2000000001, 0.2000000019])
def test_a_scale_written_with_few_digits_gives_no_larger_radii(scale: float) -> None:
    """510 x scale is rounded to a whole number of offsets: the radius must be that number's, not the scale's."""
    noise = Splitting(scale)
    assert noise.draws == 102
    votes = [[102, 0], [92, 10], [0, 102]]
    certified = certify(votes, certificate="splitting", protocol="exact", noise=noise, alpha=0.5)
    gaps = [Fraction(102, 510), Fraction(82, 510), Fraction(102, 510)]
    assert all(Fraction(radius) < gap for radius, gap in zip(certified.radius.tolist(), gaps, strict=True))


# --- Identity ---------------------------------------------------------------------------------------------------------


def test_noise_is_the_same_for_all_images_and_phases() -> None:
    """The theorem compares two images under the same splits."""
    noise = splitting(51)
    images = grey(np.random.default_rng(0).integers(0, 256, (2, 30)))
    first, *others = (
        perturb(noise, images, [Draws(3, key, phase, 7, count=4)], [0, 0, 1, 1])
        for key in (0, 1, 2**64 - 1)
        for phase in ("selection", "estimation")
    )
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("seed", [2, 1 + 2**32, 2**64 - 1])
def test_another_seed_gives_other_splits(seed: int) -> None:
    """Of 300 pixels' 51 shifts each, a dozen are shared at most, by chance; and those of a seed are spread over all."""
    noise = splitting(51)
    images = grey(np.full((1, 300), 100))
    one, two = (all_draws(noise, images, seed=seed)[0, :, 0, 0] for seed in (1, seed))
    starts = [rows.argmin(dim=0) for rows in (one, two)]
    assert int((starts[0] == starts[1]).sum()) < 20
    assert all(len(set(start.tolist())) > 40 for start in starts)


def test_draws_in_parts_are_those_at_once() -> None:
    noise = splitting(12)
    images = grey(np.random.default_rng(0).integers(0, 256, (3, 30)))
    at_once = all_draws(noise, images)
    parts = [
        Draws(1, 0, "estimation", 5, count=2),
        Draws(1, 2, "estimation", 0),
        Draws(1, 1, "estimation", 10, count=2),
    ]
    rows = perturb(noise, images, parts, [0, 0, 2, 1, 1])
    assert torch.equal(rows, torch.cat([at_once[0, 5:7], at_once[2, :1], at_once[1, 10:]]))
    # From the last offset on it starts again.
    around = perturb(noise, images, [Draws(1, 0, "estimation", 12, count=12)], [0] * 12)
    assert torch.equal(around, at_once[0])


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_draws_as_rows_are_needed(count: int) -> None:
    with pytest.raises(ValueError, match="draws"):
        perturb(splitting(12), grey([[1, 2]]), [Draws(1, 2, "estimation", 0)] * count, [0, 0])


def test_splits_of_version_1_are_pinned() -> None:
    """As in test_noise.py: another mapping from identity to noise is another NOISE_VERSION."""
    rows = perturb(splitting(51), grey([[0, 100, 200, 255]]), [Draws(1, 2, "estimation", 3, count=2)], [0, 0])
    pinned = [[89, 344, 736, 1013], [91, 348, 740, 1015]]
    np.testing.assert_allclose(rows[:, 0, 0].numpy() * 1020, pinned, rtol=1e-6)


def test_training_noise_has_every_pixel_under_an_offset_of_its_own() -> None:
    """100 000 pixels of one grey level: how often each middle occurs follows from the definition, where a frequency off
    by a tenth of itself is found with probability above 0.999; and all comes from the generator."""
    noise = splitting(12)
    images = torch.full((10, 1, 100, 100), 130, dtype=torch.uint8)
    noisy = noise.disturb(images, np.random.default_rng(1))
    assert noisy.dtype == torch.float32
    assert noisy.shape == images.shape
    middles, counts = np.unique(noisy.numpy(), return_counts=True)
    np.testing.assert_array_equal(middles, np.unique(table(12)[:, 130]))
    assert len(middles) == 12
    assert np.abs(counts - 100_000 / 12).max() < 5 * np.sqrt(100_000 / 12 * 11 / 12)
    # Neighbours are unrelated: they would share their offset one time in twelve.
    shared = (noisy[..., 1:] == noisy[..., :-1]).double().mean().item()
    assert abs(shared - 1 / 12) < 5 * np.sqrt(1 / 12 * 11 / 12 / 99_000)
    assert torch.equal(noisy, noise.disturb(images, np.random.default_rng(1)))
    assert not torch.equal(noisy, noise.disturb(images, np.random.default_rng(2)))


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "nearest"), [(0.15, 76), (0.25, 128), (0.1001, 51), (0.001, 2), (1e-9, 2), (0.9999, 510), (1.999, 1019)]
)
def test_scales_of_no_whole_number_of_offsets_are_refused_and_the_nearest_named(scale: float, nearest: int) -> None:
    with pytest.raises(ValueError, match=r"510 x scale .*nearest is (\S+)$") as refused:
        Splitting(scale)
    named = float(str(refused.value).split()[-1])
    assert named == nearest / 510
    assert Splitting(named).draws == nearest
    assert abs(nearest - 510 * scale) <= 0.5 or nearest == 2


@pytest.mark.parametrize("scale", [0.0, -0.1, float("nan"), float("inf")])
def test_scales_must_be_positive_and_finite(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        Splitting(scale)


@pytest.mark.parametrize("scale", [0.1, 0.2, 0.5, 1.0, 2.0, 1 / 3, 7 / 510])
def test_scales_of_whole_numbers_of_offsets_are_accepted(scale: float) -> None:
    assert Splitting(scale).draws == pytest.approx(510 * scale)
    assert Splitting(scale).scale == scale


def test_images_off_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        perturb(splitting(12), grey([[1, 2]]) / 255, [Draws(1, 2, "estimation", 0)], [0])


def test_votes_of_some_offsets_only_are_refused() -> None:
    with pytest.raises(ValueError, match="102"):
        certify([[100, 1]], certificate="splitting", protocol="exact", noise=Splitting(0.2), alpha=0.5)
