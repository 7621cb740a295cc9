"""The table of votes: its schema, and the way between dense counts and sparse rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workers import sealed
from workers.columns import column

#: Version of the columns below. A reader refuses a newer one.
SCHEMA_VERSION = 2

#: A type: the classes that have votes, ascending.
VOTES = pa.list_(
    pa.struct([pa.field("class", pa.int32(), nullable=False), pa.field("votes", pa.int64(), nullable=False)])
)

SCHEMA = pa.schema(
    [
        column("index", pa.int64(), "the image's number in the data set"),
        column(
            "key",
            pa.int64(),
            "the image's identity, which its noise is derived from: its number for arrays and tables, a hash of its "
            "relative path for files",
        ),
        column("label", pa.int64(), "its true class"),
        column("selection", VOTES, "selection votes: the classes that have some, ascending, and how many"),
        column("estimation", VOTES, "estimation votes, likewise"),
        column("selection_draws", pa.int64(), "noisy copies classified for selection, invalid ones included"),
        column("draws", pa.int64(), "noisy copies classified for estimation, likewise; 0 where there is an error"),
        column("selection_invalid", pa.int64(), "selection draws whose logits held a NaN: they vote for no class"),
        column("invalid", pa.int64(), "estimation draws whose logits held a NaN, likewise"),
        column(
            "selection_ties",
            pa.int64(),
            "selection draws whose largest logit several classes shared: the lowest of them got the vote",
            null="in version 1, which did not count them",
        ),
        column("ties", pa.int64(), "estimation draws with such a tie", null="in version 1"),
        column("error", pa.string(), "why the image could not be counted", null="where it could"),
    ]
)

#: Columns that came later, and with which version.
_SINCE = {"selection_ties": 2, "ties": 2}


def sparse(votes: NDArray[np.int64]) -> pa.ListArray:
    """Dense votes (images, classes) as lists of {class, votes}, zeros left out."""
    rows, classes = np.nonzero(votes)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(votes)))]).astype(np.int32)
    items = pa.StructArray.from_arrays(
        [pa.array(classes.astype(np.int32)), pa.array(votes[rows, classes].astype(np.int64))],
        fields=list(VOTES.value_type),
    )
    return pa.ListArray.from_arrays(offsets, items, type=VOTES)


def dense(votes: pa.ChunkedArray | pa.ListArray, num_classes: int) -> NDArray[np.int64]:
    """The inverse of ``sparse``: int64 (images, num_classes)."""
    lists = votes.combine_chunks() if isinstance(votes, pa.ChunkedArray) else votes
    if isinstance(lists, pa.ChunkedArray):  # an empty column has no chunks to combine
        return np.zeros((0, num_classes), dtype=np.int64)
    counts = np.zeros((len(lists), num_classes), dtype=np.int64)
    rows = np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
    items = lists.flatten()
    counts[rows, items.field("class").to_numpy()] = items.field("votes").to_numpy()
    return counts


def totals(votes: pa.ChunkedArray, num_classes: int) -> NDArray[np.int64]:
    """Each row's votes, int64 (images,). Raises ValueError unless classes exist and ascend, and no count is
    negative."""
    if not len(votes):
        return np.zeros(0, dtype=np.int64)
    lists = votes.combine_chunks()
    items = lists.flatten()
    counts, classes = items.field("votes").to_numpy(), items.field("class").to_numpy()
    offsets = lists.offsets.to_numpy() - lists.offsets[0].as_py()
    first_of_row = np.zeros(len(classes) + 1, dtype=bool)
    first_of_row[offsets] = True
    if counts.min(initial=0) < 0 or classes.min(initial=0) < 0 or classes.max(initial=0) >= num_classes:
        raise ValueError("its votes are negative, or for classes that do not exist")
    if not np.all(first_of_row[1:-1] | (np.diff(classes) > 0)):
        raise ValueError("its votes name a class twice")
    running = np.concatenate([[0], np.cumsum(counts)])
    return running[offsets[1:]] - running[offsets[:-1]]


def encode(table: pa.Table, provenance: Mapping[str, Any]) -> bytes:
    """A Parquet file of count rows. The same table and provenance give the same bytes."""
    return sealed.seal(table, SCHEMA, SCHEMA_VERSION, provenance)


def decode(content: bytes) -> tuple[pa.Table, dict[str, Any]]:
    """Rows and provenance of a Parquet file written by ``encode``, held against their checksum if there is one.

    Raises:
        NewerVersion: the file is of a newer version.
        ValueError: it is damaged, or no count table.
    """
    return sealed.unseal(content, SCHEMA, SCHEMA_VERSION, "votes", _SINCE)
