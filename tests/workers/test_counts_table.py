from __future__ import annotations

import hashlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from workers.counts_table import SCHEMA, SCHEMA_VERSION, decode, dense, encode, sparse, totals
from workers.sealed import has_checksum


def table(estimation: NDArray[np.int64], first: int = 0) -> pa.Table:
    """A count table of images numbered from ``first``, without selection votes."""
    images = len(estimation)
    numbers = np.arange(first, first + images)
    zeros = np.zeros(images, dtype=np.int64)
    return pa.table(
        {
            "index": numbers,
            "key": numbers + 1000,
            "label": zeros,
            "selection": sparse(np.zeros_like(estimation)),
            "estimation": sparse(estimation),
            "selection_draws": zeros,
            "draws": estimation.sum(axis=1),
            "selection_invalid": zeros,
            "invalid": zeros,
            "selection_ties": zeros,
            "ties": numbers,
            "error": pa.array([None] * images, pa.string()),
        },
        schema=SCHEMA,
    )


VOTES = np.array([[0, 7, 0, 3], [0, 0, 0, 0], [1, 2, 3, 4]])


def test_sparse_votes_are_the_voted_classes_ascending() -> None:
    assert sparse(VOTES).to_pylist() == [
        [{"class": 1, "votes": 7}, {"class": 3, "votes": 3}],
        [],
        [{"class": 0, "votes": 1}, {"class": 1, "votes": 2}, {"class": 2, "votes": 3}, {"class": 3, "votes": 4}],
    ]


@st.composite
def votes(draw: st.DrawFn) -> NDArray[np.int64]:
    images, classes = draw(st.integers(0, 12)), draw(st.integers(2, 30))
    counts = st.just(0) | st.integers(0, 2**62)
    rows = draw(st.lists(st.lists(counts, min_size=classes, max_size=classes), min_size=images, max_size=images))
    return np.array(rows, dtype=np.int64).reshape(images, classes)


@given(votes())
def test_dense_undoes_sparse(counts: NDArray[np.int64]) -> None:
    for column in (sparse(counts), pa.chunked_array([sparse(counts)])):
        found = dense(column, counts.shape[1])
        assert found.dtype == np.int64
        assert np.array_equal(found, counts)


@given(votes(), st.integers(0, 12), st.integers(0, 12))
def test_dense_reads_slices_and_several_chunks(counts: NDArray[np.int64], start: int, length: int) -> None:
    classes = counts.shape[1]
    assert np.array_equal(dense(sparse(counts).slice(start, length), classes), counts[start : start + length])
    chunks = pa.chunked_array([sparse(counts[:start]), sparse(counts[start:])])
    assert np.array_equal(dense(chunks, classes), counts)


def test_dense_of_no_rows_has_the_classes() -> None:
    empty = pa.chunked_array([], type=SCHEMA.field("estimation").type)
    assert dense(empty, 5).shape == (0, 5)


def test_a_class_that_the_model_has_not_is_an_error() -> None:
    with pytest.raises(IndexError):
        dense(sparse(VOTES), 3)


@given(votes(), st.integers(0, 12), st.integers(0, 12))
def test_totals_are_the_sums_of_rows_in_slices_and_chunks_too(
    counts: NDArray[np.int64], start: int, length: int
) -> None:
    counts, classes = counts % 2**50, counts.shape[1]
    whole = pa.chunked_array([sparse(counts[:start]), sparse(counts[start:])])
    assert totals(whole, classes).tolist() == counts.sum(axis=1).tolist()
    part = totals(whole.slice(start, length), classes)
    assert part.dtype == np.int64
    assert part.tolist() == counts[start : start + length].sum(axis=1).tolist()


