"""Data sets and checkpoints in a folder and on a real S3 server: the same of both, and few requests."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import safetensors.torch
import torch
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from pydantic import ValidationError

from tests.fault_proxy import Fault, Proxy, fault_proxy
from tests.networks import tiny
from tests.object_store import BUCKET, SECRET_KEY, ObjectStore
from tests.workers.conftest import Put, upload
from tests.workers.samples import encoded, noise_image, write_folder, write_mnist, write_parquet
from workers import s3
from workers.counting import load_model
from workers.files import File, LocalFiles, exists, open_files, parent_and_name, read_file
from workers.images import DatasetError, ImageSet, UnreadableImage, open_dataset
from workers.settings import ImageFolder, Mnist, Model, ParquetImages
from workers.store import S3Options, StoreError


@pytest.fixture
def proxy(object_store: ObjectStore, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with fault_proxy(object_store.url) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


# --- Files ---------------------------------------------------------------------------------------------------------

#: As strings, some of these sort otherwise.
NAMES = ["a/x/y.png", "a/x.png", "a-1/x.png", "b/ä\u00a0+%20#?.png", "top.txt"]


def test_listings_are_in_the_order_of_paths_and_tell_sizes(put: Put) -> None:
    files = open_files(put({name: bytes(number) for number, name in enumerate(NAMES)}))
    expected = [File(name, number) for number, name in enumerate(NAMES)]
    assert [file for folder in files.folders() for file in files.walk(folder)] == expected[:-1]
    assert list(files.folders()) == ["a", "a-1", "b"]
    assert list(files.list()) == expected[-1:]


def test_files_are_read_whole_and_in_parts(put: Put) -> None:
    content = bytes(range(256)) * 8
    files = open_files(put({"deep/er/x": content, "empty": b""}))
    assert files.read("deep/er/x") == content
    assert files.read("empty") == b""
    assert files.file("deep/er/x") == File("deep/er/x", 2048)
    with files.open(files.file("deep/er/x")) as file:
        assert file.size() == 2048
        file.seek(1000)
        assert (file.read(10), file.tell()) == (content[1000:1010], 1010)
        file.seek(-5, 2)
        assert file.read() == content[-5:]
        assert file.read(1) == b""


def test_an_object_is_a_file_as_python_knows_them(prefix: str, tmp_path: Path) -> None:
    content = b"one\ntwo\nthree"
    upload(write_folder(tmp_path, {"x": content}), prefix)
    file = s3.ObjectFile(s3.S3Reader(prefix), "x", len(content))
    assert file.readable()
    assert file.read() == content
    assert file.seek(-5, io.SEEK_CUR) == 8
    with io.BufferedReader(file) as buffered:
        assert list(buffered) == [b"three"]


def test_what_is_not_there_is_said_alike(put: Put) -> None:
    place = put({"x": b"1"})
    nowhere = place / "nowhere" if isinstance(place, Path) else f"{place}/nowhere"
    for act in (
        lambda: open_files(nowhere).folders(),
        lambda: open_files(nowhere).list(),
        lambda: open_files(place).read("nowhere"),
        lambda: open_files(place).file("nowhere"),
        lambda: read_file(nowhere),
    ):
        with pytest.raises(FileNotFoundError, match="No such file or directory"):
            act()
    assert not exists(nowhere)


def test_one_file_is_found_and_read(put: Put) -> None:
    place = put({"a/x.pt": b"1"})
    file = place / "a" / "x.pt" if isinstance(place, Path) else f"{place}/a/x.pt"
    assert exists(file)
    assert read_file(file) == b"1"
    parent, name = parent_and_name(file)
    assert (str(parent), name) == (f"{place}/a", "x.pt")


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/"])
def test_a_bucket_is_no_file(uri: str) -> None:
    with pytest.raises(StoreError, match=r"expected s3://bucket/key"):
        parent_and_name(uri)


def test_a_part_that_breaks_off_is_fetched_again(proxy: Proxy, prefix: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 256
    upload(write_folder(tmp_path, {"x": content}), prefix)
    proxy.seen.clear()
    proxy.decide = lambda _: "truncated" if len(proxy.seen) == 1 else None
    with open_files(prefix).open(File("x", len(content))) as file:
        file.seek(1000)
        assert file.read(20_000) == content[1000:21_000]
    assert [request.range for request in proxy.seen] == ["bytes=1000-20999"] * 2


# --- Where a spec says they are ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ("/data", Path("/data")),
        ("data/x", Path("data/x")),
        ("~/x", Path("~/x")),
        (Path("/data"), Path("/data")),
        ("file:///data", Path("/data")),
        ("s3://bucket//a//b/", "s3://bucket//a//b/"),
    ],
)
def test_a_place_is_a_path_or_a_uri_to_the_letter(said: Path | str, place: Path | str) -> None:
    dataset = Mnist(kind="mnist", path=said)
    assert dataset.path == place
    assert type(dataset.path) is type(place)
    assert dataset.model_dump(mode="json")["path"] == str(place)
    assert Mnist.model_validate_json(dataset.model_dump_json()) == dataset
    assert Model(name="x", checkpoint=said).checkpoint == place


@pytest.mark.parametrize(
    "said", ["gs://bucket/x", "http://host/x", "S3://bucket/x", "s3://", "s3:///x", "s3:/x", Path("s3://b/x"), 3]
)
def test_other_schemes_are_refused(said: object) -> None:
    with pytest.raises(ValidationError, match=r"got .*; must be a path that every node can reach, or s3://bucket/key"):
        ImageFolder.model_validate({"kind": "image_folder", "path": said})


@pytest.mark.parametrize("said", ["s3://user:hunter2@bucket/x", "http://user:hunter2@host/x"])
def test_a_place_holds_no_password_and_none_is_repeated(said: str) -> None:
    with pytest.raises(ValidationError, match="must not hold a user or password") as caught:
        Model(name="x", checkpoint=said)
    assert "hunter2" not in caught.value.errors()[0]["msg"]


# --- Data sets -----------------------------------------------------------------------------------------------------


def image(seed: int) -> bytes:
    return encoded(noise_image(seed, size=8))


def an_image_folder(root: Path) -> dict[str, Any]:
    names = ["cat/2.png", "cat/10.png", "cat/deep/er/1.PNG", "cat-1/x.png", "dog/ä\u00a0+%20#?.jpg.png", "dog/B.png"]
    files = {name: image(seed) for seed, name in enumerate(names)}
    others = {"README.md": b"x", "out.png": image(9), "ant/notes.txt": b"x", "dog/x.json": b"", "dog/broken.png": b"?"}
    write_folder(root, {**files, **others})
    return {"kind": "image_folder", "path": root, "resize": 6}


def a_parquet_folder(root: Path) -> dict[str, Any]:
    images = [None, b"?", *(image(seed) for seed in range(9))]
    write_parquet(root / "b.parquet", images[:4], [3, 1, 2, 0], rows_per_group=3)
    write_parquet(root / "a.parquet", images[4:], [0, 1, 2, 3, 4, 5, 6], rows_per_group=2)
    write_parquet(root / "deeper" / "c.parquet", images, [0] * 11)
    write_folder(root, {"notes.txt": b"x"})
    return {"kind": "parquet", "path": root}


def a_parquet_file(root: Path) -> dict[str, Any]:
    return {"kind": "parquet", "path": write_parquet(root / "x.parquet", [image(0), image(1)], [0, 1])}


def an_mnist(root: Path) -> dict[str, Any]:
    splits = [(np.stack([noise_image(seed + n, channels=1) for n in range(5)]), [1, 2, 3, 4, 5]) for seed in (0, 10)]
    return {"kind": "mnist", "path": write_mnist(root, splits[0], splits[1])}


KINDS = {"image_folder": ImageFolder, "parquet": ParquetImages, "mnist": Mnist}


def opened(values: Mapping[str, Any], options: S3Options | None = None) -> ImageSet:
    return open_dataset(KINDS[values["kind"]].model_validate(values), options)


def contents(images: ImageSet) -> list[Any]:
    """All that a run makes of images: what they are, and what is wrong with them."""
    found: list[Any] = []
    for index in range(len(images)):
        try:
            found.append((images.key(index), images.labels[index], images.read(index).tobytes()))
        except UnreadableImage as error:
            found.append((images.key(index), images.labels[index], str(error)))
    return found


@pytest.mark.parametrize("write", [an_image_folder, a_parquet_folder, a_parquet_file, an_mnist])
def test_a_data_set_is_the_same_in_a_folder_and_in_a_bucket(
    prefix: str, tmp_path: Path, write: Callable[[Path], dict[str, Any]]
) -> None:
    values = write(tmp_path)
    place = upload(tmp_path, prefix) + str(values["path"]).removeprefix(str(tmp_path))
    local, fetched = opened(values), opened({**values, "path": place})
    assert fetched.fingerprint == local.fingerprint
    assert (fetched.num_classes, len(fetched)) == (local.num_classes, len(local))
    assert contents(fetched) == contents(local)


def test_a_folder_made_for_show_is_a_class_as_an_empty_folder_is(prefix: str, tmp_path: Path) -> None:
    values = an_image_folder(tmp_path)
    (tmp_path / "bat").mkdir()
    upload(tmp_path, prefix)
    client = boto3.client("s3")
    for name in ("", "bat/"):
        client.put_object(Bucket=BUCKET, Key=f"{prefix.removeprefix(f's3://{BUCKET}/')}/{name}", Body=b"")
    client.close()
    local, fetched = opened(values), opened({**values, "path": prefix})
    assert (fetched.fingerprint, fetched.labels.tolist()) == (local.fingerprint, local.labels.tolist())


def test_a_folder_named_as_an_image_is_none(tmp_path: Path) -> None:
    (write_folder(tmp_path, {"cat/1.png": image(0)}) / "cat" / "2.png").mkdir()
    assert len(opened({"kind": "image_folder", "path": tmp_path})) == 1


def test_a_linked_class_is_followed(tmp_path: Path) -> None:
    write_folder(tmp_path, {"elsewhere/1.png": image(0), "data/cat/1.png": image(1)})
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    images = opened({"kind": "image_folder", "path": tmp_path / "data"})
    assert images.labels.tolist() == [0, 1]
    assert images.read(1).shape == (3, 8, 8)


def test_the_specs_endpoint_is_the_one_asked(
    object_store: ObjectStore, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**an_image_folder(tmp_path), "path": upload(tmp_path, prefix)}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert len(opened(values, S3Options(endpoint_url=object_store.url))) == 7


def test_an_image_folder_takes_a_listing_for_each_class_and_a_request_for_each_image(
    proxy: Proxy, prefix: str, tmp_path: Path
) -> None:
    values = {**an_image_folder(tmp_path), "path": upload(tmp_path, prefix)}
    proxy.seen.clear()
    images = opened(values)
    classes = 4  # and what lies directly in the folder
    assert [(request.method, request.path) for request in proxy.seen] == [("GET", f"/{BUCKET}")] * (1 + classes)
    images.read(3)
    images.read(4)
    assert [request.method for request in proxy.seen[1 + classes :]] == ["GET"] * 2


def test_of_a_parquet_file_only_the_row_group_asked_for_is_fetched(proxy: Proxy, prefix: str, tmp_path: Path) -> None:
    pixels = [noise_image(seed, size=128) for seed in range(24)]
    file = write_parquet(tmp_path / "x.parquet", [encoded(one) for one in pixels], list(range(24)), rows_per_group=4)
    upload(tmp_path, prefix)
    whole, group = file.stat().st_size, file.stat().st_size / 6

    def fetched() -> int:
        """Bytes asked for by now; the requests are forgotten."""
        assert [request.method for request in proxy.seen if request.method != "GET"] in ([], ["HEAD"])
        ranges = [request.range.removeprefix("bytes=").split("-") for request in proxy.seen if request.range]
        others = sum(request.path == f"/{BUCKET}" or request.method == "HEAD" for request in proxy.seen)
        assert len(ranges) == len(proxy.seen) - others
        proxy.seen.clear()
        return sum(int(stop) - int(start) + 1 for start, stop in ranges)

    proxy.seen.clear()
    images = opened({"kind": "parquet", "path": prefix})
    footer = 2**16  # what pyarrow takes of a file's end, first of all
    assert fetched() < footer + 0.1 * group < 0.5 * whole
    assert np.array_equal(images.read(9), pixels[9].transpose(2, 0, 1))
    assert 0.9 * group < fetched() < footer + 1.1 * group < 0.5 * whole
    assert np.array_equal(images.read(10), pixels[10].transpose(2, 0, 1))
    assert proxy.seen == [], "the row group is there already"


def refuse(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """From here on, every GET of an object is answered so."""
    real = BaseClient._make_api_call

    def call(self: BaseClient, operation: str, arguments: dict[str, Any]) -> Any:
        if operation == "GetObject":
            raise ClientError({"Error": {"Code": code, "Message": "no"}}, operation)
        return real(self, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", call)


def test_an_object_that_vanishes_is_unreadable_in_a_folders_words(prefix: str, tmp_path: Path) -> None:
    local = opened(an_image_folder(tmp_path))
    fetched = opened({"kind": "image_folder", "path": upload(tmp_path, prefix), "resize": 6})
    (tmp_path / "cat" / "2.png").unlink()
    s3.S3Store(prefix).delete("cat/2.png")
    assert contents(fetched) == contents(local)
    with pytest.raises(UnreadableImage, match=r"^cat/2.png cannot be read: No such file or directory$"):
        fetched.read(1)


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "ExpiredToken", "SlowDown"])
def test_a_refusal_of_one_object_is_final_and_one_that_may_pass_is_not(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    images = opened({**an_image_folder(tmp_path), "path": upload(tmp_path, prefix)})
    refuse(monkeypatch, code)
    if code == "AccessDenied":
        with pytest.raises(UnreadableImage, match=r"^cat/10.png cannot be read: Permission denied$"):
            images.read(0)
    else:
        with pytest.raises(StoreError, match=code):
            images.read(0)


@pytest.mark.parametrize("fault", ["503", "lost answer", "truncated"])
@pytest.mark.parametrize("write", [an_image_folder, a_parquet_folder])
def test_what_may_pass_fails_no_image(
    proxy: Proxy,
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], dict[str, Any]],
    fault: Fault,
) -> None:
    for name in ("_ATTEMPTS", "_READ_ATTEMPTS"):  # that its end comes soon
        monkeypatch.setattr(s3, name, 1)
    images = opened({**write(tmp_path), "path": upload(tmp_path, prefix)})
    proxy.decide = lambda _: fault
    with pytest.raises(StoreError, match="cannot read under"):
        images.read(0)
    proxy.decide = lambda _: None
    assert images.read(0).ndim == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("place", "environment", "says"),
    [
        ("s3://no-such-bucket/x", {}, "there is no bucket 'no-such-bucket'|no permission to read"),
        ("{prefix}/nowhere", {}, r"no folder|no file at|no MNIST at"),
        ("{prefix}", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "no permission to .*check the AWS credentials"),
        ("{prefix}", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "Could not connect"),
        ("{prefix}", {"AWS_PROFILE": "nobody"}, "nobody"),
    ],
)
def test_a_place_that_cannot_be_read_is_a_dataset_error_of_one_line(
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    place: str,
    environment: Mapping[str, str],
    says: str,
) -> None:
    monkeypatch.setattr(s3, "_ATTEMPTS", 1)
    upload(write_folder(tmp_path, {"x": b"1"}), prefix)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DatasetError, match=says) as caught:
        opened({"kind": kind, "path": place.format(prefix=prefix)})
    message = str(caught.value)
    assert "dataset.path" in message
    assert len(message.splitlines()) == 1
    assert SECRET_KEY not in message


def test_a_folder_that_cannot_be_listed_is_a_dataset_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(self: LocalFiles) -> list[str]:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(LocalFiles, "folders", stale)
    with pytest.raises(DatasetError, match=r"^dataset\.path cannot be read: .*Stale file handle$"):
        opened({"kind": "image_folder", "path": tmp_path})


@pytest.mark.parametrize("damage", [b"", b"not idx" * 100])
def test_a_damaged_mnist_is_a_dataset_error(prefix: str, tmp_path: Path, damage: bytes) -> None:
    values = an_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(damage)
    with pytest.raises(DatasetError, match="MNIST"):
        opened({**values, "path": upload(tmp_path, prefix)})


# --- Checkpoints ---------------------------------------------------------------------------------------------------


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def load(place: Path | str, name: str) -> dict[str, torch.Tensor]:
    checkpoint = place / name if isinstance(place, Path) else f"{place}/{name}"
    return load_model(Model(name="tests.networks:tiny", checkpoint=checkpoint), 10).network.state_dict()


def refusal(place: Path | str, name: str) -> str:
    with pytest.raises(ValueError, match=name) as caught:
        load(place, name)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def weights() -> dict[str, torch.Tensor]:
    """Of ``tiny``, but others."""
    return {name: tensor + 1 for name, tensor in tiny().state_dict().items()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.pt", saved(weights())),
        ("model.pt", saved({"state_dict": weights(), "epoch": 3})),
        ("model.safetensors", safetensors.torch.save(weights())),
    ],
    ids=["state dict", "nested", "safetensors"],
)
def test_weights_are_loaded_from_a_folder_and_from_a_bucket(put: Put, name: str, content: bytes) -> None:
    found = load(put({name: content}), name)
    assert found.keys() == weights().keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in weights().items())


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self._target, "owned")


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.safetensors"])
@pytest.mark.parametrize("save", [saved, lambda content: pickle.dumps(content, protocol=2)], ids=["torch", "pickle"])
def test_a_checkpoints_code_is_never_run(put: Put, tmp_path: Path, name: str, save: Callable[[Any], bytes]) -> None:
    target = tmp_path / "written by the checkpoint"
    content = save({**weights(), "extra": Malicious(target)})
    assert "no readable checkpoint of plain tensors" in refusal(put({name: content}), name)
    assert not target.exists()


def test_what_is_no_checkpoint_is_refused_by_name(put: Put) -> None:
    others = safetensors.torch.save({"0.weight": torch.zeros(2)})
    place = put({"cut.safetensors": others[:-4], "others.safetensors": others, "text.pt": b"<html>\nNot found</html>"})
    assert "no readable checkpoint" in refusal(place, "cut.safetensors")
    assert "another network: its '0.weight' is (2,)" in refusal(place, "others.safetensors")
    assert "no readable checkpoint" in refusal(place, "text.pt")
    assert "no checkpoint at" in refusal(place, "nowhere.pt")


def test_a_bucket_that_cannot_be_read_is_told_from_a_missing_checkpoint(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY + "-wrong")
    with pytest.raises(ValueError, match=r"model\.checkpoint: no permission to read .*credentials") as caught:
        load(prefix, "model.pt")
    assert SECRET_KEY not in str(caught.value)


def test_without_safetensors_its_files_alone_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, {"a.safetensors": safetensors.torch.save(weights()), "a.pt": saved(weights())})
    for name in [name for name in sys.modules if name.partition(".")[0] == "safetensors"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert "needs the package safetensors" in refusal(tmp_path, "a.safetensors")
    assert load(tmp_path, "a.pt")
