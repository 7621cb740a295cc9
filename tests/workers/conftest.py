from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import boto3
import pytest

from tests.object_store import BUCKET, ObjectStore
from tests.workers.samples import write_folder
from workers.images import ImageSet, open_dataset
from workers.settings import Digits

Put = Callable[[Mapping[str, bytes]], Path | str]


@pytest.fixture(scope="session")
def digits() -> ImageSet:
    """The 500 held-out digits; opening them takes a second."""
    return open_dataset(Digits(kind="digits"))


@pytest.fixture
def prefix(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where no other test keeps anything; the environment leads to the server."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def upload(folder: Path, uri: str) -> str:
    """All files of a folder, as objects: whatever their names, so by no code of ours."""
    client = boto3.client("s3")
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"{uri.removeprefix(f's3://{BUCKET}/')}/{path.relative_to(folder).as_posix()}"
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    client.close()
    return uri


@pytest.fixture(params=["folder", "bucket"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Put:
    """Files in a folder, or the same as objects: where they are."""

    def write(files: Mapping[str, bytes]) -> Path | str:
        folder = write_folder(tmp_path / "files", files)
        return folder if request.param == "folder" else upload(folder, request.getfixturevalue("prefix"))

    return write
