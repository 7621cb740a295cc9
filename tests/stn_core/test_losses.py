"""Each method's loss against its definition, written out image by image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from stn_core.attacks import PGD
from stn_core.dual import margins
from stn_core.models import Normalized
from stn_core.training import (
    Batch,
    Clean,
    Consistency,
    Dual,
    Gaussian,
    LogitPairing,
    Loss,
    Madry,
    SmoothAdversarial,
    Stability,
    Trades,
)

ATTACK = PGD("linf", 0.1, 3, 0.05)


class Net(nn.Module):
    """Two layers in between which there is dropout; keeps all it was shown, and whether it was training then."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 4))
        self.shown: list[tuple[bool, torch.Tensor]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append((self.training, images.detach().clone()))
        if self.training:  # without chance, where a loss is compared
            self.layers[3].p = 0.0
        logits: torch.Tensor = self.layers(images)
        return logits


@pytest.fixture
def net() -> Net:
    return Net().double()


@pytest.fixture
def batch() -> Batch:
    random = torch.Generator().manual_seed(2)
    clean = torch.rand((5, 3, 2, 2), generator=random, dtype=torch.float64)

    def draw(sample: Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float32]]) -> torch.Tensor:
        return torch.from_numpy(sample(np.random.default_rng(3), tuple(clean.shape))).double()

    return Batch(clean, torch.tensor([0, 1, 2, 3, 0]), lambda: clean + 0.25, draw)


def probabilities(net: Net, images: torch.Tensor) -> NDArray[np.float64]:
    net.eval()
    with torch.no_grad():
        logits = net.layers(images).numpy()
    net.train()
    exponents = np.exp(logits)
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


