from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.counting.presence import Presence, announced
from workers import layout
from workers.store import LocalStore, StoreError


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def keys(store: LocalStore) -> list[str]:
    return [stored.key for stored in store.list(layout.DRIVERS)]


def record(store: LocalStore, *, host: str, pid: int) -> str:
    key = layout.driver(f"{host}-{pid}")
    store.replace(key, json.dumps({"host": host, "pid": pid, "started": "2026-01-01T00:00:00+00:00"}).encode())
    return key


def ended() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_two_drivers_are_told_of_each_other_once_and_leave_nothing_behind(store: LocalStore) -> None:
    told: dict[str, list[str]] = {"first": [], "second": []}
    with announced(store, told["first"].append):
        assert told["first"] == []
        with announced(store, told["second"].append):
            assert len(keys(store)) == 2
            third = Presence(store, told["first"].append)
            third.beat()
            third.beat()
            third.leave()
    assert keys(store) == []
    (line,) = told["second"]
    assert line.startswith(f"another driver is at work on this run: process {os.getpid()} on {platform.node()}, since ")
    assert len(told["first"]) == 2  # the third was told of both


def test_a_driver_elsewhere_is_told_of_when_it_shows_life(store: LocalStore) -> None:
    told: list[str] = []
    presence = Presence(store, told.append)
    key = record(store, host="elsewhere", pid=7)
    presence.beat()
    presence.beat()
    assert told == [], "it may have been killed long ago"
    os.utime(Path(store.uri) / key, (2e9, 2e9))
    presence.beat()
    presence.beat()
    assert [line.split(",")[0] for line in told] == ["another driver is at work on this run: process 7 on elsewhere"]
    assert key in keys(store)


def test_the_record_of_a_driver_killed_here_is_removed(store: LocalStore) -> None:
    told: list[str] = []
    record(store, host=platform.node(), pid=ended())
    presence = Presence(store, told.append)
    presence.beat()
    presence.leave()
    assert (told, keys(store)) == ([], [])


@pytest.mark.parametrize("content", [b"", b"[]", b'{"host": "x"}', b'{"host": "x", "pid": "y", "started": "z"}'])
def test_a_damaged_record_is_nobody(store: LocalStore, content: bytes) -> None:
    told: list[str] = []
    store.replace(layout.driver("odd"), content)
    Presence(store, told.append).beat()
    assert told == []


def test_a_store_that_fails_is_no_reason_to_stop(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: LocalStore, key: str, content: bytes) -> None:
        raise StoreError("throttled")

    monkeypatch.setattr(LocalStore, "replace", fail)
    with announced(store, lambda line: None):
        pass
