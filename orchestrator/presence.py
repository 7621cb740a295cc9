"""Drivers at work on the same run tell each other so. Nothing rests on it: of a shard, the first commit wins."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import platform
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from workers import layout
from workers.store import ObjectMissing, Store, StoreError

log = logging.getLogger(__name__)

#: Seconds between two signs of life.
_BEAT_S = 10.0


@contextmanager
def announced(store: Store, tell: Callable[[str], None]) -> Iterator[None]:
    """Be known to other drivers of the run for the time of the block; ``tell`` a line about each that is found."""
    presence = Presence(store, tell)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(_BEAT_S):
            presence.beat()

    presence.beat()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_BEAT_S)
        presence.leave()


class Presence:
    """One driver's record among those of the others. A failing store is no reason to stop counting."""

    def __init__(self, store: Store, tell: Callable[[str], None]) -> None:
        self._store, self._tell = store, tell
        host = re.sub(r"[^A-Za-z0-9.-]", "-", platform.node()) or "unknown"
        self._key = layout.driver(f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._record = {"host": platform.node(), "pid": os.getpid(), "started": started}
        self._refreshed: dict[str, float] = {}
        self._told: set[str] = set()

    def beat(self) -> None:
        """Refresh the record, look at the others'."""
        try:
            self._store.replace(self._key, json.dumps(self._record).encode())
            for stored in self._store.list(layout.DRIVERS):
                if stored.key not in self._told | {self._key}:
                    self._look(stored.key, stored.modified)
        except StoreError as error:
            log.info("no sign of life this time: %s", error)

    def leave(self) -> None:
        """Remove the record."""
        with contextlib.suppress(StoreError):
            self._store.delete(self._key)

    def _look(self, key: str, modified: float) -> None:
        try:
            other = json.loads(self._store.read(key))
            host, pid, started = str(other["host"]), int(other["pid"]), str(other["started"])
        except (ObjectMissing, ValueError, KeyError, TypeError):
            return
        before = self._refreshed.setdefault(key, modified)
        if host == self._record["host"] and not _alive(pid):
            self._store.delete(key)  # it was killed
        elif host == self._record["host"] or modified > before:
            self._told.add(key)
            self._tell(
                f"another driver is at work on this run: process {pid} on {host}, since {started}; "
                "both may go on, of each shard the first commit counts"
            )


def _alive(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