def test_totals_of_no_rows_and_of_rows_without_votes() -> None:
    assert totals(pa.chunked_array([], type=SCHEMA.field("estimation").type), 5).shape == (0,)
    assert totals(pa.chunked_array([sparse(np.zeros((3, 5), dtype=np.int64))]), 5).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[(1, 3), (1, 4)]], "name a class twice"),
        ([[(0, 1)], [(2, 3), (2, 4)], []], "name a class twice"),
        ([[(0, 1)], [(2, 3), (1, 4)], []], "name a class twice"),
        ([[(1, 3), (2, 0), (2, 1)]], "name a class twice"),
        ([[], [(1, -3)]], "negative"),
        ([[(1, -3), (2, 67)]], "negative"),
        ([[(-1, 3)]], "classes that do not exist"),
        ([[(4, 3)], []], "classes that do not exist"),
    ],
)
def test_totals_refuse_votes_that_no_count_can_be(rows: list[list[tuple[int, int]]], says: str) -> None:
    lists = [[{"class": number, "votes": votes} for number, votes in row] for row in rows]
    column = pa.chunked_array([pa.array(lists, SCHEMA.field("estimation").type)])
    with pytest.raises(ValueError, match=says):
        totals(column, 4)
    # The same class in two rows is no repetition, wherever the rows are cut.
    good = pa.array([[{"class": 2, "votes": 1}]] * 2, SCHEMA.field("estimation").type)
    assert totals(pa.chunked_array([good, good]), 4).tolist() == [1] * 4


@given(votes())
def test_encoding_keeps_rows_and_provenance(counts: NDArray[np.int64]) -> None:
    counts = counts % 1000
    provenance = {"shard": 3, "versions": {"torch": "2"}, "device": "cpu"}
    found, metadata = decode(encode(table(counts), provenance))
    assert found.equals(table(counts))
    assert metadata == {"schema_version": SCHEMA_VERSION, **provenance}


def test_the_same_table_and_provenance_are_the_same_bytes() -> None:
    content = encode(table(VOTES), {"a": 1, "b": {"x": 1, "y": 2}})
    assert content == encode(table(VOTES.copy()), {"b": {"y": 2, "x": 1}, "a": 1})
    assert content != encode(table(VOTES), {"a": 2, "b": {"x": 1, "y": 2}})
    assert content != encode(table(VOTES[::-1]), {"a": 1, "b": {"x": 1, "y": 2}})


def parquet(rows: pa.Table, metadata: Any = None) -> bytes:
    """A Parquet file that ``encode`` did not write; ``metadata`` is JSON under our key."""
    sink = io.BytesIO()
    if metadata is not None:
        rows = rows.replace_schema_metadata({b"stn": json.dumps(metadata).encode()})
    pq.write_table(rows, sink)
    return sink.getvalue()


# --- Checksum ------------------------------------------------------------------------------------------------------

#: Every kind of value: no votes, a lost image, numbers that are unknown.
EVERYTHING = (
    table(VOTES)
    .set_column(10, SCHEMA.field("ties"), pa.array([0, None, 2], pa.int64()))
    .set_column(11, SCHEMA.field("error"), pa.array([None, "cannot be decoded", ""], pa.string()))
)


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF], ids=hex)
def test_a_byte_that_changed_is_refused_or_changes_nothing(mask: int) -> None:
    content = encode(EVERYTHING, {"shard": 3})
    found = {"refused": 0, "the same": 0}
    for position in range(mask % 7, len(content), len(content) // 400):
        changed = bytearray(content)
        changed[position] ^= mask
        try:
            rows, provenance = decode(bytes(changed))
        except ValueError:
            found["refused"] += 1
        else:
            assert rows.equals(EVERYTHING), position
            assert provenance == {"schema_version": SCHEMA_VERSION, "shard": 3}, position
            found["the same"] += 1
    assert min(found.values()) > 50


def written(rows: pa.Table, like: bytes, **options: Any) -> bytes:
    """Other rows with the provenance and the checksum of a file that ``encode`` wrote."""
    sink = io.BytesIO()
    keys = pq.read_schema(io.BytesIO(like)).metadata
    pq.write_table(rows.replace_schema_metadata(keys), sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        {"estimation": [[{"class": 1, "votes": 6}, {"class": 3, "votes": 4}], *sparse(VOTES).to_pylist()[1:]]},
        {"estimation": [[], sparse(VOTES)[0].as_py(), sparse(VOTES)[2].as_py()]},
        {"selection": sparse(VOTES).to_pylist(), "estimation": [[]] * 3},
        {"index": [0, 2, 1]},
        {"label": [0, 0, 1]},
        {"ties": [0, 0, 2]},
        {"ties": [None, None, 2]},
        {"error": [None, "cannot be decode", "d"]},
        {"error": [None, "cannot be decoded", None]},
    ],
    ids=str,
)
def test_other_values_under_the_same_checksum_are_refused(change: dict[str, list[Any]]) -> None:
    rows = EVERYTHING
    for name, values in change.items():
        field = SCHEMA.field(name)
        rows = rows.set_column(SCHEMA.names.index(name), field, pa.array(values, field.type))
    with pytest.raises(ValueError, match=r"its contents are not what was written \(sha-256\)"):
        decode(written(rows, encode(EVERYTHING, {})))
    assert decode(encode(rows, {}))[0].equals(rows)


