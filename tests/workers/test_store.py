from __future__ import annotations

import datetime
import errno
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from botocore.stub import Stubber
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.object_store import BUCKET, ObjectStore
from workers.s3 import S3Store
from workers.store import (
    LocalStore,
    ObjectMissing,
    Store,
    StoreError,
    Unfinished,
    check_endpoint,
    checked,
    checked_prefix,
    is_key,
    open_store,
)

# --- What every store promises -------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "s3"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Store]:
    """Opens the same empty run of each kind of store, as often as asked."""
    if request.param == "folder":
        return lambda: open_store(str(tmp_path / "runs" / "run"))
    server: ObjectStore = request.getfixturevalue("object_store")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    uri = f"s3://{BUCKET}/{uuid.uuid4().hex}/run"
    return lambda: open_store(uri)


@pytest.fixture
def store(reopen: Callable[[], Store]) -> Store:
    return reopen()


def keys(store: Store, prefix: str) -> list[str]:
    return [stored.key for stored in store.list(prefix)]


def test_created_content_is_read_back_by_another_client(store: Store, reopen: Callable[[], Store]) -> None:
    content = bytes(range(256)) * 1000
    assert store.create("counts/round=0/a", content) is True
    assert reopen().read("counts/round=0/a") == content


def test_an_object_may_be_empty(store: Store) -> None:
    assert store.create("empty", b"") is True
    assert store.read("empty") == b""
    assert keys(store, "empty") == ["empty"]


def test_a_second_create_changes_nothing_and_says_so(store: Store, reopen: Callable[[], Store]) -> None:
    store.create("plan", b"first")
    assert store.create("plan", b"second") is False
    assert reopen().create("plan", b"third") is False
    assert store.read("plan") == b"first"


def test_create_works_again_after_a_delete(store: Store) -> None:
    store.create("a", b"1")
    store.delete("a")
    assert store.create("a", b"2") is True
    assert store.read("a") == b"2"


def test_of_threads_that_create_the_same_object_one_wins(reopen: Callable[[], Store]) -> None:
    racers, rounds = 8, 5
    barrier = threading.Barrier(racers)

    def race(racer: int) -> list[bool]:
        store = reopen()
        won = []
        for number in range(rounds):
            barrier.wait()
            won.append(store.create(f"race/{number}", bytes([racer]) * 10_000))
        return won

    with ThreadPoolExecutor(racers) as pool:
        results = list(pool.map(race, range(racers)))
    for number in range(rounds):
        winners = [racer for racer in range(racers) if results[racer][number]]
        assert len(winners) == 1
        assert reopen().read(f"race/{number}") == bytes(winners) * 10_000


