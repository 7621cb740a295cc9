from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stn_core.attacks import PGD


def length(norm: str, offsets: torch.Tensor) -> torch.Tensor:
    flat = offsets.flatten(1)
    return flat.abs().amax(dim=1) if norm == "linf" else (flat**2).sum(dim=1).sqrt()


@given(
    norm=st.sampled_from(["l2", "linf"]),
    epsilon=st.floats(1e-3, 3),
    steps=st.integers(0, 4),
    step_size=st.floats(1e-4, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_images_stay_within_the_ball_and_within_zero_and_one(
    norm: str, epsilon: float, steps: int, step_size: float, seed: int
) -> None:
    attack = PGD(norm, epsilon, steps, step_size)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(seed)
    clean, slope = torch.rand((3, 2, 4, 5), generator=random), torch.randn((3, 2, 4, 5), generator=random)
    offsets = torch.from_numpy(attack.random_offsets(np.random.default_rng(seed), tuple(clean.shape)))
    assert (length(norm, offsets) <= epsilon * (1 + 1e-5)).all()
    found = attack.perturb(lambda images: (images * slope).sum(dim=(1, 2, 3)), clean, offsets)
    assert (length(norm, found - clean) <= epsilon * (1 + 1e-5) + 1e-6).all()  # float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_of_a_linear_function_the_known_maximum_is_found(norm: str) -> None:
    random = torch.Generator().manual_seed(3)
    clean, slope = torch.full((2, 1, 3, 3), 0.5), torch.randn((2, 1, 3, 3), generator=random)
    attack = PGD(norm, 0.2, 200, 0.01)  # type: ignore[arg-type]
    offsets = torch.from_numpy(attack.random_offsets(np.random.default_rng(1), tuple(clean.shape)))
    found = attack.perturb(lambda images: (images * slope).sum(), clean, offsets) - clean
    # Dual norms: sup of <slope, offset> over the ball.
    best = 0.2 * (slope.abs().sum(dim=(1, 2, 3)) if norm == "linf" else (slope**2).sum(dim=(1, 2, 3)).sqrt())
    torch.testing.assert_close((found * slope).sum(dim=(1, 2, 3)), best, rtol=2e-3, atol=0)


def test_an_l2_step_has_its_length_and_no_image_counts_for_another() -> None:
    clean = torch.full((2, 1, 2, 2), 0.5)
    weights = torch.tensor([1e-6, 1e6]).view(2, 1, 1, 1)
    found = PGD("l2", 1.0, 1, 0.25).perturb(lambda x: (x * weights).sum(), clean, torch.zeros_like(clean))
    torch.testing.assert_close(length("l2", found - clean), torch.tensor([0.25, 0.25]))


def test_where_nothing_rises_images_stay_and_are_no_nan() -> None:
    clean = torch.full((2, 1, 2, 2), 0.5)
    for norm in ("l2", "linf"):
        found = PGD(norm, 1.0, 3, 0.25).perturb(lambda x: (0 * x).sum(), clean, torch.zeros_like(clean))  # type: ignore[arg-type]
        assert torch.equal(found, clean)


def test_starts_fill_the_ball_evenly() -> None:
    random = np.random.default_rng(5)
    box = PGD("linf", 0.5, 1, 1).random_offsets(random, (20000, 1, 1, 1))
    assert abs(np.quantile(box, [0.25, 0.5, 0.75]) - [-0.25, 0, 0.25]).max() < 0.02
    ball = PGD("l2", 0.5, 1, 1).random_offsets(random, (20000, 1, 1, 3))
    radii = np.sqrt((ball.astype(np.float64) ** 2).sum(axis=(1, 2, 3)))
    # Volume grows as the cube: half of it lies within 0.5 ** (1 / 3) of the radius.
    assert abs(np.quantile(radii, 0.5) - 0.5 * 0.5 ** (1 / 3)) < 0.005
    assert abs(ball.mean(axis=0)).max() < 0.01
