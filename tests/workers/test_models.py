"""Models as users bring them: torchvision's weights by name, and checkpoints in the layering of Cohen et al."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import squeezenet1_1

from stn_core.models import build_network, build_pretrained, weights_sha256
from tests.networks import tiny
from tests.workers.samples import cached_weights
from workers.counting import completed, load_model
from workers.settings import Model, Normalization

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def refusal(**model: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what it says is the caller's to look at
        load_model(Model(**model), 1000)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# --- torchvision's weights -----------------------------------------------------------------------------------------


def test_weights_by_name_are_torchvisions_with_its_normalisation(torch_home: Path) -> None:
    torch.manual_seed(1)
    network = torchvision.models.squeezenet1_1(weights=None).eval()
    cached_weights(torch_home, "squeezenet1_1", "IMAGENET1K_V1", network.state_dict())
    images = torch.rand(2, 3, 48, 48)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    for weights in ("IMAGENET1K_V1", "DEFAULT"):
        model = load_model(Model(name="squeezenet1_1", weights=weights), 10).eval()
        with torch.inference_mode():
            torch.testing.assert_close(model(images), network((images - mean) / std))
        assert weights_sha256(model.network) == weights_sha256(network)
    settled = completed(Model(name="squeezenet1_1", weights="DEFAULT"))
    assert settled.weights == "IMAGENET1K_V1"
    assert settled.normalization == Normalization(mean=IMAGENET[0], std=IMAGENET[1])
    given = Normalization(mean=(0.5,), std=(0.5,))
    assert completed(Model(name="squeezenet1_1", weights="DEFAULT", normalization=given)).normalization == given


def test_densely_connected_networks_bring_the_names_of_an_older_time(torch_home: Path) -> None:
    network = torchvision.models.densenet121(weights=None)
    old = {
        name.replace("norm1", "norm.1").replace("conv1", "conv.1") if "denselayer" in name else name: value
        for name, value in network.state_dict().items()
        if "num_batches_tracked" not in name
    }
    path = cached_weights(torch_home, "densenet121", "IMAGENET1K_V1", old)
    for named in ({"weights": "IMAGENET1K_V1"}, {"checkpoint": path}):
        model = load_model(Model(name="densenet121", **named), 1000)
        assert weights_sha256(model.network) == weights_sha256(network)


def test_googlenets_weights_normalise_inside_and_so_are_another_network(torch_home: Path) -> None:
    network = torchvision.models.googlenet(weights=None, init_weights=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # statistics of what passes once, or nothing of the images would reach the logits
    network(torch.randn(4, 3, 64, 64))
    network.eval()
    path = cached_weights(torch_home, "googlenet", "IMAGENET1K_V1", network.state_dict())
    by_name = load_model(Model(name="googlenet", weights="IMAGENET1K_V1"), 10).eval()
    normalization = Normalization(mean=IMAGENET[0], std=IMAGENET[1])
    # A state dict with the heads of training, and one without.
    without = {name: value for name, value in network.state_dict().items() if not name.startswith("aux")}
    torch.save(without, torch_home / "without.pt")
    local = [
        load_model(Model(name="googlenet", checkpoint=place, normalization=normalization), 1000).eval()
        for place in (path, torch_home / "without.pt")
    ]
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        half = [network((images - 0.5) / 0.5), by_name(images)]
        plain = [model(images) for model in local]
    torch.testing.assert_close(half[0], half[1], rtol=1e-3, atol=1e-5)
    assert torch.equal(plain[0], plain[1])
    assert not torch.allclose(half[1], plain[0], rtol=1e-3, atol=1e-5)
    assert weights_sha256(by_name.network) != weights_sha256(local[1].network)


def test_without_the_file_and_the_internet_it_is_said_what_to_put_where(torch_home: Path) -> None:
    said = refusal(name="squeezenet1_1", weights="IMAGENET1K_V1")
    assert f"model.weights: no file {torch_home}/hub/checkpoints/squeezenet1_1-" in said
    assert "put it there, or name one as model.checkpoint" in said


def test_nothing_behind_a_good_file_in_the_cache_is_run_either(torch_home: Path) -> None:
    """torchvision's own reader would unpack what it finds at the end of such a file."""
    good, bad, packed = io.BytesIO(), io.BytesIO(), io.BytesIO()
    state = squeezenet1_1().state_dict()
    torch.save(state, good, _use_new_zipfile_serialization=False)
    torch.save(_Touches(torch_home / "run"), bad, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("x.pth", bad.getvalue())
    path = cached_weights(torch_home, "squeezenet1_1", "IMAGENET1K_V1", {})
    path.write_bytes(good.getvalue() + packed.getvalue())
    built = build_pretrained("squeezenet1_1", "IMAGENET1K_V1", path)
    assert not (torch_home / "run").exists()
    assert all(torch.equal(tensor, state[name]) for name, tensor in built.state_dict().items())


class _Touches:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def test_a_file_in_the_cache_is_never_run(torch_home: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.write_text, (torch_home / "owned", "owned")

    path = cached_weights(torch_home, "squeezenet1_1", "IMAGENET1K_V1", {"x": Malicious()})
    assert "nothing in a checkpoint is ever run" in refusal(name="squeezenet1_1", weights="IMAGENET1K_V1")
    assert not (torch_home / "owned").exists()
    torch.save(tiny().state_dict(), path)
    assert "holds other weights than IMAGENET1K_V1" in refusal(name="squeezenet1_1", weights="IMAGENET1K_V1")
    path.write_bytes(b"<html>")
    assert "no readable checkpoint" in refusal(name="squeezenet1_1", weights="IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("name", "weights", "says"),
    [
        ("resnet50", "IMAGENET1K_V3", "did you mean 'IMAGENET1K_V2'?; valid: IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"),
        ("vgg16", "IMAGENET1K_FEATURES", "'vgg16' has no 'IMAGENET1K_FEATURES'"),
        ("mnist", "DEFAULT", "model.weights are those of a torchvision.models classifier, and 'mnist' is none"),
        ("fcn_resnet50", "DEFAULT", "and 'fcn_resnet50' is none"),
        ("exported", "DEFAULT", "and 'exported' is none"),
        ("tests.networks:tiny", "DEFAULT", "and 'tests.networks:tiny' is none"),
    ],
)
def test_weights_that_do_not_exist_are_refused(name: str, weights: str, says: str) -> None:
    assert says in refusal(name=name, weights=weights)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "r3d_18", "quantized_resnet18", "raft_small"])
