"""The index of a data set of encoded images: what each is called, its label, and where its bytes lie.

It is Parquet, written once in passing and read a group of rows at a time: a data set of millions of images needs some
twenty bytes of memory for each. A run keeps its own (``workers.layout.INDEX``), and workers read that instead of
looking for the images themselves.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workers.columns import column
from workers.datasets.base import DatasetError

VERSION = 1

#: Rows of a group: what one image's entry costs to look up, and what is kept in memory of it.
_GROUP = 8192
#: Groups kept: those of the shard at work and of the next.
_KEPT = 4
_METADATA = b"stn.index"

#: Largest label that is taken for one.
_LARGEST = 10_000_000

SCHEMA = pa.schema(
    [
        column("name", pa.string(), "what the image is called, its identity", null="of a table's row"),
        column("label", pa.int64(), "its true class"),
        column("file", pa.string(), "that holds it, relative to the data set", null="where it is a file of its own"),
        column("offset", pa.int64(), "of its first byte in that file, bytes; of a table, the row's number"),
        column("size", pa.int64(), "bytes; -1 for a link to nowhere, and for a table's row"),
    ]
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One encoded image.

    Attributes:
        name: what it is called, its identity. Empty for a table's row, which is known by its number.
        label: its class.
        file: the file that holds it, a path relative to the data set.
        offset: of its first byte in that file; of a table, the row's number in it.
        size: bytes; -1 for a link to nowhere, and for a table's row.
    """

    name: str
    label: int
    file: str
    offset: int
    size: int


class Index:
    """Entries by number, from 0. Safe to read from several threads, and can be sent to other processes.

    Attributes:
        labels: int64 (images,).
        num_classes: labels lie in 0 … num_classes - 1, where classes are named.
        classes: names by label; None where the data set has none.
        digest: sha-256 of all entries.
        source: what it was made from, see ``build``.
        containers: files that hold the images, and their sizes, bytes; none where each is a file of its own.
        content: the whole of it, as it is kept in storage.
    """

    def __init__(self, content: pa.Buffer | bytes) -> None:
        """Open one, by what it is in storage. Raises DatasetError."""
        self.content = pa.py_buffer(content)
        self._lock = threading.Lock()
        self._groups: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()
        self._held: pa.Table | None = None
        try:
            self._file = pq.ParquetFile(pa.BufferReader(self.content), page_checksum_verification=True)
            facts = json.loads(self._file.metadata.metadata[_METADATA])
            if facts["version"] > VERSION:
                raise DatasetError("was written by a newer version: update this installation")
            self.labels: NDArray[np.int64] = self._file.read(["label"]).column(0).to_numpy()
            self.num_classes: int = facts["num_classes"]
            self.classes = None if facts["classes"] is None else tuple(facts["classes"])
            self.digest: str = facts["digest"]
            self.source: str = facts["source"]
            self.containers: dict[str, int] = facts["containers"]
            meta = self._file.metadata
            groups = [meta.row_group(number).num_rows for number in range(meta.num_row_groups)]
            if any(rows != _GROUP for rows in groups[:-1]):
                raise ValueError("other groups")
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise DatasetError("is no index of a data set, or damaged: remove it, and it is made anew") from error

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        return Index, (self.content,)

    def hold(self) -> None:
        """Keep all entries in memory, for who wants them in any order."""
        self._held = self._file.read().combine_chunks()

    def __getitem__(self, number: int) -> Entry:
        found = self._row(number)
        name = found["name"] or ""
        file = name if found["file"] is None else found["file"]
        if file.startswith("/") or ".." in file.split("/"):
            raise DatasetError(
                f"the data set's index names {file!r}, which lies outside the data set: remove the index"
            )
        return Entry(name, found["label"], file, found["offset"], found["size"])

    def _row(self, number: int) -> dict[str, Any]:
        if self._held is not None:
            return {name: self._held.column(name)[number].as_py() for name in SCHEMA.names}
        group, row = divmod(number, _GROUP)
        with self._lock:
            rows = self._groups.get(group)
            if rows is None:
                rows = self._file.read_row_group(group).to_pylist()
                self._groups[group] = rows
                if len(self._groups) > _KEPT:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
        return rows[row]


def check_digest(index: Index) -> None:
    """Raise DatasetError unless an index holds the entries that it is known by."""
    digest = hashlib.sha256()
    for number in range(len(index)):
        digest.update(_line(index[number]))
    if digest.hexdigest() != index.digest:
        raise DatasetError("is damaged: remove it, and it is made anew")


def _line(entry: Entry) -> bytes:
    text = f"{entry.label} {entry.name} {entry.file} {entry.offset} {entry.size}\n"
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise DatasetError(f"{text.split()[1]!a} is no name in UTF-8: rename the file") from None


def build(
    entries: Iterable[Entry],
    classes: tuple[str, ...] | None,
    source: str,
    containers: Mapping[str, int] = MappingProxyType({}),
) -> Index:
    """Write the index of a data set.

    Args:
        entries: in the order of their numbers, consumed in passing.
        classes: names by label, where there are any.
        source: tells what the entries follow from; an index with the same need not be made again.
        containers: files that hold the images, and their sizes, bytes.

    Returns:
        The index.
    """
    sink, digest, top, rest = pa.BufferOutputStream(), hashlib.sha256(), -1, iter(entries)
    with pq.ParquetWriter(
        sink, SCHEMA, compression="zstd", use_dictionary=["label", "file"], write_page_checksum=True
    ) as writer:
        while group := list(itertools.islice(rest, _GROUP)):
            for entry in group:
                digest.update(_line(entry))
            top = max(top, *(entry.label for entry in group))
            if top > _LARGEST:
                raise DatasetError(f"the data set has label {top}: more classes than anybody has")
            columns = {
                "name": [entry.name or None for entry in group],
                "label": [entry.label for entry in group],
                "file": [entry.file if entry.file != entry.name else None for entry in group],
                "offset": [entry.offset for entry in group],
                "size": [entry.size for entry in group],
            }
            writer.write_table(pa.table(columns, SCHEMA), row_group_size=_GROUP)
        facts = {
            "version": VERSION,
            "num_classes": max(2, top + 1, len(classes or ())),
            "classes": classes,
            "digest": digest.hexdigest(),
            "source": source,
            "containers": dict(containers),
        }
        # Under the first, its version is found where that of every other table is.
        keys = {"stn": {"schema_version": VERSION}, _METADATA.decode(): facts}
        writer.add_key_value_metadata({key: json.dumps(values) for key, values in keys.items()})
    return Index(sink.getvalue())
