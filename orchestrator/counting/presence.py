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
from dataclasses import asdict, dataclass

from workers import layout
from workers.store import ObjectMissing, Store, StoreError

log = logging.getLogger(__name__)

#: Seconds between two signs of life.
_BEAT_S = 10.0


#: A record this old is of a driver that is gone, or out of reach, s.
_GONE_S = 60.0


@dataclass(frozen=True)
class Driver:
    """A driver's record.

    Attributes:
        host: the machine it runs on.
        pid: its process there.
        started: ISO 8601, UTC.
    """

    host: str
    pid: int
    started: str

    @classmethod
    def here(cls) -> Driver:
        """This process."""
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(platform.node(), os.getpid(), started)

    @classmethod
    def from_json(cls, content: bytes) -> Driver:
        """Raises ValueError, KeyError or TypeError if it is no record."""
        values = json.loads(content)
        return cls(str(values["host"]), int(values["pid"]), str(values["started"]))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"


def drivers_at_work(store: Store, now: float) -> list[Driver]:
    """Drivers that have shown life in the last minute before ``now``, s since the epoch."""
    found = []
    for stored in store.list(layout.DRIVERS):
        if now - stored.modified < _GONE_S:
            with contextlib.suppress(ObjectMissing, ValueError, KeyError, TypeError):
                found.append(Driver.from_json(store.read(stored.key)))
    return [driver for driver in found if driver.host != platform.node() or _alive(driver.pid)]


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
        self._own = Driver.here()
        host = re.sub(r"[^A-Za-z0-9.-]", "-", self._own.host) or "unknown"
        self._key = layout.driver(f"{host}-{self._own.pid}-{uuid.uuid4().hex[:8]}")
        self._refreshed: dict[str, float] = {}
        self._told: set[str] = set()

    def beat(self) -> None:
        """Refresh the record, look at the others'."""
        try:
            self._store.replace(self._key, json.dumps(asdict(self._own)).encode())
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
            other = Driver.from_json(self._store.read(key))
        except (ObjectMissing, ValueError, KeyError, TypeError):
            return
        before = self._refreshed.setdefault(key, modified)
        here = other.host == self._own.host
        if here and not _alive(other.pid):
            self._store.delete(key)  # it was killed
        elif here or modified > before:
            self._told.add(key)
            self._tell(
                f"another driver is at work on this run: {other}; both may go on, of each shard the first commit counts"
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
