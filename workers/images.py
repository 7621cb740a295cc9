"""Data sets: images by index, read where they are needed.

An ``ImageSet`` knows every image's label and key without reading pixels. A key is an image's identity, from which its
noise is derived: its number for arrays and tables, a hash of its relative path for files, so that the same file keeps
its noise in a smaller or larger folder. Encoded images are known by an index, which is made once and can be kept.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from stn_core.naming import one_line
from workers.ahead import ahead
from workers.datasets import arrays, folders, tables, tars
from workers.datasets.base import DatasetError, ImageSet, Pixels, UnreadableImage
from workers.datasets.classes import class_names, labels_of
from workers.datasets.index import Entry, Index, build
from workers.files import File, Files, open_files, parent_and_name, read_file
from workers.settings import (
    Dataset,
    Digits,
    Encoded,
    EncodedDataset,
    ImageFolder,
    ImageNet,
    Mnist,
    ParquetImages,
    WebDataset,
)
from workers.store import S3Options, StoreError, open_store

__all__ = [
    "DIFFER",
    "DatasetError",
    "Decoder",
    "EncodedImages",
    "ImageSet",
    "Index",
    "Loaded",
    "Pixels",
    "UnreadableImage",
    "indexed",
    "load_all",
    "open_dataset",
    "selected",
]

#: Of images that are to be a batch.
DIFFER = "its images differ in size: set resize and crop"


def open_dataset(dataset: Dataset, options: S3Options | None = None, known: Index | None = None) -> ImageSet:
    """The images a spec's ``dataset`` section names.

    Encoded images are looked for, and indexed, unless an index at ``dataset.index`` does it; a new one is left there.

    Args:
        dataset: the section.
        options: for object storage.
        known: an index made before; it serves if the files that hold the images are still those.

    Raises:
        DatasetError: there is no such data set.
    """
    try:
        match dataset:
            case Digits():
                return arrays.digits(dataset)
            case Mnist():
                return arrays.mnist(dataset, open_files(dataset.path, options))
            case _:
                return indexed(dataset, options, _index(dataset, options, known))
    except StoreError as error:
        raise DatasetError(f"dataset.path: {error}") from error
    except OSError as error:
        raise DatasetError(f"dataset.path cannot be read: {one_line(error)}") from error


def indexed(dataset: EncodedDataset, options: S3Options | None, index: Index) -> EncodedImages:
    """Encoded images by their index alone: nothing is looked for. Raises StoreError."""
    place = _base(dataset, options)
    files = open_files(place, options)
    if isinstance(dataset, ParquetImages):
        return EncodedImages(dataset, index, tables.TableReader(files, dataset.image_column))
    return EncodedImages(dataset, index, _FileReader(files))


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


def load_all(
    dataset: Dataset,
    options: S3Options | None = None,
    only: NDArray[np.int64] | None = None,
    index: Index | None = None,
) -> Loaded:
    """All images that a ``dataset`` section selects, or ``only`` those of them, by an index or newly found.

    Raises:
        DatasetError: there is no such data set, or one of the images cannot be read.
    """
    if index is not None and isinstance(dataset, Encoded):
        images: ImageSet = indexed(dataset, options, index)
    else:
        images = open_dataset(dataset, options)
    indices = np.array(selected(dataset, len(images)))
    indices = indices if only is None else indices[only]

    def read(index: int) -> Pixels:
        try:
            return images.read(index)
        except UnreadableImage as error:
            raise DatasetError(f"image {index}: {error}") from error

    pixels = list(ahead(read, indices.tolist()))
    try:
        return Loaded(np.stack(pixels), images.labels[indices], indices, images.num_classes)
    except ValueError as error:
        raise DatasetError(DIFFER) from error


def selected(dataset: Dataset, images: int) -> Sequence[int]:
    """Indices used of a set of ``images`` images, ascending. Raises DatasetError if one of those listed is none."""
    if dataset.indices is None:
        return range(images)[:: dataset.every][: dataset.limit]
    if dataset.indices and dataset.indices[-1] >= images:
        raise DatasetError(f"dataset.indices names image {dataset.indices[-1]}, and the data set has {images}")
    return Listed(np.array(dataset.indices, dtype=np.int64)[:: dataset.every][: dataset.limit])


class Listed(Sequence[int]):
    """Ascending numbers, of which any can be looked up: as a range, without its regularity."""

    def __init__(self, numbers: NDArray[np.int64]) -> None:
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> Listed: ...

    def __getitem__(self, place: int | slice) -> int | Listed:
        return Listed(self._numbers[place]) if isinstance(place, slice) else int(self._numbers[place])

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Listed) and np.array_equal(self._numbers, other._numbers)

    def __hash__(self) -> int:
        return hash(self._numbers.tobytes())

    def __contains__(self, number: object) -> bool:
        place = bisect.bisect_left(self._numbers, number)
        return place < len(self) and bool(self._numbers[place] == number)

    def index(self, number: int, start: int = 0, stop: int | None = None) -> int:
        place = bisect.bisect_left(self._numbers, number, start, len(self) if stop is None else stop)
        if place == len(self) or self._numbers[place] != number:
            raise ValueError(f"{number} is not in the list")
        return int(place)


class Reader(Protocol):
    """Where encoded images come from. It can be sent to other processes."""

    def fetch(self, entry: Entry) -> bytes:
        """The image as it is stored, whole. Raises UnreadableImage; what may pass is another error."""


class Decoder:
    """Encoded images as pixels."""

    def __init__(self, reader: Reader, dataset: EncodedDataset) -> None:
        self._reader, self._cut = reader, (dataset.resize, dataset.crop, dataset.interpolation)

    def decoded(self, entry: Entry) -> Image.Image:
        """The whole image as RGB. Raises UnreadableImage; what may pass is another error."""
        try:
            return _decode(self._reader.fetch(entry))
        except UnreadableImage as error:
            raise UnreadableImage(f"{entry.name} {error}".strip()) from error

    def pixels(self, entry: Entry) -> Pixels:
        """uint8 (channels, height, width), resized and cropped. Raises as ``decoded`` does."""
        return _evaluated(self.decoded(entry), *self._cut)


class EncodedImages(ImageSet):
    """Images that are decoded when they are read."""

    def __init__(self, dataset: EncodedDataset, index: Index, reader: Reader) -> None:
        self.index, self.decoder = index, Decoder(reader, dataset)
        self.labels, self.num_classes, self.classes = index.labels, index.num_classes, index.classes
        cut = f"{dataset.resize} {dataset.crop} {dataset.interpolation or 'bilinear'}"
        self.fingerprint = hashlib.sha256(f"{cut}\n{index.source} {index.digest}".encode()).hexdigest()

    def key(self, index: int) -> int:
        name = self.index[index].name
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1 if name else index

    def read(self, index: int) -> Pixels:
        return self.decoder.pixels(self.index[index])


@dataclass(frozen=True)
class _FileReader:
    """Images that are files, or lie in one."""

    files: Files

    def fetch(self, entry: Entry) -> bytes:
        try:
            if entry.file == entry.name:
                content = self.files.read(entry.file)
            else:
                content = self.files.read_part(entry.file, entry.offset, entry.size)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            # Other errors may pass: they fail the shard, which is tried again.
            raise UnreadableImage(f"cannot be read: {error.strerror}") from error
        if entry.size not in (-1, len(content)):
            raise UnreadableImage(f"has {len(content)} bytes, and had {entry.size} when it was indexed")
        return content


def _index(dataset: EncodedDataset, options: S3Options | None, known: Index | None) -> Index:
    """The data set's index: the one that is kept for it, the one known, or a new one."""
    place = _base(dataset, options)
    files = open_files(place, options)
    names = None if isinstance(dataset, ParquetImages) else class_names(dataset.classes_from, options)
    containers: Sequence[File] = ()
    label: dict[str, int] = {}
    if isinstance(dataset, ParquetImages | WebDataset):
        containers = _containers(dataset, place, files)
        source = _source(dataset, names, [f"{file.name} {file.size}" for file in containers])
    else:
        found = folders.class_folders(files, place)
        label = labels_of(found, names)
        names = names or tuple(found)
        source = _source(dataset, names, [])
    kept = _kept(dataset, options)
    if kept is not None and kept.source != source:
        raise DatasetError(
            f"dataset.index {dataset.index} is of other data than dataset.path {place}: "
            "remove it, and it is made anew, or name another"
        )
    if kept is not None:
        return kept
    if containers and known is not None and known.source == source:
        return known
    if isinstance(dataset, ParquetImages):
        classes, entries = tables.table_entries(dataset, place, files, containers)
        index = build(entries, classes, source)
    elif isinstance(dataset, WebDataset):
        index = build(tars.tar_entries(dataset, place, files, containers, names), names, source)
    else:
        index = build(folders.folder_entries(files, place, label), names, source)
    _keep(dataset, options, index)
    return index


