"""Files to read, in a folder or in object storage: data sets and checkpoints, and the same of both.

What cannot be had is said as a folder says it: FileNotFoundError, NotADirectoryError, IsADirectoryError and
PermissionError stay; any other OSError, and StoreError, may pass.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from workers.store import ObjectMissing, S3Options, StoredObject, StoreError, below, open_store

if TYPE_CHECKING:
    from workers.s3 import S3Reader


@dataclass(frozen=True, slots=True)
class File:
    """A file of a listing.

    Attributes:
        name: path relative to the place.
        size: bytes; -1 of a link to nowhere.
    """

    name: str
    size: int


class Files(Protocol):
    """Files below a place. Listings are in the order of their names' components, as paths are."""

    def list(self) -> Sequence[File]:
        """What lies directly in the place, but folders."""

    def folders(self) -> Sequence[str]:
        """Names of the folders directly in it. Object storage has no empty ones."""

    def walk(self, folder: str) -> Sequence[File]:
        """What lies below one of them, at any depth."""

    def file(self, name: str) -> File:
        """One file, listed alone."""

    def read(self, name: str) -> bytes:
        """A file's content."""

    def read_part(self, name: str, offset: int, size: int) -> bytes:
        """``size`` bytes of a file from ``offset`` on; fewer where it ends before."""

    def open(self, file: File) -> pa.NativeFile:
        """A listed file to seek in, of which only what is asked for is fetched."""


def open_files(place: Path | str, options: S3Options | None = None) -> Files:
    """The files below a folder or an ``s3://bucket/prefix``. Raises StoreError."""
    if isinstance(place, Path):
        return LocalFiles(place)
    # Slow to import, and folders do not need it.
    from workers.s3 import S3Reader

    return S3Files(S3Reader(place, options or S3Options()))


def parent_and_name(place: Path | str) -> tuple[Path | str, str]:
    """Where a file lies, and its name there. Raises StoreError if a URI names no more than a bucket."""
    if isinstance(place, Path):
        return place.parent, place.name
    parent, _, name = place.rstrip("/").rpartition("/")
    if parent == "s3:/":
        raise StoreError(f"{place} names no object: expected s3://bucket/key")
    return parent, name


def read_file(place: Path | str, options: S3Options | None = None) -> bytes:
    """The content of one file."""
    if isinstance(place, Path):
        return place.read_bytes()
    parent, name = parent_and_name(place)
    try:
        return open_store(str(parent), options).read(name)
    except ObjectMissing:
        raise _missing(place) from None


def exists(place: Path | str, options: S3Options | None = None) -> bool:
    """Whether there is anything. Raises StoreError where that cannot be seen."""
    if isinstance(place, Path):
        try:
            return place.exists()
        except OSError as error:
            raise StoreError(f"cannot read {place}: {error.strerror}") from error
    parent, name = parent_and_name(place)
    return open_store(str(parent), options).exists(name)


def absolute(place: Path | str) -> Path | str:
    """A place as any node sees it: a worker's working directory is not the driver's. Raises RuntimeError."""
    return place.expanduser().absolute() if isinstance(place, Path) else place


class LocalFiles:
    """``Files`` in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def list(self) -> Sequence[File]:
        return [self._file(path) for path in sorted(self._root.iterdir()) if not path.is_dir()]

    def folders(self) -> Sequence[str]:
        return sorted(path.name for path in self._root.iterdir() if path.is_dir())

    def walk(self, folder: str) -> Sequence[File]:
        return [self._file(path) for path in sorted(below(self._root / folder)) if not path.is_dir()]

    def file(self, name: str) -> File:
        return File(name, (self._root / name).stat().st_size)

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def read_part(self, name: str, offset: int, size: int) -> bytes:
        with (self._root / name).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def open(self, file: File) -> pa.NativeFile:
        return pa.OSFile(str(self._root / file.name))

    def _file(self, path: Path) -> File:
        return File(path.relative_to(self._root).as_posix(), path.stat().st_size if path.exists() else -1)


class S3Files:
    """``Files`` in object storage. Its folders are what its keys say."""

    def __init__(self, reader: S3Reader) -> None:
        self._reader = reader

    def list(self) -> Sequence[File]:
        found = (File(child.key, child.size) for child in self._children() if isinstance(child, StoredObject))
        return sorted(found, key=lambda file: file.name)

    def folders(self) -> Sequence[str]:
        return sorted(child for child in self._children() if isinstance(child, str))

    def _children(self) -> Sequence[StoredObject | str]:
        # The prefix itself may be an object, made to look like a folder.
        found = [child for child in self._reader.children() if child not in ("", "/")]
        if not any(isinstance(child, str) or child.key for child in found):
            raise _missing(self._reader.uri)
        return [child for child in found if isinstance(child, str) or child.key]

    def walk(self, folder: str) -> Sequence[File]:
        found = (File(stored.key, stored.size) for stored in self._reader.list(f"{folder}/"))
        return sorted((file for file in found if not file.name.endswith("/")), key=lambda file: file.name.split("/"))

    def file(self, name: str) -> File:
        try:
            return File(name, self._reader.size(name))
        except ObjectMissing:
            raise _missing(name) from None

    def read(self, name: str) -> bytes:
        return self._told(name, lambda: self._reader.read(name))

    def read_part(self, name: str, offset: int, size: int) -> bytes:
        return self._told(name, lambda: self._reader.read_range(name, offset, offset + size))

    @staticmethod
    def _told(name: str, read: Callable[[], bytes]) -> bytes:
        """What cannot be had in a folder's words: what is recorded of an image is to be the same for both."""
        from workers.s3 import ObjectRefused

        try:
            return read()
        except ObjectMissing:
            raise _missing(name) from None
        except ObjectRefused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name) from None

    def open(self, file: File) -> pa.NativeFile:
        from workers.s3 import ObjectFile

        return pa.PythonFile(ObjectFile(self._reader, file.name, file.size), mode="r")


def _missing(name: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
