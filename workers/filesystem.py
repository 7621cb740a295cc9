"""Object storage as the file system in which Ray Train keeps its own checkpoints.

By the client that everything else uses: credentials, endpoint, retries and errors are the same.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSystemHandler, FileType, PyFileSystem

from workers.s3 import ObjectFile, S3Reader
from workers.store import ObjectMissing, S3Options, StoredObject


def object_filesystem(uri: str, options: S3Options | None) -> PyFileSystem:
    """A file system whose paths are keys below ``s3://bucket/prefix``. It can be sent to other processes."""
    return PyFileSystem(_Handler(uri, options))


class _Handler(FileSystemHandler):  # type: ignore[misc]  # pyarrow is untyped
    """What pyarrow asks of a file system. A folder is there as long as an object is below it."""

    def __init__(self, uri: str, options: S3Options | None) -> None:
        self._place = uri, options
        self._store = S3Reader(uri, options or S3Options())

    def __reduce__(self) -> tuple[Any, ...]:
        return _Handler, self._place  # the client stays, and the credentials that it holds

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handler) and self._place == other._place

    def __hash__(self) -> int:
        return hash(self._place)

    def get_type_name(self) -> str:
        return "stn+s3"

    def normalize_path(self, path: str) -> str:
        return path.rstrip("/")

    def get_file_info(self, paths: Sequence[str]) -> list[FileInfo]:
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: Any) -> list[FileInfo]:
        base = f"{selector.base_dir}/"
        below = list(self._store.list(base))
        if not below and not selector.allow_not_found:
            raise FileNotFoundError(selector.base_dir)
        found = {}
        for stored in below:
            folders = stored.key[len(base) :].split("/")[:-1]
            parents = [base + "/".join(folders[: depth + 1]) for depth in range(len(folders))]
            found.update({path: FileInfo(path, FileType.Directory) for path in parents})
            found[stored.key] = _file_info(stored)
        return [info for path, info in found.items() if selector.recursive or "/" not in path[len(base) :]]

    def create_dir(self, path: str, recursive: bool) -> None:
        pass  # comes with the first object

    def delete_dir(self, path: str) -> None:
        for stored in list(self._store.list(f"{path}/")):
            self._store.delete(stored.key)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        self.delete_dir(path)

    def delete_root_dir_contents(self) -> None:
        for stored in list(self._store.list("")):
            self._store.delete(stored.key)

    def delete_file(self, path: str) -> None:
        self._store.delete(path)

    def move(self, src: str, dest: str) -> None:
        self.copy_file(src, dest)
        self._store.delete(src)

    def copy_file(self, src: str, dest: str) -> None:
        self._store.replace(dest, self._store.read(src))

    def open_input_file(self, path: str) -> pa.NativeFile:
        try:
            return pa.PythonFile(ObjectFile(self._store, path, self._store.size(path)), mode="r")
        except ObjectMissing:
            raise FileNotFoundError(path) from None

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: Mapping[str, str] | None) -> pa.NativeFile:
        return pa.PythonFile(_NewObject(self._store, path), mode="w")

    def open_append_stream(self, path: str, metadata: Mapping[str, str] | None) -> pa.NativeFile:
        raise io.UnsupportedOperation("an object cannot be added to")

    def _info(self, path: str) -> FileInfo:
        for stored in self._store.list(path):
            if stored.key == path:
                return _file_info(stored)
            if stored.key.startswith(f"{path}/"):
                return FileInfo(path, FileType.Directory)
        return FileInfo(path, FileType.NotFound)


class _NewObject:
    """A file to write, which is put into the store, whole, when it is closed; and not if it never is."""

    def __init__(self, store: S3Reader, key: str) -> None:
        self._store, self._key = store, key
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed by close, below
        self.closed = False

    def write(self, content: bytes) -> int:
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            with self._file:
                self._file.flush()
                self._store.replace_file(self._key, Path(self._file.name))


def _file_info(stored: StoredObject) -> FileInfo:
    return FileInfo(stored.key, FileType.File, size=stored.size, mtime=stored.modified)
