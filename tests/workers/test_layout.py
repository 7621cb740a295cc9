from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import layout


@given(st.integers(0, 10**9))
def test_a_shards_key_leads_back_to_it(shard: int) -> None:
    assert layout.shard_of(layout.counts(shard)) == shard
    assert layout.counts(shard).startswith(layout.COUNTS)
    assert layout.failed(shard).startswith(layout.FAILED)


def test_keys_sort_as_shards_do() -> None:
    keys = [layout.counts(shard) for shard in (0, 9, 10, 99, 100, 99_999, 999_999)]
    assert keys == sorted(keys)
    assert keys[2] == "counts/round=0/shard-000010.parquet"


@pytest.mark.parametrize(
    "key",
    [
        "counts/round=0/shard-1.parquet",
        "counts/round=0/shard-000001.parquet.tmp",
        "counts/round=0/shard-000001.json",
        "counts/round=1/shard-000001.parquet",
        "counts/shard-000001.parquet",
        "x/counts/round=0/shard-000001.parquet",
        "failed/shard-000001.json",
        "counts/round=0/shard--00001.parquet",
        "",
    ],
)
def test_other_keys_are_no_shards(key: str) -> None:
    assert layout.shard_of(key) is None


@given(st.integers(0, 10**9), st.integers(1, 10**4))
def test_a_later_rounds_key_leads_back_to_it_and_is_no_shards_first(shard: int, round: int) -> None:
    assert layout.later_round(layout.counts(shard, round)) == (shard, round)
    assert layout.shard_of(layout.counts(shard, round)) is None
    assert layout.later_round(layout.counts(shard)) is None


@pytest.mark.parametrize(
    "key",
    [
        "counts/round=01/shard-000001.parquet",
        "counts/round=1/shard-0000001.parquet",
        "counts/round=1/shard-000001.retry-000001.parquet",
        "counts/round=-1/shard-000001.parquet",
        "counts/round=1/shard-000001.parquet.tmp",
        "x/counts/round=1/shard-000001.parquet",
    ],
)
def test_other_keys_are_no_later_rounds(key: str) -> None:
    assert layout.later_round(key) is None


@given(st.integers(0, 10**9))
def test_the_record_of_a_shard_given_up_leads_back_to_it(shard: int) -> None:
    assert layout.failed_of(layout.failed(shard)) == shard


@pytest.mark.parametrize(
    "key", ["failed/shard-1.json", "failed/shard-0000001.json", "failed/notes.json", "failed/", ""]
)
def test_other_keys_are_no_such_records(key: str) -> None:
    assert layout.failed_of(key) is None


def test_probes_and_drivers_are_known_by_their_keys() -> None:
    assert layout.is_probe(layout.probe())
    assert layout.probe() != layout.probe()
    assert layout.is_driver(layout.driver("host-1-abc"))
    for key in ("drivers/", "drivers/a/b.json", "drivers/notes.txt", ".probe/notes", ".probe/", "plan.json"):
        assert not layout.is_probe(key)
        assert not layout.is_driver(key)


@given(st.text())
def test_the_plan_and_all_that_lies_among_the_votes_is_told_from_the_rest(name: str) -> None:
    assert layout.may_hold_votes(layout.COUNTS + name)
    assert layout.may_hold_votes(layout.PLAN)
    assert layout.may_hold_votes(layout.GOAL)
    assert not layout.may_hold_votes(layout.PARTIAL + name)
