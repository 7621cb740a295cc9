"""How certificates lie in their Parquet file, so that a filter on line, label or radius reads little.

Readers skip groups of rows by the least and greatest values that a group's statistics tell. So each line of
certificates has groups of its own; its rows are cut into bands of radius, and each band, by label, into groups. All
groups have some `1 / sqrt(groups)` of a line's labels and as much of its radii.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

#: Rows of all lines that are laid out at once: some 30 MiB. Larger tables are several such blocks, one after another.
_BLOCK = 2**18

#: A block has at most so many groups of each line, of at least so many rows on average: each costs whoever reads the
#: whole table a millisecond, and the file a kilobyte or two.
_MOST_GROUPS = 64
_FEWEST_ROWS = 512


def writing(schema: pa.Schema) -> dict[str, Any]:
    """Settings for ``pyarrow.parquet.ParquetWriter``: rows in order of label and index are small as differences."""
    whole = [field.name for field in schema if pa.types.is_int64(field.type) and field.name != "draws"]
    return {
        "compression": "zstd",
        "use_dictionary": [name for name in schema.names if name not in whole],
        "column_encoding": dict.fromkeys(whole, "DELTA_BINARY_PACKED"),
        "sorting_columns": pq.SortingColumn.from_ordering(schema, [("label", "ascending"), ("index", "ascending")]),
    }


class Blocks:
    """Rows as they come, given out as row groups.

    Where blocks end depends on the number of rows alone, not on the parts that they come in.
    """

    def __init__(self, lines: int) -> None:
        """``lines``: of certificates, that the same number of rows will come of."""
        self._size = max(1, _BLOCK // max(1, lines))
        self._held: dict[Hashable, pa.Table] = {}

    def add(self, line: Hashable, rows: pa.Table) -> Iterator[pa.Table]:
        """Take rows of a line in, in order of index; row groups of what is a block by now."""
        held = self._held.get(line)
        rows = rows if held is None else pa.concat_tables([held, rows])
        while len(rows) >= self._size:
            yield from row_groups(rows.slice(0, self._size))
            rows = rows.slice(self._size)
        self._held[line] = rows

    def rest(self) -> Iterator[pa.Table]:
        """Row groups of what is left."""
        for rows in self._held.values():
            yield from row_groups(rows)
        self._held.clear()


def row_groups(rows: pa.Table) -> Iterator[pa.Table]:
    """Rows of one line, which are in order of index, as row groups, each in order of label and index.

    A radius, and in a band a label, is in one group alone, however many rows have it.
    """
    if not len(rows):
        return
    rows = rows.combine_chunks()
    own = rows["label"].to_numpy()
    labels = np.unique(own)
    label = np.searchsorted(labels, own)
    across, bands = _cuts(len(rows), len(labels))
    band = _bands(rows["radius"].to_numpy(), bands)
    # Small numbers, which numpy sorts in linear time.
    place = band * len(labels) + label
    place = place.astype(np.min_scalar_type(int(place.max())))
    of_place = np.bincount(place, minlength=bands * len(labels)).reshape(bands, len(labels))
    rows = rows.take(pa.array(np.argsort(place, kind="stable")))
    start = 0
    for number in of_place:
        for size in _groups(number, len(rows) / (across * bands), across):
            yield rows.slice(start, size)
            start += size


def _cuts(rows: int, labels: int) -> tuple[int, int]:
    """Into how many groups a band is to be cut by label, and a line by radius."""
    groups = min(_MOST_GROUPS, max(1, rows // _FEWEST_ROWS))
    across = min(labels, math.ceil(math.sqrt(groups)))
    return across, max(1, groups // across)


def _bands(radius: NDArray[np.float64], bands: int) -> NDArray[np.int64]:
    """Each row's band, of about as many rows each as equal radii allow."""
    places = len(radius) * np.arange(1, bands) // bands
    return np.searchsorted(np.unique(np.partition(radius, places)[places]), radius, side="right")


def _groups(of_label: NDArray[np.int64], wanted: float, across: int) -> Iterator[int]:
    """Sizes of the groups of a band, of some ``wanted`` rows each, that has so many rows of each label."""
    total = int(of_label.sum())
    if not total:
        return
    # A band of many equal radii is larger than others, and is cut into more.
    size = total / max(1, min(round(total / wanted), max(across, int(np.count_nonzero(of_label)))))
    middle = np.cumsum(of_label) - of_label / 2
    for group in np.unique(own := (middle // size).astype(np.int64)):
        if number := int(of_label[own == group].sum()):
            yield number
