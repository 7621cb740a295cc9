"""A run in object storage, on a real server, with a proxy in between that misbehaves where a test needs it to."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault_proxy import Fault, Proxy, fault_proxy
from tests.object_store import BUCKET, SECRET_KEY, ObjectStore
from workers import retries
from workers.s3 import S3Store
from workers.store import ObjectMissing, S3Options, StoreError, open_store


@pytest.fixture
def prefix(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where no other test keeps anything; the environment leads to the server."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def proxy(object_store: ObjectStore, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with fault_proxy(object_store.url) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


def once(proxy: Proxy, method: str, fault: Fault) -> None:
    """Let the first request of a kind fail, and no other."""
    proxy.decide = lambda request: (
        fault if request.method == method and sum(seen.method == method for seen in proxy.seen) == 1 else None
    )


def test_a_create_whose_answer_is_lost_is_known_to_have_landed(proxy: Proxy, prefix: str) -> None:
    once(proxy, "PUT", "lost answer")
    store = S3Store(prefix)
    assert store.create("plan.json", b"mine") is True
    assert store.read("plan.json") == b"mine"
    assert sum(request.method == "PUT" for request in proxy.seen) == 2


def test_a_create_that_came_second_is_told_from_one_whose_answer_was_lost(proxy: Proxy, prefix: str) -> None:
    S3Store(prefix).create("plan.json", b"theirs")
    once(proxy, "PUT", "503")
    assert S3Store(prefix).create("plan.json", b"mine") is False
    assert S3Store(prefix).read("plan.json") == b"theirs"


@pytest.mark.parametrize("fault", ["503", "lost answer"])
@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD", "DELETE"])
def test_a_request_that_fails_once_is_repeated(proxy: Proxy, prefix: str, method: str, fault: Fault) -> None:
    once(proxy, method, fault)
    store = S3Store(prefix)
    retries.take()
    store.replace("a", b"1")
    assert store.exists("a")
    assert store.read("a") == b"1"
    assert [found.key for found in store.list("")] == ["a"]
    store.delete("a")
    assert not store.exists("a")
    assert retries.take() == 1
    assert retries.take() == 0


def test_a_body_that_breaks_off_is_fetched_again(proxy: Proxy, prefix: str) -> None:
    content = bytes(range(256)) * 4096
    S3Store(prefix).create("a", content)
    once(proxy, "GET", "truncated")
    retries.take()
    assert S3Store(prefix).read("a") == content
    assert retries.take() == 1


def test_a_server_that_honours_conditions_passes_the_probe_and_keeps_nothing_of_it(prefix: str) -> None:
    store = S3Store(prefix)
    store.check_exclusive()
    assert list(store.list("")) == []


def test_a_server_that_ignores_conditions_needs_a_single_writer(proxy: Proxy, prefix: str) -> None:
    proxy.decide = lambda request: "ignored condition" if request.conditional else None
    with pytest.raises(StoreError, match=r"ignores If-None-Match.*--single-writer"):
        S3Store(prefix).check_exclusive()
    proxy.seen.clear()
    alone = S3Store(prefix, S3Options(single_writer=True))
    alone.check_exclusive()
    assert alone.create("a", b"1") is True
    assert alone.create("a", b"2") is False
    assert alone.read("a") == b"1"
    assert not any(request.conditional for request in proxy.seen)


def test_listings_of_more_than_a_page_are_whole_and_in_order(prefix: str) -> None:
    store = S3Store(prefix)
    keys = [f"counts/round=0/shard-{number:06d}.parquet" for number in range(1100)]
    for key in keys:
        store.replace(key, b"")
    assert [found.key for found in store.list("counts/")] == keys


def test_a_large_file_is_replaced_whole(prefix: str, tmp_path: Path) -> None:
    file = tmp_path / "table"
    file.write_bytes(os.urandom(20 * 2**20))  # more than one part of a multipart upload
    store = S3Store(prefix)
    store.replace("table", b"old")
    store.replace_file("table", file)
    assert store.read("table") == file.read_bytes()


def test_runs_side_by_side_do_not_see_each_other(prefix: str) -> None:
    S3Store(f"{prefix}/run").create("a", b"1")
    S3Store(f"{prefix}/run-2").create("b", b"2")
    assert [found.key for found in S3Store(f"{prefix}/run/").list("")] == ["a"]
    with pytest.raises(ObjectMissing):
        S3Store(f"{prefix}/run").read("b")


def test_wrong_credentials_are_named_and_not_shown(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    S3Store(prefix).create("a", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY + "-wrong")
    for act in (
        lambda: S3Store(prefix).read("a"),
        lambda: S3Store(prefix).create("b", b""),
        lambda: S3Store(prefix).exists("a"),
        lambda: list(S3Store(prefix).list("")),
        lambda: S3Store(prefix).delete("a"),
    ):
        with pytest.raises(StoreError, match=r"no permission to .*credentials") as refused:
            act()
        assert "\n" not in str(refused.value)
        assert SECRET_KEY not in str(refused.value)


def test_no_credentials_are_asked_for(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreError, match="no AWS credentials; set AWS_PROFILE"):
        S3Store(prefix).read("a")


@pytest.mark.parametrize(
    ("uri", "environment", "message"),
    [
        ("s3://", {}, "names no bucket"),
        ("s3:///run", {}, "names no bucket"),
        ("s3://B!/run", {}, "[Bb]ucket"),
        (f"s3://{BUCKET}/run", {"AWS_PROFILE": "nobody"}, "nobody"),
        (f"s3://{BUCKET}/run", {"AWS_ENDPOINT_URL": "nonsense"}, "nonsense"),
    ],
)
def test_what_cannot_be_opened_is_named(
    prefix: str, monkeypatch: pytest.MonkeyPatch, uri: str, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=message) as refused:
        open_store(uri).read("a")
    assert "\n" not in str(refused.value)
