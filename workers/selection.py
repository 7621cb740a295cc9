"""Which images of a data set are used."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from workers.datasets.base import DatasetError
from workers.settings import Dataset


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
