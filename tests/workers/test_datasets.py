"""Encoded images in each layout, local and on a real S3 server: labels, order, identity, and the index they share."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from stn_core.models.classes import imagenet_wnids
from tests.workers.conftest import Put, upload
from tests.workers.samples import IMAGE_STRUCT, encoded, noise_image, tar, write_folder
from workers.datasets.index import Entry, Index, build
from workers.files import LocalFiles, open_files
from workers.images import DatasetError, EncodedImages, UnreadableImage, indexed, open_dataset
from workers.selection import selected
from workers.settings import Dataset, Digits

_DATASET: TypeAdapter[Any] = TypeAdapter(Dataset)

WNIDS = imagenet_wnids()


def settings(**values: Any) -> Any:
    return _DATASET.validate_python(values)


def opened(**values: Any) -> EncodedImages:
    images = open_dataset(settings(**values))
    assert isinstance(images, EncodedImages)
    return images


def png(seed: int) -> bytes:
    return encoded(noise_image(seed, size=8))


def pixels(seed: int) -> np.ndarray:
    return noise_image(seed, size=8).transpose(2, 0, 1)


# --- Tar files -----------------------------------------------------------------------------------------------------

TWO_TARS = {
    "b.tar": tar({"x.cls": b"7", "x.png": png(2)}),
    "a.tar": tar({"./d/y.PNG": png(0), "./d/y.json": b"{}", "./d/y.cls": b"3\n", "z.seg.png": png(1), "z.cls": b"0"}),
    "notes.txt": b"-",
}


def test_tar_files_are_read_by_place_in_the_order_of_names(put: Put) -> None:
    images = opened(kind="webdataset", path=put(TWO_TARS))
    assert images.labels.tolist() == [3, 0, 7]
    assert images.num_classes == 8
    assert [images.index[number].name for number in range(3)] == ["a.tar/./d/y.PNG", "a.tar/z.seg.png", "b.tar/x.png"]
    for number in (2, 0, 1):
        assert np.array_equal(images.read(number), pixels(number))
    assert len({images.key(number) for number in range(3)}) == 3


def test_one_tar_file_may_be_the_whole_data_set(put: Put) -> None:
    place = put(TWO_TARS)
    file = place / "b.tar" if isinstance(place, Path) else f"{place}/b.tar"
    one, all_of_them = opened(kind="webdataset", path=file), opened(kind="webdataset", path=place)
    assert np.array_equal(one.read(0), pixels(2))
    assert one.key(0) == all_of_them.key(2)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_is_indexed_as_python_reads_it(tmp_path: Path, kind: int) -> None:
    deep = "/".join(["folder"] * 20)  # too long for the plain header
    members = {f"{deep if kind != tarfile.USTAR_FORMAT else 'd'}/{n}.{e}": c for n in range(30) for e, c in
               (("png", png(n)), ("cls", b"%d" % n))}  # fmt: skip
    write_folder(tmp_path, {"x.tar": tar(members, kind)})
    images = opened(kind="webdataset", path=tmp_path)
    assert images.labels.tolist() == list(range(30))
    assert all(np.array_equal(images.read(n), pixels(n)) for n in range(30))


def test_labels_may_be_in_json_or_names_of_a_class_index(tmp_path: Path) -> None:
    members = {"1.png": png(0), "1.json": b'{"label": 4}', "1.txt": WNIDS[9].encode()}
    write_folder(tmp_path, {"x.tar": tar(members)})
    by_json = opened(kind="webdataset", path=tmp_path, label_extension=".JSON")
    by_name = opened(kind="webdataset", path=tmp_path, label_extension="txt", class_index="imagenet")
    assert (by_json.labels.tolist(), by_name.labels.tolist()) == ([4], [9])
    assert (by_json.classes, by_name.classes) == (None, WNIDS)
    assert by_name.num_classes == 1000


def test_no_more_of_a_tar_file_is_fetched_than_an_image(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    place = put(TWO_TARS)
    images = opened(kind="webdataset", path=place)
    files = type(open_files(place))
    read = files.read_part
    asked = []

    def watched(self: Any, name: str, offset: int, size: int) -> bytes:
        asked.append((name, size))
        return read(self, name, offset, size)

    monkeypatch.setattr(files, "read_part", watched)
    monkeypatch.setattr(files, "read", None)
    monkeypatch.setattr(files, "open", None)
    images.read(2)
    assert asked == [("b.tar", len(png(2)))]


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_container_that_is_another_than_was_indexed_fails_the_shard_and_not_its_images(put: Put, kind: str) -> None:
    """A node may see an older copy: nothing is to be recorded of it."""
    rows, other = io.BytesIO(), io.BytesIO()
    schema = pa.schema([("image", IMAGE_STRUCT), ("label", pa.int64())])
    for sink, seeds in ((rows, (0, 1)), (other, (1, 0, 2))):
        table = [{"image": {"bytes": png(seed), "path": None}, "label": seed} for seed in seeds]
        pq.write_table(pa.Table.from_pylist(table, schema), sink)
    before, after = {"webdataset": (TWO_TARS["a.tar"], tar({"z.png": bytes(30_000), "z.cls": b"1"})),
                     "parquet": (rows.getvalue(), other.getvalue())}[kind]  # fmt: skip
    name = "x.tar" if kind == "webdataset" else "x.parquet"
    index = opened(kind=kind, path=put({name: before})).index
    again = indexed(settings(kind=kind, path=put({name: after})), None, Index(index.content))
    with pytest.raises(DatasetError, match=rf"^{name} has \d+ bytes, and had \d+ when it was indexed: another file"):
        again.read(0)


@pytest.mark.parametrize("at", [0, 100, 511, 700])
def test_a_tar_file_that_breaks_off_or_is_damaged_in_the_middle_is_no_smaller_data_set(tmp_path: Path, at: int) -> None:
    whole = tar({f"{n}.{kind}": content for n in range(9) for kind, content in (("png", png(n)), ("cls", b"1"))})
    header = whole.index(b"5.png")
    flipped = bytearray(whole)
    flipped[header] ^= 1
    for content in (whole[: header + at], bytes(flipped), whole + whole):
        write_folder(tmp_path, {"x.tar": content})
        with pytest.raises(DatasetError, match=r"x\.tar is (damaged or cut short at byte|no tar file)"):
            opened(kind="webdataset", path=tmp_path)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE])
def test_links_and_holes_in_tar_files_are_refused_by_name(tmp_path: Path, kind: bytes) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, content in (("1.png", png(0)), ("1.cls", b"1")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = kind, "1.png"
        archive.addfile(link)
    write_folder(tmp_path, {"x.tar": sink.getvalue()})
    with pytest.raises(DatasetError, match=r"2\.png is a link, or stored sparse: pack plain files|is no tar file"):
        opened(kind="webdataset", path=tmp_path)


# --- Class order ---------------------------------------------------------------------------------------------------

THREE = {f"{wnid}/1.png": png(seed) for seed, wnid in enumerate(("n02094433", "n01440764", "n02123045"))}


def test_some_of_imagenets_classes_have_its_labels_by_the_class_index(put: Put) -> None:
    place = put(THREE)
    plain, imagenet = (opened(kind="image_folder", path=place, class_index=index) for index in (None, "imagenet"))
    assert plain.labels.tolist() == [0, 1, 2]
    assert plain.classes == ("n01440764", "n02094433", "n02123045")
    # tench, Yorkshire terrier, tabby: torchvision's own order
    assert imagenet.labels.tolist() == [0, 187, 281]
    assert (imagenet.num_classes, imagenet.classes) == (1000, WNIDS)
    assert plain.fingerprint != imagenet.fingerprint
    assert plain.key(1) == imagenet.key(1)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({str(label): [wnid, "a name"] for label, wnid in enumerate(sorted(WNIDS, reverse=True))}),
        json.dumps({str(label): wnid for label, wnid in enumerate(sorted(WNIDS, reverse=True))}),
        json.dumps({wnid: label for label, wnid in enumerate(sorted(WNIDS, reverse=True))}),
        json.dumps(sorted(WNIDS, reverse=True)),
        "\ufeff" + "".join(f"{wnid} a name, another\r\n" for wnid in sorted(WNIDS, reverse=True)),
    ],
    ids=["pairs", "names by label", "labels by name", "list", "lines"],
)
def test_a_class_index_may_be_written_in_any_of_the_usual_ways(tmp_path: Path, text: str) -> None:
    write_folder(tmp_path / "data", THREE)
    (tmp_path / "classes").write_text(text)
    images = opened(kind="image_folder", path=tmp_path / "data", class_index=tmp_path / "classes")
    assert images.labels.tolist() == [999, 812, 718]


def test_a_class_index_may_be_in_object_storage(prefix: str, tmp_path: Path) -> None:
    write_folder(tmp_path, {**THREE, "classes.txt": "\n".join(sorted(WNIDS, reverse=True)).encode()})
    images = opened(kind="image_folder", path=upload(tmp_path, prefix), class_index=f"{prefix}/classes.txt")
    assert images.labels.tolist() == [999, 812, 718]


def test_imagenet_as_torchvision_keeps_it(put: Put) -> None:
    files = {f"{split}/{name}": content for split in ("train", "val") for name, content in THREE.items()}
    place = put({**files, "val/n01440764/2.JPEG": png(5), "meta.bin": b"-", "ILSVRC2012_devkit_t12.tar.gz": b"-"})
    train, val = (opened(kind="imagenet", path=place, split=split) for split in ("train", "val"))
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 187, 281], [0, 0, 187, 281])
    assert val.classes == WNIDS
    assert np.array_equal(val.read(1), pixels(5))


def test_what_a_hub_calls_its_classes_is_read_from_parquet(tmp_path: Path) -> None:
    features = {"label": {"names": ["tench, Tinca tinca", "goldfish"], "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", IMAGE_STRUCT), ("label", pa.int64())],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [{"image": {"bytes": png(seed), "path": None}, "label": 0} for seed in range(2)]
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "x.parquet")
    images = opened(kind="parquet", path=tmp_path)
    assert images.classes == ("tench, Tinca tinca", "goldfish")
    assert images.num_classes == 2


# --- What cannot be used -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "values", "told"),
    [
        ({"x.tar": b"no tar" * 999}, {}, r"x\.tar is no tar file that can be read: "),
        ({"x.tar": tar({"1.png": b""})}, {}, r"x\.tar: image 1 has no label 1\.cls: set dataset\.label_extension$"),
        ({"x.tar": tar({"1.cls": b"0"})}, {}, r"holds no images: its tar files have none$"),
        ({"x.tar": tar({"1.png": b"", "1.json": b'{"label": 3.9}'})}, {"label_extension": "json"}, "a whole number$"),
        ({"x.tar": tar({"1.png": b"", "1.cls": b"9" * 30})}, {}, "more classes than anybody has$"),
        ({"x.tar": tar({"1.png": b"", "1.cls": b"cat"})}, {}, r"1\.cls must hold a label: a whole number$"),
        (
            {"x.tar": tar({"1.png": b"", "1.cls": b"cat"})},
            {"class_index": "imagenet"},
            r"1\.cls must hold a label: a whole number, or a class of dataset\.class_index$",
        ),
        (
            {"x.tar": tar({"1.png": b"", "1.json": b'{"class": 1}'})},
            {"label_extension": "json"},
            r"1\.json must hold a label in its field 'label': a whole number$",
        ),
        ({"x.tar": tar({"1.png": b"", "1.jpg": b"", "1.cls": b"0"})}, {}, r"x\.tar has two images of the name 1$"),
        ({"x.txt": b""}, {}, r"holds no images: no \.tar files$"),
    ],
)
def test_tar_files_that_are_no_data_set(
    tmp_path: Path, files: dict[str, bytes], values: dict[str, Any], told: str
) -> None:
    with pytest.raises(DatasetError, match=told):
        opened(kind="webdataset", path=write_folder(tmp_path / "data", files), **values)


def test_a_place_without_tar_files_says_so(prefix: str, tmp_path: Path) -> None:
    for place in (tmp_path / "none", tmp_path / "none.tar", f"{prefix}/none", f"{prefix}/none.tar"):
        with pytest.raises(DatasetError, match=r"no file at dataset\.path"):
            opened(kind="webdataset", path=place)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read: .*No such file"),
        ("", "is no class index: expected JSON such as"),
        ('{"0": ', "is no class index"),
        ('{"1": "n01440764"}', "is no class index"),
        ("[1, 2]", "is no class index"),
        ('["a", "b", "a"]', "names classes twice: a$"),
        ("n01440764\nn02094433\n", r"^dataset\.class_index has no class n02123045, and the data set has$"),
    ],
)
def test_a_class_index_that_is_none(tmp_path: Path, text: str | None, told: str) -> None:
    write_folder(tmp_path / "data", THREE)
    if text is not None:
        (tmp_path / "classes").write_text(text)
    with pytest.raises(DatasetError, match=told):
        opened(kind="image_folder", path=tmp_path / "data", class_index=tmp_path / "classes")


# --- The index -----------------------------------------------------------------------------------------------------

ENTRIES = st.lists(
    st.builds(
        Entry,
        name=st.text(max_size=5),
        label=st.integers(-2, 1000),
        file=st.text(st.characters(exclude_characters="/."), max_size=3),
        offset=st.integers(0, 2**60),
        size=st.integers(-1, 2**40),
    ),
    min_size=1,
    max_size=40,
)


@given(ENTRIES, st.booleans())
def test_an_index_gives_back_what_was_put_in(entries: list[Entry], held: bool) -> None:
    index = pickle.loads(pickle.dumps(build(iter(entries), None, "here")))
    if held:
        index.hold()
    assert [index[number] for number in range(len(index))] == entries
    assert index.labels.tolist() == [entry.label for entry in entries]
    assert index.num_classes == max(2, *(entry.label + 1 for entry in entries))
    assert (index.source, index.classes) == ("here", None)


def test_an_index_of_many_images_takes_few_bytes_of_each() -> None:
    names = [f"n{label:08d}/ILSVRC2012_val_{label * 50 + at:08d}.JPEG" for label in range(1000) for at in range(50)]
    entries = [Entry(name, at // 50, name, 0, 100_000 + 37 * (at % 50)) for at, name in enumerate(names)]
    index = build(entries, WNIDS, "")
    assert len(index) == 50_000
    assert index[31_234] == entries[31_234]
    assert index.content.size < 50_000 * 20


def test_a_data_set_opened_by_its_index_is_the_same_and_nothing_is_looked_for(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = settings(kind="image_folder", path=put(THREE), resize=4)
    images = open_dataset(section)
    assert isinstance(images, EncodedImages)
    files = type(open_files(section.path))
    for name in ("list", "folders", "walk"):
        monkeypatch.setattr(files, name, None)
    again = indexed(section, None, Index(images.index.content))
    assert again.fingerprint == images.fingerprint
    assert [again.key(n) for n in range(3)] == [images.key(n) for n in range(3)]
    assert all(np.array_equal(again.read(n), images.read(n)) for n in range(3))


def test_an_index_kept_for_other_runs_is_made_once(put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = put({"data/x.tar": TWO_TARS["a.tar"]})
    data, kept = (place / "data", place / "i") if isinstance(place, Path) else (f"{place}/data", f"{place}/i")
    first = opened(kind="webdataset", path=data, index=kept)
    monkeypatch.setattr(tarfile, "open", None)  # no tar file is gone through again
    again = opened(kind="webdataset", path=data, index=kept, crop=4)
    assert again.index.content == first.index.content
    assert again.fingerprint != first.fingerprint, "what is cut out is another thing"
    assert np.array_equal(again.read(0), pixels(0)[:, 2:6, 2:6])


def test_an_index_of_other_data_is_refused_and_left_alone(tmp_path: Path) -> None:
    write_folder(tmp_path, {"data/x.tar": TWO_TARS["a.tar"]})
    opened(kind="webdataset", path=tmp_path / "data", index=tmp_path / "kept")
    before = (tmp_path / "kept").read_bytes()
    write_folder(tmp_path, {"data/y.tar": TWO_TARS["b.tar"]})
    with pytest.raises(DatasetError, match=r"dataset\.index .*kept is of other data than dataset\.path .*: remove it"):
        opened(kind="webdataset", path=tmp_path / "data", index=tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"no index" * 100])
def test_a_damaged_index_is_told(tmp_path: Path, damage: bytes) -> None:
    write_folder(tmp_path, {"data/x.tar": TWO_TARS["a.tar"], "kept": damage})
    with pytest.raises(DatasetError, match=r"^dataset\.index .*kept is no index of a data set, or damaged: remove it"):
        opened(kind="webdataset", path=tmp_path / "data", index=tmp_path / "kept")


def test_an_index_of_the_run_serves_as_long_as_the_files_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = settings(kind="webdataset", path=write_folder(tmp_path, TWO_TARS))
    known = opened(kind="webdataset", path=tmp_path).index
    (tmp_path / "b.tar").write_bytes(
        tar({"x.cls": b"7", "x.png": png(2), "y.png": png(3) + bytes(9999), "y.cls": b"1"})
    )
    assert len(open_dataset(section, None, known)) == 4
    write_folder(tmp_path, TWO_TARS)
    monkeypatch.setattr(tarfile, "open", None)
    assert len(open_dataset(section, None, known)) == 3


def test_a_folder_is_looked_at_even_where_an_index_of_it_is_known(tmp_path: Path) -> None:
    section = settings(kind="image_folder", path=write_folder(tmp_path, THREE))
    known = opened(kind="image_folder", path=tmp_path).index
    write_folder(tmp_path, {"n01440764/9.png": png(9)})
    assert len(open_dataset(section, None, known)) == 4


def test_hidden_folders_are_no_classes(put: Put) -> None:
    images = opened(kind="image_folder", path=put({**THREE, ".ipynb_checkpoints/1.png": png(7)}))
    assert (images.labels.tolist(), images.num_classes) == ([0, 1, 2], 3)


@pytest.mark.parametrize("file", ["../outside.png", "/etc/passwd", "a/../../b"])
def test_an_index_of_anybodys_making_leads_nowhere_else(tmp_path: Path, file: str) -> None:
    section = settings(kind="image_folder", path=tmp_path)
    images = indexed(section, None, build([Entry("x", 0, file, 0, 3)], None, ""))
    with pytest.raises(DatasetError, match="lies outside the data set"):
        images.read(0)


def test_an_index_whose_entries_were_changed_is_refused(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "data", THREE)
    opened(kind="image_folder", path=place, index=tmp_path / "kept")
    table = pq.read_table(tmp_path / "kept")
    labels = pa.array(table["label"].to_pylist()[::-1], pa.int64())
    table = table.set_column(1, table.schema.field(1), labels)
    facts = pq.read_metadata(tmp_path / "kept").metadata
    with pq.ParquetWriter(tmp_path / "kept", table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"stn.index": facts[b"stn.index"].decode()})
    with pytest.raises(DatasetError, match=r"kept is damaged: remove it, and it is made anew$"):
        opened(kind="image_folder", path=place, index=tmp_path / "kept")


def test_a_file_that_grew_since_is_not_the_image_that_was_planned(tmp_path: Path) -> None:
    images = opened(kind="image_folder", path=write_folder(tmp_path, THREE))
    name = images.index[0].name
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"more")
    with pytest.raises(UnreadableImage, match=rf"^{name} has \d+ bytes, and had \d+ when it was indexed$"):
        images.read(0)


def test_listings_go_on_past_a_folder_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, THREE)
    monkeypatch.setattr(LocalFiles, "folders", lambda self: [*sorted(wnid.split("/")[0] for wnid in THREE), "zzz"])
    assert len(opened(kind="image_folder", path=tmp_path)) == 3


# --- Which images --------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 99), min_size=1), st.integers(1, 5), st.none() | st.integers(1, 50), st.integers(0, 99))
def test_listed_images_behave_as_a_range_does(numbers: set[int], every: int, limit: int | None, probe: int) -> None:
    dataset = Digits(kind="digits", indices=tuple(numbers), every=every, limit=limit)
    chosen, plain = selected(dataset, 100), sorted(numbers)[::every][:limit]
    assert list(chosen) == plain
    assert len(chosen) == len(plain)
    assert list(chosen[1:3]) == plain[1:3]
    assert (chosen[0], chosen[-1]) == (plain[0], plain[-1])
    assert (probe in chosen) == (probe in plain)
    if probe in plain:
        assert chosen.index(probe) == plain.index(probe)
    else:
        with pytest.raises(ValueError, match=str(probe)):
            chosen.index(probe)


def test_an_image_that_is_not_there_cannot_be_listed() -> None:
    with pytest.raises(DatasetError, match=r"dataset\.indices names image 500, and the data set has 500"):
        selected(Digits(kind="digits", indices=(3, 500)), 500)