def cross_entropy(truth: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    return float(np.mean([-sum(p * np.log(q) for p, q in zip(*rows, strict=True)) for rows in zip(truth, found)]))  # noqa: B905


def the_value(loss: Loss, net: Net, batch: Batch) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The loss, its logits, and the images that the last pass was shown."""
    net.train()
    outcome = loss(net, batch)
    outcome.loss.backward()
    assert net.training
    training, last = net.shown[-1]
    assert training
    # Nothing that went before left a gradient: this is the loss's alone.
    kept = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    assert kept
    assert all(gradient.isfinite().all() for gradient in kept)
    return float(outcome.loss.detach()), outcome.logits.detach(), last


def close(value: float) -> Any:
    """Losses are computed in float32."""
    return pytest.approx(value, rel=1e-5, abs=1e-6)


def one_hot(batch: Batch) -> NDArray[np.float64]:
    return np.eye(4)[batch.labels.numpy()]


def test_clean_is_cross_entropy_on_clean_images(net: Net, batch: Batch) -> None:
    value, logits, shown = the_value(Clean(), net, batch)
    assert torch.equal(shown, batch.clean)
    assert value == close(cross_entropy(one_hot(batch), probabilities(net, batch.clean)))
    assert np.allclose(logits.softmax(1).detach(), probabilities(net, batch.clean), rtol=1e-5)


def test_gaussian_is_cross_entropy_on_noisy_images(net: Net, batch: Batch) -> None:
    value, _, shown = the_value(Gaussian(), net, batch)
    assert torch.equal(shown, batch.noisy())
    assert value == close(cross_entropy(one_hot(batch), probabilities(net, batch.noisy())))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5])
def test_stability_is_clean_cross_entropy_plus_gamma_times_that_of_noisy_to_clean(
    net: Net, batch: Batch, gamma: float
) -> None:
    value, logits, _ = the_value(Stability(gamma), net, batch)
    clean, noisy = probabilities(net, batch.clean), probabilities(net, batch.noisy())
    assert value == close(cross_entropy(one_hot(batch), clean) + gamma * cross_entropy(clean, noisy))
    assert logits.shape == (5, 4)


def copies(batch: Batch) -> Batch:
    """The batch with noise that differs from draw to draw, and begins anew with every loss."""
    draws = iter([0.25, -0.5, 0.125, 0.4])
    return Batch(batch.clean, batch.labels, lambda: batch.clean + next(draws), batch.draw)


@pytest.mark.parametrize("gamma", [0.0, 10.0])
def test_consistency_is_cross_entropy_and_divergence_from_the_mean_answer(net: Net, batch: Batch, gamma: float) -> None:
    value, logits, shown = the_value(Consistency(gamma, 3), net, copies(batch))
    drawn = [batch.clean + shift for shift in (0.25, -0.5, 0.125)]
    assert torch.equal(shown, torch.cat(drawn))
    answers = [probabilities(net, images) for images in drawn]
    mean = np.mean(answers, axis=0)
    fits = np.mean([cross_entropy(one_hot(batch), answer) for answer in answers])
    apart = np.mean([cross_entropy(mean, answer) - cross_entropy(mean, mean) for answer in answers])
    assert apart > 1e-4
    assert value == close(float(fits + gamma * apart + 0.5 * cross_entropy(mean, mean)))
    assert np.allclose(logits.exp(), mean, rtol=1e-5)


def test_consistency_of_surest_answers_has_a_gradient(net: Net, batch: Batch) -> None:
    with torch.no_grad():
        net.layers[4].weight *= 1e4
    value, _, _ = the_value(Consistency(10, 2), net, copies(batch))
    assert np.isfinite(value)


def test_smoothadv_is_cross_entropy_on_noisy_copies_of_images_that_are_hard_for_the_mean_answer(
    net: Net, batch: Batch
) -> None:
    value, logits, shown = the_value(SmoothAdversarial(ATTACK, 2), net, copies(batch))
    hard, other = (shown.chunk(2)[draw] - shift for draw, shift in enumerate((0.25, -0.5)))
    torch.testing.assert_close(hard, other)
    assert within(hard, batch)
    answers = [probabilities(net, images) for images in shown.chunk(2)]
    assert value == close(float(np.mean([cross_entropy(one_hot(batch), answer) for answer in answers])))
    assert logits.shape == (5, 4)

    def of_the_mean(images: torch.Tensor) -> float:
        noisy = [probabilities(net, images + shift) for shift in (0.25, -0.5)]
        return cross_entropy(one_hot(batch), np.mean(noisy, axis=0))

    assert of_the_mean(hard) > of_the_mean(batch.clean)
    # What is climbed is the mean answer's, and not the mean of each answer's own.
    steps = PGD("linf", 0.1, 1, 0.05)
    _, _, shown = the_value(SmoothAdversarial(steps, 2), net, copies(batch))
    tried = batch.clean.clone().requires_grad_()
    net.eval()
    mean = sum(net.layers(tried + shift).softmax(1) for shift in (0.25, -0.5)) / 2
    mean.gather(1, batch.labels[:, None]).log().sum().backward()
    net.train()
    assert tried.grad is not None
    expected = (batch.clean - 0.05 * tried.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(shown.chunk(2)[0] - 0.25, expected)


def test_dual_is_cross_entropy_on_the_worst_logits(batch: Batch) -> None:
    torch.manual_seed(4)
    model = Normalized(nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).double())
    loss, logits = Dual(0.3)(model, batch)
    worst = -margins(model.network, batch.clean, batch.labels, 0.3)
    torch.testing.assert_close(logits, worst)
    exponents = np.exp(worst.detach().numpy())
    assert float(loss.detach()) == close(
        cross_entropy(one_hot(batch), exponents / exponents.sum(axis=1, keepdims=True))
    )
    assert float(loss.detach()) > float(Dual(0.0)(model, batch).loss.detach())
    assert float(Dual(0.0)(model, batch).loss.detach()) == close(float(Clean()(model, batch).loss.detach()))


def within(images: torch.Tensor, batch: Batch) -> bool:
    return bool((images - batch.clean).abs().max() <= 0.1 + 1e-9 and images.min() >= 0 and images.max() <= 1)


def test_madry_is_cross_entropy_on_images_that_make_it_larger(net: Net, batch: Batch) -> None:
    value, _, shown = the_value(Madry(ATTACK), net, batch)
    assert within(shown, batch)
    assert value == close(cross_entropy(one_hot(batch), probabilities(net, shown)))
    start = (batch.clean + batch.draw(ATTACK.random_offsets)).clamp(0, 1)
    assert value > cross_entropy(one_hot(batch), probabilities(net, start))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
def test_alp_is_both_cross_entropies_plus_gamma_times_the_logits_squared_distance(
    net: Net, batch: Batch, gamma: float
) -> None:
    value, logits, shown = the_value(LogitPairing(gamma, ATTACK), net, batch)
    clean, attacked = shown.chunk(2)
    assert torch.equal(clean, batch.clean)
    assert within(attacked, batch)
    with torch.no_grad():
        distances = (net.layers(attacked) - net.layers(clean)).numpy() ** 2
        assert np.allclose(logits, net.layers(attacked), rtol=1e-5)
    fits = [cross_entropy(one_hot(batch), probabilities(net, images)) for images in (clean, attacked)]
    assert value == close(sum(fits) / 2 + gamma * sum(map(sum, distances.tolist())) / 20)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 6.0])
def test_trades_is_clean_cross_entropy_plus_gamma_times_the_divergence(net: Net, batch: Batch, gamma: float) -> None:
    value, logits, shown = the_value(Trades(gamma, ATTACK), net, batch)
    clean, attacked = shown.chunk(2)
    assert torch.equal(clean, batch.clean)
    assert within(attacked, batch)
    one, other = probabilities(net, clean), probabilities(net, attacked)
    divergence = cross_entropy(one, other) - cross_entropy(one, one)
    assert divergence > 1e-4
    assert value == close(cross_entropy(one_hot(batch), one) + gamma * divergence)
    assert np.allclose(logits.softmax(1).detach(), one, rtol=1e-5)


def test_trades_seeks_divergence_and_not_the_label(net: Net, batch: Batch) -> None:
    other = Batch(batch.clean, (batch.labels + 1) % 4, batch.noisy, batch.draw)
    assert torch.equal(*(the_value(Trades(1, ATTACK), net, one)[2] for one in (batch, other)))


@pytest.mark.parametrize(
    "loss", [Madry(ATTACK), Trades(1, ATTACK), LogitPairing(1, ATTACK), SmoothAdversarial(ATTACK, 2)]
)
def test_attacks_are_on_the_network_as_it_answers(net: Net, batch: Batch, loss: Loss) -> None:
    the_value(loss, net, batch)
    *attack, last = [training for training, _ in net.shown]
    assert len(attack) >= ATTACK.steps
    assert not any(attack)
    assert last


@pytest.mark.parametrize("loss", [Clean(), Madry(ATTACK), Trades(1, ATTACK), LogitPairing(1, ATTACK)])
def test_methods_without_noise_draw_none(net: Net, batch: Batch, loss: Loss) -> None:
    def noisy() -> Any:
        raise AssertionError("noise was drawn")

    loss(net, Batch(batch.clean, batch.labels, noisy, batch.draw))


@pytest.mark.parametrize(
    "loss",
    [
        Clean(),
        Gaussian(),
        Stability(2),
        Consistency(2, 2),
        Madry(ATTACK),
        Trades(2, ATTACK),
        LogitPairing(2, ATTACK),
    ],
)
def test_the_gradient_is_the_slope_of_the_loss_where_images_stay(net: Net, batch: Batch, loss: Loss) -> None:
    """Central differences in one weight. Adversarial images are held fixed, as all three papers do."""
    the_value(loss, net, batch)
    _, shown = net.shown[-1]
    held = shown.chunk(2)[1] if len(shown) == 10 else shown

    class Held(PGD):
        def perturb(self, *_: Any) -> torch.Tensor:
            return held

    attack = Held("linf", 0.1, 3, 0.05)
    fixed = {Madry: Madry(attack), Trades: Trades(2, attack), LogitPairing: LogitPairing(2, attack)}.get(
        type(loss), loss
    )
    weight = net.layers[1].weight
    assert weight.grad is not None
    found, values = float(weight.grad[0, 0]), []
    for step in (1e-2, -1e-2):
        with torch.no_grad():
            weight[0, 0] += step
            values.append(float(fixed(net, batch).loss.detach()))
            weight[0, 0] -= step
    assert found == pytest.approx((values[0] - values[1]) / 2e-2, rel=2e-3, abs=1e-4)
