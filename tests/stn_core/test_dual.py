"""The dual bound against closed forms, against the same relaxation in plain numpy, and against points of the ball."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, NonlinearConstraint, minimize
from torch import nn

from stn_core.dual import check_network, margins

Array = NDArray[np.float64]


def dense(seed: int, *sizes: int) -> nn.Sequential:
    """ReLU layers between dense ones, for images (rows, 1, 1, sizes[0])."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def convolutional(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 4, 2, dilation=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 1 * 1, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ).double()


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(network: nn.Sequential) -> list[tuple[Array, Array]]:
    return [
        (layer.weight.detach().numpy(), layer.bias.detach().numpy())
        for layer in network
        if isinstance(layer, nn.Linear)
    ]


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 2.0])
def test_of_a_linear_network_the_bound_is_the_minimum(epsilon: float) -> None:
    network, points = dense(1, 6, 4), images(2, 5, 1, 1, 6)
    labels = torch.tensor([0, 1, 2, 3, 1])
    ((weight, bias),) = weights(network)
    for row, label, found in zip(
        points.flatten(1).numpy(), labels.tolist(), margins(network, points, labels, epsilon).detach(), strict=True
    ):
        # A linear function's minimum over a ball lies where Cauchy and Schwarz say.
        difference, offset = weight[label] - weight, bias[label] - bias
        expected = difference @ row + offset - epsilon * np.linalg.norm(difference, axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        assert found[label] == 0


def by_hand(network: nn.Sequential, image: Array, label: int, epsilon: float) -> Array:
    """Wong & Kolter's algorithm 1 for dense layers, in their own terms: one dual vector after another."""
    layers = weights(network)

    def bounded(depth: int, functions: Array) -> tuple[Array, Array]:
        """Of functions of the outputs of so many dense layers: least and greatest."""
        lower = np.zeros(len(functions))
        upper = np.zeros(len(functions))
        nu = functions
        for number in reversed(range(depth)):
            weight, bias = layers[number]
            lower, upper = lower + nu @ bias, upper + nu @ bias
            nu = nu @ weight
            if number:
                low, high = of_layer[number - 1]
                crossing = (low < 0) & (high > 0)
                slope = np.where(crossing, high / np.where(crossing, high - low, 1), (low >= 0).astype(float))
                for row, values in enumerate(nu):
                    for unit in np.flatnonzero(crossing):
                        # The line above the ReLU is -slope * low higher than the one below.
                        lower[row] -= slope[unit] * low[unit] * min(values[unit], 0)
                        upper[row] -= slope[unit] * low[unit] * max(values[unit], 0)
                nu = nu * slope
        reach = epsilon * np.linalg.norm(nu, axis=1)
        return lower + nu @ image - reach, upper + nu @ image + reach

    of_layer: list[tuple[Array, Array]] = []
    for depth in range(1, len(layers)):
        of_layer.append(bounded(depth, np.eye(len(layers[depth - 1][0]))))
    classes = len(layers[-1][0])
    return bounded(len(layers), np.eye(classes)[label] - np.eye(classes))[0]


@pytest.mark.parametrize("sizes", [(6, 8, 3), (5, 7, 6, 4), (4, 9, 5, 6, 3)])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_it_is_the_papers_algorithm(sizes: tuple[int, ...], epsilon: float) -> None:
    network, points = dense(3, *sizes), images(4, 4, 1, 1, sizes[0])
    labels = torch.tensor([0, 1, 2, 0])
    found = margins(network, points, labels, epsilon).detach().numpy()
    for row, image, label in zip(found, points.flatten(1).numpy(), labels.tolist(), strict=True):
        np.testing.assert_allclose(row, by_hand(network, image, label, epsilon), rtol=1e-10, atol=1e-10)


def test_a_convolution_is_bounded_as_its_matrix() -> None:
    network, points, labels = convolutional(5), images(6, 4, 2, 6, 6), torch.tensor([0, 1, 2, 1])
    shape, layers = (2, 6, 6), []
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            each = torch.eye(int(np.prod(shape)), dtype=torch.float64).view(-1, *shape)
            with torch.no_grad():
                zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
                matrix = nn.Linear(each.shape[0], zero.numel()).double()
                matrix.weight.copy_((layer(each) - zero).flatten(1).T)
                matrix.bias.copy_(zero.flatten())
            shape = tuple(zero.shape[1:])
            layers.append(matrix)
        elif not isinstance(layer, nn.Flatten):
            layers.append(layer)
    same = nn.Sequential(nn.Flatten(), *layers)
    for epsilon in (0.0, 0.2, 1.5):
        torch.testing.assert_close(margins(network, points, labels, epsilon), margins(same, points, labels, epsilon))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), epsilon=st.floats(0.01, 3), convolve=st.booleans())
def test_no_point_of_the_ball_falls_below_it(seed: int, epsilon: float, convolve: bool) -> None:
    network = convolutional(seed) if convolve else dense(seed, 6, 10, 8, 4)
    shape = (2, 6, 6) if convolve else (1, 1, 6)
    points, labels = images(seed, 3, *shape), torch.tensor([0, 1, 2])
    bound = margins(network, points, labels, epsilon).detach()
    random = np.random.default_rng(seed)
    away = random.standard_normal((200, 3, *shape))
    away *= epsilon / np.linalg.norm(away.reshape(200, 3, -1), axis=2).reshape(200, 3, 1, 1, 1)
    away[:100] *= random.random((100, 1, 1, 1, 1))
    with torch.no_grad():
        logits = network((points + torch.from_numpy(away)).flatten(0, 1)).view(200, 3, -1)
    found = logits.gather(2, labels.view(1, 3, 1).expand(200, 3, 1)) - logits
    assert (found >= bound - 1e-9).all()