@pytest.mark.parametrize("by", ["replace", "replace_file"])
def test_a_reader_sees_an_object_whole_or_not_at_all(reopen: Callable[[], Store], tmp_path: Path, by: str) -> None:
    versions = [bytes([version]) * 200_000 for version in range(8)]
    reopen().create("a", versions[0])
    seen: list[bytes] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(reopen().read("a"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for version in versions:
        if by == "replace":
            reopen().replace("a", version)
        else:
            (tmp_path / "source").write_bytes(version)
            reopen().replace_file("a", tmp_path / "source")
    done.set()
    watcher.join()
    assert seen
    assert set(seen) <= set(versions)


def test_replace_writes_a_new_object_and_over_an_old_one(store: Store) -> None:
    store.replace("report", b"long first content")
    assert store.read("report") == b"long first content"
    store.replace("report", b"second")
    assert store.read("report") == b"second"


@pytest.fixture
def replacing(tmp_path: Path) -> Callable[[Store, str, bytes], None]:
    """``replace_file``, called as ``replace`` is: the content goes through a file elsewhere."""

    def replace(store: Store, key: str, content: bytes) -> None:
        file = tmp_path / "a file to copy"
        file.write_bytes(content)
        store.replace_file(key, file)

    return replace


Replacing = Callable[[Store, str, bytes], None]


def test_replace_file_writes_a_new_object_and_over_an_old_one(
    store: Store, reopen: Callable[[], Store], replacing: Replacing
) -> None:
    content = bytes(range(256)) * 10_000  # more than one buffer
    replacing(store, "new folder/certificates", content)
    assert reopen().read("new folder/certificates") == content
    replacing(store, "new folder/certificates", b"shorter")
    assert reopen().read("new folder/certificates") == b"shorter"
    assert keys(store, "") == ["new folder/certificates"]
    store.replace("new folder/certificates", b"by replace")
    assert store.read("new folder/certificates") == b"by replace"
    assert store.create("new folder/certificates", b"by create") is False


def test_replace_file_takes_an_empty_file_and_leaves_the_source_as_it_is(store: Store, tmp_path: Path) -> None:
    for content in (b"", b"kept"):
        (tmp_path / "source").write_bytes(content)
        store.replace_file("a", tmp_path / "source")
        assert store.read("a") == (tmp_path / "source").read_bytes() == content
    (tmp_path / "source").write_bytes(b"changed later")
    assert store.read("a") == b"kept"


def test_a_file_that_is_not_there_replaces_nothing(store: Store, tmp_path: Path) -> None:
    store.create("a", b"1")
    with pytest.raises((OSError, StoreError)):
        store.replace_file("a", tmp_path / "nowhere")
    assert store.read("a") == b"1"
    assert keys(store, "") == ["a"]


def test_create_does_not_touch_what_replace_wrote(store: Store) -> None:
    store.replace("a", b"1")
    assert store.create("a", b"2") is False
    assert store.read("a") == b"1"


def test_reading_what_is_not_there_names_run_and_key(store: Store) -> None:
    with pytest.raises(ObjectMissing) as missing:
        store.read("counts/nothing")
    assert store.uri in str(missing.value)
    assert "counts/nothing" in str(missing.value)


def test_reading_below_an_object_is_missing_too(store: Store) -> None:
    store.create("a", b"1")
    with pytest.raises(ObjectMissing):
        store.read("a/b")


def test_only_an_object_exists(store: Store) -> None:
    assert not store.exists("a/b")
    store.create("a/b", b"1")
    assert store.exists("a/b")
    assert not store.exists("a")
    store.delete("a/b")
    assert not store.exists("a/b")


def test_deleting_is_idempotent(store: Store) -> None:
    store.create("a", b"1")
    store.delete("a")
    store.delete("a")
    store.delete("never/there")
    assert keys(store, "a") == []


def test_deleting_below_an_object_deletes_nothing(store: Store) -> None:
    store.create("a", b"1")
    store.delete("a/b")
    assert store.read("a") == b"1"


@pytest.mark.parametrize("prefix", ["counts/", "counts/round=0/", "nothing/", "plan", "c"])
def test_an_empty_run_lists_nothing(store: Store, prefix: str) -> None:
    assert keys(store, prefix) == []


def test_a_listing_holds_the_keys_below_its_prefix_and_no_others(store: Store) -> None:
    for key in ("counts/round=0/b", "counts/round=0/a", "counts/round=1/a", "countsx/a", "failed/a"):
        store.create(key, b"1")
    assert keys(store, "counts/") == ["counts/round=0/a", "counts/round=0/b", "counts/round=1/a"]
    assert keys(store, "counts/round=0/") == ["counts/round=0/a", "counts/round=0/b"]
    assert keys(store, "counts/round=0/a") == ["counts/round=0/a"]
    assert keys(store, "counts") == ["counts/round=0/a", "counts/round=0/b", "counts/round=1/a", "countsx/a"]


def test_a_listing_is_in_key_order(store: Store) -> None:
    written = ["a/b/x", "a/b-c/x", "a-b/x", "a/10", "a/9"]
    for key in written:
        store.create(key, b"1")
    assert keys(store, "a") == sorted(written)


def test_a_listing_of_everything_is_every_object_of_this_run(store: Store) -> None:
    open_store(f"{store.uri}-other").create("x", b"1")
    store.create("plan", b"1")
    store.create("counts/a", b"1")
    assert keys(store, "") == ["counts/a", "plan"]


def test_a_listing_tells_sizes_and_times(store: Store) -> None:
    store.create("a", b"12345")
    store.create("b", b"")
    first, second = *store.list("a"), *store.list("b")
    assert (first.size, second.size) == (5, 0)
    assert 0 < first.modified <= second.modified


def test_content_written_through_one_client_is_listed_by_another(store: Store, reopen: Callable[[], Store]) -> None:
    store.create("counts/a", b"1")
    assert keys(reopen(), "counts/") == ["counts/a"]
    reopen().delete("counts/a")
    assert keys(store, "counts/") == []


#: Names that could mean something outside the run, or nothing at all.
NO_KEYS = (
    "",
    "/",
    "..",
    "../x",
    "counts/../../x",
    "counts/..",
    "./x",
    "counts/./x",
    "counts//x",
    "/etc/passwd",
    "counts\\..\\x",
    "x\0",
    "x\n",
    "x\x7f",
    "x\ud800",
)


@pytest.mark.parametrize("name", [*NO_KEYS, "counts/"], ids=ascii)
def test_what_is_no_key_is_refused_by_name_wherever_one_is_asked_for(
    store: Store, replacing: Replacing, name: str
) -> None:
    acts: tuple[Callable[[], object], ...] = (
        lambda: store.create(name, b""),
        lambda: store.replace(name, b""),
        lambda: replacing(store, name, b""),
        lambda: store.read(name),
        lambda: store.exists(name),
        lambda: store.delete(name),
        lambda: store.discard(Unfinished(name, 0, 0.0, upload="x")),
    )
    for act in acts:
        with pytest.raises(StoreError, match="is no object's key") as refused:
            act()
        assert repr(name) in str(refused.value)
        assert not isinstance(refused.value, ObjectMissing)
        assert len(str(refused.value).splitlines()) == 1
    assert keys(store, "") == []


@pytest.mark.parametrize("prefix", [name for name in NO_KEYS if name], ids=ascii)
def test_no_listing_leaves_the_run(store: Store, prefix: str) -> None:
    with pytest.raises(StoreError, match="is no object's key"):
        keys(store, prefix)


_PARTS = st.sampled_from(["", ".", "..", "counts", "x", "x y", "é", "~", "a\\b", "\0", "\n"])
_NAMES = st.one_of(st.lists(_PARTS, max_size=5).map("/".join), st.text(max_size=20))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_NAMES)
@example("a/..b/...")
def test_a_key_names_something_below_the_run_and_nothing_else_is_one(tmp_path: Path, name: str) -> None:
    root = tmp_path.resolve() / "run"
    if is_key(name):
        assert checked(name) == name
        assert checked_prefix(f"{name}/") == f"{name}/"
        assert (root / name).resolve().relative_to(root).as_posix() == name
        name.encode()
    else:
        with pytest.raises(StoreError):
            checked(name)
        unusual = os.path.normpath(name) != name or name[0] in "./"
        assert unusual or not name.isprintable() or "\\" in name


def test_a_probe_leaves_nothing_and_a_new_run_is_no_run_afterwards(
    store: Store, reopen: Callable[[], Store], tmp_path: Path
) -> None:
    store.probe()
    assert keys(reopen(), "") == []
    assert [*store.unfinished()] == []
    assert [*tmp_path.iterdir()] == []
    store.create("a", b"1")
    store.probe()
    assert keys(store, "") == ["a"]


@pytest.fixture
def begin(store: Store, tmp_path: Path) -> Callable[[str, bytes], str]:
    """Leaves in the store what a writer leaves that is killed while it writes an object; returns its key there."""

    def in_folder(key: str, content: bytes) -> str:
        aside = tmp_path / "runs" / "run" / ".tmp" / uuid.uuid4().hex
        aside.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        return f".tmp/{aside.name}"

    def in_bucket(key: str, content: bytes) -> str:
        place = {"Bucket": BUCKET, "Key": f"{store.uri.removeprefix(f's3://{BUCKET}/')}/{key}"}
        client = boto3.client("s3")
        upload = client.create_multipart_upload(**place)["UploadId"]
        client.upload_part(**place, UploadId=upload, PartNumber=1, Body=content)
        return key

    return in_folder if isinstance(store, LocalStore) else in_bucket


Begin = Callable[[str, bytes], str]


def test_what_a_killed_writer_left_is_found_and_in_no_listing(store: Store, begin: Begin) -> None:
    store.create("counts/a", b"1")
    key = begin("certificates", b"half a ta")
    assert keys(store, "") == ["counts/a"]
    found = [*store.unfinished()]
    assert [(unfinished.key, unfinished.size) for unfinished in found] == [(key, 9)]
    a = next(iter(store.list("counts/a")))
    assert abs(found[0].modified - a.modified) < 60
    store.discard(found[0])
    store.discard(found[0])
    assert [*store.unfinished()] == []
    assert keys(store, "") == ["counts/a"]


def test_of_two_that_write_the_same_object_one_is_discarded(store: Store, begin: Begin) -> None:
    begin("certificates", b"first")
    first = next(store.unfinished())
    begin("certificates", b"second one")
    store.discard(first)
    assert [unfinished.size for unfinished in store.unfinished()] == [len(b"second one")]


def test_another_runs_unfinished_objects_are_not_this_ones(store: Store, begin: Begin) -> None:
    begin("certificates", b"1")
    assert [*open_store(f"{store.uri}-other").unfinished()] == []
    assert [*open_store(store.uri[:-1]).unfinished()] == []


# --- What a folder adds --------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def folder(root: Path) -> LocalStore:
    return LocalStore(root)


def visible(root: Path) -> list[str]:
    """Every file a person sees in the folder."""
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in files if not path.parts[0].startswith("."))


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob(".*/**/*") if path.is_file()]


