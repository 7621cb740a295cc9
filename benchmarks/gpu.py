"""Votes per second of ResNet-50 at 224 x 224 on a GPU, against its compiled forward pass alone, and the chip's peak.

Needs nothing but numpy, scipy and torch; without torchvision it is the CIFAR ResNet-110 on 32 x 32 instead. Writes
results/gpu.json. Not yet run: the table in docs/speed.md has no figure from it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row, compare
from stn_core import Gaussian, count_votes
from stn_core.arithmetic import Precision, arithmetic
from stn_core.models import Compiled, build_network, folded

SIGMA = 0.5
ROWS = 512
PASSES = 40
RESULTS = Path(__file__).parent / "results" / "gpu.json"

#: Dense products of bfloat16 or float16, operations a second, by what torch calls the chip: NVIDIA's data sheets.
PEAKS = {"H200": 989e12, "H100 80GB HBM3": 989e12, "H100 PCIe": 756e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


def network() -> tuple[str, nn.Module, tuple[int, int, int], int]:
    """Its name, itself, the shape of its images, its classes."""
    if find_spec("torchvision"):
        return "ResNet-50 at 224 x 224", build_network("resnet50", 1000), (3, 224, 224), 1000
    return "CIFAR ResNet-110 at 32 x 32", build_network("cifar_resnet110", 10), (3, 32, 32), 10


def forward_alone(model: nn.Module, images: torch.Tensor, precision: Precision) -> None:
    """The network and nothing else, on images that are there already."""
    with torch.inference_mode(), arithmetic(precision, images.device):
        for _ in range(PASSES):
            model(images)
    torch.cuda.synchronize()


def rows() -> list[Row]:
    """Of each precision: counting against the forward pass alone, compiled both and not. None without a GPU."""
    if not torch.cuda.is_available():
        return []
    device = torch.device("cuda")
    name, plain, shape, classes = network()
    torch.manual_seed(0)
    plain = plain.eval().to(device).to(memory_format=torch.channels_last)
    fast = folded(plain)
    noisy = torch.randn(ROWS, *shape, device=device).contiguous(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (1, *shape), dtype=torch.uint8)
    with torch.inference_mode(), FlopCounterMode(display=False) as flops:
        fast(noisy)
    peak = next((peak for chip, peak in PEAKS.items() if chip in torch.cuda.get_device_name(device)), None)
    precisions: tuple[Precision, ...] = ("float32", "tensorfloat32", "bfloat16", "float16")
    found = []
    for precision in precisions:
        best = Compiled(fast).eval()
        alone = partial(forward_alone, best, noisy, precision)
        alone()
        start = time.perf_counter()
        alone()
        per_s = PASSES / (time.perf_counter() - start)
        for model, how, goal in ((best, "compiled", "≥ 0.95" if precision == "bfloat16" else ""), (fast, "eager", "")):
            ours = partial(
                count_votes,
                model,
                images,
                noise=Gaussian(SIGMA),
                draws=ROWS * PASSES,
                num_classes=classes,
                seed=0,
                keys=[0],
                batch_size=ROWS,
                device=device,
                precision=precision,
            )
            detail = f"forward alone {per_s * ROWS:.4g} images/s, {per_s * flops.get_total_flops() / 1e12:.4g} TFLOP/s"
            if peak is not None and precision in ("bfloat16", "float16"):
                detail += f", {per_s * flops.get_total_flops() / peak:.1%} of the chip's peak"
            row = compare(
                f"votes: {name}, {precision}, {how}",
                ours,
                "the compiled forward pass alone",
                alone,
                rounds=3,
                detail=detail,
                goal=goal,
            )
            print(f"{row.name}: {row.ratio:.3f} ({row.lowest:.3f} - {row.highest:.3f}) of {row.against}; {row.detail}")
            found.append(row)
    return found


def main() -> None:
    found = rows()
    if not found:
        print("no CUDA device: nothing measured")
        return
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "rows": list(map(dataclasses.asdict, found))}, indent=2) + "\n")


if __name__ == "__main__":
    main()
