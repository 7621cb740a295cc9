"""The schema of every table there is, and which of them a run holds: what `stn schema` tells."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.attacking import robustness
from orchestrator.errors import RunError, SpecError
from orchestrator.importing import imported
from orchestrator.paper import linear_program
from orchestrator.reducing import tables
from orchestrator.reducing.runs import read_plan
from orchestrator.training import epochs
from stn_core.naming import one_line, pick
from workers import attempts_table, counts_table, layout
from workers.columns import meaning
from workers.datasets import index
from workers.store import Store


@dataclass(frozen=True)
class Table:
    """A table of ours.

    Attributes:
        name: for the command line.
        where: an example of its key in a run.
        row: what a row is of.
        version: of the schema.
        schema: its columns, with what they hold.
    """

    name: str
    where: str
    row: str
    version: int
    schema: pa.Schema


TABLES = (
    Table("counts", layout.counts(42), "an image of a shard", counts_table.SCHEMA_VERSION, counts_table.SCHEMA),
    Table(
        "certificates",
        layout.CERTIFICATES,
        "an image under a certificate and a protocol",
        tables.SCHEMA_VERSION,
        tables.CERTIFICATES_SCHEMA,
    ),
    Table(
        "curves",
        layout.CURVES,
        "a radius under a certificate and a protocol",
        tables.SCHEMA_VERSION,
        tables.CURVES_SCHEMA,
    ),
    Table(
        "attack",
        layout.attempts("NAME", 42),
        "an image of a shard and a size of the attack",
        attempts_table.SCHEMA_VERSION,
        attempts_table.SCHEMA,
    ),
    Table(
        "attempts",
        layout.ATTEMPTS,
        "an attack, an image and a size",
        robustness.SCHEMA_VERSION,
        robustness.ATTEMPTS_SCHEMA,
    ),
    Table(
        "robustness", layout.ROBUSTNESS, "an attack and a size", robustness.SCHEMA_VERSION, robustness.ROBUSTNESS_SCHEMA
    ),
    Table("training", layout.TRAINING, "an epoch of the network's training", epochs.SCHEMA_VERSION, epochs.SCHEMA),
    Table("index", layout.INDEX, "an image of the data set, in order", index.VERSION, index.SCHEMA),
    Table("imported", layout.IMPORTED, "an image of the imported log", imported.SCHEMA_VERSION, imported.SCHEMA),
    Table(
        "linear_program",
        layout.LINEAR_PROGRAM,
        "a network of the cascade and an image",
        linear_program.SCHEMA_VERSION,
        linear_program.SCHEMA,
    ),
)


@dataclass(frozen=True)
class Column:
    """A column, as it is told.

    Attributes:
        name: of it.
        type: of its values, in Arrow's words.
        meaning: what it holds, with its unit.
        null: where it is null; empty where it never is.
    """

    name: str
    type: str
    meaning: str
    null: str


@dataclass(frozen=True)
class Found:
    """Objects of one table and version in a run.

    Attributes:
        table: its name.
        folder: of the run, where they are apart: that of partial tables, else empty.
        version: of their schema; None where they do not say.
        objects: how many.
        rows: of all of them.
        reads: whether this installation does.
    """

    table: str
    folder: str
    version: int | None
    objects: int
    rows: int
    reads: bool


def named(name: str) -> Table:
    """The table of that name. Raises SpecError."""
    try:
        return pick({table.name: table for table in TABLES}, name, "table")
    except ValueError as error:
        raise SpecError(str(error)) from error


def columns(table: Table) -> list[Column]:
    """A table's columns."""
    return [Column(field.name, _type(field.type), *meaning(field)) for field in table.schema]


def _type(type: pa.DataType) -> str:
    """In Arrow's words, without those that only a program wants."""
    if pa.types.is_list(type):
        return f"list of {_type(type.value_type)}"
    if pa.types.is_struct(type):
        return f"struct {{{', '.join(f'{field.name}: {_type(field.type)}' for field in type)}}}"
    return str(type)


#: What the page begins with.
_PREFACE = """# Tables

Every table is Parquet. The metadata of each file say under the key `stn`, as JSON, its `schema_version` and what it
is of. A reader takes older versions and refuses newer ones; a version is a new one where columns are added or come to
mean something else. The order of rows is no part of it. [querying.md](querying.md) has questions and answers;
`stn schema --run RUN` tells which tables a run holds. This page is `stn schema --markdown > docs/schema.md`."""


def markdown() -> str:
    """All tables, as a page of the documentation."""
    lines = [_PREFACE]
    for table in TABLES:
        lines += ["", f"## {table.name}, version {table.version}", "", f"`{table.where}`: a row is {table.row}.", ""]
        lines += ["| column | type | meaning |", "| --- | --- | --- |"]
        for one in columns(table):
            null = f"; null {one.null}" if one.null else ""
            lines.append(f"| `{one.name}` | {one.type} | {one.meaning}{null} |")
    return "\n".join(lines) + "\n"


def tables_of(store: Store) -> list[Found]:
    """The tables that a run holds, or an imported result, or the folder of several runs.

    Raises RunError where there is neither run nor table, or one is damaged.
    """
    objects: dict[tuple[str, str, int | None], list[int]] = defaultdict(list)
    for name, key in _keys(store):
        try:
            file = pq.ParquetFile(pa.BufferReader(store.read(key)))
            version = json.loads((file.metadata.metadata or {}).get(tables.METADATA_KEY, b"{}")).get("schema_version")
        except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
            raise RunError(f"{store.uri}/{key} is damaged: {one_line(error)}") from error
        folder = layout.PARTIAL if key.startswith(layout.PARTIAL) else ""
        objects[name, folder, version].append(file.metadata.num_rows)
    if not objects or not {layout.IMPORTED, layout.LINEAR_PROGRAM} & {named(name).where for name, *_ in objects}:
        read_plan(store)
    order = [table.name for table in TABLES]
    return [
        Found(name, folder, version, len(rows), sum(rows), version is None or version <= named(name).version)
        for (name, folder, version), rows in sorted(
            objects.items(), key=lambda item: (order.index(item[0][0]), item[0][1], item[0][2] or 0)
        )
    ]


def _keys(store: Store) -> Iterator[tuple[str, str]]:
    """Names and keys of all tables in the run."""
    for stored in store.list(layout.COUNTS):
        if any(of(stored.key) is not None for of in (layout.shard_of, layout.later_round, layout.retry_of)):
            yield "counts", stored.key
    for stored in store.list(layout.ATTACKS):
        if layout.attempts_of(stored.key) is not None:
            yield "attack", stored.key
    for table in TABLES[1:]:
        for key in (table.where, layout.PARTIAL + table.where):
            if table.name != "attack" and store.exists(key):
                yield table.name, key
