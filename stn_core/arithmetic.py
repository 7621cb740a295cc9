"""The arithmetic of a forward pass: its precision, for as long as votes are counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch

#: tensorfloat32: float32 whose products are made of 10 binary digits, on GPUs that have it; elsewhere float32.
Precision = Literal["float32", "tensorfloat32", "bfloat16", "float16"]

_AUTOCAST_DTYPE = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@contextlib.contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within it, networks on ``device`` calculate in that precision; what the process had set before is restored.

    "bfloat16" and "float16" are autocast. Whatever stays in float32 is float32 without shortcuts, which PyTorch's own
    default is not (convolutions may use TensorFloat-32), save under "tensorfloat32".

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    dtype = _AUTOCAST_DTYPE.get(precision)
    lowered = contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
    with _float32_products(tensorfloat32=precision == "tensorfloat32"), lowered:
        yield


@contextlib.contextmanager
def _float32_products(*, tensorfloat32: bool) -> Iterator[None]:
    """How products of float32 are made, in matrix products and convolutions alike."""
    backends: Any = torch.backends
    # PyTorch has an older and a newer way to set this, which must agree where it reads either. The older one neither
    # reads nor restores what was set by the newer one alone, nor undoes what the newer one set for all backends.
    newer = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    newer += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    before_newer = [setting.fp32_precision for setting in newer]
    try:
        before = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:
        before = None
    torch.set_float32_matmul_precision("high" if tensorfloat32 else "highest")
    backends.cudnn.allow_tf32 = tensorfloat32
    for setting in newer:
        setting.fp32_precision = "tf32" if tensorfloat32 else "ieee"
    try:
        yield
    finally:
        if before is not None:
            torch.set_float32_matmul_precision(before[0])
            backends.cudnn.allow_tf32 = before[1]
        for setting, value in zip(newer, before_newer, strict=True):
            setting.fp32_precision = value
