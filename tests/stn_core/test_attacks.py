"""What every attack on a smoothed classifier promises, whatever it does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stn_core.attacks import Attack, CarliniWagner, ProjectedGradient, Square
from stn_core.noise import Gaussian, NoNoise
from tests import networks
from tests.stn_core.planes import target_of

NETWORK = networks.tiny().requires_grad_(False)

#: Black and white pixels among grey ones.
IMAGES = (1.4 * torch.rand((4, 1, 28, 28), generator=torch.Generator().manual_seed(3)) - 0.2).clamp(0, 1)
LABELS = NETWORK(IMAGES).argmax(dim=1)
KEYS = [5, 6, 2**64 - 1, 0]
SIZES = [0.05, 0.4]

ATTACKS: dict[str, Attack] = {
    "pgd in l2": ProjectedGradient("l2", 3, 0.4),
    "pgd in linf": ProjectedGradient("linf", 3, 0.4, loss="margin"),
    "pgd from several starts": ProjectedGradient("linf", 2, 0.4, restarts=3),
    "carlini and wagner": CarliniWagner(8, searches=3),
    "square in l2": Square("l2", 12),
    "square in linf": Square("linf", 12),
}


def attacked(
    attack: Attack, which: list[int] | None = None, *, seed: int = 0, keys: list[int] | None = None
) -> torch.Tensor:
    which = list(range(4)) if which is None else which
    keys = [KEYS[image] for image in which] if keys is None else keys
    target = target_of(NETWORK, Gaussian(0.25), len(which), labels=LABELS[which], keys=keys, seed=seed)
    return attack.perturb(target, IMAGES[which], SIZES)


def length(norm: str, offsets: torch.Tensor) -> torch.Tensor:
    flat = offsets.double().flatten(1)
    return flat.abs().amax(dim=1) if norm == "linf" else (flat**2).sum(dim=1).sqrt()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_bytes_each_time_and_others_for_another_seed_or_key(name: str) -> None:
    found = attacked(ATTACKS[name])
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(found, attacked(ATTACKS[name]))
    for others in (attacked(ATTACKS[name], seed=1), attacked(ATTACKS[name], keys=[8, 9, 10, 11])):
        assert not (found == others).flatten(2).all(dim=2).any()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("which", [[3, 1, 0, 2], [2, 0], [1]])
def test_what_becomes_of_an_image_does_not_depend_on_its_neighbours(name: str, which: list[int]) -> None:
    assert torch.equal(attacked(ATTACKS[name], which), attacked(ATTACKS[name])[:, which])


@given(
    name=st.sampled_from(list(ATTACKS)),
    size=st.sampled_from([1e-6, 1e-3, 1 / 255, 0.3, 1.0, 50.0]),
    seed=st.integers(0, 1000),
    flat=st.booleans(),
    smoothed=st.booleans(),
)
@settings(max_examples=60)
def test_images_stay_within_the_size_and_within_zero_and_one(
    name: str, size: float, seed: int, flat: bool, smoothed: bool
) -> None:
    attack = ATTACKS[name]
    random = torch.Generator().manual_seed(seed)
    clean = (2 * torch.rand((2, 1, 28, 28), generator=random) - 0.5).clamp(0, 1)
    if flat:
        clean[0] = 0
    target = target_of(
        NETWORK, Gaussian(0.25) if smoothed else NoNoise(), 2, labels=torch.tensor([seed % 10, 3]), draws=2, seed=seed
    )
    sizes = [size, 2 * size]
    found = attack.perturb(target, clean, sizes)
    assert found.shape == (2, 2, 1, 28, 28)
    assert found.min() >= 0
    assert found.max() <= 1
    for limit, images in zip(sizes, found, strict=True):
        # A pixel of float32 is rounded by 2**-25 at most.
        rounding = 2**-25 * (1 if attack.norm == "linf" else 28)
        assert (length(attack.norm, images - clean) <= limit * (1 + 1e-5) + rounding).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_label_loses_and_the_more_the_larger_the_size(name: str) -> None:
    """By a hundred times as many draws as the attack had, of another seed."""
    judge = target_of(NETWORK, Gaussian(0.25), 4, labels=LABELS, draws=1600, seed=77)
    found = attacked(replace(ATTACKS[name], queries=100) if isinstance(ATTACKS[name], Square) else ATTACKS[name])  # type: ignore[type-var]
    margins = judge.margins(IMAGES, *found).numpy()
    assert (np.diff(margins, axis=0) < 0).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_where_nothing_changes_the_answer_the_images_are_none_the_worse(name: str) -> None:
    target = target_of(torch.nn.Flatten(), NoNoise(), 2, labels=torch.tensor([0, 0]), draws=1)
    target.model = torch.nn.Sequential(torch.nn.Flatten(), _Constant())
    found = ATTACKS[name].perturb(target, IMAGES[:2], SIZES)
    assert found.isfinite().all()


class _Constant(torch.nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return 0 * rows[:, :3] + torch.tensor([2.0, 1.0, 0.0])
