from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from stn_core.attacks import LOSSES, Loss, Target
from stn_core.attacks.target import margin_loss, outvoted
from stn_core.noise import DiscreteGaussian, Draws, Gaussian, Laplace, Noise, NoNoise, Uniform
from stn_core.noise.identity import Phase
from tests import networks
from tests.stn_core.planes import Plane, target_of

IMAGES = torch.rand((5, 1, 28, 28), generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([3, 1, 4, 1, 5])
KEYS = [7, 2**64 - 1, 0, 12, 13]


def noisy_copies(noise: Noise, image: torch.Tensor, key: int, first: int, count: int, seed: int = 0) -> torch.Tensor:
    rows = torch.empty((count, *image.shape))
    noise.perturb(rows, image[None], torch.zeros(count, dtype=torch.int64), [Draws(seed, key, "attack", first, count)])
    return rows


class Seen(nn.Module):
    """Keeps every row it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes.append(images.detach().clone())
        return images.flatten(1)[:, :3]

    @property
    def rows(self) -> list[bytes]:
        return [row.numpy().tobytes() for rows in self.passes for row in rows]


class Given(nn.Module):
    """Answers the first draws with the logits given, pass by pass."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.flatten(0, 1) + 0 * images.flatten(1)[:, :1]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("noise", [Gaussian(0.25), Laplace(0.25), Uniform(0.25), NoNoise()])
@pytest.mark.parametrize("batch_size", [1, 15, 64, 4096])
def test_the_gradient_is_the_mean_of_the_draws_gradients(loss: Loss, noise: Noise, batch_size: int) -> None:
    network = networks.tiny().requires_grad_(False)
    target = target_of(network, noise, 5, labels=LABELS, keys=KEYS, draws=6, batch_size=batch_size)
    for call in range(2):
        found, logits = target.gradient_and_logits(IMAGES, LOSSES[loss])
        for image in range(5):
            copies = noisy_copies(noise, IMAGES[image], KEYS[image], 6 * call, 6)
            each = []
            for draw in range(6):  # one pass each, and the loss written out
                row = copies[draw].double().requires_grad_()
                answer = networks.tiny().double()(row[None])[0]
                own = answer[LABELS[image]]
                others = torch.cat([answer[: LABELS[image]], answer[LABELS[image] + 1 :]])
                value = answer.logsumexp(0) - own if loss == "cross_entropy" else others.max() - own
                (gradient,) = torch.autograd.grad(value, row)
                each.append(gradient)
                torch.testing.assert_close(logits[image, draw], answer.detach().float(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found[image], torch.stack(each).mean(dim=0).float(), rtol=1e-4, atol=1e-6)


def test_no_call_sees_a_draw_again_and_none_sees_those_of_another_phase() -> None:
    noise, network = Gaussian(0.25), Seen()
    target = target_of(network, noise, 2, keys=[4, 5], draws=7, batch_size=6)
    images = torch.zeros((2, 1, 2, 2))
    target.gradient(images, margin_loss)
    target.logits(images)
    target.margins(images)
    target.fooled(images)
    target.gradient_and_logits(images, margin_loss)
    rows = network.rows
    assert len(rows) == len(set(rows)) == 5 * 7 * 2 == target.passes
    own = [noisy_copies(noise, images[0], key, 0, 35) for key in (4, 5)]
    assert {row.numpy().tobytes() for copies in own for row in copies} == set(rows)
    phases: tuple[Phase, ...] = ("selection", "estimation", "prediction")
    for phase in phases:
        other = torch.empty((200, 1, 2, 2))
        noise.fill(other, [Draws(0, key, phase, 0, 100) for key in (4, 5)])
        assert not {row.numpy().tobytes() for row in other} & set(rows)


def test_seed_and_key_change_the_draws() -> None:
    seen = []
    for seed, key in ((0, 0), (0, 1), (1, 0)):
        network = Seen()
        target_of(network, Gaussian(0.25), 1, keys=[key], seed=seed).logits(torch.zeros((1, 1, 2, 2)))
        seen.append(set(network.rows))
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_all_versions_of_an_image_are_seen_through_the_same_draws() -> None:
    network = Seen()
    target = target_of(network, Gaussian(0.25), 2, draws=5)
    images = torch.zeros((2, 1, 2, 2))
    margins = target.margins(images, images, images + 1)
    assert margins.shape == (3, 2)
    assert torch.equal(margins[0], margins[1])
    first, second, third = network.passes
    assert torch.equal(first, second)
    torch.testing.assert_close(first + 1, third)
    assert target.passes == 3 * 2 * 5
    alone = target_of(Seen(), Gaussian(0.25), 2, draws=5)
    assert torch.equal(alone.margins(images), margins[0])
    # What comes next is fresh again.
    target.margins(images)
    assert not {row.numpy().tobytes() for row in network.passes[3]} & {row.numpy().tobytes() for row in first}


@pytest.mark.parametrize("draws", [8, 16])
def test_an_image_does_not_depend_on_its_neighbours(draws: int) -> None:
    network = networks.tiny().requires_grad_(False)

    def answers(which: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        target = target_of(
            network, Gaussian(0.25), len(which), labels=LABELS[which], keys=[KEYS[i] for i in which], draws=draws
        )
        return target.gradient_and_logits(IMAGES[which], LOSSES["cross_entropy"])

    gradients, logits = answers([0, 1, 2, 3])
    for which in ([0, 4, 2, 3], [3, 2, 1, 0], [0, 2], [0]):
        others, other_logits = answers(which)
        for place, image in enumerate(which):
            if image < 4:
                assert torch.equal(other_logits[place], logits[image])
                assert torch.equal(others[place], gradients[image])


def test_margins_and_votes_of_known_logits() -> None:
    logits = torch.tensor(
        [
            [[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [4.0, 0.0, 1.0], [1.0, 0.0, 3.0]],  # two votes against one and one
            [[0.0, 1.0, 0.0], [0.0, 2.0, 1.0], [4.0, 0.0, 1.0], [1.0, 0.0, 0.0]],  # two against two
            [[0.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 9.0, 1.0], [1.0, 0.0, 0.0]],  # one against three
        ]
    )
    for labels, margins, fooled in (
        ([0, 0, 0], [(2 - 2 + 3 - 2) / 4, (-1 - 2 + 3 + 1) / 4, (-1 - 2 - 9 + 1) / 4], [False, True, True]),
        ([2, 2, 1], [(-3 - 1 - 3 + 2) / 4, (-1 - 1 - 3 - 1) / 4, (1 + 1 + 8 - 1) / 4], [True, True, False]),
    ):
        target = target_of(Given(logits), NoNoise(), 3, draws=4, labels=torch.tensor(labels))
        images = torch.zeros((3, 1, 2, 2))
        torch.testing.assert_close(target.margins(images), torch.tensor(margins))
        assert target.fooled(images).tolist() == fooled
        assert torch.equal(target.logits(images), logits)


@given(
    logits=st.lists(
        st.lists(
            st.lists(st.sampled_from([0.0, 1.0, 2.0, float("nan")]), min_size=3, max_size=3), min_size=4, max_size=4
        ),
        min_size=1,
        max_size=3,
    ),
    label=st.integers(0, 2),
)
def test_the_label_is_outvoted_where_a_count_by_hand_says_so(logits: list[list[list[float]]], label: int) -> None:
    expected = []
    for image in logits:
        answers = [row.index(max(row)) for row in image if not any(np.isnan(row))]
        others = [answers.count(other) for other in range(3) if other != label]
        expected.append(max(others) >= answers.count(label))
    found = outvoted(torch.tensor(logits), torch.full((len(logits),), label))
    assert found.tolist() == expected


def test_draws_without_an_answer_neither_steer_nor_count() -> None:
    network = networks.nan().requires_grad_(False)
    images = torch.zeros((1, 1, 28, 28))
    noise, draws = Gaussian(0.25), 40
    target = target_of(network, noise, 1, draws=draws)
    gradient, logits = target.gradient_and_logits(images, LOSSES["margin"])
    copies = noisy_copies(noise, images[0], 0, 0, draws)
    valid = copies[:, 0, 0, 0] >= 0
    assert 5 < valid.sum() < 35
    assert torch.equal(logits[0].isnan().any(dim=1), ~valid)
    rows = copies[valid].requires_grad_()
    plain = networks.tiny().requires_grad_(False)
    (each,) = torch.autograd.grad(margin_loss(plain(rows), torch.zeros(len(rows), dtype=torch.int64)).sum(), rows)
    torch.testing.assert_close(gradient, each.sum(dim=0, keepdim=True) / draws)
    margins = target_of(network, noise, 1, draws=draws).margins(images)
    expected = -margin_loss(plain(copies[valid]), torch.zeros(len(rows), dtype=torch.int64)).mean()
    torch.testing.assert_close(margins[0], expected)


def test_a_gradient_that_is_no_number_does_not_spoil_the_others() -> None:
    class Root(nn.Module):
        """Has no answer where the first pixel is negative."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :2].sqrt() * torch.tensor([1.0, 0.0])

    images = torch.tensor([0.1, 9.0]).view(1, 1, 1, 2)
    noise = Gaussian(0.25)
    gradient, logits = target_of(Root(), noise, 1, draws=30).gradient_and_logits(images, margin_loss)
    first = noisy_copies(noise, images[0], 0, 0, 30)[:, 0, 0, 0]
    assert torch.equal(logits.isnan().any(dim=2)[0], first < 0)
    assert 3 < (first < 0).sum() < 27
    torch.testing.assert_close(gradient[0, 0, 0, 0], -(0.5 / first[first > 0].sqrt()).sum() / 30)
    assert gradient[0, 0, 0, 1] == 0


def test_votes_under_noise_are_as_many_as_they_should_be() -> None:
    plane = Plane()
    images = plane.at([-0.1, 0.0, 0.1, 0.3])
    answers = target_of(plane, Gaussian(0.25), 4, draws=4000).logits(images).argmax(dim=2)
    for votes, expected in zip((answers == 0).sum(dim=1).tolist(), plane.vote(images, 0.25), strict=True):
        assert stats.binomtest(votes, 4000, expected).pvalue > 1e-4


@pytest.mark.parametrize("noise", [Gaussian(0.25), Laplace(0.2), NoNoise(), DiscreteGaussian(0.25)])
def test_of_a_plane_the_gradient_is_its_normal(noise: Noise) -> None:
    plane = Plane()
    images = plane.at([0.1, 0.2])
    if isinstance(noise, DiscreteGaussian):
        # Only 8-bit images have a grid to be drawn on: perturbed ones have none.
        with pytest.raises(ValueError, match="uint8"):
            target_of(plane, noise, 2).gradient(images, margin_loss)
        return
    found = target_of(plane, noise, 2).gradient(images, margin_loss)
    torch.testing.assert_close(found, -plane.normal.view(1, 1, 8, 8).expand(2, 1, 8, 8))


def test_gradients_laid_out_otherwise_are_the_same() -> None:
    """Of channels-last networks they are not contiguous."""
    network = networks.tiny_rgb().requires_grad_(False)

    class ChannelsLast(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            last = images.to(memory_format=torch.channels_last)
            return network(last).t().contiguous().t()

    images = torch.rand((2, 3, 28, 28), generator=torch.Generator().manual_seed(2))
    found, logits = target_of(ChannelsLast(), Gaussian(0.25), 2).gradient_and_logits(images, margin_loss)
    expected, expected_logits = target_of(network, Gaussian(0.25), 2).gradient_and_logits(images, margin_loss)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-6)


def test_images_and_weights_are_left_as_they_were() -> None:
    network = networks.tiny()
    images = IMAGES.clone()
    gradient = target_of(network, Gaussian(0.25), 5, labels=LABELS).gradient(images, margin_loss)
    assert torch.equal(images, IMAGES)
    assert not images.requires_grad
    assert not gradient.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: target_of(Plane(), NoNoise(), 2, draws=0), "draws and batch_size must be at least 1"),
        (lambda: target_of(Plane(), NoNoise(), 2, batch_size=0), "draws and batch_size must be at least 1"),
        (lambda: target_of(Plane(), NoNoise(), 2, keys=[1]), "1 keys for 2 labels"),
        (lambda: target_of(Plane(), NoNoise(), 1, keys=[-1]), "keys must lie in"),
        (lambda: target_of(Plane(), NoNoise(), 1, seed=2**64), "seed must lie in"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[], Target], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change()
