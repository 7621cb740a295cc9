from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stn_core.attacks import LOSSES, ProjectedGradient, Square, Target
from stn_core.attacks.square import _bump, _moved, _pyramid, _stripes, _tiles, _window, share_left, window_side
from stn_core.noise import Gaussian, NoNoise
from tests.stn_core.planes import Plane, target_of


class Blind(Target):
    """Lends itself to no gradient."""

    def gradient(self, *_: Any) -> torch.Tensor:
        raise AssertionError("asked for a gradient")

    gradient_and_logits = gradient  # type: ignore[assignment]


class Steps(nn.Module):
    """A plane's answer, and how sure it is in whole steps: its gradient is zero."""

    def __init__(self, plane: Plane) -> None:
        super().__init__()
        self.plane = plane

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (10 * self.plane(images)).round()


def test_the_schedule_is_the_papers() -> None:
    """Section 3.2 and the code to it: p is halved after these of 10 000 queries."""
    for queries in (10_000, 1000, 20_000):
        for after, halvings in ((0, 0), (10, 0), (11, 1), (50, 1), (51, 2), (200, 2), (201, 3), (500, 3), (501, 4)):
            if after * queries % 10_000 == 0:
                assert share_left(after * queries // 10_000, queries) == 0.5**halvings
        for after, halvings in ((1000, 4), (2000, 5), (4000, 6), (6000, 7), (8000, 8), (9999, 9), (8010, 9)):
            if after * queries % 10_000 == 0:
                assert share_left(after * queries // 10_000, queries) == 0.5**halvings


@given(height=st.integers(1, 40), width=st.integers(1, 40), share=st.floats(1e-5, 1.0))
def test_windows_fit_and_have_their_share(height: int, width: int, share: float) -> None:
    side = window_side((height, width), share)
    assert 1 <= side <= min(height, width)
    if 1 < side < min(height, width):
        assert abs(side - (share * height * width) ** 0.5) <= 0.5


def test_a_pyramid_is_the_papers_eta() -> None:
    """Equation 2, term by term, counted from 1."""
    for height, width in ((1, 1), (1, 3), (2, 5), (3, 5), (4, 8), (3, 7)):
        n = width // 2
        expected = np.zeros((height, width))
        for r in range(1, height + 1):
            for s in range(1, width + 1):
                m = n - max(abs(r - height // 2 - 1), abs(s - width // 2 - 1))
                expected[r - 1, s - 1] = sum(1 / (n + 1 - k) ** 2 for k in range(m + 1))
        np.testing.assert_allclose(_pyramid(height, width), expected, rtol=1e-6)


def test_a_bump_has_two_halves_of_opposite_signs_and_either_direction() -> None:
    random = np.random.default_rng(0)
    bumps = [_bump(random, 5) for _ in range(20)]
    upright = [bump for bump in bumps if (bump[:2] > 0).all() and (bump[2:] < 0).all()]
    lying = [bump for bump in bumps if (bump[:, :2] > 0).all() and (bump[:, 2:] < 0).all()]
    assert len(upright) + len(lying) == 20
    assert len(upright) > 3
    assert len(lying) > 3


def test_in_linf_it_begins_with_stripes_and_a_window_changes_to_plus_or_minus_the_size() -> None:
    random = np.random.default_rng(0)
    stripes = _stripes(random, (3, 6, 8), 0.1)
    np.testing.assert_allclose(np.abs(stripes), 0.1, rtol=1e-6)
    assert (stripes == stripes[:, :1]).all()
    grey = np.full((1, 6, 8), 0.5, dtype=np.float32)
    offsets = stripes[:1]
    for _ in range(50):
        found = _window(random, grey, offsets, 3, 0.1)
        rows, columns = np.nonzero(found[0] != offsets[0])
        assert len(rows) > 0  # no query is wasted
        assert np.ptp(rows) <= 2
        assert np.ptp(columns) <= 2
        np.testing.assert_allclose(np.abs(found), 0.1, rtol=1e-6)
        offsets = found


def test_in_l2_a_window_takes_over_what_two_weighed_and_what_was_left() -> None:
    random = np.random.default_rng(0)
    offsets = _tiles(random, (2, 11, 9), 0.5)
    np.testing.assert_allclose(np.linalg.norm(offsets), 0.5, rtol=1e-5)
    offsets *= np.float32(0.8)
    for side in (4, 3, 2, 5, 1, 9):
        found = _moved(random, offsets, offsets, side, 0.5)
        # All there is is used, whatever was lost before.
        np.testing.assert_allclose(np.linalg.norm(found), 0.5, rtol=1e-5)
        changed = (found != offsets).any(axis=0)
        assert changed.sum() <= 2 * side**2
        offsets = found


def test_in_l2_the_bump_is_added_to_what_was_there() -> None:
    """Algorithm 3, lines 9 to 12, where one window is the whole image."""
    random = np.random.default_rng(1)
    offsets = _tiles(random, (2, 6, 6), 0.5)
    for _ in range(10):
        found = _moved(random, offsets, offsets, 6, 0.5)
        for before, after in zip(offsets, found, strict=True):
            before, after = before / np.linalg.norm(before), after / np.linalg.norm(after)
            # What is left without the old direction is the bump, of the old one's length: after is halfway between.
            bump = 2 * (after * before).sum() * after - before
            np.testing.assert_allclose(np.linalg.norm(bump), 1, rtol=1e-5)
            shape = np.concatenate([_pyramid(3, 6), -_pyramid(3, 6)])
            shape /= np.linalg.norm(shape)
            assert max(abs((bump * each).sum()) for each in (shape, shape.T)) > 0.999
        offsets = found


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_where_no_query_helps_it_stays_where_it_began(norm: str) -> None:
    class Constant(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 0 * images.flatten(1)[:, :2]

    images = torch.full((2, 1, 8, 8), 0.5)
    found = [Square(norm, queries).perturb(target_of(Constant(), NoNoise(), 2), images, [0.1]) for queries in (0, 20)]  # type: ignore[arg-type]
    assert torch.equal(*found)


def test_of_a_plane_the_best_corner_is_found_and_most_of_the_best_direction() -> None:
    plane = Plane()
    images = plane.at([0.1, 0.3])
    for norm, best, share in (("linf", float(plane.normal.abs().sum()), 0.999), ("l2", plane.length, 0.6)):
        for noise, draws in ((NoNoise(), 1), (Gaussian(0.25), 16)):
            target = target_of(plane, noise, 2, draws=draws)
            found = Square(norm, 400).perturb(target, images, [0.02, 0.1])  # type: ignore[arg-type]
            assert target.passes == 2 * 400 * 2 * 2 * draws
            for size, each in zip((0.02, 0.1), found, strict=True):
                fall = plane.margins(images) - plane.margins(each)
                assert (fall >= share * size * best).all()
                assert (fall <= 1.0001 * size * best).all()


def test_it_needs_no_gradient_and_finds_what_has_none() -> None:
    plane = Plane()
    images = plane.at([0.05, 0.1])
    labels = torch.zeros(2, dtype=torch.int64)
    sighted = target_of(Steps(plane), Gaussian(0.1), 2)
    assert sighted.gradient(images, LOSSES["margin"]).abs().max() == 0
    blind = Blind(Steps(plane), Gaussian(0.1), labels, [0, 1], 0, 16, 4096)
    (found,) = Square("linf", 200).perturb(blind, images, [0.05])
    assert (plane.distances(found) < -0.1).all()
    with pytest.raises(AssertionError, match="asked for a gradient"):
        ProjectedGradient("linf", 1, 0.2).perturb(blind, images, [0.05])
    # Gradients lead nowhere: it stays about where it was begun.
    (stuck,) = ProjectedGradient("linf", 20, 0.2).perturb(sighted, images, [0.05])
    assert (plane.distances(stuck) > 0).all()


def test_luck_is_not_kept() -> None:
    """An answer that is all noise: the image goes on changing, as it would not if it had to beat its luckiest draws."""

    class Chance(nn.Module):
        """A margin of noise that outdoes what the image has to say ten to one."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            flat = images.flatten(1)
            margin = flat @ plane.normal
            return torch.stack([margin, torch.zeros_like(margin)], dim=1)

    plane = Plane()
    images = plane.at([0.3])
    target = target_of(Chance(), Gaussian(2.0), 1, draws=1)
    (found,) = Square("linf", 400).perturb(target, images, [0.05])
    fall = plane.margins(images) - plane.margins(found)
    assert fall > 0.99 * 0.05 * float(plane.normal.abs().sum())
