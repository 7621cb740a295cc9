"""Where a run is kept: a folder today. The only module that touches a run's storage.

The one promise everything rests on is ``create``: an object appears whole, under a name that did not exist, or not at
all, and survives the machine once the call returns.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class StoreError(Exception):
    """Storage cannot be used as asked; the message says what to change."""


class ObjectMissing(StoreError):
    """There is no object under that key."""


@dataclass(frozen=True)
class StoredObject:
    """One object of a listing.

    Attributes:
        key: relative to the run.
        size: bytes.
        modified: seconds since the epoch, as the store tells it.
    """

    key: str
    size: int
    modified: float


class Store(Protocol):
    """A run's objects, by key."""

    uri: str

    def create(self, key: str, content: bytes) -> bool:
        """Write a new object atomically and durably. False, and nothing written, if the key exists."""

    def replace(self, key: str, content: bytes) -> None:
        """Write an object atomically and durably, whether or not it exists."""

    def read(self, key: str) -> bytes:
        """An object's content. Raises ObjectMissing."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Objects whose key begins with ``prefix``, in key order."""

    def delete(self, key: str) -> None:
        """Remove an object, if it exists."""


def open_store(uri: str) -> Store:
    """The store at a folder's path. Raises StoreError for a scheme it does not know."""
    scheme, separator, _ = uri.partition("://")
    if separator and scheme != "file":
        raise StoreError(f"store.run {uri}: {scheme}:// is not supported yet; use a folder that every node can reach")
    return LocalStore(Path(uri.removeprefix("file://")))


class LocalStore:
    """A run in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()
        self.uri = str(self._root)

    def create(self, key: str, content: bytes) -> bool:
        if self._path(key).exists():
            return False
        aside = self._write_aside(content)
        try:
            # A hard link fails if the name exists and otherwise appears at once, whole: what rename cannot promise.
            self._into_place(key, lambda target: os.link(aside, target))
        except FileExistsError:
            return False
        finally:
            aside.unlink()
        return True

    def replace(self, key: str, content: bytes) -> None:
        aside = self._write_aside(content)
        self._into_place(key, lambda target: os.replace(aside, target))

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ObjectMissing(f"{self.uri} has no {key}") from None
        except OSError as error:
            raise StoreError(f"cannot read {self._path(key)}: {error.strerror}") from error

    def list(self, prefix: str) -> Iterator[StoredObject]:
        folder = self._root / prefix if prefix.endswith("/") else (self._root / prefix).parent
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            key = path.relative_to(self._root).as_posix()
            if path.is_file() and key.startswith(prefix):
                status = path.stat()
                yield StoredObject(key, status.st_size, status.st_mtime)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._root / key

    def _write_aside(self, content: bytes) -> Path:
        """The content in a file of its own, on disk. A crash leaves it behind, outside every listing."""
        path = self._root / ".tmp" / uuid.uuid4().hex
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise StoreError(f"cannot write under {self.uri}: {error.strerror}") from error
        return path

    def _into_place(self, key: str, move: Callable[[Path], None]) -> None:
        target = self._path(key)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            move(target)
            _fsync_folder(target.parent)
        except FileExistsError:
            raise
        except OSError as error:
            raise StoreError(f"cannot write {target}: {error.strerror}") from error


def _fsync_folder(folder: Path) -> None:
    """Make a new name durable, not only the content behind it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
