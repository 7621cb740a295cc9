"""Where a run is kept: a folder, here, or object storage (``workers.s3``). Nothing else touches a run's storage.

The one promise everything rests on is ``create``: an object appears whole, under a name that did not exist, or not at
all, and survives the machine once the call returns.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol
from urllib.parse import urlsplit

#: Folder of objects being written, inside a run's.
_ASIDE = ".tmp"
_ASIDE_NAME = re.compile(r"[0-9a-f]{32}")


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


@dataclass(frozen=True)
class Unfinished:
    """What a writer that was killed left in storage, or one at work is writing: in no listing, and no object yet.

    Attributes:
        key: relative to the run: the object it was to be, or the file it is in.
        size: bytes written so far.
        modified: seconds since the epoch, as the store tells it, of the last of them.
        upload: the multipart upload, where it is one.
    """

    key: str
    size: int
    modified: float
    upload: str = ""


def is_key(text: str) -> bool:
    """Whether an object may have this key: relative, and inside the run whatever a store makes of dots and slashes."""
    # Unprintable are control characters, and what UTF-8 cannot hold.
    return text.isprintable() and "\\" not in text and not {"", ".", ".."} & set(text.split("/"))


def checked(key: str) -> str:
    """The key. Raises StoreError where it is none."""
    if not is_key(key):
        raise StoreError(f"{key!r} is no object's key: it must name something inside the run")
    return key


def checked_prefix(prefix: str) -> str:
    """What keys may begin with: nothing, a folder with its slash, or a part of a name. Raises StoreError otherwise."""
    if prefix:
        checked(prefix.removesuffix("/"))
    return prefix


class Store(Protocol):
    """A run's objects, by key. What is no key (``is_key``) is a StoreError wherever one is asked for."""

    uri: str

    def create(self, key: str, content: bytes) -> bool:
        """Write a new object atomically and durably. False, and nothing written, if the key exists."""

    def replace(self, key: str, content: bytes) -> None:
        """Write an object atomically and durably, whether or not it exists."""

    def replace_file(self, key: str, file: Path) -> None:
        """``replace`` with a file's content, which need not fit in memory."""

    def read(self, key: str) -> bytes:
        """An object's content. Raises ObjectMissing."""

    def exists(self, key: str) -> bool:
        """Whether there is an object under that key."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Objects whose key begins with ``prefix``, in key order. What others put there under no key is passed over."""

    def delete(self, key: str) -> None:
        """Remove an object, if it exists."""

    def check_exclusive(self) -> None:
        """Raise StoreError if two who create the same object at once could both be told that they did."""

    def probe(self) -> None:
        """Write something of no meaning, read it back and remove it. Raises StoreError; leaves nothing behind."""

    def unfinished(self) -> Iterator[Unfinished]:
        """What is being written, or was when its writer was killed."""

    def discard(self, unfinished: Unfinished) -> None:
        """Remove something unfinished, if it is still there."""


@dataclass(frozen=True)
class S3Options:
    """How to reach object storage, where the environment's AWS settings do not say.

    Attributes:
        endpoint_url: of a server other than AWS's.
        checksums: whether requests carry checksums that S3 itself does not require.
        single_writer: nobody else writes to the run: conditional writes are not needed.
    """

    endpoint_url: str | None = None
    checksums: Literal["when_supported", "when_required"] | None = None
    single_writer: bool = False


def check_uri(uri: str) -> None:
    """Raise ValueError, without quoting the URI, if it carries a user or a password: it is printed and recorded."""
    if re.match(r"[^/?#]*://[^/?#]*@", uri):
        raise ValueError("a URI must not hold a user or password: credentials come from the AWS settings")


def check_endpoint(url: str) -> None:
    """Raise ValueError, without quoting the URL, unless it is that of a server and nothing more: it is recorded."""
    try:
        parts = urlsplit(url)
        server = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        server = False
    if not server or "@" in parts.netloc or "?" in url or "#" in url or not url.isprintable() or " " in url:
        raise ValueError(
            "the endpoint must be http://host or https://host, maybe with port and path, no user, password or query: "
            "credentials come from the AWS settings"
        )


def open_store(uri: str, options: S3Options | None = None) -> Store:
    """The store at a folder's path or an ``s3://bucket/prefix``. Raises StoreError for anything else."""
    try:
        check_uri(uri)
    except ValueError as error:
        raise StoreError(str(error)) from None
    uri = uri.removeprefix("file://") if uri.startswith("file:///") else uri
    if uri.startswith("s3://"):
        # Slow to import, and folders do not need it.
        from workers.s3 import S3Store

        return S3Store(uri, options or S3Options())
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", uri)
    if scheme is not None:
        raise StoreError(f"{uri}: {scheme[1]}:// is not supported; use s3:// or a folder that every node can reach")
    if not uri or "\0" in uri:
        raise StoreError(f"{uri!r} is no folder's path: set store.run or --run")
    return LocalStore(Path(uri))


