"""Checkpoints: files of weights, read without ever unpickling code."""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stn_core.naming import one_line

#: What wrappers put before a network's own names: nn.DataParallel; and, in the checkpoints of Cohen et al. 2019, an
#: nn.Sequential whose first layer normalises and holds no tensors.
_WRAPPINGS = ("module.", "1.module.", "1.", "module.1.")

#: torchvision publishes densely connected networks' weights under names of an older time.
_OLD_NAMES = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights.

    Attributes:
        source: where it came from.
        state: tensors by name.
        arch: the name of its network, where the file says so (as those of Cohen et al. do).
    """

    source: str
    state: dict[str, torch.Tensor]
    arch: str | None = None


def read_checkpoint(content: bytes, source: str) -> Checkpoint:
    """A state dict, or a dict that holds one under "state_dict".

    Args:
        content: the file's; in the safetensors format if ``source`` ends so, else PyTorch's.
        source: where the file came from.

    Raises:
        ValueError: the file is no checkpoint of plain tensors.
    """
    saved = _tensors(content, source)
    state = saved.get("state_dict", saved) if isinstance(saved, dict) else saved
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise ValueError(
            f"{source} holds no state dict: save network.state_dict(), or a dict with it under 'state_dict'"
        )
    arch = saved.get("arch") if state is not saved else None
    return Checkpoint(source, state, arch if isinstance(arch, str) else None)


def load_weights(network: nn.Module, checkpoint: Checkpoint) -> bool:
    """Load a checkpoint into ``network``, without what wrappers put before its names.

    Returns:
        Whether the network was saved behind another layer, which is not in the file.

    Raises:
        ValueError: the weights belong to another network.
    """
    wrapping = _wrapping(checkpoint.state, network.state_dict())
    state = {_OLD_NAMES.sub(r"\1", name.removeprefix(wrapping)): value for name, value in checkpoint.state.items()}
    _leave_out_unsaved_heads(network, state)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = _mismatch(network, state)
        raise ValueError(f"{checkpoint.source} holds the weights of another network: {reason}") from error
    return "1." in wrapping


def _wrapping(names: Iterable[str], own: Iterable[str]) -> str:
    """What stands before every name and makes them a network's own without it; nothing where they are already."""
    names, known = list(names), set(own)
    if known.intersection(names):
        return ""
    for wrapping in _WRAPPINGS:
        if all(name.startswith(wrapping) for name in names) and known & {name.removeprefix(wrapping) for name in names}:
            return wrapping
    return ""


def _leave_out_unsaved_heads(network: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Some of torchvision's networks have further heads for training alone, which not everybody saves."""
    if not getattr(network, "aux_logits", False):
        return
    heads = [name for name in ("AuxLogits", "aux1", "aux2") if isinstance(getattr(network, name, None), nn.Module)]
    if not any(name.startswith(tuple(f"{head}." for head in heads)) for name in state):
        for name, value in {"aux_logits": False, **dict.fromkeys(heads)}.items():
            setattr(network, name, value)


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


def _mismatch(network: nn.Module, state: dict[str, torch.Tensor]) -> str:
    own = network.state_dict()
    for name in own:
        if name not in state:
            return f"it has no {name!r}"
        if own[name].shape != state[name].shape:
            return f"its {name!r} is {tuple(state[name].shape)}, the network's {tuple(own[name].shape)}"
    extra = next((name for name in state if name not in own), None)
    return "its tensors cannot be copied" if extra is None else f"the network has no {extra!r}"
