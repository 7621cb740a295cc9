"""The precision of a forward pass: set while votes are counted, and as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from stn_core import Gaussian, count_votes
from stn_core.arithmetic import Precision, arithmetic

BACKENDS: Any = torch.backends
CPU = torch.device("cpu")


def newer() -> list[str]:
    """How PyTorch's newer settings stand."""
    cuda, cudnn, mkldnn = BACKENDS.cuda.matmul, BACKENDS.cudnn, BACKENDS.mkldnn
    settings = [cuda, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]
    return [setting.fp32_precision for setting in settings]


def older() -> tuple[str, bool, bool]:
    """How its older ones do; PyTorch refuses to say where both were used and disagree."""
    return torch.get_float32_matmul_precision(), BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before, settings = older(), newer()
    yield
    torch.set_float32_matmul_precision(before[0])
    BACKENDS.cudnn.allow_tf32 = before[1]
    cuda, cudnn, mkldnn = BACKENDS.cuda.matmul, BACKENDS.cudnn, BACKENDS.mkldnn
    for setting, value in zip(
        [cuda, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn], settings, strict=True
    ):
        setting.fp32_precision = value


def _untouched() -> None: ...


def _older_off() -> None:
    BACKENDS.cudnn.allow_tf32 = False


def _older_medium() -> None:
    torch.set_float32_matmul_precision("medium")


BEFORE = [_untouched, _older_off, _older_medium]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16", "float16"])
def test_float32_is_what_the_precision_says_and_then_what_it_was(
    precision: Precision, before: Callable[[], None]
) -> None:
    before()
    state = older(), newer()
    with arithmetic(precision, CPU):
        tensorfloat32 = precision == "tensorfloat32"
        assert older() == (("high", True, True) if tensorfloat32 else ("highest", False, False))
        assert set(newer()) == ({"tf32"} if tensorfloat32 else {"ieee"})
        assert torch.is_autocast_enabled("cpu") == (precision in ("bfloat16", "float16"))
    assert (older(), newer()) == state
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("setting", [BACKENDS.cudnn.conv, BACKENDS.cuda.matmul], ids=["convolution", "matmul"])
def test_what_only_the_newer_settings_say_is_overruled_and_restored(setting: Any) -> None:
    BACKENDS.cudnn.allow_tf32 = False
    setting.fp32_precision = "tf32"
    state = newer()
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        older()
    with arithmetic("float32", CPU):
        assert older() == ("highest", False, False)
        assert set(newer()) == {"ieee"}
    assert newer() == state


def test_it_holds_in_the_network_and_an_error_leaves_nothing_behind() -> None:
    seen = []

    class Looking(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            seen.append(newer())
            return pixels.flatten(1)

    images = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    state = older(), newer()
    for classes in (4, 5):
        try:
            count_votes(Looking(), images, noise=Gaussian(1), draws=1, num_classes=classes, seed=0, keys=[0])
        except ValueError:
            assert classes == 5
        assert (older(), newer()) == state
    assert seen == [["ieee"] * 6] * 2


def test_tensorfloat32_is_float32_where_there_is_none() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    images = torch.full((2, 1, 4, 4), 100, dtype=torch.uint8)
    votes = [
        count_votes(network, images, noise=Gaussian(1), draws=200, num_classes=3, seed=0, keys=[0, 1], precision=name)
        for name in ("float32", "tensorfloat32")
    ]
    assert (votes[0].votes == votes[1].votes).all()
    assert (votes[0].votes > 0).sum() > 2


def test_no_other_precision_is_known() -> None:
    with pytest.raises(ValueError, match="one of float32, tensorfloat32, bfloat16, float16, got 'float64'"):
        arithmetic("float64", CPU).__enter__()  # type: ignore[arg-type]
