"""Object storage as pyarrow's file system, used as Ray Train does, on a real server."""

from __future__ import annotations

import os
import pickle
import uuid
from pathlib import Path

import pyarrow.fs
import pytest
from pyarrow.fs import FileInfo, FileSelector, FileType

from tests.object_store import BUCKET, SECRET_KEY, ObjectStore
from workers.filesystem import object_filesystem
from workers.s3 import S3Store
from workers.store import S3Options, StoreError


@pytest.fixture
def uri(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def keys(uri: str) -> list[str]:
    return [found.key for found in S3Store(uri).list("")]


def test_a_folder_goes_there_and_comes_back(uri: str, tmp_path: Path) -> None:
    contents = {"state.pt": os.urandom(10 * 2**20), "deep/er/x": b"1", "empty": b""}
    for name, content in contents.items():
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_bytes(content)
    filesystem = object_filesystem(uri, None)
    filesystem.create_dir("run/checkpoint")
    pyarrow.fs.copy_files(str(tmp_path / "one"), "run/checkpoint", destination_filesystem=filesystem)
    assert keys(uri) == [f"run/checkpoint/{name}" for name in sorted(contents)]
    pyarrow.fs.copy_files("run/checkpoint", str(tmp_path / "two"), source_filesystem=filesystem)
    assert {name: (tmp_path / "two" / name).read_bytes() for name in contents} == contents


def test_an_object_is_there_whole_once_its_file_is_closed(uri: str) -> None:
    filesystem = object_filesystem(uri, None)
    with filesystem.open_output_stream("run/x.json") as file:
        file.write(b"one")
        file.write(b"two")
        assert keys(uri) == []
    with filesystem.open_input_stream("run/x.json") as file:
        assert file.read() == b"onetwo"
    lost = filesystem.open_output_stream("run/lost")
    lost.write(b"half of it")
    del lost
    assert keys(uri) == ["run/x.json"]


def test_what_is_there_is_told(uri: str) -> None:
    store = S3Store(uri)
    for key in ("run/a", "run/checkpoint-1/deep/b", "run/checkpoint-10/b"):
        store.create(key, b"12")
    filesystem = object_filesystem(uri, None)

    def kinds(infos: list[FileInfo]) -> dict[str, FileType]:
        return {info.path: info.type for info in infos}

    asked = filesystem.get_file_info(["run", "run/a", "run/checkpoint-1", "run/check", "nowhere"])
    assert kinds(asked) == {
        "run": FileType.Directory,
        "run/a": FileType.File,
        "run/checkpoint-1": FileType.Directory,
        "run/check": FileType.NotFound,
        "nowhere": FileType.NotFound,
    }
    assert asked[1].size == 2
    listed = {
        "run/a": FileType.File,
        "run/checkpoint-1": FileType.Directory,
        "run/checkpoint-10": FileType.Directory,
    }
    below = {
        "run/checkpoint-1/deep": FileType.Directory,
        "run/checkpoint-1/deep/b": FileType.File,
        "run/checkpoint-10/b": FileType.File,
    }
    assert kinds(filesystem.get_file_info(FileSelector("run"))) == listed
    assert kinds(filesystem.get_file_info(FileSelector("run", recursive=True))) == {**listed, **below}
    assert filesystem.get_file_info(FileSelector("nowhere", allow_not_found=True)) == []
    for act in (lambda: filesystem.get_file_info(FileSelector("nowhere")), lambda: filesystem.open_input_file("run")):
        with pytest.raises(FileNotFoundError):
            act()


def test_what_is_deleted_or_moved_is_that_alone(uri: str) -> None:
    store = S3Store(uri)
    for key in ("run/a", "run/checkpoint-1/b", "run/checkpoint-1/c", "run/checkpoint-10/b"):
        store.create(key, key.encode())
    filesystem = object_filesystem(uri, None)
    filesystem.delete_dir("run/checkpoint-1")
    assert keys(uri) == ["run/a", "run/checkpoint-10/b"]
    filesystem.copy_file("run/a", "run/copy")
    filesystem.move("run/a", "run/moved")
    assert store.read("run/moved") == store.read("run/copy") == b"run/a"
    filesystem.delete_file("run/copy")
    assert keys(uri) == ["run/checkpoint-10/b", "run/moved"]
    filesystem.delete_dir_contents("", accept_root_dir=True)
    assert keys(uri) == []


def test_it_travels_to_other_processes_without_credentials(uri: str, object_store: ObjectStore) -> None:
    filesystem = object_filesystem(uri, S3Options(endpoint_url=object_store.url))
    sent = pickle.dumps(filesystem)
    assert SECRET_KEY.encode() not in sent
    arrived = pickle.loads(sent)
    assert arrived == filesystem
    assert arrived != object_filesystem(f"{uri}/deeper", S3Options(endpoint_url=object_store.url))
    with arrived.open_output_stream("x") as file:
        file.write(b"1")
    assert keys(uri) == ["x"]


def test_what_goes_wrong_is_said_as_everywhere(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY + "-wrong")
    filesystem = object_filesystem(uri, None)
    with pytest.raises(StoreError, match=r"no permission to .*credentials"):
        filesystem.get_file_info("x")
    file = filesystem.open_output_stream("x")
    file.write(b"1")
    with pytest.raises(StoreError, match="cannot write under"):
        file.close()
    with pytest.raises(OSError, match="cannot be added to"):
        filesystem.open_append_stream("x")
