"""Networks calculated faster: the same but for rounding, and the original untouched."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from stn_core import Gaussian, count_votes
from stn_core.models import Compiled, build_network, folded, weights_sha256


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def trained(network: nn.Module) -> nn.Module:
    """With statistics and weights as if it had been trained, so that normalising does something."""
    torch.manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats:
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return network


def logits(network: nn.Module, side: int) -> torch.Tensor:
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(6))
    modes = [module.training for module in network.modules()]
    with torch.inference_mode():
        found: torch.Tensor = network.eval()(images)
    for module, mode in zip(network.modules(), modes, strict=True):
        module.training = mode
    return found


@pytest.mark.parametrize(
    ("name", "side", "left"),
    [("resnet18", 64, 0), ("cifar_resnet20", 32, 0), ("mobilenet_v2", 64, 0), ("densenet121", 64, 62)],
)
def test_folded_networks_differ_by_rounding(name: str, side: int, left: int) -> None:
    """Half of a densely connected network's normalisations come before their convolutions, and stay."""
    network = trained(build_network(name, 10)).to(memory_format=torch.channels_last).train()
    before = logits(network, side), weights_sha256(network), [module.training for module in network.modules()]
    fast = folded(network)
    assert norms(fast) == left < norms(network)
    torch.testing.assert_close(logits(fast, side), before[0], rtol=0, atol=1e-5 * float(before[0].abs().max()))
    torch.testing.assert_close(logits(network, side), before[0], rtol=0, atol=0)
    assert weights_sha256(network) == before[1]
    assert [module.training for module in network.modules()] == before[2]
    weights = [parameter for parameter in fast.parameters() if parameter.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


class _Wired(nn.Module):
    """Convolutions and a normalisation, wired in a way of one's own."""

    def __init__(self, wiring: Callable[[_Wired, torch.Tensor], torch.Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.wiring = wiring
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = norm or nn.BatchNorm2d(3)
        trained(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.wiring(self, images).mean(dim=(2, 3))


def _straight(net: _Wired, x: torch.Tensor) -> torch.Tensor:
    return net.norm(net.conv(x))


def _between(net: _Wired, x: torch.Tensor) -> torch.Tensor:
    return net.norm(torch.relu(net.conv(x)))


def _seen(net: _Wired, x: torch.Tensor) -> torch.Tensor:
    kept = net.conv(x)
    return net.norm(kept) + kept


def _shared(net: _Wired, x: torch.Tensor) -> torch.Tensor:
    return net.norm(net.conv(net.conv(x)))


def _decided(net: _Wired, x: torch.Tensor) -> torch.Tensor:
    return net.norm(net.conv(x if x.mean() > 0 else -x))


@pytest.mark.parametrize(
    ("network", "folds"),
    [
        (_Wired(_straight), True),
        (_Wired(_straight, nn.BatchNorm2d(3, affine=False)), True),
        (_Wired(_between), False),
        (_Wired(_seen), False),
        (_Wired(_shared), False),
        (_Wired(_decided), False),
        (_Wired(_straight, nn.BatchNorm2d(3, track_running_stats=False)), False),
        (_Wired(_straight, nn.InstanceNorm2d(3)), False),
    ],
    ids=["straight", "without weights", "something between", "seen", "shared", "decided", "by the batch", "other norm"],
)
def test_only_what_nobody_else_sees_is_folded(network: nn.Module, folds: bool) -> None:
    fast = folded(network)
    assert (fast is not network) == folds
    torch.testing.assert_close(logits(fast, 8), logits(network, 8), rtol=0, atol=1e-5)


def count(network: nn.Module, keys: list[int]) -> np.ndarray:
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    tally = count_votes(
        network, images[keys], noise=Gaussian(0.5), draws=50, num_classes=3, seed=1, keys=keys, batch_size=16
    )
    return tally.votes


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs a C++ compiler")
def test_rows_of_a_compiled_network_do_not_depend_on_their_neighbours() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6 * 6, 3))
    compiled = Compiled(network)
    together = count(compiled, [0, 1, 2])
    assert (together > 0).sum() > 3
    np.testing.assert_array_equal(together, count(network, [0, 1, 2]))
    np.testing.assert_array_equal(count(compiled, [2, 0]), together[[2, 0]])
    np.testing.assert_array_equal(count(compiled, [1]), together[[1]])


def test_without_a_compiler_an_error_of_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as settings

    monkeypatch.setattr(settings.cpp, "cxx", ("/no/such/compiler",))
    monkeypatch.setattr(settings, "force_disable_caches", True)
    torch._dynamo.reset()
    with pytest.raises(ValueError, match=r"torch\.compile cannot compile the network: .*compiler") as caught:
        count(Compiled(_Wired(_seen)), [0])
    assert "\n" not in str(caught.value)
