"""`stn gc`: what it shows, what it deletes, and that it never touches a vote."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.cli import main
from orchestrator.errors import RunError
from orchestrator.reducing.reduction import reduce_run
from orchestrator.reducing.tables import View
from orchestrator.upkeep.cleanup import DRIVER_GONE_S, YOUNG_S, Leftover, delete_leftovers, find_leftovers, leftovers
from tests.object_store import BUCKET, ObjectStore
from tests.orchestrator.runs import MadeRun, plan_of
from workers import layout
from workers.store import LocalStore, Store, StoredObject, Unfinished, open_store

NOW = 1_000_000.0
PLAN = plan_of()  # three shards


@pytest.fixture(autouse=True)
def _process() -> Iterator[None]:
    """What commands do to their process undone."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def stn(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def content(store: Store) -> dict[str, bytes]:
    return {stored.key: store.read(stored.key) for stored in store.list("")}


# --- What is decided, of any listing -------------------------------------------------------------------------------

_KEYS = st.one_of(
    st.sampled_from(
        [
            layout.PLAN,
            layout.CERTIFICATES,
            layout.CURVES,
            layout.REPORT,
            layout.PARTIAL + layout.CURVES,
            layout.driver("host-1"),
            layout.PROBES + "0" * 32,
            layout.COUNTS,
            f"{layout.COUNTS}.tmp/0123",
            f"{layout.COUNTS}{layout.failed(1)}",
            f"{layout.COUNTS}{layout.PROBES}{'0' * 32}",
        ]
    ),
    st.integers(0, 5).map(layout.counts),
    st.tuples(st.integers(0, 5), st.integers(1, 3)).map(lambda numbers: layout.retry(*numbers)),
    st.integers(0, 5).map(layout.failed),
    st.text().map(lambda name: layout.COUNTS + name),
    st.text(),
)
_TIMES = st.floats(0, 2 * NOW)
_OBJECTS = st.builds(StoredObject, _KEYS, st.integers(0, 100), _TIMES)
_UNFINISHED = st.builds(Unfinished, _KEYS, st.integers(0, 100), _TIMES, st.sampled_from(["", "upload"]))


@given(st.lists(_OBJECTS), st.lists(_UNFINISHED), st.booleans(), st.sampled_from([0.0, YOUNG_S]))
@example([StoredObject(layout.PLAN, 1, 0.0)], [Unfinished(layout.counts(0), 1, 0.0)], True, 0.0)
def test_no_vote_and_no_plan_is_ever_among_the_leftovers(
    listing: list[StoredObject], unfinished: list[Unfinished], complete: bool, young_s: float
) -> None:
    found = leftovers(iter(listing), unfinished, PLAN, complete, NOW, young_s)
    assert not [one.key for one in found if one.key == "plan.json" or one.key.startswith("counts/")]
    asked = {stored.key for stored in listing} | {part.key for part in unfinished}
    assert {one.key for one in found} <= asked


@given(st.lists(_OBJECTS), st.booleans())
def test_no_table_that_stands_and_nothing_unknown_is_to_be_deleted(listing: list[StoredObject], complete: bool) -> None:
    deleted = {one.key for one in leftovers(listing, [], PLAN, complete, NOW, 0.0) if one.verdict == "delete"}
    assert not deleted & {layout.CERTIFICATES, layout.CURVES, layout.REPORT, layout.FIGURE}
    assert all(key.startswith(("failed/shard-", "drivers/", ".probe/", "partial/")) for key in deleted)


def judged(key: str, age_s: float, *others: StoredObject, complete: bool = True) -> tuple[str, str] | None:
    """What is said of one object, by age; None if nothing is."""
    found = leftovers([StoredObject(key, 1, NOW - age_s), *others], [], PLAN, complete, NOW)
    return next(((one.verdict, one.reason) for one in found if one.key == key), None)


def votes(key: str, age_s: float) -> StoredObject:
    return StoredObject(key, 1, NOW - age_s)


def test_a_record_of_a_shard_that_was_counted_later_is_overtaken() -> None:
    record = layout.failed(1)
    assert judged(record, 50.0, votes(layout.counts(1), 20.0)) == (
        "delete",
        "shard 1 was counted after it was given up",
    )
    assert judged(record, 50.0) is None
    assert judged(record, 50.0, votes(layout.counts(2), 20.0)) is None
    assert judged(layout.failed(7), 50.0, votes(layout.counts(7), 20.0)) == ("not ours", "unknown")


