from __future__ import annotations

import hashlib
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10

from tests.workers.samples import (
    IMAGE_STRUCT,
    encoded,
    noise_image,
    write_cifar10,
    write_folder,
    write_mnist,
    write_parquet,
)
from workers.images import DatasetError, ImageSet, UnreadableImage, open_dataset
from workers.selection import selected
from workers.settings import Cifar10, Digits, ImageFolder, Mnist, ParquetImages

# --- Digits --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training_digits() -> ImageSet:
    return open_dataset(Digits(kind="digits", split="train"))


def pixels_of(images: ImageSet) -> list[bytes]:
    return [images.read(index).tobytes() for index in range(len(images))]


def test_digits_are_4500_to_train_and_500_held_out(digits: ImageSet, training_digits: ImageSet) -> None:
    assert (len(training_digits), len(digits)) == (4500, 500)
    assert np.bincount(training_digits.labels).tolist() == [450] * 10
    assert np.bincount(digits.labels).tolist() == [50] * 10
    assert digits.num_classes == training_digits.num_classes == 10


def test_no_digit_is_in_both_splits(digits: ImageSet, training_digits: ImageSet) -> None:
    assert not set(pixels_of(digits)) & set(pixels_of(training_digits))


def test_every_prefix_of_the_digits_is_balanced(digits: ImageSet, training_digits: ImageSet) -> None:
    for images in (digits, training_digits):
        for length in (10, 20, 470):
            assert np.bincount(images.labels[:length]).tolist() == [length // 10] * 10


def test_a_digit_is_28_by_28_grey_bytes_of_the_whole_range(digits: ImageSet) -> None:
    images = [digits.read(index) for index in range(len(digits))]
    assert {(image.shape, image.dtype) for image in images} == {((1, 28, 28), np.dtype(np.uint8))}
    assert (np.min(images), np.max(images)) == (0, 255)


def test_digits_open_the_same_every_time(digits: ImageSet, training_digits: ImageSet) -> None:
    again = open_dataset(Digits(kind="digits"))
    assert again.fingerprint == digits.fingerprint != training_digits.fingerprint
    assert pixels_of(again) == pixels_of(digits)
    assert [digits.key(index) for index in (0, 7, 499)] == [0, 7, 499]


# --- MNIST ---------------------------------------------------------------------------------------------------------


def numbered(count: int, offset: int = 0) -> tuple[np.ndarray, list[int]]:
    return np.stack([noise_image(offset + i, channels=1) for i in range(count)]), [i % 10 for i in range(count)]


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    return write_mnist(tmp_path / "data", numbered(7), numbered(4, offset=100))


def test_mnist_reads_the_split_asked_for_from_torchvisions_files(mnist: Path) -> None:
    train, test = (open_dataset(Mnist(kind="mnist", path=mnist, split=split)) for split in ("train", "test"))
    assert (len(train), len(test)) == (7, 4)
    assert np.array_equal(test.read(2), numbered(4, offset=100)[0][2][None])
    assert test.read(0).dtype == np.uint8
    assert (train.labels.tolist(), train.labels.dtype) == ([0, 1, 2, 3, 4, 5, 6], np.int64)
    assert train.num_classes == 10
    assert train.fingerprint != test.fingerprint


def test_a_missing_mnist_names_path_and_layout(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="MNIST/raw") as caught:
        open_dataset(Mnist(kind="mnist", path=tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-10], lambda raw: raw[:3], lambda raw: b"", lambda raw: b"not idx" * 100],
    ids=["cut short", "header cut", "empty", "another format"],
)
def test_a_damaged_mnist_is_a_dataset_error(mnist: Path, damage: Callable[[bytes], bytes]) -> None:
    file = mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DatasetError, match="MNIST"):
        open_dataset(Mnist(kind="mnist", path=mnist))


def test_mnist_with_more_labels_than_images_is_a_dataset_error(tmp_path: Path) -> None:
    images, labels = numbered(4)
    root = write_mnist(tmp_path, (images, labels), (images, [*labels, 5]))
    with pytest.raises(DatasetError):
        open_dataset(Mnist(kind="mnist", path=root))


