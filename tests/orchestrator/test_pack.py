"""A user's own network and images as data: nothing lost, nothing rounded, nothing overwritten."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from orchestrator import PackError, SpecError, load_spec, pack
from orchestrator.counting.certification import certify_run
from stn_core import Gaussian, Normalized, count_votes
from tests.networks import tiny, tiny_rgb
from tests.object_store import BUCKET, ObjectStore
from tests.orchestrator.inline import hire_inline
from tests.orchestrator.runs import count
from tests.workers.samples import noise_image
from workers.images import open_dataset
from workers.store import open_store

Pixels = NDArray[np.uint8]
SMALL: dict[str, Any] = {"sigma": 0.25, "draws": 30, "selection_draws": 10}


def pixels(channels: int = 1, images: int = 5) -> Pixels:
    """(images, channels, 28, 28)."""
    every = [noise_image(seed, channels=channels).reshape(28, 28, channels) for seed in range(images)]
    return np.stack(every).transpose(0, 3, 1, 2).copy()


def pairs(channels: int = 1, images: int = 5) -> list[tuple[Any, int]]:
    return [(torch.from_numpy(own), number) for number, own in enumerate(pixels(channels, images))]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five grey images and ``tiny``."""
    folder = tmp_path_factory.mktemp("packed") / "mine"
    pack(tiny(), pairs(), folder, **SMALL)
    return folder


@pytest.mark.parametrize("channels", [1, 3], ids=["gray", "rgb"])
def test_votes_are_those_of_the_live_network_on_the_very_pixels(channels: int, tmp_path: Path) -> None:
    network = tiny() if channels == 1 else tiny_rgb()
    spec = pack(network, pairs(channels), tmp_path, **SMALL)
    images = open_dataset(spec.dataset)
    assert np.array_equal(np.stack([images.read(number) for number in range(5)]), pixels(channels))
    assert images.labels.tolist() == [0, 1, 2, 3, 4]
    made = count(spec.model_dump())
    live = count_votes(network, pixels(channels), noise=Gaussian(0.25), draws=30, num_classes=10, seed=0, keys=range(5))
    votes = np.zeros((5, 10), dtype=int)
    for image, own in enumerate(made.rows["estimation"].to_pylist()):
        for entry in own:
            votes[image, entry["class"]] = entry["votes"]
    assert np.array_equal(votes, live.votes)


def test_the_written_spec_is_the_one_returned_and_has_the_defaults_of_cohen_et_al(tmp_path: Path) -> None:
    spec = pack(tiny(), pairs(), tmp_path, sigma=0.5)
    assert load_spec(tmp_path / "spec.yaml") == spec
    assert (spec.sampling.draws, spec.sampling.selection_draws, spec.sampling.seed) == (1000, 100, 0)
    assert (spec.confidence.protocol, spec.confidence.alpha) == ("split", 0.001)
    assert (spec.radii[0], spec.radii[1], spec.radii[-1]) == (0.0, 0.125, 2.0)
    assert spec.store.run == str(tmp_path / "run")
    assert set(contents(tmp_path)) == {"network.pt2", "images/part-000000.parquet", "spec.yaml"}


def test_places_are_absolute_so_that_any_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = pack(tiny(), pairs(), "mine", run="elsewhere", **SMALL)
    assert spec.dataset.path == tmp_path / "mine/images"  # type: ignore[union-attr]
    assert spec.model.checkpoint == tmp_path / "mine/network.pt2"
    assert spec.store.run == str(tmp_path / "elsewhere")


def test_the_same_again_changes_nothing(packed: Path) -> None:
    before = contents(packed)
    pack(tiny(), pairs(), packed, **SMALL)
    assert contents(packed) == before


FORMS: dict[str, Callable[[Pixels], Any]] = {
    "array": lambda own: own,
    "float32": lambda own: torch.from_numpy(own).float() / 255,
    "by the inverse": lambda own: torch.from_numpy(own).float() * (1 / 255),
    "float64": lambda own: own / 255,
    "float32 as float64": lambda own: (own / np.float32(255)).astype(np.float64),
    "float16": lambda own: torch.from_numpy(own).half() / 255,
    "PIL": lambda own: Image.fromarray(own[0] if len(own) == 1 else own.transpose(1, 2, 0)),
    "needs a gradient": lambda own: (torch.from_numpy(own).float() / 255).requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [1, 3], ids=["gray", "rgb"])
def test_every_form_of_an_image_is_the_same_image(form: str, channels: int, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(channels, 2))
    every = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1).repeat(channels, 1)
    given = [(FORMS[form](own), np.int64(number % 2)) for number, own in enumerate(every)]
    spec = pack(network, given, tmp_path, **SMALL)
    images = open_dataset(spec.dataset)
    assert np.array_equal(np.stack([images.read(number) for number in range(256)]), every)