_RACER = """
import sys
from pathlib import Path
from workers.store import LocalStore
store, name = LocalStore(Path(sys.argv[1])), sys.argv[2]
sys.stdin.readline()
print(*(number for number in range(200) if store.create(f"race/{number}", name.encode() * 1000)))
"""


def test_of_processes_that_create_the_same_objects_one_wins_each(root: Path, folder: LocalStore) -> None:
    names = "abcd"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, str(root), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for name in names
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = {name: racer.communicate()[0].split() for name, racer in zip(names, racers, strict=True)}
    assert [racer.returncode for racer in racers] == [0] * 4
    assert sorted(int(number) for numbers in won.values() for number in numbers) == list(range(200))
    for name, numbers in won.items():
        assert all(folder.read(f"race/{number}") == name.encode() * 1000 for number in numbers)


def test_nothing_is_left_aside(root: Path, folder: LocalStore, replacing: Replacing) -> None:
    folder.create("a", b"1")
    folder.create("a", b"2")
    folder.replace("a", b"3")
    replacing(folder, "a", b"4")
    assert leftovers(root) == []
    assert sorted(path.name for path in root.rglob("*")) == [".tmp", "a"]


def test_a_crash_between_writing_and_naming_leaves_nothing_visible(
    root: Path, folder: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", crash)
    with pytest.raises(KeyboardInterrupt):
        folder.create("counts/a", b"1")
    assert visible(root) == []
    assert keys(folder, "counts/") == []


def test_a_crash_while_replacing_leaves_the_old_object(
    root: Path, folder: LocalStore, replacing: Replacing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    folder.create("a", b"old")
    monkeypatch.setattr(os, "replace", crash)
    for write in (LocalStore.replace, replacing):
        with pytest.raises(KeyboardInterrupt):
            write(folder, "a", b"new")
        assert folder.read("a") == b"old"
        assert visible(root) == ["a"]


def test_a_file_system_without_hard_links_is_an_error_of_one_line(
    root: Path, folder: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreError, match="counts/a") as caught:
        folder.create("counts/a", b"1")
    assert len(str(caught.value).splitlines()) == 1
    assert visible(root) == []
    assert leftovers(root) == []


def test_a_full_disk_leaves_nothing_behind(
    root: Path, folder: LocalStore, replacing: Replacing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder.create("a", b"1")
    monkeypatch.setattr(os, "fsync", refuse)
    for write in (LocalStore.create, LocalStore.replace, replacing):
        for key in ("a", "b"):
            with pytest.raises(StoreError, match="No space left"):
                write(folder, key, b"2")
    assert folder.read("a") == b"1"
    assert visible(root) == ["a"]
    assert leftovers(root) == []


@pytest.mark.parametrize("by", ["create", "replace", "replace_file"])
def test_content_and_name_are_on_disk_before_a_write_returns(
    root: Path, folder: LocalStore, replacing: Replacing, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    calls: list[str] = []
    link, replace, fsync = os.link, os.replace, os.fsync

    def recorded_link(source: Path, target: Path) -> None:
        calls.append("name")
        link(source, target)

    def recorded_replace(source: Path, target: Path) -> None:
        calls.append("name")
        replace(source, target)

    def recorded_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        calls.append("folder" if path == root.resolve() else "content" if path.is_file() else str(path))
        fsync(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to tell what is synchronised")
    root.mkdir(parents=True)
    monkeypatch.setattr(os, "link", recorded_link)
    monkeypatch.setattr(os, "replace", recorded_replace)
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    {"create": LocalStore.create, "replace": LocalStore.replace, "replace_file": replacing}[by](folder, "a", b"1")
    assert calls == ["content", "name", "folder"]


@pytest.mark.parametrize("name", ["back\\slash", "line\nbreak", "bell\a", os.fsdecode(b"latin-1 \xe9")], ids=ascii)
def test_files_that_no_key_names_are_passed_over(root: Path, folder: LocalStore, name: str) -> None:
    folder.create("a", b"1")
    (root / name).write_bytes(b"")
    (root / ".tmp" / "mine.txt").write_bytes(b"")
    assert keys(folder, "") == ["a"]
    assert [*folder.unfinished()] == []


def test_votes_may_lie_elsewhere_and_a_link_that_leads_nowhere_is_no_object(
    root: Path, folder: LocalStore, tmp_path: Path
) -> None:
    (tmp_path / "large disk").mkdir()
    root.mkdir()
    (root / "counts").symlink_to(tmp_path / "large disk")
    folder.create("counts/a", b"1")
    (root / "counts" / "b").symlink_to(tmp_path / "nowhere")
    assert (tmp_path / "large disk" / "a").read_bytes() == b"1"
    assert keys(folder, "counts/") == ["counts/a"]
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(StoreError, match=r"cannot list .*loop"):
        keys(folder, "")


def test_nothing_is_discarded_through_a_link(root: Path, folder: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / uuid.uuid4().hex).write_bytes(b"")
    folder.create("a", b"1")
    (root / ".tmp").rmdir()
    (root / ".tmp").symlink_to(tmp_path / "others")
    assert [*folder.unfinished()] == []


def test_a_folder_is_not_deleted_as_an_object(root: Path, folder: LocalStore) -> None:
    (root / "counts").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot delete") as refused:
        folder.delete("counts")
    assert len(str(refused.value).splitlines()) == 1
    assert (root / "counts").is_dir()


def test_discarding_the_last_unfinished_object_removes_their_folder(root: Path, folder: LocalStore) -> None:
    (root / ".tmp").mkdir(parents=True)
    (root / ".tmp" / uuid.uuid4().hex).write_bytes(b"half an obj")
    for unfinished in folder.unfinished():
        folder.discard(unfinished)
    assert [*root.iterdir()] == []


def test_a_probe_reports_a_file_system_without_hard_links(
    root: Path, folder: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreError, match="cannot write under"):
        folder.probe()
    assert not root.exists()


BLOCKED = ("run is a file", "run is below a file", "key is a folder", "folder's folder is a file", "folder is a file")


def blocked(root: Path, why: str) -> tuple[LocalStore, str]:
    """A store and a key that nobody can write, root included."""
    (root / "counts").mkdir(parents=True)
    for file in (root / "failed", root / "file"):
        file.write_bytes(b"")
    cases = (
        (LocalStore(root / "file"), "a"),
        (LocalStore(root / "file" / "run"), "a"),
        (LocalStore(root), "counts"),
        (LocalStore(root), "failed/round=0/a"),
        (LocalStore(root), "failed/a"),
    )
    return cases[BLOCKED.index(why)]


@pytest.mark.parametrize("why", BLOCKED)
def test_what_cannot_be_written_is_a_store_error_of_one_line(root: Path, replacing: Replacing, why: str) -> None:
    store, key = blocked(root, why)
    for write in (LocalStore.create, LocalStore.replace, replacing)[why == "key is a folder" :]:
        with pytest.raises(StoreError) as caught:
            write(store, key, b"1")
        assert len(str(caught.value).splitlines()) == 1
        assert store.uri in str(caught.value)


def test_a_folder_that_may_not_be_written_is_a_store_error_of_one_line(root: Path, folder: LocalStore) -> None:
    root.mkdir(parents=True)
    root.chmod(0o500)
    try:
        if os.access(root, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(StoreError, match="Permission denied") as caught:
            folder.create("a", b"1")
        assert len(str(caught.value).splitlines()) == 1
    finally:
        root.chmod(0o700)


def test_reading_a_folder_is_a_store_error_and_not_a_missing_object(root: Path, folder: LocalStore) -> None:
    (root / "counts").mkdir(parents=True)
    with pytest.raises(StoreError, match="directory") as caught:
        folder.read("counts")
    assert not isinstance(caught.value, ObjectMissing)


def test_a_path_too_long_for_the_file_system_is_a_store_error(root: Path) -> None:
    root.mkdir(parents=True)
    store = LocalStore(root / ("x" * 300))
    with pytest.raises(StoreError, match="too long"):
        store.create("a", b"1")


# --- What a bucket adds --------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}/run")


def test_objects_that_no_key_names_are_passed_over(bucket: S3Store) -> None:
    bucket.create("a", b"1")
    bucket.create("folder/b", b"1")
    prefix = bucket.uri.removeprefix(f"s3://{BUCKET}/")
    client = boto3.client("s3")
    for name in ("folder/", "line\nbreak", "control\x01"):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=b"")
    assert keys(bucket, "") == ["a", "folder/b"]
    assert keys(bucket, "folder/") == ["folder/b"]


def test_whatever_a_server_lists_is_no_key_outside_the_run(bucket: S3Store) -> None:
    prefix = bucket.uri.removeprefix(f"s3://{BUCKET}/")
    now = datetime.datetime.now(datetime.UTC)
    names = ["", "../x", "a", "a//b", "./c", "b/../../x", "back\\slash", "/etc/passwd", "d/"]
    listed = [{"Key": f"{prefix}/{name}", "Size": 1, "LastModified": now} for name in names]
    begun = [{"Key": f"{prefix}/{name}", "UploadId": "x", "Initiated": now} for name in names]
    with Stubber(bucket._client) as answers:
        answers.add_response("list_objects_v2", {"Contents": listed, "IsTruncated": False})
        assert keys(bucket, "") == ["a"]
        answers.add_response("list_multipart_uploads", {"Uploads": begun, "IsTruncated": False})
        answers.add_client_error("list_parts", "NoSuchUpload")
        assert [unfinished.key for unfinished in bucket.unfinished()] == ["a"]
        answers.assert_no_pending_responses()


def test_what_has_arrived_last_makes_an_upload_young(bucket: S3Store) -> None:
    prefix = bucket.uri.removeprefix(f"s3://{BUCKET}/")
    began = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    upload = {"Key": f"{prefix}/certificates", "UploadId": "x", "Initiated": began}
    parts = [{"PartNumber": n, "Size": 5, "LastModified": began + n * datetime.timedelta(hours=1)} for n in (1, 2)]
    with Stubber(bucket._client) as answers:
        answers.add_response("list_multipart_uploads", {"Uploads": [upload], "IsTruncated": False})
        answers.add_response("list_parts", {"Parts": parts, "IsTruncated": False})
        (found,) = bucket.unfinished()
    assert found == Unfinished("certificates", 10, began.timestamp() + 7200, upload="x")


# --- Which store ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["gs", "http", "ftp"])
def test_an_unknown_scheme_is_named(scheme: str) -> None:
    with pytest.raises(StoreError, match=f"{scheme}://bucket/run") as caught:
        open_store(f"{scheme}://bucket/run")
    assert len(str(caught.value).splitlines()) == 1


def test_a_path_and_its_file_uri_are_the_same_run(root: Path) -> None:
    open_store(str(root)).create("a", b"1")
    assert open_store(root.as_uri()).read("a") == b"1"


def test_a_relative_path_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("runs/a")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.create("x", b"1")
    assert (tmp_path / "runs" / "a" / "x").read_bytes() == b"1"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/run").uri == str(tmp_path / "run")


@pytest.mark.parametrize(
    "uri", ["s3://key:s3cr3t@bucket/run", "ftp://key:s3cr3t@host/run", "s3://s3cr3t@bucket", "http://:s3cr3t@host"]
)
def test_a_uri_with_a_password_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(StoreError, match="must not hold a user or password") as refused:
        open_store(uri)
    assert "s3cr3t" not in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_an_at_sign_in_a_folders_name_is_nobodys_password(tmp_path: Path) -> None:
    assert open_store(f"{tmp_path}/a@b").uri == f"{tmp_path}/a@b"
    assert open_store("s3://bucket/run@2x").uri == "s3://bucket/run@2x"


@pytest.mark.parametrize("url", ["http://host", "https://host:9000", "https://host/gate/s3/", "http://[::1]:9000"])
def test_an_endpoint_is_a_server(url: str) -> None:
    check_endpoint(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3cr3t",
        "ftp://s3cr3t",
        "http://",
        "http://u:s3cr3t@host",
        "http://s3cr3t@host",
        "u:s3cr3t@host",
        "http://host?X-Amz-Signature=s3cr3t",
        "http://host#s3cr3t",
        "http://host:s3cr3t",
        "http://[s3cr3t]",
        "http://host/ s3cr3t",
        "http://host/\ns3cr3t",
    ],
)
def test_an_endpoint_that_is_more_than_a_server_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="the endpoint must be http://host") as refused:
        check_endpoint(url)
    assert "s3cr3t" not in str(refused.value)