def test_a_record_of_a_retry_that_was_given_up_stands_until_a_later_retry_succeeds() -> None:
    record = layout.failed(1)
    assert judged(record, 50.0, votes(layout.counts(1), 90.0)) is None
    assert judged(record, 50.0, votes(layout.counts(1), 90.0), votes(layout.retry(1, 1), 60.0)) is None
    overtaken = judged(record, 50.0, votes(layout.counts(1), 90.0), votes(layout.retry(1, 1), 20.0))
    assert overtaken is not None
    assert overtaken[0] == "delete"


def test_a_driver_is_gone_once_it_gave_no_sign_for_long() -> None:
    key = layout.driver("host-123")
    assert judged(key, DRIVER_GONE_S - 1) is None
    assert judged(key, DRIVER_GONE_S + 1) == ("delete", "record of a driver that is gone")
    assert judged(key, -100.0) is None  # the store's clock is ahead


def test_partial_tables_are_overtaken_by_complete_ones() -> None:
    for table in (layout.CERTIFICATES, layout.CURVES):
        assert judged(layout.PARTIAL + table, 1.0) == ("delete", "partial table of a run that is complete")
        assert judged(layout.PARTIAL + table, 1.0, complete=False) is None


@pytest.mark.parametrize(
    ("age_s", "verdict"), [(YOUNG_S - 1, "too young"), (YOUNG_S + 1, "delete"), (-9.0, "too young")]
)
def test_what_is_half_written_may_be_somebodys_work(age_s: float, verdict: str) -> None:
    assert judged(layout.probe(), age_s) == (verdict, "probe of the store")
    for part in (Unfinished(".tmp/x", 1, NOW - age_s), Unfinished(layout.CERTIFICATES, 1, NOW - age_s, "upload")):
        (found,) = leftovers([], [part], PLAN, complete=True, now=NOW)
        assert (found.verdict, found.reason, found.unfinished) == (verdict, "half written", part)


@pytest.mark.parametrize(
    "key", ["notes.txt", "other/plan.json", ".probe/notes", "partial/notes", "failed/x", "drivers/x"]
)
def test_what_is_unknown_is_shown_and_left_alone(key: str) -> None:
    assert judged(key, 10 * YOUNG_S) == ("not ours", "unknown")


def test_an_upload_that_is_none_of_ours_is_left_alone() -> None:
    part = Unfinished("other/certificates.parquet", 1, 0.0, "upload")
    assert [one.verdict for one in leftovers([], [part], PLAN, complete=True, now=NOW)] == ["not ours"]


@pytest.mark.parametrize("key", [layout.PLAN, layout.counts(0), layout.retry(0, 1), "counts/anything"])
def test_whoever_asks_for_a_vote_to_be_deleted_is_refused(made: MadeRun, tmp_path: Path, key: str) -> None:
    store = made.write(tmp_path / "run")
    store.replace("counts/anything", b"")
    store.replace(layout.retry(0, 1), b"")
    before = content(store)
    with pytest.raises(AssertionError, match="never deleted"):
        delete_leftovers(store, [Leftover(key, 1, 1.0, "", "delete")])
    assert content(store) == before


# --- A run that was killed, and one command afterwards -------------------------------------------------------------


@pytest.fixture
def crashed(made: MadeRun, tmp_path: Path) -> tuple[LocalStore, set[str]]:
    """A reduced run with all that crashes leave, three hours ago; and what of it is garbage."""
    store = made.write(tmp_path / "run")
    reduce_run(store, made.plan, View.of(made.plan.spec))
    garbage = {layout.failed(1), layout.probe(), layout.driver("host-1-abc"), layout.PARTIAL + layout.CURVES}
    for key in garbage | {"notes.txt"}:
        store.create(key, b"left over")
    aside = tmp_path / "run" / ".tmp" / uuid.uuid4().hex
    aside.write_bytes(b"half an ob")
    for path in (tmp_path / "run").rglob("*"):
        age_s = 7200 if "counts" in path.parts else 10_800
        os.utime(path, (time.time() - age_s,) * 2)
    return store, {*garbage, f".tmp/{aside.name}"}


def test_gc_shows_and_deletes_nothing(crashed: tuple[LocalStore, set[str]]) -> None:
    store, garbage = crashed
    before = content(store)
    result = stn("gc", store.uri)
    assert (result.exit_code, result.stderr) == (0, "")
    *lines, last = result.stdout.splitlines()
    assert last == "5 objects, 46 bytes; delete them with --yes"
    assert {line.split()[0] for line in lines if line.endswith(": to be deleted")} == garbage
    (other,) = (line for line in lines if not line.endswith(": to be deleted"))
    assert re.fullmatch(r"notes.txt +9 B +3 h 00 min  unknown: not ours, left alone", other)
    assert content(store) == before
    assert len([*store.unfinished()]) == 1