def test_the_programs_own_optimum_lies_above_it() -> None:
    """Over the ball and over each ReLU's triangle, by a solver; the dual is weak, and so at most that."""
    network, points, labels = dense(7, 4, 6, 3), images(8, 1, 1, 1, 4), torch.tensor([1])
    epsilon, image = 0.5, points.flatten().numpy()
    bound = margins(network, points, labels, epsilon).detach().numpy()[0]
    (first, first_bias), (last, last_bias) = weights(network)
    middle, reach = first @ image + first_bias, epsilon * np.linalg.norm(first, axis=1)
    low, high = middle - reach, middle + reach
    for other in (0, 2):
        function, offset = last[1] - last[other], last_bias[1] - last_bias[other]
        # z >= 0, z >= inputs, and z under the line from (low, 0) to (high, high).
        rows, least, most = [], [], []
        for unit in range(6):
            one = np.eye(6)[unit]
            over = high[unit] / (high[unit] - low[unit]) if low[unit] < 0 < high[unit] else float(low[unit] >= 0)
            above = -over * low[unit] if low[unit] < 0 < high[unit] else 0.0
            rows += [np.r_[-first[unit], one], np.r_[-over * first[unit], one], np.r_[np.zeros(4), one]]
            least += [first_bias[unit], -np.inf, 0.0]
            most += [np.inf, over * first_bias[unit] + above, np.inf]
        start = np.r_[image, np.maximum(middle, 0)]
        found = minimize(
            lambda point, function=function: function @ point[4:],
            start,
            jac=lambda point, function=function: np.r_[np.zeros(4), function],
            hess=lambda point: np.zeros((10, 10)),
            constraints=[
                LinearConstraint(np.array(rows), least, most),
                NonlinearConstraint(
                    lambda point: ((point[:4] - image) ** 2).sum(),
                    0,
                    epsilon**2,
                    jac=lambda point: np.r_[2 * (point[:4] - image), np.zeros(6)],
                    hess=lambda point, factor: factor[0] * np.diag(np.r_[2 * np.ones(4), np.zeros(6)]),
                ),
            ],
            method="trust-constr",
            options={"gtol": 1e-9, "maxiter": 3000},
        )
        assert bound[other] <= found.fun + offset + 1e-6
        assert found.fun + offset < function @ start[4:] + offset


def test_its_gradient_is_its_slope() -> None:
    network, points, labels = dense(9, 4, 6, 5, 3), images(10, 3, 1, 1, 4), torch.tensor([0, 1, 2])
    (total := margins(network, points, labels, 0.4).sum()).backward()
    weight = network[3].weight
    assert weight.grad is not None
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            weight[1, 2] += step
            values.append(float(margins(network, points, labels, 0.4).sum()))
            weight[1, 2] -= step
    assert float(weight.grad[1, 2]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)
    assert np.isfinite(float(total.detach()))


def test_a_layer_may_come_twice() -> None:
    torch.manual_seed(11)
    relu, middle = nn.ReLU(), nn.Linear(6, 6)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), relu, middle, relu, middle, relu, nn.Linear(6, 3)).double()
    apart = nn.Sequential(*(copy.deepcopy(layer) for layer in network))
    points, labels = images(12, 4, 1, 1, 6), torch.tensor([0, 1, 2, 0])
    for epsilon in (0.0, 0.4):
        found = margins(network, points, labels, epsilon)
        torch.testing.assert_close(found, margins(apart, points, labels, epsilon))


def test_a_dense_layer_of_what_is_not_flat_is_refused() -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double()
    with pytest.raises(ValueError, match="a Linear layer of images that are not flattened"):
        margins(network, images(1, 2, 1, 1, 6), torch.tensor([0, 1]), 0.1)


class Scaled(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(10 * input)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (nn.Linear(2, 2), "is a Linear"),
        (nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(2, 2)), r"has a layer Tanh\(\)"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding_mode="reflect"), nn.Linear(2, 2)), "has a layer Conv2d.*reflect"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding="same"), nn.Linear(2, 2)), "has a layer Conv2d.*same"),
        (nn.Sequential(nn.Flatten(2), nn.Linear(2, 2)), r"has a layer Flatten\(start_dim=2"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "does not end with Linear"),
        (nn.Sequential(), "does not end with Linear"),
        (Scaled(nn.Flatten(), nn.Linear(2, 2)), "is a Scaled"),
        (nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), "has a layer Param"),
        (nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(2, 2))), "has a layer Linear"),
    ],
)
def test_other_layers_are_refused(network: nn.Module, says: str) -> None:
    with pytest.raises(ValueError, match=f"{says}.*knows a Sequential of"):
        check_network(network)
    with pytest.raises(ValueError, match=says):
        margins(network, torch.zeros(1, 1, 3, 3), torch.tensor([0]), 0.1)