def test_torchs_own_data_sets_are_taken(packed: Path) -> None:
    pack(tiny(), TensorDataset(torch.from_numpy(pixels()), torch.arange(5)), packed, **SMALL)


def with_image(image: Any) -> list[tuple[Any, int]]:
    return [pairs()[0], (image, 1)]


def stepped(value: float, shape: tuple[int, ...] = (1, 28, 28)) -> torch.Tensor:
    return torch.full(shape, value)


class NoLength(Dataset[Any]):
    def __getitem__(self, number: int) -> Any:
        return pairs()[number]


class Fails(NoLength):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, number: int) -> Any:
        raise OSError("the disk is gone")


BAD_IMAGES: dict[str, tuple[Any, str]] = {
    "off the grid": (
        with_image(stepped(0.5)),
        "image 1 is not on the grid of 8-bit pixels (by 0.5 of a step), and PNG",
    ),
    "half a step in float16": (with_image(stepped(0.5).half()), "image 1 is not on the grid"),
    "a fifth of a step in float16, near black": (with_image(stepped(0.2 / 255).half()), "image 1 is not on the grid"),
    "bfloat16": (with_image(stepped(0.0).bfloat16()), "image 1 is of torch.bfloat16: give uint8, or float32"),
    "normalised": (with_image(stepped(-2.0)), "image 1 has values from -2 to -2: give pixels in [0, 1], and leave"),
    "not a number": (with_image(stepped(float("nan"))), "image 1 has values from nan to nan"),
    "of 0 to 255": (with_image(stepped(255.0)), "image 1 has values from 255 to 255: give pixels in [0, 1]"),
    "whole numbers of another type": (with_image(stepped(0).int()), "image 1 is of torch.int32"),
    "channels last": (
        with_image(stepped(0, (28, 28, 3)).byte()),
        "image 1 has shape (28, 28, 3): it must be (channels",
    ),
    "without channels": (with_image(stepped(0, (28, 28)).byte()), "image 1 has shape (28, 28): it must be (channels"),
    "two channels": (with_image(stepped(0, (2, 28, 28)).byte()), "of 1 or 3 channels"),
    "another size": (with_image(stepped(0, (1, 8, 8)).byte()), "image 1 has shape (1, 8, 8), image 0 (1, 28, 28)"),
    "a palette": (with_image(Image.new("P", (28, 28))), "image 1 is of PIL's mode P: convert it, image.convert('RGB')"),
    "no image": (with_image("cat.png"), "image 1 is a str: give a tensor, an array or an image of PIL"),
    "no pair": ([pairs()[0][0]], "image 0 cannot be had as a pair of image and label"),
    "a broken data set": (Fails(), "image 0 cannot be had as a pair of image and label: the disk is gone"),
    "no length": (NoLength(), "images must be a data set with a length"),
    "nothing": ([], "the data set is empty"),
    "a label in words": ([(pairs()[0][0], "cat")], "the label of image 0 must be an integer, got 'cat'"),
    "a label too many": ([(pairs()[0][0], 10)], "the label of image 0 is 10, and the network has classes 0 to 9"),
    "a label below": ([(pairs()[0][0], -1)], "the label of image 0 is -1"),
    "a label that is no integer": ([(pairs()[0][0], torch.tensor(0.5))], "the label of image 0 must be an integer"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_what_is_no_image_or_label_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    images, says = BAD_IMAGES[name]
    with pytest.raises(PackError) as caught:
        pack(tiny(), images, tmp_path / "mine", **SMALL)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mine/spec.yaml").exists()


class Branching(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :10] * (2 if images.sum() > 0 else 3)


class Twofold(nn.Module):
    """Another network while it is exported."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :10] * (2 if torch.compiler.is_exporting() else 3)


class FixedBatch(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(2, -1)[:, :10]


class Returns(nn.Module):
    def __init__(self, make: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self._make = make

    def forward(self, images: torch.Tensor) -> Any:
        return self._make(images)


INSTEAD = "package.module:function, checkpoint: FILE}"
BAD_NETWORKS: dict[str, tuple[nn.Module, str, str]] = {
    "branches by values": (Branching(), "the network cannot be exported (", INSTEAD),
    "one number of images": (FixedBatch(), "the network cannot be exported (", INSTEAD),
    "draws at random": (
        Returns(lambda x: torch.rand_like(x).flatten(1)[:, :10]),
        "the network cannot be exported",
        INSTEAD,
    ),
    "exports as another": (Twofold(), "the exported network answers otherwise than the network itself", INSTEAD),
    "other images": (tiny_rgb(), "the network cannot take images of shape (1, 28, 28): ", "channels"),
    "an image back": (
        nn.Identity(),
        "the network must return logits (rows, classes), of 2 images it returned (2, 1,",
        "",
    ),
    "a pair": (Returns(lambda x: (x, x)), "the network must return logits", "it returned tuple"),
    "one class": (Returns(lambda x: x.flatten(1)[:, :1]), "the network must return logits", "(2, 1)"),
}


@pytest.mark.parametrize("name", BAD_NETWORKS)
def test_a_network_that_cannot_be_data_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    network, *says = BAD_NETWORKS[name]
    with pytest.raises(PackError) as caught:
        pack(network, pairs(), tmp_path / "mine", **SMALL)
    assert [words for words in says if words not in str(caught.value)] == []
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sigma": -1.0}, "noise.sigma: got -1.0"),
        ({"protocol": "splat"}, "confidence.protocol: got 'splat', did you mean 'split'?"),
        ({"radii": [0.5, 0.1]}, "radii: must increase"),
        ({"selection_draws": 0}, "protocol 'split' needs selection votes"),
        ({"normalization": {"mean": [0.5]}}, "model.normalization.std is missing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_are_checked_as_a_specs(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        pack(tiny(), pairs(), tmp_path / "mine", **{**SMALL, **settings})
    assert says in str(caught.value)
    assert not (tmp_path / "mine").exists()


def test_normalization_for_other_channels_is_refused(tmp_path: Path) -> None:
    constants = {"mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(PackError, match="the network fails on noisy images"):
        pack(tiny(), pairs(), tmp_path / "mine", normalization=constants, **SMALL)


def other_label(images: list[Any]) -> list[Any]:
    return [*images[:4], (images[4][0], 9)]


def other_pixel(images: list[Any]) -> list[Any]:
    return [*images[:2], (images[2][0] ^ 1, 2), *images[3:]]


def other_network() -> nn.Module:
    network = tiny()
    with torch.no_grad():
        network[0].bias[0] += 1  # type: ignore[operator]
    return network


@pytest.mark.parametrize(
    ("network", "images", "settings", "says"),
    [
        (other_network(), pairs(), {}, "network.pt2 is another network: name another folder, or remove this one"),
        (tiny(), other_label(pairs()), {}, "part-000000.parquet: image 4 or its label is another"),
        (tiny(), other_pixel(pairs()), {}, "part-000000.parquet: image 2 or its label is another"),
        (tiny(), pairs(), {"classes": list("abcdefghij")}, "part-000000.parquet has other names of classes"),
        (tiny(), pairs(images=4), {}, "spec.yaml is of other images, or was edited"),
        (
            tiny(),
            pairs(),
            {"sigma": 0.5},
            "spec.yaml differs in noise, radii: name another folder, or change what load_",
        ),
        (tiny(), pairs(), {"run": "/elsewhere"}, "spec.yaml differs in store"),
    ],
    ids=["network", "label", "pixel", "classes", "fewer", "sigma", "run"],
)
def test_a_folder_that_holds_others_is_left_as_it_is(
    network: nn.Module, images: Any, settings: dict[str, Any], says: str, packed: Path
) -> None:
    before = contents(packed)
    with pytest.raises(PackError) as caught:
        pack(network, images, packed, **{**SMALL, **settings})
    assert says in str(caught.value)
    assert contents(packed) == before


@pytest.mark.parametrize("key", ["network.pt2", "images/part-000000.parquet"])
def test_what_is_damaged_is_said_to_be(key: str, tmp_path: Path) -> None:
    pack(tiny(), pairs(), tmp_path, **SMALL)
    (tmp_path / key).write_bytes(b"nothing")
    with pytest.raises(PackError, match="remove it, or name another folder"):
        pack(tiny(), pairs(), tmp_path, **SMALL)


def test_images_that_another_pillow_has_compressed_are_the_same(packed: Path, tmp_path: Path) -> None:
    pack(tiny(), pairs(), tmp_path, **SMALL)
    path = tmp_path / "images/part-000000.parquet"
    table = pq.read_table(path)

    def stored(content: bytes) -> bytes:
        sink = io.BytesIO()
        Image.open(io.BytesIO(content)).save(sink, "PNG", compress_level=0)
        return sink.getvalue()

    rows = [{"bytes": stored(row["bytes"]), "path": None} for row in table["image"].to_pylist()]
    column = pa.array(rows, table.schema.field("image").type)
    pq.write_table(table.set_column(0, table.schema.field("image"), column), path)
    assert path.read_bytes() != (packed / "images/part-000000.parquet").read_bytes()
    before = contents(tmp_path)
    pack(tiny(), pairs(), tmp_path, **SMALL)
    assert contents(tmp_path) == before


def test_the_network_is_left_as_it_was_and_taken_as_it_answers(tmp_path: Path) -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), *tiny())
    network(torch.rand(8, 1, 28, 28))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    spec = pack(network, pairs(), tmp_path, **SMALL)
    assert network.training
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    made = count(spec.model_dump())
    live = count_votes(network, pixels(), noise=Gaussian(0.25), draws=30, num_classes=10, seed=0, keys=range(5))
    assert [sum(entry["votes"] for entry in own) for own in made.rows["estimation"].to_pylist()] == [30] * 5
    assert [max(own, key=lambda entry: entry["votes"])["votes"] for own in made.rows["estimation"].to_pylist()] == (
        live.votes.max(axis=1).tolist()
    )


def test_normalization_is_applied_after_the_noise(tmp_path: Path) -> None:
    constants = {"mean": np.array([0.4]), "std": torch.tensor([0.5])}
    spec = pack(tiny(), pairs(), tmp_path, normalization=constants, **SMALL)  # type: ignore[arg-type]
    made = count(spec.model_dump())
    network = Normalized(tiny(), [0.4], [0.5])
    live = count_votes(network, pixels(), noise=Gaussian(0.25), draws=30, num_classes=10, seed=0, keys=range(5))
    most = [max(own, key=lambda entry: entry["votes"])["class"] for own in made.rows["estimation"].to_pylist()]
    assert most == live.votes.argmax(axis=1).tolist()


def test_names_of_classes_are_kept(tmp_path: Path) -> None:
    names = [f"class {letter}" for letter in "abcdefghij"]
    spec = pack(tiny(), pairs(), tmp_path / "mine", classes=names, **SMALL)
    assert open_dataset(spec.dataset).classes == tuple(names)
    with pytest.raises(PackError, match="classes has 9 names, and the network 10 outputs"):
        pack(tiny(), pairs(), tmp_path / "mine", classes=names[:9], **SMALL)


def test_no_part_of_the_users_files_is_in_what_is_written(packed: Path) -> None:
    """Programs of torch.export tell, unless they are told not to, which lines of which files they are from."""
    network = (packed / "network.pt2").read_bytes()
    assert Path(__file__).name.encode() not in network
    assert os.fsencode(Path(__file__).parents[1]) not in network


def test_parts_hold_the_images_in_order_and_an_interrupted_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.packing.images._PART_BYTES", 2 * 28 * 28)

    class Interrupted(list[Any]):
        def __getitem__(self, number: Any) -> Any:
            if number == 4:
                raise KeyboardInterrupt
            return super().__getitem__(number)

    with pytest.raises(KeyboardInterrupt):
        pack(tiny(), Interrupted(pairs()), tmp_path, **SMALL)
    begun = contents(tmp_path)
    with pytest.raises(PackError, match=r"part-000001.parquet is of other images"):
        pack(tiny(), pairs(images=2), tmp_path, **SMALL)
    assert set(begun) == {"network.pt2", "images/part-000000.parquet", "images/part-000001.parquet"}
    spec = pack(tiny(), pairs(), tmp_path, **SMALL)
    assert contents(tmp_path).items() > begun.items()
    images = open_dataset(spec.dataset)
    assert np.array_equal(np.stack([images.read(number) for number in range(5)]), pixels())
    before = contents(tmp_path)
    with pytest.raises(PackError, match="of other images"):
        pack(tiny(), pairs(images=6), tmp_path, **SMALL)
    assert contents(tmp_path) == before


def test_object_storage_holds_the_same_and_gives_the_same_votes(
    object_store: ObjectStore, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    place = f"s3://{BUCKET}/packed/mine"
    spec = pack(tiny(), pairs(), place, **SMALL)
    assert (spec.store.run, spec.model.checkpoint) == (f"{place}/run", f"{place}/network.pt2")
    pack(tiny(), pairs(), place, **SMALL)
    copied = [f"dataset.path={place}/images", f"model.checkpoint={place}/network.pt2"]
    assert load_spec(packed / "spec.yaml", copied, run=f"{place}/run").model_dump() == spec.model_dump()
    certify = functools.partial(certify_run, hire=hire_inline)
    there, here = certify(spec), certify(load_spec(packed / "spec.yaml", run=str(packed.parent / "here")))
    assert there.certificates.equals(here.certificates)
    keys = [stored.key for stored in here.store.list("counts/")]
    assert keys
    assert all(open_store(there.run).read(key) == here.store.read(key) for key in keys)