class LocalStore:
    """A run in a folder."""

    def __init__(self, root: Path) -> None:
        try:
            self._root = root.expanduser().absolute()
        except RuntimeError as error:
            raise StoreError(f"{root}: {error}") from error
        self.uri = str(self._root)

    def create(self, key: str, content: bytes) -> bool:
        with self._aside(io.BytesIO(content)) as aside, self._place_for(key) as target:
            try:
                # A hard link fails if the name exists and otherwise appears at once, whole: what rename cannot promise.
                os.link(aside, target)
            except FileExistsError:
                return False
        return True

    def replace(self, key: str, content: bytes) -> None:
        self._replace(key, io.BytesIO(content))

    def replace_file(self, key: str, file: Path) -> None:
        with file.open("rb") as content:
            self._replace(key, content)

    def _replace(self, key: str, content: BinaryIO) -> None:
        with self._aside(content) as aside, self._place_for(key) as target:
            os.replace(aside, target)

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ObjectMissing(f"{self.uri} has no {key}") from None
        except OSError as error:
            raise StoreError(f"cannot read {self._path(key)}: {error.strerror}") from error

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with _told("read", path):
            return path.is_file()

    def list(self, prefix: str) -> Iterator[StoredObject]:
        within = checked_prefix(prefix).rpartition("/")[0]
        with _told("list", self._root / within):
            yield from self._below(f"{within}/" if within else "", prefix)

    def _below(self, place: str, prefix: str) -> Iterator[StoredObject]:
        """``list`` in one folder, whose keys begin with ``place``. Raises OSError. A run may have a million objects: of
        those not yielded yet, names are held and nothing else."""
        try:
            with os.scandir(self._root / place) as entries:
                # A folder's keys go on with a slash, and have their place in key order by it.
                names = sorted(
                    f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name for entry in entries
                )
        except (FileNotFoundError, NotADirectoryError):  # it may be removed meanwhile
            return
        for name in names:
            key = place + name
            if name.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._below(key, prefix)
            elif key.startswith(prefix) and not key.startswith(f"{_ASIDE}/") and is_key(key):
                size_and_time = _regular(f"{self._root}/{key}")
                if size_and_time is not None:
                    yield StoredObject(key, *size_and_time)

    def delete(self, key: str) -> None:
        path = self._path(key)
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise StoreError(f"cannot delete {path}: {error.strerror}") from error

    def check_exclusive(self) -> None:
        pass  # a hard link is

    def probe(self) -> None:
        # A run that is not there yet shall not be there afterwards.
        new = [at for at in (self._root / _ASIDE, self._root, *self._root.parents) if not os.path.exists(at)]
        content = uuid.uuid4().bytes
        try:
            with self._aside(io.BytesIO(content)) as aside:
                target = aside.with_name(uuid.uuid4().hex)
                os.link(aside, target)  # as ``create`` does
                try:
                    if target.read_bytes() != content:
                        raise StoreError(f"what was written under {self.uri} reads back as something else")
                finally:
                    target.unlink()
        finally:
            for folder in new:
                with contextlib.suppress(OSError):  # no longer empty
                    folder.rmdir()

    def unfinished(self) -> Iterator[Unfinished]:
        folder = self._root / _ASIDE
        # Through a link, somebody else's files could seem to be ours.
        with _told("list", folder):
            names = sorted(os.listdir(folder)) if folder.is_dir() and not folder.is_symlink() else []
        for name in filter(_ASIDE_NAME.fullmatch, names):
            size_and_time = _regular(folder / name)
            if size_and_time is not None:
                yield Unfinished(f"{_ASIDE}/{name}", *size_and_time)

    def discard(self, unfinished: Unfinished) -> None:
        self.delete(unfinished.key)
        with contextlib.suppress(OSError):
            (self._root / _ASIDE).rmdir()  # unless another object is being written

    def _path(self, key: str) -> Path:
        # Links inside the run are followed: whoever may write there may keep votes on another disk. No key makes one.
        return self._root / checked(key)

    @contextlib.contextmanager
    def _aside(self, content: BinaryIO) -> Iterator[Path]:
        """The content in a file of its own, on disk, for the block. A crash leaves it behind, outside every listing."""
        path = self._root / _ASIDE / uuid.uuid4().hex
        try:
            with _created(path) as file:
                shutil.copyfileobj(content, file)
                file.flush()
                os.fsync(file.fileno())
            yield path
        except OSError as error:
            raise StoreError(f"cannot write under {self.uri}: {error.strerror}") from error
        finally:
            # The empty folder stays: to make and remove it takes longer than all else about a small object.
            with contextlib.suppress(OSError):
                path.unlink()

    @contextlib.contextmanager
    def _place_for(self, key: str) -> Iterator[Path]:
        """The key's path, its folder made; what the block puts there is durable afterwards."""
        target = self._path(key)
        try:
            new = []
            if not target.parent.is_dir():
                new = [folder for folder in target.parents if not folder.exists()]
                target.parent.mkdir(parents=True, exist_ok=True)
            yield target
            for folder in (target.parent, *(folder.parent for folder in new)):
                _fsync_folder(folder)
        except OSError as error:
            raise StoreError(f"cannot write {target}: {error.strerror}") from error


def below(folder: Path) -> Iterator[Path]:
    """Every path below a folder; links are not followed. Raises OSError: what may not be looked into is not empty."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):  # it may be removed meanwhile
            raise error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in (*folders, *files))


@contextlib.contextmanager
def _told(doing: str, path: Path) -> Iterator[None]:
    """What goes wrong as one line."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {doing} {error.filename or path}: {error.strerror}") from error


def _regular(path: Path | str) -> tuple[int, float] | None:
    """A file's size and time; None for anything else, and where it was removed meanwhile."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"cannot list {path}: {error.strerror}") from error
    return (status.st_size, status.st_mtime) if stat.S_ISREG(status.st_mode) else None


def _created(path: Path) -> BinaryIO:
    """A new file, opened for writing, its folder made. `stn gc` may remove the empty folder in between."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            return path.open("xb")
        # mkdir says "exists" of a folder that is gone when it looks again.
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


def _fsync_folder(folder: Path) -> None:
    """Make a new name durable, not only the content behind it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
