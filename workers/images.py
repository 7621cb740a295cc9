"""Data sets: images by index, read where they are needed.

An ``ImageSet`` knows every image's label and key without reading pixels. A key is an image's identity, from which its
noise is derived: its number for arrays and tables, a hash of its relative path for files, so that the same file keeps
its noise in a smaller or larger folder. Encoded images are known by an index, which is made once and can be kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stn_core.naming import one_line
from workers.ahead import ahead
from workers.datasets import arrays
from workers.datasets.base import DatasetError, ImageSet, Pixels, UnreadableImage
from workers.datasets.catalogue import base, find_index
from workers.datasets.encoded import EncodedImages, FileReader
from workers.datasets.index import Index
from workers.datasets.tables import TableReader
from workers.files import open_files
from workers.selection import selected
from workers.settings import Cifar10, Dataset, Digits, Encoded, EncodedDataset, Mnist, ParquetImages
from workers.store import S3Options, StoreError

__all__ = ["DatasetError", "EncodedImages", "ImageSet", "Index", "Loaded", "Pixels", "UnreadableImage"]

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
            case Cifar10():
                return arrays.cifar10(dataset, open_files(dataset.path, options))
            case _:
                return indexed(dataset, options, find_index(dataset, options, known))
    except StoreError as error:
        raise DatasetError(f"dataset.path: {error}") from error
    except OSError as error:
        raise DatasetError(f"dataset.path cannot be read: {one_line(error)}") from error


def indexed(dataset: EncodedDataset, options: S3Options | None, index: Index) -> EncodedImages:
    """Encoded images by their index alone: nothing is looked for. Raises StoreError."""
    files = open_files(base(dataset, options), options)
    if isinstance(dataset, ParquetImages):
        return EncodedImages(dataset, index, TableReader(files, dataset.image_column, index.containers))
    return EncodedImages(dataset, index, FileReader(files, index.containers))


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
