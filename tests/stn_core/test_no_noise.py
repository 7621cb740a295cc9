from __future__ import annotations

import numpy as np
import pytest
import torch

from stn_core.noise import Draws, NoNoise

PIXELS = torch.arange(0, 256, 16, dtype=torch.uint8).view(2, 1, 2, 4)


def perturbed(images: torch.Tensor, owner: list[int], draws: list[Draws]) -> torch.Tensor:
    rows = torch.full((len(owner), *images.shape[1:]), float("nan"))
    NoNoise().perturb(rows, images, torch.tensor(owner), draws)
    return rows


@pytest.mark.parametrize("images", [PIXELS, PIXELS.float() / 255], ids=["bytes", "floats"])
def test_every_draw_is_the_image_itself(images: torch.Tensor) -> None:
    rows = perturbed(images, [1, 0, 1], [Draws(0, 1, "estimation", 5, 2), Draws(9, 0, "attack", 0)])
    assert torch.equal(rows, PIXELS[[1, 0, 1]].float() / 255)
    assert rows.dtype == torch.float32


def test_training_sees_the_image_itself() -> None:
    random = np.random.default_rng(0)
    assert torch.equal(NoNoise().disturb(PIXELS, random), PIXELS.float() / 255)
    assert random.bit_generator.state == np.random.default_rng(0).bit_generator.state


@pytest.mark.parametrize("count", [1, 3])
def test_draws_that_do_not_fill_the_rows_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="do not fill the 2 rows"):
        perturbed(PIXELS, [0, 1], [Draws(0, 0, "estimation", 0, count)])


def test_it_says_what_it_is() -> None:
    assert (NoNoise().kind, NoNoise().scale) == ("none", 0.0)
    assert NoNoise() == NoNoise()
