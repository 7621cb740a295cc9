"""Building a network by name, and loading its weights without ever unpickling code."""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn

from stn_core.models import paper, resnet, small
from stn_core.naming import did_you_mean, one_line

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
        name: one of this project's (``paper``, ``small``, ``resnet``), a ``torchvision.models`` name, or
            "package.module:callable", called without arguments.
        num_classes: outputs of a named network; an imported one decides for itself.

    Raises:
        ValueError: no such network, or what was imported is none.
    """
    if ":" in name:
        return _import_network(name)
    if name in _OWN:
        return _OWN[name](num_classes)
    known = torchvision.models.list_models()
    if name in known:
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        return network
    raise ValueError(
        f"no network {name!r}{did_you_mean(name, [*_OWN, *known])}; valid: {', '.join(_OWN)}, "
        "a torchvision.models name, or package.module:callable"
    )


def load_weights(network: nn.Module, content: bytes, source: str) -> None:
    """Load a checkpoint into ``network``: a state dict, or a dict holding one under "state_dict".

    Args:
        network: to load into.
        content: the checkpoint file's; in the safetensors format if ``source`` ends so, else PyTorch's.
        source: where the file came from.

    Raises:
        ValueError: the file is no checkpoint of plain tensors, or belongs to another network.
    """
    saved = _tensors(content, source)
    state = saved.get("state_dict", saved) if isinstance(saved, dict) else saved
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise ValueError(
            f"{source} holds no state dict: save network.state_dict(), or a dict with it under 'state_dict'"
        )
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{source} holds the weights of another network: {_mismatch(network, state)}") from error


def weights_sha256(network: nn.Module) -> str:
    """Digest of names, types, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def _tensors(content: bytes, source: str) -> Any:
    """What a checkpoint file holds. Neither reader runs code that may be in one."""
    if source.endswith(".safetensors"):
        try:
            import safetensors.torch
        except ImportError:
            raise ValueError(f"{source} needs the package safetensors: pip install safetensors") from None
    try:
        if source.endswith(".safetensors"):
            return safetensors.torch.load(content)
        with warnings.catch_warnings(action="ignore"):  # about how the file was pickled
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the readers let any exception of a damaged file through
        raise ValueError(f"{source} is no readable checkpoint of plain tensors ({_reason(content, error)})") from error


def _reason(content: bytes, error: Exception) -> str:
    """Why a checkpoint is refused. PyTorch's own words for what is no tensor advise to run it."""
    if not content:
        return "it is empty"
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = named[1] if named else "something else"
        return f"it holds {what}, and nothing in a checkpoint is ever run: save network.state_dict()"
    return one_line(error)


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
