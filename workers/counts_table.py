"""The table of votes: its schema, and the way between dense counts and sparse rows.

A table's bytes carry a digest of what they hold: of provenance and values, not of how Parquet keeps them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stn_core.naming import one_line

#: Version of the columns below. A reader refuses a newer one.
SCHEMA_VERSION = 2

_VOTES = pa.list_(
    pa.struct([pa.field("class", pa.int32(), nullable=False), pa.field("votes", pa.int64(), nullable=False)])
)

SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),  # image's number in the data set
        pa.field("key", pa.int64(), nullable=False),  # image's identity: its noise is derived from it
        pa.field("label", pa.int64(), nullable=False),
        pa.field("selection", _VOTES, nullable=False),  # classes with at least one vote, ascending
        pa.field("estimation", _VOTES, nullable=False),
        pa.field("selection_draws", pa.int64(), nullable=False),  # invalid ones included
        pa.field("draws", pa.int64(), nullable=False),  # estimation draws, invalid ones included
        pa.field("selection_invalid", pa.int64(), nullable=False),  # draws whose logits held a NaN
        pa.field("invalid", pa.int64(), nullable=False),
        pa.field("selection_ties", pa.int64()),  # draws whose largest logit several classes shared; the lowest got it
        pa.field("ties", pa.int64()),  # null in tables of version 1, which did not count them
        pa.field("error", pa.string()),  # why the image could not be counted; draws is then 0
    ]
)

_SINCE_VERSION_2 = {"selection_ties", "ties"}

_METADATA_KEY = b"stn"
_CHECKSUM_KEY = b"stn.sha256"


class NewerVersion(ValueError):
    """A table of votes was written by a newer version."""


def sparse(votes: NDArray[np.int64]) -> pa.ListArray:
    """Dense votes (images, classes) as lists of {class, votes}, zeros left out."""
    rows, classes = np.nonzero(votes)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(votes)))]).astype(np.int32)
    items = pa.StructArray.from_arrays(
        [pa.array(classes.astype(np.int32)), pa.array(votes[rows, classes].astype(np.int64))],
        fields=list(_VOTES.value_type),
    )
    return pa.ListArray.from_arrays(offsets, items, type=_VOTES)


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
    metadata = json.dumps({"schema_version": SCHEMA_VERSION, **provenance}, sort_keys=True).encode()
    keys = {_METADATA_KEY: metadata, _CHECKSUM_KEY: _sha256(metadata, table).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(keys), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def decode(content: bytes) -> tuple[pa.Table, dict[str, Any]]:
    """Rows and provenance of a Parquet file written by ``encode``, held against their checksum if there is one.

    Raises:
        NewerVersion: the file is of a newer version.
        ValueError: it is damaged, or no count table.
    """
    try:
        # Without the machinery for tables of many files, and threads, which take longer than a shard's votes.
        table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        names = set(table.schema.names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"damaged Parquet: {one_line(error)}") from error
    keys = table.schema.metadata or {}
    metadata = keys.get(_METADATA_KEY, b"null")
    try:
        provenance = json.loads(metadata)
    except ValueError as error:
        raise ValueError("not a table of votes: its metadata is damaged") from error
    version = provenance.get("schema_version") if isinstance(provenance, dict) else None
    if not isinstance(version, int):
        raise ValueError("not a table of votes")
    if version > SCHEMA_VERSION:
        raise NewerVersion(f"written by a newer version (schema {version}, this one reads up to {SCHEMA_VERSION})")
    for name in _SINCE_VERSION_2 - names if version == 1 else ():
        table = table.append_column(name, pa.nulls(len(table), pa.int64()))
    if not set(SCHEMA.names) <= set(table.schema.names):
        raise ValueError("not a table of votes: columns are missing")
    try:
        rows = table.select(SCHEMA.names)
        rows = rows.replace_schema_metadata() if rows.schema.equals(SCHEMA) else rows.cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"not a table of votes: {one_line(error)}") from error
    if _CHECKSUM_KEY in keys and keys[_CHECKSUM_KEY] != _sha256(metadata, rows).encode():
        raise ValueError("its contents are not what was written (sha-256)")
    return rows, provenance


def has_checksum(content: bytes) -> bool:
    """Whether a file that ``decode`` accepts carries the digest that it was held against; the oldest ones do not."""
    return _CHECKSUM_KEY in (pq.read_metadata(pa.BufferReader(content)).metadata or {})


def _sha256(metadata: bytes, table: pa.Table) -> str:
    """Digest of provenance and values. A column that joins the schema joins it too, and needs a new version."""
    digest = hashlib.sha256(len(metadata).to_bytes(8, "little") + metadata)
    for name in SCHEMA.names:
        digest.update(name.encode() + b"\0")
        for part in _canonical(table[name].combine_chunks()):
            digest.update(part)
    return digest.hexdigest()


def _canonical(values: pa.Array) -> Iterator[bytes]:
    """Values as bytes, from which they can be told: number, nulls, then what the type has, in 64-bit little endian.

    A small shard's votes are some 50 small arrays: what need not be computed of them is most of the time.
    """
    yield len(values).to_bytes(8, "little")
    yield _validity(values)
    if pa.types.is_struct(values.type):
        for part in values.flatten():
            yield from _canonical(part)
    elif pa.types.is_list(values.type):
        yield from _canonical(pc.list_value_length(values))
        yield from _canonical(values.flatten())
    elif pa.types.is_string(values.type):
        yield from _canonical(pc.binary_length(values))
        if values.null_count < len(values):
            yield b"".join(text for text in values.cast(pa.binary()).to_pylist() if text is not None)
    elif values.null_count == len(values):
        yield bytes(8 * len(values))
    else:
        numbers = values.fill_null(0) if values.null_count else values
        yield numbers.to_numpy().astype("<i8", copy=False).tobytes()


def _validity(values: pa.Array) -> bytes:
    """A byte for each value, 0 where it is null."""
    if values.null_count == 0:
        return b"\1" * len(values)
    if values.null_count == len(values):
        return bytes(len(values))
    return values.is_valid().cast(pa.uint8()).to_numpy().tobytes()