def _source(dataset: EncodedDataset, names: tuple[str, ...] | None, containers: Sequence[str]) -> str:
    """What an index follows from, as far as one may know without reading: two that agree are of the same data."""
    own = {"kind", "split", "image_column", "label_column", "label_extension", "label_field"}
    settings = dataset.model_dump(mode="json", include=own)
    return hashlib.sha256(json.dumps([settings, names, containers], sort_keys=True).encode()).hexdigest()


def _kept(dataset: EncodedDataset, options: S3Options | None) -> Index | None:
    if dataset.index is None:
        return None
    try:
        return Index(read_file(dataset.index, options))
    except FileNotFoundError:
        return None
    except (DatasetError, StoreError, OSError) as error:
        raise DatasetError(f"dataset.index {dataset.index} {one_line(error)}") from error


def _keep(dataset: EncodedDataset, options: S3Options | None, index: Index) -> None:
    if dataset.index is not None:
        parent, name = parent_and_name(dataset.index)
        try:
            open_store(str(parent), options).create(name, index.content.to_pybytes())
        except StoreError as error:
            raise DatasetError(f"dataset.index: {error}") from error


def _base(dataset: EncodedDataset, options: S3Options | None) -> Path | str:
    """The folder that a data set's files are relative to. A path may be that of a single file."""
    path = dataset.path
    if isinstance(dataset, ImageNet):
        return path / dataset.split if isinstance(path, Path) else f"{path.rstrip('/')}/{dataset.split}"
    if isinstance(dataset, ImageFolder):
        return path
    suffix = _SUFFIX[dataset.kind]
    if isinstance(path, Path):
        return path.parent if path.is_file() else path
    return parent_and_name(path)[0] if path.endswith(suffix) and _is_object(path, options) else path


def _is_object(path: str, options: S3Options | None) -> bool:
    parent, name = parent_and_name(path)
    try:
        open_files(parent, options).file(name)
    except FileNotFoundError:
        return False
    return True


_SUFFIX = {"parquet": ".parquet", "webdataset": ".tar"}


def _containers(dataset: ParquetImages | WebDataset, place: Path | str, files: Files) -> Sequence[File]:
    """The files that hold a data set's images: those of a folder, or the one that its path is."""
    try:
        if place != dataset.path:
            return [files.file(parent_and_name(dataset.path)[1])]
        found = [file for file in files.list() if file.name.endswith(_SUFFIX[dataset.kind])]
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(f"no file at dataset.path {dataset.path}") from None
    if not found:
        raise DatasetError(f"dataset.path {dataset.path} holds no images: no {_SUFFIX[dataset.kind]} files")
    return found


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