def test_gc_deletes_what_it_showed_and_the_run_reduces_to_the_same_tables(
    crashed: tuple[LocalStore, set[str]], made: MadeRun, tmp_path: Path
) -> None:
    store, garbage = crashed
    before = content(store)
    shown = json.loads(stn("gc", store.uri, "--json").stdout)
    assert {one["key"] for one in shown["leftovers"] if one["verdict"] == "delete"} == garbage
    assert (shown["run"], shown["deleted"]) == (store.uri, 0)
    result = stn("gc", store.uri, "--yes")
    assert result.exit_code == 0
    assert result.stdout.endswith("deleted 5 objects, 46 bytes\n")
    assert content(store) == {key: value for key, value in before.items() if key not in garbage}
    assert not (tmp_path / "run" / ".tmp").exists()
    reduce_run(store, made.plan, View.of(made.plan.spec))
    assert content(store) == {key: value for key, value in before.items() if key not in garbage}
    assert stn("gc", store.uri, "--yes").stdout.splitlines()[-1] == f"nothing to delete in {store.uri}"


def test_gc_leaves_young_things_alone_for_as_long_as_it_is_told(crashed: tuple[LocalStore, set[str]]) -> None:
    store, _ = crashed
    result = stn("gc", store.uri, "--older-than", 200)
    young = [line for line in result.stdout.splitlines() if line.endswith("too young, left alone")]
    assert sorted(line[:5] for line in young) == [".prob", ".tmp/"]
    stn("gc", store.uri, "--older-than", 200, "--yes")
    assert len([*store.unfinished()]) == 1
    assert len([*store.list(layout.PROBES)]) == 1
    stn("gc", store.uri, "--older-than", 0, "--yes")
    assert [one.verdict for one in find_leftovers(store)] == ["not ours"]


def test_damaged_tables_overtake_nothing(crashed: tuple[LocalStore, set[str]]) -> None:
    store, _ = crashed
    store.replace(layout.CURVES, b"junk")
    assert layout.PARTIAL + layout.CURVES not in {one.key for one in find_leftovers(store)}


def test_an_incomplete_run_keeps_its_partial_tables(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path / "half", [0, 2])
    reduce_run(store, made.plan, View.of(made.plan.spec))
    store.create(layout.failed(1), b"{}")
    before = content(store)
    assert stn("gc", store.uri, "--yes", "--older-than", 0).stdout == f"nothing to delete in {store.uri}\n"
    assert content(store) == before


@pytest.mark.parametrize("name", ["nowhere", "folder", "damaged"])
def test_gc_of_no_run_is_one_line_and_touches_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder" / ".tmp").mkdir(parents=True)
    (tmp_path / "folder" / ".tmp" / uuid.uuid4().hex).write_bytes(b"somebody's")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "plan.json").write_bytes(b"junk")
    before = sorted(tmp_path.rglob("*"))
    result = stn("gc", tmp_path / name, "--yes", "--older-than", 0)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert str(tmp_path / name) in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(RunError):
        find_leftovers(open_store(str(tmp_path / name)))


def test_gc_of_a_run_in_object_storage_aborts_uploads_and_keeps_votes(
    made: MadeRun, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    prefix = f"{uuid.uuid4().hex}/run"
    store = open_store(f"s3://{BUCKET}/{prefix}")
    store.create(layout.PLAN, made.plan.to_json())
    for shard in range(made.plan.shards):
        store.create(layout.counts(shard), made.encoded(shard))
    reduce_run(store, made.plan, View.of(made.plan.spec))
    wanted = content(store)
    store.create(layout.probe(), b"")
    client = boto3.client("s3")
    for key in (layout.CERTIFICATES, layout.counts(0), "others"):
        client.create_multipart_upload(Bucket=BUCKET, Key=f"{prefix}/{key}")
    shown = stn("gc", store.uri)
    assert shown.exit_code == 0
    assert shown.stdout.count("too young, left alone") == 2
    assert shown.stdout.count("not ours, left alone") == 1
    assert layout.COUNTS not in shown.stdout
    done = stn("gc", store.uri, "--older-than", 0, "--yes")
    assert done.stdout.endswith("deleted 2 objects, 0 bytes\n")
    assert content(store) == wanted
    assert sorted(part.key for part in store.unfinished()) == [layout.counts(0), "others"]