def test_networks_that_classify_no_images_are_refused(name: str) -> None:
    assert "is no classifier of images" in refusal(name=name, checkpoint="w.pt")


# --- Checkpoints of Cohen et al. -----------------------------------------------------------------------------------


class NormalizeLayer(nn.Module):
    """As theirs: constants that are no part of the state dict."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.means, self.sds = torch.tensor(mean), torch.tensor(std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.means[None, :, None, None]) / self.sds[None, :, None, None]


class TheirBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def their_resnet(depth: int) -> nn.Module:
    """The network of their CIFAR-10 checkpoints, written from its description, layer by layer."""
    blocks = (depth - 2) // 6
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, 16, 3, 1, 1, bias=False)),
        ("bn1", nn.BatchNorm2d(16)),
        ("relu", nn.ReLU(inplace=True)),
    ]
    width = 16
    for stage, channels in enumerate((16, 32, 64), 1):
        made = []
        for block in range(blocks):
            made.append(TheirBlock(width, channels, 2 if stage > 1 and block == 0 else 1))
            width = channels
        layers.append((f"layer{stage}", nn.Sequential(*made)))
    layers += [("avgpool", nn.AvgPool2d(8)), ("flatten", nn.Flatten()), ("fc", nn.Linear(64, 10))]
    return nn.Sequential(OrderedDict(layers))


def varied(network: nn.Module) -> nn.Module:
    """With statistics and weights that are no defaults, so that each of them shows in the logits."""
    torch.manual_seed(5)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    tensor.add_(0.2 * torch.rand_like(tensor))
    return network.eval()


CASES = {
    "cifar_resnet20": (lambda: their_resnet(20), CIFAR10, False, 32, 10),
    "cifar_resnet110": (lambda: their_resnet(110), CIFAR10, False, 32, 10),
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), IMAGENET, True, 64, 1000),
}


@pytest.mark.parametrize("name", CASES)
def test_their_checkpoints_give_their_logits(tmp_path: Path, name: str) -> None:
    make, constants, parallel, side, classes = CASES[name]
    network = varied(make())
    theirs = nn.Sequential(NormalizeLayer(*constants), nn.DataParallel(network) if parallel else network).eval()
    saved = {"epoch": 90, "arch": name, "state_dict": theirs.state_dict(), "optimizer": {"state": {}}}
    torch.save(saved, tmp_path / "checkpoint.pth.tar")
    ours = load_model(Model(name=name, checkpoint=tmp_path / "checkpoint.pth.tar"), classes).eval()
    images = torch.rand(3, 3, side, side)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
    assert ours.constants == constants
    # What the spec says comes first.
    given = Normalization(mean=(0.0,), std=(1.0,))
    plain = load_model(Model(name=name, checkpoint=tmp_path / "checkpoint.pth.tar", normalization=given), classes)
    assert plain.constants == ((0.0,), (1.0,))


def test_weights_of_data_parallel_training_are_not_normalised(tmp_path: Path) -> None:
    network = build_network("cifar_resnet20", 10)
    torch.save({"state_dict": nn.DataParallel(network).state_dict()}, tmp_path / "w.pt")
    model = load_model(Model(name="cifar_resnet20", checkpoint=tmp_path / "w.pt"), 10)
    assert weights_sha256(model.network) == weights_sha256(network)
    assert model.constants == ((0.0,), (1.0,))


def test_a_layer_that_nobody_describes_is_asked_for(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Identity(), build_network("cifar_resnet20", 10)).state_dict()
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    assert "set model.normalization to what that layer does" in refusal_of_10(tmp_path / "w.pt")


def test_another_arch_is_refused(tmp_path: Path) -> None:
    torch.save({"arch": "cifar_resnet110", "state_dict": {}}, tmp_path / "w.pt")
    assert "holds a network of arch 'cifar_resnet110', and model.name is 'cifar_resnet20'" in refusal_of_10(
        tmp_path / "w.pt"
    )


def refusal_of_10(path: Path) -> str:
    with pytest.raises(ValueError, match=path.name) as caught:
        load_model(Model(name="cifar_resnet20", checkpoint=path), 10)
    return str(caught.value)


def test_weights_of_our_own_are_known_by_the_digest_they_always_had() -> None:
    digest = hashlib.sha256()
    for name, tensor in sorted(tiny().state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert weights_sha256(tiny()) == digest.hexdigest()
