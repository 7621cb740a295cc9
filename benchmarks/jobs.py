"""Whole jobs through `stn certify`'s own function: Ray's actors, a folder as the store, a process of its own."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn


def trivial() -> nn.Module:
    """A network whose answer costs nothing."""
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 10))


def write_mnist(folder: Path, images: int, side: int) -> None:
    """Random images in MNIST's files, of any size."""
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (images, side, side), dtype=np.uint8)
    header = struct.pack(">4i", 0x0803, images, side, side)
    (raw / "t10k-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    labels = (np.arange(images) % 10).astype(np.uint8)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x0801, images) + labels.tobytes())


def trivial_job(folder: Path) -> dict[str, Any]:
    """A spec, one image a shard."""
    return {
        "dataset": {"kind": "mnist", "path": str(folder), "split": "test"},
        "model": {"name": "benchmarks.jobs:trivial", "checkpoint": str(folder / "model.pt")},
        "noise": {"sigma": 0.5},
        "sampling": {"draws": 2},
        "radii": {"stop": 2, "step": 0.05},
        "store": {"run": str(folder / "run")},
        "resources": {"actors": 2, "shard_size": 1, "batch_size": 16},
    }
