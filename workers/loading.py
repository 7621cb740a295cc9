"""Training images, batch by batch: from memory, or decoded by processes of their own while the network learns.

What fits is kept in memory. Image files are read and decoded anew in every epoch, by processes of
``torch.utils.data.DataLoader``: benchmarks/loading.py measures it against Ray Data.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from workers.datasets.encoded import Decoder, channels_first
from workers.datasets.index import Entry
from workers.images import DIFFER, DatasetError, EncodedImages, Index, UnreadableImage, indexed, load_all, open_dataset
from workers.selection import selected
from workers.settings import STREAMED, EncodedDataset
from workers.settings import Dataset as DatasetSettings
from workers.store import S3Options

Arrays = tuple[torch.Tensor, torch.Tensor]


class Source(Protocol):
    """Images to train on or to measure with, by position from 0."""

    def __len__(self) -> int:
        """How many there are."""

    def batches(self, positions: Sequence[NDArray[np.int64]], seeds: Sequence[NDArray[np.uint64]]) -> Iterator[Arrays]:
        """Batch after batch.

        Args:
            positions: of each batch's images.
            seeds: for each of them, what its random crop follows from, where there is one.

        Yields:
            Images, uint8 (rows, channels, height, width), and labels, int64 (rows,).

        Raises:
            DatasetError: an image cannot be read, or differs in size from the others.
        """

    def close(self) -> None:
        """End whatever works for it."""


def open_source(
    key: str,
    dataset: DatasetSettings,
    *,
    storage: S3Options | None,
    only: NDArray[np.int64] | None = None,
    random_crop: int | None = None,
    loaders: int = 0,
    lasting: bool = True,
    index: Index | None = None,
) -> Source:
    """What a spec's training section names as ``key``.

    Args:
        key: its name in the spec, for messages.
        dataset: the section.
        storage: how to reach object storage.
        only: of the selected images, the positions of those to use; None: all.
        random_crop: side of crops of random size and place, pixels; None: as the section says.
        loaders: processes that decode; 0: none, images are decoded where they are asked for.
        lasting: they are kept from one call of ``batches`` to the next.
        index: of encoded images; None: made here.

    Raises:
        DatasetError: it cannot be used.
    """
    try:
        if isinstance(dataset, STREAMED):
            return _Streamed(key, dataset, storage, only, random_crop, loaders, lasting, index)
        found = load_all(dataset, storage, only, index)
    except DatasetError as error:
        raise DatasetError(f"{key}: {error}") from error
    return _InMemory(torch.from_numpy(found.pixels), torch.from_numpy(found.labels))


@dataclass(frozen=True)
class _InMemory:
    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, positions: Sequence[NDArray[np.int64]], seeds: Sequence[NDArray[np.uint64]]) -> Iterator[Arrays]:
        for rows in positions:
            yield self.pixels[rows], self.labels[rows]

    def close(self) -> None:
        pass


class _Streamed:
    """Image files, decoded when their turn comes."""

    def __init__(
        self,
        key: str,
        dataset: EncodedDataset,
        storage: S3Options | None,
        only: NDArray[np.int64] | None,
        random_crop: int | None,
        loaders: int,
        lasting: bool,
        index: Index | None,
    ) -> None:
        images = open_dataset(dataset, storage) if index is None else indexed(dataset, storage, index)
        assert isinstance(images, EncodedImages)
        images.index.hold()  # batches are of images from everywhere
        indices = np.array(selected(dataset, len(images)), dtype=np.int64)
        self._indices = indices if only is None else indices[only]
        self._key, self._batches = key, _Batches(images.index)
        self._loader: DataLoader[Any] = DataLoader(
            _Items(images.decoder, random_crop),
            batch_sampler=self._batches,  # type: ignore[arg-type]  # a list of items, of which a batch is made at once
            collate_fn=_collate,
            num_workers=loaders,
            # Ray's processes have threads, and a fork of those may wait for ever. Of a fork server's children none sees
            # that the trainer was killed.
            multiprocessing_context=multiprocessing.get_context("spawn") if loaders else None,
            persistent_workers=lasting and loaders > 0,
            generator=torch.Generator(),  # it draws seeds: not from what dropout draws from
        )

    def __len__(self) -> int:
        return len(self._indices)

    def batches(self, positions: Sequence[NDArray[np.int64]], seeds: Sequence[NDArray[np.uint64]]) -> Iterator[Arrays]:
        self._batches.items = [(self._indices[rows], chances) for rows, chances in zip(positions, seeds, strict=True)]
        for batch in self._loader:
            if isinstance(batch, str):
                raise DatasetError(f"{self._key}: {batch}")
            yield batch

    def close(self) -> None:
        # The loader ends its processes when it goes.
        del self._loader


@dataclass(frozen=True, slots=True)
class _Item:
    """An image to be read: its number in the data set, where it lies, what its random crop follows from."""

    index: int
    entry: Entry
    seed: int


class _Batches:
    """What the loader is asked for next: set anew for every epoch."""

    items: Sequence[tuple[NDArray[np.int64], NDArray[np.uint64]]] = ()

    def __init__(self, index: Index) -> None:
        self._index = index

    def __iter__(self) -> Iterator[Sequence[_Item]]:
        for indices, seeds in self.items:
            yield [
                _Item(number, self._index[number], seed)
                for number, seed in zip(indices.tolist(), seeds.tolist(), strict=True)
            ]

    def __len__(self) -> int:
        return len(self.items)


class _Items(Dataset[Any]):
    """Images as a loader's process reads them. An error is a value here: its type would not survive the way back."""

    def __init__(self, decoder: Decoder, random_crop: int | None) -> None:
        self._decoder, self._random_crop = decoder, random_crop

    def __getitem__(self, item: _Item) -> tuple[NDArray[np.uint8], int] | str:
        try:
            if self._random_crop is None:
                pixels = self._decoder.pixels(item.entry)
            else:
                pixels = _random_crop(self._decoder.decoded(item.entry), self._random_crop, item.seed)
        except UnreadableImage as error:
            return f"image {item.index}: {error}"
        return pixels, item.entry.label


def _random_crop(image: Any, side: int, seed: int) -> NDArray[np.uint8]:
    """A part of an image of random size (8 to 100 % of its area) and shape (3:4 to 4:3), resized to a square: the usual
    ImageNet recipe (Szegedy et al. 2015)."""
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms import functional as transform

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and no GPU's, which dropout draws from
        top, left, height, width = RandomResizedCrop.get_params(image, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3])
    cropped = transform.resized_crop(image, top, left, height, width, [side, side])
    return channels_first(cropped)


def _collate(items: list[tuple[NDArray[np.uint8], int] | str]) -> Arrays | str:
    read = [item for item in items if not isinstance(item, str)]
    if len(read) < len(items):
        return next(item for item in items if isinstance(item, str))
    if len({pixels.shape for pixels, _ in read}) > 1:
        return f"{DIFFER}, or random_crop to train"
    return torch.from_numpy(np.stack([pixels for pixels, _ in read])), torch.tensor([label for _, label in read])
