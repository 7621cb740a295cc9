"""Real files for tests: MNIST's raw format, image folders, Parquet of encoded images."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image

#: The struct that Hugging Face and others keep an encoded image in.
IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def noise_image(seed: int, size: int = 28, channels: int = 3) -> NDArray[np.uint8]:
    """Random pixels, (size, size, channels), or (size, size) for one channel."""
    shape = (size, size, channels) if channels > 1 else (size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels: NDArray[np.uint8], kind: str = "png") -> bytes:
    """An image file's bytes."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    """A folder of files, by relative path."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def cached_weights(home: Path, network: str, weights: str, state: Any) -> Path:
    """Weights where torch.hub keeps what it downloaded, if ``home`` is $TORCH_HOME."""
    url = torchvision.models.get_model_weights(network)[weights].url
    path = home / "hub/checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def tar(members: Mapping[str, bytes], kind: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar file of these members, in the order given."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def write_parquet(
    path: Path, images: Sequence[bytes | None], labels: Sequence[int | None], *, rows_per_group: int = 1000
) -> Path:
    """A Parquet file with a struct column "image" and an integer column "label"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = pa.array([{"bytes": content, "path": None} for content in images], IMAGE_STRUCT)
    table = pa.table({"image": structs, "label": pa.array(labels, pa.int64())})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


class _Python2(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python, which can be taught
    """Writes what Python 2 and NumPy of 2009 wrote: strings of bytes, and numbers for booleans."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_text(self, text: bytes | str) -> None:
        raw = text.encode() if isinstance(text, str) else text
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)

    def save_truth(self, truth: bool) -> None:
        self.save_long(int(truth))

    dispatch[bytes] = dispatch[str] = save_text
    dispatch[bool] = save_truth


def python2_pickle(value: Any) -> bytes:
    """As CIFAR-10's files are."""
    sink = io.BytesIO()
    _Python2(sink, protocol=2).dump(value)
    return sink.getvalue()


def write_cifar10(root: Path, files: Mapping[str, Any]) -> dict[str, str]:
    """Files of CIFAR-10 as torchvision keeps them; their MD5 sums by name."""
    contents = {name: python2_pickle(value) for name, value in files.items()}
    write_folder(root / "cifar-10-batches-py", contents)
    return {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in contents.items()}


def write_mnist(
    root: Path, train: tuple[NDArray[np.uint8], Sequence[int]], test: tuple[NDArray[np.uint8], Sequence[int]]
) -> Path:
    """MNIST's four raw files as torchvision keeps them; images are (number, 28, 28)."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, (images, labels) in (("train", train), ("t10k", test)):
        header = struct.pack(">4i", 0x0803, *images.shape)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x0801, len(labels)) + bytes(labels))
    return root
