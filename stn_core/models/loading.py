"""Building a network by name."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable

import torch
from torch import nn

from stn_core.models import paper, resnet, small
from stn_core.models.pretrained import classifiers, torchvision_models
from stn_core.naming import did_you_mean, one_line

#: The name of networks that are whole in their checkpoint: ``stn_core.models.exported``.
EXPORTED = "exported"

_OWN: dict[str, Callable[[int], nn.Module]] = {
    "mnist": paper.mnist,
    "cifar10": paper.cifar10,
    "mnist_small": small.mnist_small,
    "mnist_shallow": small.mnist_shallow,
    "cifar10_shallow": small.cifar10_shallow,
    "cifar_resnet20": resnet.cifar_resnet20,
    "cifar_resnet110": resnet.cifar_resnet110,
}


def build_network(name: str, num_classes: int) -> nn.Module:
    """An untrained network.

    Args:
        name: one of this project's (``paper``, ``small``, ``resnet``), a ``torchvision.models`` classifier's name, or
            "package.module:callable", called without arguments.
        num_classes: outputs of a named network; an imported one decides for itself.

    Raises:
        ValueError: no such network, or what was imported is none.
    """
    if ":" in name:
        return _import_network(name)
    if name in _OWN:
        return _OWN[name](num_classes)
    check_name(name)
    # Those of 2014 and 2015 ask to be told how they begin.
    begin = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = torchvision_models().get_model(name, weights=None, num_classes=num_classes, **begin)
    return network


def check_name(name: str) -> None:
    """Raise ValueError unless a network of this project or of torchvision is called so."""
    if name in _OWN:
        return
    known = classifiers()
    if name in known:
        return
    if name in torchvision_models().list_models():
        raise ValueError(f"network {name!r} of torchvision.models is no classifier of images, in floating point")
    raise ValueError(
        f"no network {name!r}{did_you_mean(name, [*_OWN, EXPORTED, *known])}; valid: {', '.join(_OWN)}, "
        f"a torchvision.models name, {EXPORTED}, or package.module:callable"
    )


def weights_sha256(network: nn.Module) -> str:
    """Digest of names, types, shapes and values of all parameters and buffers, and of an exported program's graph."""
    digest = hashlib.sha256()
    if getattr(network, "transform_input", False):
        digest.update(b"transform_input\n")  # torchvision's: the same weights, another normalisation inside
    for name, tensor in sorted(network.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def _import_network(path: str) -> nn.Module:
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"cannot import {path!r}: expected package.module:callable")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
        network = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"cannot import {path!r}: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{path!r} must return a torch.nn.Module, got {type(network).__name__}")
    return network
