from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from workers import counts_table, layout
from workers.committed import DamagedVotes, read_committed
from workers.store import LocalStore, ObjectMissing


def rows(**images: str | int | None) -> pa.Table:
    """One row per image, i0=…, i1=…: a number of votes for class 0, or why there are none."""
    content = [
        {
            "index": int(name[1:]),
            "key": int(name[1:]),
            "label": 0,
            "selection": [],
            "estimation": [{"class": 0, "votes": value}] if isinstance(value, int) else [],
            "selection_draws": 0,
            "draws": value if isinstance(value, int) else 0,
            "selection_invalid": 0,
            "invalid": 0,
            "selection_ties": 0,
            "ties": 0,
            "error": None if isinstance(value, int) else value,
        }
        for name, value in images.items()
    ]
    return pa.Table.from_pylist(content, schema=counts_table.SCHEMA)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def put(store: LocalStore, key: str, table: pa.Table) -> None:
    assert store.create(key, counts_table.encode(table, {"key": key}))


def found(store: LocalStore) -> dict[int, int | str]:
    table = read_committed(store, 4).table
    assert table.schema == counts_table.SCHEMA
    return {row["index"]: row["error"] or row["draws"] for row in table.to_pylist()}


def test_a_shard_without_failures_is_its_commit(store: LocalStore) -> None:
    put(store, layout.counts(4), rows(i0=5, i1=6))
    put(store, layout.retry(4, 1), rows(i1=9))
    assert found(store) == {0: 5, 1: 6}
    assert [*read_committed(store, 4).provenance] == [layout.counts(4)]


def test_retries_stand_for_failed_images_alone_and_the_first_counts(store: LocalStore) -> None:
    put(store, layout.counts(4), rows(i0="broken", i1=6, i2="broken", i3="broken"))
    put(store, layout.retry(4, 2), rows(i0=8, i2=8, i3="still broken"))
    put(store, layout.retry(4, 1), rows(i0=7, i1=7))
    put(store, layout.retry(5, 1), rows(i3=1))
    assert found(store) == {0: 7, 1: 6, 2: 8, 3: "broken"}
    assert read_committed(store, 4).failed == [3]
    assert [*read_committed(store, 4).provenance] == [layout.counts(4), layout.retry(4, 1), layout.retry(4, 2)]


def test_other_objects_beside_it_are_no_retries(store: LocalStore) -> None:
    put(store, layout.counts(4), rows(i0="broken"))
    put(store, layout.retries(4) + "1.parquet", rows(i0=7))
    put(store, layout.retries(4) + "backup", rows(i0=7))
    assert found(store) == {0: "broken"}


def test_no_commit(store: LocalStore) -> None:
    put(store, layout.retry(4, 1), rows(i0=7))
    with pytest.raises(ObjectMissing):
        read_committed(store, 4)


def test_later_rounds_are_read_in_order_up_to_the_first_that_is_missing(store: LocalStore) -> None:
    put(store, layout.counts(4), rows(i0=5, i1=6, i2=7))
    put(store, layout.counts(4, 1), rows(i0=10, i2=11))
    put(store, layout.counts(4, 3), rows(i2=1))
    put(store, layout.counts(5, 2), rows(i2=1))
    assert read_committed(store, 4).later == ()
    committed = read_committed(store, 4, later=True)
    assert [table["draws"].to_pylist() for table in committed.later] == [[10, 11]]
    assert [*committed.provenance] == [layout.counts(4), layout.counts(4, 1)]
    put(store, layout.counts(4, 2), rows(i2=12))
    assert [table["index"].to_pylist() for table in read_committed(store, 4, later=True).later] == [[0, 2], [2], [2]]


@pytest.mark.parametrize("key", [layout.counts(4), layout.retry(4, 1)])
def test_the_damaged_object_is_named(store: LocalStore, key: str) -> None:
    put(store, layout.counts(4), rows(i0="broken"))
    put(store, layout.retry(4, 1), rows(i0=7))
    store.replace(key, b"PAR1 or not")
    with pytest.raises(DamagedVotes, match="damaged Parquet") as error:
        read_committed(store, 4)
    assert error.value.key == key
