from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stn_core import certify, count_votes
from stn_core.attacks import LOSSES, CarliniWagner, Loss, ProjectedGradient, Square
from stn_core.noise import Gaussian, NoNoise
from tests.stn_core.planes import Plane, target_of

SIGMA = 0.25


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_of_a_plane_under_noise_the_best_perturbation_is_found(norm: str, loss: Loss) -> None:
    plane = Plane()
    images = plane.at([0.1, 0.2, 0.3])
    sizes = [0.02, 0.1]
    attack = ProjectedGradient(norm, 40, 0.1, loss=loss)  # type: ignore[arg-type]
    found = attack.perturb(target_of(plane, Gaussian(SIGMA), 3), images, sizes)
    # Dual norms: of all perturbations of length one, this is the largest fall of the margin.
    steepest = plane.length if norm == "l2" else float(plane.normal.abs().sum())
    for size, each in zip(sizes, found, strict=True):
        fall = plane.margins(images) - plane.margins(each)
        np.testing.assert_allclose(fall, size * steepest, rtol=2e-3)
        expected = plane.distances(images) - size * steepest / plane.length
        np.testing.assert_allclose(plane.distances(each), expected, atol=1e-3)


def test_no_attack_beats_a_certificate_and_just_outside_of_it_all_do() -> None:
    """A certified radius, the true distance, and attacks on both sides of it: the whole program in miniature."""
    plane, noise = Plane(), Gaussian(SIGMA)
    distances = [0.1, 0.2, 0.3, 0.4]
    images = plane.at(distances)
    keys = [3, 4, 5, 6]
    tally = count_votes(plane, images.numpy(), noise=noise, draws=10_000, num_classes=2, seed=1, keys=keys)
    certified = certify(tally.votes, certificate="neyman_pearson_one_class", protocol="paper", noise=noise, alpha=0.001)
    assert (certified.prediction == 0).all()
    assert (certified.radius <= distances).all()
    assert (certified.radius > 0.8 * np.array(distances)).all()
    attacks = (ProjectedGradient("l2", 20, 0.2), CarliniWagner(60, searches=4))
    for image in range(4):
        radius, distance = certified.radius[image], distances[image]
        for attack in (*attacks, Square("l2", 100)):
            target = target_of(plane, noise, 1, keys=keys[image : image + 1], draws=64)
            inside, outside = attack.perturb(target, images[image : image + 1], [radius, 1.1 * distance])
            assert plane.vote(inside, SIGMA) > 0.5
            if attack in attacks:  # random search alone is not so good
                assert plane.vote(outside, SIGMA) < 0.5


def test_of_several_starts_the_end_with_the_least_margin_is_taken() -> None:
    """Where the answer changes only on one side, some starts run the wrong way."""

    class TwoSided(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            height = images.flatten(1)[:, 0] - 0.5
            fall = torch.where(height > 0, 0.2 * height, -5 * height)
            return torch.stack([1 - fall, torch.zeros_like(fall)], dim=1)

    images = torch.full((16, 1, 4, 4), 0.5)

    def margins(restarts: int) -> torch.Tensor:
        target = target_of(TwoSided(), NoNoise(), 16, draws=1)
        found = ProjectedGradient("linf", 10, 0.2, restarts=restarts).perturb(target, images, [0.1])[0]
        assert target.passes == 16 * restarts * (10 + (restarts > 1))
        return target.margins(found)

    assert (margins(1) > 0.9).any()
    torch.testing.assert_close(margins(12), torch.full((16,), 0.5))


def test_where_the_network_is_so_sure_that_cross_entropy_is_flat_the_margin_is_not() -> None:
    plane = Plane()

    class Sure(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 1e4 * plane(images)

    images = plane.at([0.3, 0.4])
    sizes = [0.1]
    target = target_of(Sure(), NoNoise(), 2, draws=1)
    assert target.gradient(images, LOSSES["cross_entropy"]).abs().max() == 0
    found = ProjectedGradient("l2", 20, 0.2, loss="margin").perturb(target, images, sizes)[0]
    np.testing.assert_allclose(plane.distances(images) - plane.distances(found), 0.1, rtol=2e-3)