def test_another_provenance_under_the_same_checksum_is_refused() -> None:
    content = encode(EVERYTHING, {"shard": 3})
    keys = {**pq.read_schema(io.BytesIO(content)).metadata, b"stn": b'{"schema_version": 2, "shard": 4}'}
    sink = io.BytesIO()
    pq.write_table(EVERYTHING.replace_schema_metadata(keys), sink)
    with pytest.raises(ValueError, match="not what was written"):
        decode(sink.getvalue())


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "none", "use_dictionary": False},
        {"row_group_size": 1, "data_page_version": "2.0"},
    ],
    ids=str,
)
def test_the_checksum_is_of_values_however_parquet_keeps_them(options: dict[str, Any]) -> None:
    content = written(EVERYTHING, encode(EVERYTHING, {}), **options)
    assert content != encode(EVERYTHING, {})
    assert has_checksum(content)
    assert decode(content)[0].equals(EVERYTHING)


def test_slices_and_chunks_have_the_checksum_of_their_rows() -> None:
    expected = encode(EVERYTHING, {})
    assert encode(pa.concat_tables([EVERYTHING, EVERYTHING]).slice(3), {}) == expected
    chunks = pa.concat_tables([EVERYTHING.slice(0, 1), EVERYTHING.slice(1)])
    assert decode(written(chunks, expected))[0].equals(EVERYTHING)


def definition(values: list[Any], kind: pa.DataType) -> bytes:
    """A column as the digest takes it, value by value: files that are out there carry it."""

    def numbers(found: list[int]) -> bytes:
        return b"".join(struct.pack("<q", number) for number in found)

    known = [value for value in values if value is not None]
    head = numbers([len(values)]) + bytes(value is not None for value in values)
    if pa.types.is_struct(kind):
        return head + b"".join(definition([value[field.name] for value in values], field.type) for field in kind)
    if pa.types.is_list(kind):
        lengths = definition([len(value) for value in values], pa.int32())
        return head + lengths + definition([item for value in values for item in value], kind.value_type)
    if pa.types.is_string(kind):
        lengths = [None if value is None else len(value.encode()) for value in values]
        return head + definition(lengths, pa.int32()) + "".join(known).encode()
    return head + numbers([0 if value is None else value for value in values])


unknown = st.none() | st.integers(-(2**63), 2**63 - 1)
failure = st.none() | st.text(max_size=5)


@given(votes(), st.data(), st.integers(0, 12))
def test_the_checksum_is_the_sha256_of_provenance_and_values(
    counts: NDArray[np.int64], data: st.DataObject, start: int
) -> None:
    images = len(counts)
    columns = {
        "estimation": sparse(counts),
        "ties": pa.array(data.draw(st.lists(unknown, min_size=images, max_size=images)), pa.int64()),
        "error": pa.array(data.draw(st.lists(failure, min_size=images, max_size=images)), pa.string()),
    }
    rows = table(counts % 2**50)
    for name, column in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), SCHEMA.field(name), column)
    rows = rows.slice(start)
    metadata = json.dumps({"schema_version": SCHEMA_VERSION, "shard": 3}, sort_keys=True).encode()
    parts = b"".join(
        name.encode() + b"\0" + definition(rows[name].to_pylist(), SCHEMA.field(name).type) for name in SCHEMA.names
    )
    expected = hashlib.sha256(struct.pack("<q", len(metadata)) + metadata + parts).hexdigest()
    assert pq.read_metadata(io.BytesIO(encode(rows, {"shard": 3}))).metadata[b"stn.sha256"].decode() == expected


