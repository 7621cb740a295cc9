"""Columns of tables, each with what it holds: the one place that says so, in the schema and so in files of it."""

from __future__ import annotations

import pyarrow as pa

_IS, _NULL = b"is", b"null"


def column(name: str, type: pa.DataType, what: str, *, null: str | None = None) -> pa.Field:
    """A column.

    Args:
        name: of it.
        type: of its values.
        what: it holds, with its unit.
        null: where it is null; None where it never is.
    """
    told = {_IS: what.encode()} | ({} if null is None else {_NULL: null.encode()})
    return pa.field(name, type, nullable=null is not None, metadata=told)


def meaning(field: pa.Field) -> tuple[str, str]:
    """What a column holds, and where it is null; empty where nothing is said."""
    told = field.metadata or {}
    return told.get(_IS, b"").decode(), told.get(_NULL, b"").decode()


def bare(schema: pa.Schema) -> pa.Schema:
    """The columns without what is said of them: for small files, of which there are many."""
    return pa.schema([field.remove_metadata() for field in schema])
