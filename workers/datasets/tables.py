"""Parquet of encoded images, a struct{bytes, …} as model hubs keep it or plain bytes, with integer labels."""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stn_core.naming import one_line
from workers.ahead import ahead
from workers.datasets.base import DatasetError, UnreadableImage
from workers.datasets.encoded import check_size
from workers.datasets.index import Entry
from workers.files import File, Files
from workers.settings import ParquetImages

#: Groups of rows kept: those that the shard at work and the next need, if they are not too large.
_FEWEST, _KEPT_BYTES = 4, 256 * 2**20


@dataclass(frozen=True)
class _Table:
    """One file's labels, and the names that its metadata give to the classes."""

    file: File
    labels: list[int]
    classes: tuple[str, ...] | None


def table_entries(
    dataset: ParquetImages, place: Path | str, files: Files, tables: Sequence[File]
) -> tuple[tuple[str, ...] | None, Iterator[Entry]]:
    """The classes' names, where the first file has them, and all rows, by file, then row.

    Raises:
        DatasetError: a file is no Parquet file, or lacks the columns.
    """
    read = ahead(functools.partial(_read_labels, dataset, place, files), tables)
    first = next(read, None)
    if first is None:
        raise DatasetError(f"dataset.path {dataset.path} holds no images")
    return first.classes, _entries(dataset, itertools.chain([first], read))


def _entries(dataset: ParquetImages, tables: Iterator[_Table]) -> Iterator[Entry]:
    found = False
    for table in tables:
        found = found or bool(table.labels)
        for row, label in enumerate(table.labels):
            yield Entry("", label, table.file.name, row, -1)
    if not found:
        raise DatasetError(f"dataset.path {dataset.path} holds no images")


def _read_labels(dataset: ParquetImages, place: Path | str, files: Files, table: File) -> _Table:
    path = f"{str(place).rstrip('/')}/{table.name}"
    try:
        with files.open(table) as source:
            file = pq.ParquetFile(source)
            if dataset.label_column not in file.schema_arrow.names:
                raise DatasetError(f"{path} has no column {dataset.label_column!r}: set dataset.label_column")
            column = file.read([dataset.label_column]).column(0)
    except FileNotFoundError:
        raise DatasetError(f"no file at dataset.path {path}") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"dataset.path {path} is no Parquet file that can be read: {one_line(error)}") from error
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DatasetError(f"{path}: dataset.label_column {dataset.label_column!r} must hold integers, no nulls")
    _image_column(file.schema_arrow, path, dataset.image_column)
    return _Table(table, column.to_pylist(), _class_names(file.schema_arrow, dataset.label_column))


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    """What the metadata of a hub's file call the classes."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label_column]["names"]
        return tuple(str(name) for name in names) if isinstance(names, list) else None
    except (KeyError, ValueError, TypeError):
        return None


@dataclass(frozen=True)
class _Opened:
    """What is remembered of a file: its footer, and the number of each group's first row, and of the row after all."""

    file: File
    metadata: pq.FileMetaData
    starts: list[int]
    column: str


class TableReader:
    """Encoded images of Parquet files, by file and row, a group of rows at a time. Safe to use from several threads."""

    def __init__(self, files: Files, image_column: str | None, containers: Mapping[str, int]) -> None:
        self._files, self._image_column, self._containers = files, image_column, containers
        self._lock = threading.Lock()
        self._opened: dict[str, _Opened] = {}
        self._groups: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return TableReader, (self._files, self._image_column, self._containers)

    def fetch(self, entry: Entry) -> bytes:
        """The image, encoded. Raises UnreadableImage; what may pass is another error."""
        try:
            with self._lock:
                opened = self._open(entry.file)
                group = bisect.bisect_right(opened.starts, entry.offset) - 1
                if entry.offset >= opened.starts[-1]:
                    raise UnreadableImage(f"{entry.file} has no row {entry.offset} any more")
                rows = self._rows(opened, group)
        except pa.ArrowException as error:
            raise UnreadableImage(f"{entry.file} cannot be read: {one_line(error)}") from error
        value = rows[entry.offset - opened.starts[group]].as_py()
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(encoded, bytes):
            raise UnreadableImage("holds no bytes")
        return encoded

    def _open(self, name: str) -> _Opened:
        if name not in self._opened:
            file = self._files.file(name)
            check_size(file, self._containers)
            with self._files.open(file) as source:
                table = pq.ParquetFile(source)
                sizes = (table.metadata.row_group(group).num_rows for group in range(table.num_row_groups))
                column = _image_column(table.schema_arrow, name, self._image_column)
                self._opened[name] = _Opened(file, table.metadata, [0, *itertools.accumulate(sizes)], column)
        return self._opened[name]

    def _rows(self, opened: _Opened, group: int) -> pa.ChunkedArray:
        place = (opened.file.name, group)
        if place not in self._groups:
            with self._files.open(opened.file) as source:
                table = pq.ParquetFile(source, metadata=opened.metadata)
                self._groups[place] = table.read_row_group(group, columns=[opened.column]).column(0)
            while len(self._groups) > _FEWEST and sum(rows.nbytes for rows in self._groups.values()) > _KEPT_BYTES:
                self._groups.popitem(last=False)
        self._groups.move_to_end(place)
        return self._groups[place]


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
