"""Tables that carry a digest of what they hold: of provenance and values, not of how Parquet keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stn_core.naming import one_line
from workers.columns import bare

_METADATA_KEY = b"stn"
_CHECKSUM_KEY = b"stn.sha256"


class NewerVersion(ValueError):
    """A table was written by a newer version."""


def seal(table: pa.Table, schema: pa.Schema, version: int, provenance: Mapping[str, Any]) -> bytes:
    """A Parquet file of a table that follows ``schema``. The same table and provenance give the same bytes."""
    metadata = json.dumps({"schema_version": version, **provenance}, sort_keys=True).encode()
    keys = {_METADATA_KEY: metadata, _CHECKSUM_KEY: _sha256(metadata, table, schema).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_arrays(table.columns, schema=bare(schema).with_metadata(keys)), sink, compression="zstd"
    )
    return sink.getvalue().to_pybytes()


def unseal(
    content: bytes, schema: pa.Schema, version: int, what: str, since: Mapping[str, int]
) -> tuple[pa.Table, dict[str, Any]]:
    """Rows and provenance of a file written by ``seal``, held against their checksum if there is one.

    Args:
        content: the file.
        schema: of this version.
        version: of the schema; older tables are read, newer ones are not.
        what: they are, for people.
        since: columns that older versions lack, by the version that brought them; they are null there.

    Raises:
        NewerVersion: the file is of a newer version.
        ValueError: it is damaged, or no such table.
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
        raise ValueError(f"not a table of {what}: its metadata is damaged") from error
    found = provenance.get("schema_version") if isinstance(provenance, dict) else None
    if not isinstance(found, int):
        raise ValueError(f"not a table of {what}")
    if found > version:
        raise NewerVersion(f"written by a newer version (schema {found}, this one reads up to {version})")
    for name in sorted(name for name, first in since.items() if found < first and name not in names):
        table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
    if not set(schema.names) <= set(table.schema.names):
        raise ValueError(f"not a table of {what}: columns are missing")
    try:
        rows = table.select(schema.names)
        rows = rows.replace_schema_metadata() if rows.schema.equals(schema) else rows.cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"not a table of {what}: {one_line(error)}") from error
    if _CHECKSUM_KEY in keys and keys[_CHECKSUM_KEY] != _sha256(metadata, rows, schema).encode():
        raise ValueError("its contents are not what was written (sha-256)")
    return rows, provenance


def has_checksum(content: bytes) -> bool:
    """Whether a file that ``unseal`` accepts carries the digest that it was held against; the oldest ones do not."""
    return _CHECKSUM_KEY in (pq.read_metadata(pa.BufferReader(content)).metadata or {})


def _sha256(metadata: bytes, table: pa.Table, schema: pa.Schema) -> str:
    """Digest of provenance and values. A column that joins the schema joins it too, and needs a new version."""
    digest = hashlib.sha256(len(metadata).to_bytes(8, "little") + metadata)
    for name in schema.names:
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
    elif pa.types.is_string(values.type) or pa.types.is_binary(values.type):
        yield from _canonical(pc.binary_length(values))
        if values.null_count < len(values):
            yield b"".join(text for text in values.cast(pa.binary()).to_pylist() if text is not None)
    elif values.null_count == len(values):
        yield bytes(8 * len(values))
    else:
        numbers = values.fill_null(0) if values.null_count else values
        kind = "<f8" if pa.types.is_floating(values.type) else "<i8"
        yield numbers.to_numpy().astype(kind, copy=False).tobytes()


def _validity(values: pa.Array) -> bytes:
    """A byte for each value, 0 where it is null."""
    if values.null_count == 0:
        return b"\1" * len(values)
    if values.null_count == len(values):
        return bytes(len(values))
    return values.is_valid().cast(pa.uint8()).to_numpy().tobytes()