# --- CIFAR-10 ------------------------------------------------------------------------------------------------------

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def batch(first: int, count: int = 3) -> dict[str, Any]:
    pixels = np.random.default_rng(first).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": [(first + number) % 10 for number in range(count)]}


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six small files as the published ones are, and torchvision told that these are the published ones."""
    train = [f"data_batch_{number}" for number in range(1, 6)]
    batches = {name: batch(number) for number, name in enumerate(train)}
    md5 = write_cifar10(tmp_path, {**batches, "test_batch": batch(7), "batches.meta": {"label_names": NAMES}})
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in train])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
    return tmp_path


def test_cifar10_reads_the_split_asked_for_from_torchvisions_files(cifar10: Path) -> None:
    train, test = (open_dataset(Cifar10(kind="cifar10", path=cifar10, split=split)) for split in ("train", "test"))
    assert (len(train), len(test), test.num_classes) == (15, 3, 10)
    assert np.array_equal(test.read(2), batch(7)["data"][2].reshape(3, 32, 32))
    assert np.array_equal(train.read(4), batch(1)["data"][1].reshape(3, 32, 32))
    assert (test.labels.tolist(), test.labels.dtype) == ([7, 8, 9], np.int64)
    assert test.classes == tuple(NAMES)
    assert train.fingerprint != test.fingerprint


def test_it_reads_as_torchvision_does(cifar10: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, of how the published files write types
        theirs = CIFAR10(cifar10, train=True)
    ours = open_dataset(Cifar10(kind="cifar10", path=cifar10, split="train"))
    assert all(np.array_equal(ours.read(n).transpose(1, 2, 0), np.asarray(theirs[n][0])) for n in range(15))
    assert ours.labels.tolist() == theirs.targets


def test_a_missing_cifar10_names_path_and_layout(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cifar-10-batches-py") as caught:
        open_dataset(Cifar10(kind="cifar10", path=tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_a_pickle_that_was_not_published_is_not_opened(cifar10: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (cifar10 / "exploded",)

    (cifar10 / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps({"data": Bomb()}))
    with pytest.raises(DatasetError, match="test_batch is not the file that was published"):
        open_dataset(Cifar10(kind="cifar10", path=cifar10))
    assert not (cifar10 / "exploded").exists()
    assert len(open_dataset(Cifar10(kind="cifar10", path=cifar10, split="train"))) == 15


# --- Folders of image files ----------------------------------------------------------------------------------------


def folder(root: Path, files: dict[str, bytes], **settings: Any) -> ImageSet:
    return open_dataset(ImageFolder(kind="image_folder", path=write_folder(root, files), **settings))


def small(*names: str) -> dict[str, bytes]:
    return {name: encoded(noise_image(seed, size=8)) for seed, name in enumerate(names)}


def test_a_folders_images_are_ordered_by_class_then_name_and_labelled_by_class(tmp_path: Path) -> None:
    images = folder(tmp_path, small("dog/b.png", "cat/z.png", "dog/a.png", "ant/deep/er/1.png"))
    assert images.labels.tolist() == [0, 1, 2, 2]
    assert images.num_classes == 3
    order = ["ant/deep/er/1.png", "cat/z.png", "dog/a.png", "dog/b.png"]
    for index, name in enumerate(order):
        expected = np.asarray(Image.open(tmp_path / name)).transpose(2, 0, 1)
        assert np.array_equal(images.read(index), expected)


def test_a_folders_other_files_are_not_images(tmp_path: Path) -> None:
    images = folder(tmp_path, {**small("a/1.png", "a/2.PNG", "outside.png"), "a/labels.txt": b"x", "README.md": b"x"})
    assert images.labels.tolist() == [0, 0]


def test_an_images_key_stays_when_another_file_comes(tmp_path: Path) -> None:
    before = folder(tmp_path, small("a/2.png", "b/1.png"))
    keys = {"a/2.png": before.key(0), "b/1.png": before.key(1)}
    after = folder(tmp_path, small("a/1.png", "a/2.png", "b/0.png", "b/1.png"))
    assert (after.key(1), after.key(3)) == (keys["a/2.png"], keys["b/1.png"])
    assert len({after.key(index) for index in range(4)}) == 4
    assert all(0 <= after.key(index) < 2**63 for index in range(4))


def test_an_images_key_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    here, there = (folder(tmp_path / place, small("a/1.png")) for place in ("here", "there/deeper"))
    assert here.key(0) == there.key(0)
    assert here.fingerprint == there.fingerprint


@pytest.mark.parametrize("content", [b"", b"no image at all", encoded(noise_image(0))[:500]], ids=len)
def test_an_undecodable_file_is_unreadable_and_the_others_are_not(tmp_path: Path, content: bytes) -> None:
    images = folder(tmp_path, {**small("a/1.png", "a/3.png"), "a/2.png": content})
    with pytest.raises(UnreadableImage, match="decoded"):
        images.read(1)
    assert images.read(0).shape == images.read(2).shape == (3, 8, 8)


def test_what_is_wrong_with_an_image_reads_the_same_every_time(tmp_path: Path) -> None:
    # It is stored with the votes, and the same shard is to give the same bytes.
    images = folder(tmp_path, {"a/1.png": b"no image at all"})
    reasons = set()
    for _ in range(2):
        with pytest.raises(UnreadableImage) as caught:
            images.read(0)
        reasons.add(str(caught.value))
    assert "0x" not in reasons.pop()


def test_a_file_that_vanishes_is_unreadable(tmp_path: Path) -> None:
    images = folder(tmp_path, small("a/1.png", "a/2.png"))
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        images.read(0)
    assert images.read(1).shape == (3, 8, 8)


def test_a_link_to_nowhere_is_unreadable_and_the_others_are_not(tmp_path: Path) -> None:
    write_folder(tmp_path, small("a/1.png"))
    (tmp_path / "a" / "2.png").symlink_to(tmp_path / "nowhere.png")
    images = folder(tmp_path, {})
    assert images.read(0).shape == (3, 8, 8)
    with pytest.raises(UnreadableImage):
        images.read(1)


@pytest.mark.parametrize(
    ("resize", "crop", "shape"),
    [
        (None, None, (3, 12, 24)),
        (6, None, (3, 6, 12)),
        (6, 4, (3, 4, 4)),
        (None, 10, (3, 10, 10)),
        (24, 24, (3, 24, 24)),
    ],
)
def test_resize_sets_the_shorter_side_and_crop_both(
    tmp_path: Path, resize: int | None, crop: int | None, shape: tuple[int, int, int]
) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (12, 24, 3), dtype=np.uint8)
    image = folder(tmp_path, {"a/1.png": encoded(wide)}, resize=resize, crop=crop).read(0)
    assert (image.shape, image.dtype) == (shape, np.uint8)


def test_a_crop_is_the_centre(tmp_path: Path) -> None:
    pixels = noise_image(0, size=12)
    image = folder(tmp_path, {"a/1.png": encoded(pixels)}, crop=4).read(0)
    assert np.array_equal(image, pixels[4:8, 4:8].transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_images_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    source = Image.fromarray(noise_image(0, size=10)).convert(mode)
    suffix = "jpg" if mode == "CMYK" else "png"
    (tmp_path / "a").mkdir()
    source.save(tmp_path / "a" / f"1.{suffix}")
    image = folder(tmp_path, {}).read(0)
    expected = np.asarray(Image.open(tmp_path / "a" / f"1.{suffix}").convert("RGB")).transpose(2, 0, 1)
    assert (image.shape, image.dtype) == ((3, 10, 10), np.uint8)
    assert np.array_equal(image, expected)
    if mode == "L":
        assert np.array_equal(image[0], image[1])


def test_a_folder_without_images_is_a_dataset_error(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(DatasetError, match=r"dataset\.path .*CLASS/FILE"):
        folder(tmp_path, {"outside.png": b"", "cat/notes.txt": b""})


@pytest.mark.parametrize("kind", [ImageFolder, ParquetImages])
def test_a_path_to_nothing_is_a_dataset_error(tmp_path: Path, kind: type[ImageFolder] | type[ParquetImages]) -> None:
    name = {ImageFolder: "image_folder", ParquetImages: "parquet"}[kind]
    with pytest.raises(DatasetError, match=r"dataset\.path") as caught:
        open_dataset(kind.model_validate({"kind": name, "path": tmp_path / "nowhere"}))
    assert str(tmp_path / "nowhere") in str(caught.value)


# --- Parquet of encoded images -------------------------------------------------------------------------------------


def parquet(path: Path, **settings: Any) -> ImageSet:
    return open_dataset(ParquetImages(kind="parquet", path=path, **settings))


def test_parquet_of_several_files_and_row_groups_is_one_sequence(tmp_path: Path) -> None:
    pixels = [noise_image(seed, size=6) for seed in range(11)]
    write_parquet(tmp_path / "b.parquet", [encoded(image) for image in pixels[7:]], [1, 2, 3, 4], rows_per_group=3)
    write_parquet(tmp_path / "a.parquet", [encoded(image) for image in pixels[:7]], [9] * 7, rows_per_group=2)
    (tmp_path / "notes.txt").write_text("not data")
    images = parquet(tmp_path)
    assert images.labels.tolist() == [9] * 7 + [1, 2, 3, 4]
    assert images.num_classes == 10
    for index in [10, 0, 6, 7, 1, 9, 3]:
        assert np.array_equal(images.read(index), pixels[index].transpose(2, 0, 1))
        assert images.key(index) == index


def test_parquet_may_be_one_file_with_a_plain_binary_column(tmp_path: Path) -> None:
    pixels = noise_image(0, size=6)
    table = pa.table({"jpg": [encoded(pixels)], "cls": pa.array([3], pa.int16())})
    pq.write_table(table, tmp_path / "x.parquet")
    images = parquet(tmp_path / "x.parquet", image_column="jpg", label_column="cls")
    assert images.labels.tolist() == [3]
    assert np.array_equal(images.read(0), pixels.transpose(2, 0, 1))


def test_parquet_images_are_resized_and_cropped(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [encoded(noise_image(0, size=20))], [0])
    assert parquet(path, resize=10, crop=8).read(0).shape == (3, 8, 8)


@pytest.mark.parametrize("content", [None, b"", b"no image at all"], ids=["null", "empty", "junk"])
def test_a_row_without_an_image_is_unreadable_and_the_others_are_not(tmp_path: Path, content: bytes | None) -> None:
    good = encoded(noise_image(0, size=6))
    images = parquet(write_parquet(tmp_path / "x.parquet", [good, content, good], [0, 1, 2]))
    with pytest.raises(UnreadableImage):
        images.read(1)
    assert np.array_equal(images.read(0), images.read(2))


def test_a_null_struct_is_unreadable(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([None], IMAGE_STRUCT), "label": [0]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UnreadableImage, match="no bytes"):
        parquet(tmp_path / "x.parquet").read(0)


def struct_column(*contents: bytes) -> pa.Array:
    return pa.array([{"bytes": content, "path": None} for content in contents], IMAGE_STRUCT)


_PNG = encoded(noise_image(0, size=6))


@pytest.mark.parametrize(
    ("columns", "settings", "named"),
    [
        ({"image": struct_column(_PNG)}, {}, "dataset.label_column"),
        ({"image": struct_column(_PNG), "label": [0]}, {"label_column": "klass"}, "dataset.label_column"),
        ({"image": struct_column(_PNG), "label": pa.array([None], pa.int64())}, {}, "dataset.label_column"),
        ({"image": struct_column(_PNG), "label": ["cat"]}, {}, "dataset.label_column"),
        ({"image": struct_column(_PNG), "label": [0.5]}, {}, "dataset.label_column"),
        ({"image": [_PNG], "label": [0]}, {}, "dataset.image_column"),
        ({"a": struct_column(_PNG), "b": struct_column(_PNG), "label": [0]}, {}, "dataset.image_column"),
        ({"image": struct_column(_PNG), "label": [0]}, {"image_column": "picture"}, "dataset.image_column"),
        ({"image": struct_column(), "label": pa.array([], pa.int64())}, {}, "dataset.path"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_columns_that_do_not_fit_are_a_dataset_error_naming_the_setting(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, str], named: str
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DatasetError, match=named) as caught:
        parquet(path, **settings)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"not Parquet at all", _PNG], ids=["empty", "text", "an image"])
def test_a_file_that_is_no_parquet_is_a_dataset_error_naming_it(tmp_path: Path, content: bytes) -> None:
    write_folder(tmp_path, {"x.parquet": content})
    with pytest.raises(DatasetError, match="no Parquet file") as caught:
        parquet(tmp_path)
    assert "x.parquet" in str(caught.value)


def test_a_folder_without_parquet_files_is_a_dataset_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no images"):
        parquet(write_folder(tmp_path, {"x.png": _PNG}))


# --- Fingerprints --------------------------------------------------------------------------------------------------


def test_a_folders_fingerprint_changes_with_its_files_and_with_resize_and_crop(tmp_path: Path) -> None:
    def fingerprint(name: str, files: dict[str, bytes], **settings: Any) -> str:
        return folder(tmp_path / name, files, **settings).fingerprint

    files = small("a/1.png", "a/2.png", "b/1.png")
    seen = [
        fingerprint("same", files),
        fingerprint("resized", files, resize=4),
        fingerprint("cropped", files, crop=4),
        fingerprint("both", files, resize=4, crop=4),
        fingerprint("one more", {**files, "b/2.png": files["a/1.png"]}),
        fingerprint("one less", {name: files[name] for name in ("a/1.png", "b/1.png")}),
        fingerprint("renamed", {**small("a/1.png", "a/3.png"), "b/1.png": files["b/1.png"]}),
        fingerprint("relabelled", small("a/1.png", "b/2.png", "b/1.png")),
        fingerprint("another content", {**files, "a/1.png": encoded(noise_image(9, size=9))}),
    ]
    assert len(set(seen)) == len(seen)
    assert fingerprint("copy", files) == seen[0]


@pytest.mark.parametrize("kind", ["bicubic", "nearest", "lanczos"])
def test_interpolation_is_used_and_belongs_to_the_fingerprint(tmp_path: Path, kind: str) -> None:
    from PIL import Image

    names = {"bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}
    files = small("a/1.png", "b/1.png")
    usual, other = (folder(tmp_path, files, resize=4, interpolation=one) for one in ("bilinear", kind))
    image = Image.open(tmp_path / "a/1.png").convert("RGB")
    expected = image.resize((4, 4), names.get(kind, Image.Resampling.LANCZOS))
    assert np.array_equal(other.read(0), np.asarray(expected).transpose(2, 0, 1))
    assert usual.fingerprint == folder(tmp_path, files, resize=4).fingerprint != other.fingerprint
    assert other.classes == ("a", "b")


def test_gray_is_one_channel_and_belongs_to_the_fingerprint(tmp_path: Path) -> None:
    gray, coloured = noise_image(1, size=8, channels=1), noise_image(2, size=8)
    sixteen = (gray.astype(np.uint16) << 8) + 7
    files = {f"a/{name}.png": encoded(pixels) for name, pixels in {"1": gray, "2": coloured, "3": sixteen}.items()}
    usual, named, images = (folder(tmp_path, files, **mode) for mode in ({}, {"mode": "rgb"}, {"mode": "gray"}))
    assert [images.read(number).shape for number in range(3)] == [(1, 8, 8)] * 3
    assert np.array_equal(images.read(0)[0], gray)
    assert np.array_equal(images.read(2)[0], gray)
    luma = coloured @ np.array([0.299, 0.587, 0.114])
    assert np.abs(images.read(1)[0] - luma).max() <= 1
    assert np.array_equal(usual.read(0), np.stack([gray] * 3))
    assert usual.fingerprint == named.fingerprint != images.fingerprint
    assert folder(tmp_path, {}, mode="gray", resize=6, crop=4).read(1).shape == (1, 4, 4)


def test_fingerprints_of_runs_from_before_there_was_a_mode_stay_as_they_were(tmp_path: Path) -> None:
    images = folder(tmp_path, {"a/1.png": _PNG}, resize=4)
    known = hashlib.sha256(f"4 None bilinear\n{images.index.source} {images.index.digest}".encode()).hexdigest()
    assert images.fingerprint == known


def test_a_folders_fingerprint_changes_when_an_empty_class_shifts_the_labels(tmp_path: Path) -> None:
    before = folder(tmp_path, small("b/1.png", "c/1.png"))
    (tmp_path / "a").mkdir()
    after = folder(tmp_path, {})
    assert before.labels.tolist() != after.labels.tolist()
    assert before.fingerprint != after.fingerprint


def test_parquets_fingerprint_changes_with_labels_files_and_settings(tmp_path: Path) -> None:
    def fingerprint(name: str, labels: list[int], copies: int = 1, **settings: Any) -> str:
        for copy in range(copies):
            write_parquet(tmp_path / name / f"{copy}.parquet", [_PNG] * len(labels), labels)
        return parquet(tmp_path / name, **settings).fingerprint

    seen = [
        fingerprint("same", [0, 1]),
        fingerprint("relabelled", [1, 0]),
        fingerprint("resized", [0, 1], resize=4),
        fingerprint("cropped", [0, 1], crop=4),
        fingerprint("longer", [0, 1, 1]),
        fingerprint("one more file", [0, 1], copies=2),
    ]
    assert len(set(seen)) == len(seen)
    assert fingerprint("copy", [0, 1]) == seen[0]


def test_parquets_fingerprint_changes_with_the_column_that_images_come_from(tmp_path: Path) -> None:
    other = encoded(noise_image(1, size=6))
    table = pa.table({"small": struct_column(_PNG), "large": struct_column(other), "label": [0]})
    pq.write_table(table, tmp_path / "x.parquet")
    one, two = (parquet(tmp_path / "x.parquet", image_column=name) for name in ("small", "large"))
    assert not np.array_equal(one.read(0), two.read(0))
    assert one.fingerprint != two.fingerprint


def test_mnists_fingerprint_changes_with_one_pixel_and_with_one_label(tmp_path: Path) -> None:
    images, labels = numbered(3)
    touched = images.copy()
    touched[1, 5, 5] ^= 1
    variants = {"same": (images, labels), "pixel": (touched, labels), "label": (images, [0, 1, 3])}
    seen = {
        open_dataset(Mnist(kind="mnist", path=write_mnist(tmp_path / name, test, test))).fingerprint
        for name, test in variants.items()
    }
    assert len(seen) == 3


# --- Selection -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "limit", "images", "expected"),
    [
        (1, None, 4, [0, 1, 2, 3]),
        (1, 2, 4, [0, 1]),
        (3, None, 8, [0, 3, 6]),
        (3, 2, 8, [0, 3]),
        (100, None, 4, [0]),
        (1, 100, 4, [0, 1, 2, 3]),
        (2, 5, 0, []),
    ],
)
def test_every_nth_image_is_taken_and_then_at_most_limit(
    every: int, limit: int | None, images: int, expected: list[int]
) -> None:
    assert list(selected(Digits(kind="digits", every=every, limit=limit), images)) == expected


@given(every=st.integers(1, 50), limit=st.none() | st.integers(1, 200), images=st.integers(0, 300))
def test_a_limit_is_a_prefix_and_every_counts_from_the_first(every: int, limit: int | None, images: int) -> None:
    chosen = selected(Digits(kind="digits", every=every, limit=limit), images)
    everything = selected(Digits(kind="digits", every=every), images)
    assert len(everything) == math.ceil(images / every)
    assert all(index % every == 0 and 0 <= index < images for index in chosen)
    assert list(chosen) == list(everything)[: len(everything) if limit is None else limit]


def test_a_crop_larger_than_what_is_cropped_is_refused() -> None:
    with pytest.raises(ValueError, match="crop 64 is larger than resize 10"):
        ImageFolder(kind="image_folder", path="x", resize=10, crop=64)