def test_a_table_from_before_there_were_checksums_is_read() -> None:
    content = parquet(EVERYTHING, {"schema_version": SCHEMA_VERSION})
    assert decode(content)[0].equals(EVERYTHING)
    assert not has_checksum(content)
    assert has_checksum(encode(EVERYTHING, {}))


# --- Other files ---------------------------------------------------------------------------------------------------


def test_a_newer_version_is_refused_by_number() -> None:
    with pytest.raises(ValueError, match=f"newer version .*{SCHEMA_VERSION + 1}"):
        decode(parquet(table(VOTES), {"schema_version": SCHEMA_VERSION + 1}))


def test_a_table_of_version_1_is_read_with_ties_unknown() -> None:
    old = table(VOTES).drop_columns(["selection_ties", "ties"])
    found, provenance = decode(parquet(old, {"schema_version": 1, "shard": 3}))
    assert provenance == {"schema_version": 1, "shard": 3}
    assert found.schema.equals(SCHEMA)
    assert found["ties"].to_pylist() == found["selection_ties"].to_pylist() == [None] * 3
    assert found.select(old.column_names).equals(old)


@pytest.mark.parametrize("name", ["ties", "selection_ties"])
def test_a_table_of_this_version_without_ties_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="columns are missing"):
        decode(parquet(table(VOTES).drop_columns([name]), {"schema_version": SCHEMA_VERSION}))


@pytest.mark.parametrize("name", sorted(set(SCHEMA.names) - {"ties", "selection_ties"}))
def test_a_table_of_version_1_without_one_of_its_columns_is_refused(name: str) -> None:
    old = table(VOTES).drop_columns(["selection_ties", "ties", name])
    with pytest.raises(ValueError, match="columns are missing"):
        decode(parquet(old, {"schema_version": 1}))


def test_columns_of_a_later_writer_of_the_same_version_are_left_out() -> None:
    wider = table(VOTES).append_column("extra", pa.array([1, 2, 3]))
    assert decode(parquet(wider, {"schema_version": SCHEMA_VERSION}))[0].column_names == SCHEMA.names


@pytest.mark.parametrize("kept", [0, 1, 4, 50, 0.5, 0.9, 0.999])
def test_truncated_bytes_are_refused(kept: float) -> None:
    content = encode(table(VOTES), {})
    with pytest.raises(ValueError, match="damaged"):
        decode(content[: kept if isinstance(kept, int) else int(len(content) * kept)])


@given(st.binary(max_size=200))
def test_bytes_that_are_no_parquet_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        decode(content)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"schema_version": None},
        {"schema_version": SCHEMA_VERSION},
        {"schema_version": "1"},
        ["schema_version"],
    ],
    ids=json.dumps,
)
def test_a_table_of_something_else_is_refused(metadata: Any) -> None:
    foreign = pa.table({"city": ["Bern", "Rome"], "people": [1, 2]})
    with pytest.raises(ValueError, match=r"votes|damaged|version"):
        decode(parquet(foreign, metadata))


def test_pandas_reads_a_folder_of_encoded_files_without_our_code(tmp_path: Path) -> None:
    for shard, first in enumerate((0, 3)):
        (tmp_path / f"shard-{shard}.parquet").write_bytes(encode(table(VOTES, first), {"shard": shard}))
    frame = pd.read_parquet(tmp_path)
    assert list(frame.columns) == [
        "index",
        "key",
        "label",
        "selection",
        "estimation",
        "selection_draws",
        "draws",
        "selection_invalid",
        "invalid",
        "selection_ties",
        "ties",
        "error",
    ]
    assert frame["index"].tolist() == [0, 1, 2, 3, 4, 5]
    assert frame["draws"].tolist() == [10, 0, 10] * 2
    assert list(frame["estimation"][3]) == [{"class": 1, "votes": 7}, {"class": 3, "votes": 3}]
    assert frame["ties"].tolist() == [0, 1, 2, 3, 4, 5]
    assert frame["error"].isna().all()
