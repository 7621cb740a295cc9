"""The named networks against their descriptions: layers, parameters, names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stn_core.models import build_network
from stn_core.models.resnet import CifarResNet


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def convolutions(network: nn.Module) -> list[tuple[int, int, int]]:
    """(inputs, outputs, size), in order."""
    return [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in network.modules() if isinstance(m, nn.Conv2d)]


def test_the_papers_mnist_network_is_two_convolutions_of_64_and_a_dense_layer_of_128() -> None:
    network = build_network("mnist", 10)
    assert convolutions(network) == [(1, 64, 5), (64, 64, 5)]
    dense = [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)]
    assert dense == [(64 * 20 * 20, 128), (128, 10)]


def test_the_papers_cifar_network_is_seven_convolutions_with_pooling() -> None:
    network = build_network("cifar10", 10)
    assert convolutions(network) == [
        (3, 96, 5),
        (96, 96, 1),
        (96, 192, 5),
        (192, 192, 1),
        (192, 256, 3),
        (256, 256, 1),
        (256, 10, 1),
    ]
    kinds = [type(m).__name__ for m in network.modules() if not list(m.children())]
    block = ["Conv2d", "ELU", "Conv2d", "ELU"]
    assert kinds == [
        *(2 * [*block, "MaxPool2d", "Dropout"]),
        *block,
        "Conv2d",
        "AdaptiveAvgPool2d",
        "Flatten",
    ]
    pools = [(m.kernel_size, m.stride) for m in network.modules() if isinstance(m, nn.MaxPool2d)]
    assert pools == [(3, 2)] * 2
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.5}


@pytest.mark.parametrize(("name", "blocks"), [("cifar_resnet20", 3), ("cifar_resnet110", 18)])
def test_residual_networks_have_the_parameters_of_their_description(name: str, blocks: int) -> None:
    # Convolutions without bias, two parameters per channel in each normalisation, a 1x1 shortcut where channels double.
    expected = 3 * 16 * 9 + 2 * 16 + 64 * 10 + 10
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        expected += inputs * outputs * 9 + (2 * blocks - 1) * outputs * outputs * 9 + 2 * blocks * 2 * outputs
        if inputs != outputs:
            expected += inputs * outputs + 2 * outputs
    network = build_network(name, 10)
    assert parameters(network) == expected
    weighted = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) - 2 == 6 * blocks + 2  # two shortcuts do not count as layers


def test_residual_networks_name_their_parameters_as_published_checkpoints_do() -> None:
    names = build_network("cifar_resnet110", 10).state_dict().keys()
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer3.17.bn2.weight", "fc.bias"} <= names
    assert {"layer2.0.downsample.0.weight", "layer3.0.downsample.1.running_var"} <= names
    assert "layer1.0.downsample.0.weight" not in names


@pytest.mark.parametrize("name", ["cifar10", "cifar_resnet20", "cifar_resnet110"])
def test_cifar_networks_take_cifar_images_and_learn_from_them(name: str) -> None:
    torch.manual_seed(1)
    network = build_network(name, 7)
    logits = network(torch.rand(4, 3, 32, 32))
    assert logits.shape == (4, 7)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_features_shrink_by_half_twice() -> None:
    network = CifarResNet(8, 10)
    shapes = []
    for layer in (network.layer1, network.layer2, network.layer3):
        layer.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    network(torch.rand(1, 3, 32, 32))
    assert shapes == [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8)]


@pytest.mark.parametrize("depth", [2, 18, 109])
def test_other_depths_cannot_be_built(depth: int) -> None:
    with pytest.raises(ValueError, match="must be 6 n"):
        CifarResNet(depth, 10)
