"""Building a network by name, and loading its weights without ever unpickling code."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn

from stn_core.models import paper
from stn_core.naming import did_you_mean, one_line

_PAPER: dict[str, Callable[[int], nn.Module]] = {"mnist": paper.mnist, "cifar10": paper.cifar10}


def build_network(name: str, num_classes: int) -> nn.Module:
    """An untrained network.

    Args:
        name: "mnist" or "cifar10" (the paper's), a ``torchvision.models`` name, or "package.module:callable", called
            without arguments.
        num_classes: outputs of a named network; an imported one decides for itself.

    Raises:
        ValueError: no such network, or what was imported is none.
    """
    if ":" in name:
        return _import_network(name)
    if name in _PAPER:
        return _PAPER[name](num_classes)
    known = torchvision.models.list_models()
    if name in known:
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        return network
    raise ValueError(
        f"no network {name!r}{did_you_mean(name, [*_PAPER, *known])}; valid: {', '.join(_PAPER)}, "
        "a torchvision.models name, or package.module:callable"
    )


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a checkpoint into ``network``: a state dict, or a dict holding one under "state_dict".

    Raises:
        ValueError: the file is missing, is no checkpoint of plain tensors, or belongs to another network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"no checkpoint at {path}") from None
    except Exception as error:  # torch's reader lets any exception of a damaged file through
        raise ValueError(f"{path} is no readable checkpoint of plain tensors ({one_line(error)})") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise ValueError(f"{path} holds no state dict: save network.state_dict(), or a dict with it under 'state_dict'")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} holds the weights of another network: {_mismatch(network, state)}") from error


def weights_sha256(network: nn.Module) -> str:
    """Digest of names, types, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
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


def _mismatch(network: nn.Module, state: dict[str, torch.Tensor]) -> str:
    own = network.state_dict()
    for name in own:
        if name not in state:
            return f"it has no {name!r}"
        if own[name].shape != state[name].shape:
            return f"its {name!r} is {tuple(state[name].shape)}, the network's {tuple(own[name].shape)}"
    extra = next((name for name in state if name not in own), None)
    return "its tensors cannot be copied" if extra is None else f"the network has no {extra!r}"
