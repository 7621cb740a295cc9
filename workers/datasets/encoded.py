"""Encoded images as a data set: found by their index, fetched by their place, decoded when they are read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from stn_core.naming import one_line
from workers.datasets.base import DatasetError, ImageSet, Pixels, UnreadableImage
from workers.datasets.index import Entry, Index
from workers.files import File, Files
from workers.settings import EncodedDataset


class Reader(Protocol):
    """Where encoded images come from. It can be sent to other processes."""

    def fetch(self, entry: Entry) -> bytes:
        """The image as it is stored, whole. Raises UnreadableImage; what may pass is another error."""


class Decoder:
    """Encoded images as pixels."""

    def __init__(self, reader: Reader, dataset: EncodedDataset) -> None:
        self._reader, self._cut = reader, (dataset.resize, dataset.crop, dataset.interpolation)
        self._mode = _MODES[dataset.mode]

    def decoded(self, entry: Entry) -> Image.Image:
        """The whole image, in the data set's mode. Raises UnreadableImage; what may pass is another error."""
        try:
            return _decode(self._reader.fetch(entry), self._mode)
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
        # Runs from before there was a choice do not name it.
        cut += "" if dataset.mode == "rgb" else f" {dataset.mode}"
        self.fingerprint = hashlib.sha256(f"{cut}\n{index.source} {index.digest}".encode()).hexdigest()

    def key(self, index: int) -> int:
        name = self.index[index].name
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1 if name else index

    def read(self, index: int) -> Pixels:
        return self.decoder.pixels(self.index[index])


def check_size(file: File, containers: Mapping[str, int]) -> None:
    """Raise DatasetError if a file that holds images is another than the one that was indexed."""
    if file.size != containers.get(file.name, file.size):
        raise DatasetError(
            f"{file.name} has {file.size} bytes, and had {containers[file.name]} when it was indexed: "
            "another file is seen here, or it was changed"
        )


@dataclass(frozen=True)
class FileReader:
    """Images that are files, or lie in one.

    Attributes:
        files: of the data set.
        containers: those that images lie in, and the sizes that they must have, bytes.
        seen: of these, the ones that have been looked at.
    """

    files: Files
    containers: Mapping[str, int]
    seen: set[str] = field(default_factory=set)

    def fetch(self, entry: Entry) -> bytes:
        try:
            if entry.file == entry.name:
                content = self.files.read(entry.file)
            else:
                if entry.file not in self.seen:
                    check_size(self.files.file(entry.file), self.containers)
                    self.seen.add(entry.file)
                content = self.files.read_part(entry.file, entry.offset, entry.size)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            # Other errors may pass: they fail the shard, which is tried again.
            raise UnreadableImage(f"cannot be read: {error.strerror}") from error
        if entry.size not in (-1, len(content)):
            raise UnreadableImage(f"has {len(content)} bytes, and had {entry.size} when it was indexed")
        return content


#: What PIL calls the modes.
_MODES = {"rgb": "RGB", "gray": "L"}


def _decode(encoded: bytes, mode: str) -> Image.Image:
    """An encoded image in one of PIL's modes, 8 bits a channel. Raises UnreadableImage."""
    try:
        image: Any = Image.open(io.BytesIO(encoded))
        if image.mode.startswith("I"):
            # 16 bits a pixel: PIL would clip to 255 where the upper byte is meant.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert(mode)
    except UnidentifiedImageError as error:
        raise UnreadableImage("cannot be decoded: no image format known") from error
    except MemoryError:
        raise
    except Exception as error:  # the decoders let any exception of a damaged file through
        raise UnreadableImage(f"cannot be decoded: {one_line(error)}") from error


def _evaluated(image: Any, resize: int | None, crop: int | None, interpolation: str | None) -> Pixels:
    """The shorter side resized, the centre cropped; as the usual ImageNet evaluation does."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transform

    if resize is not None:
        image = transform.resize(image, [resize], InterpolationMode(interpolation or "bilinear"))
    if crop is not None:
        image = transform.center_crop(image, [crop, crop])
    return channels_first(image)


def channels_first(image: Image.Image) -> Pixels:
    """An image's pixels, uint8 (channels, height, width)."""
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
