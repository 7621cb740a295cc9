"""Training images from memory and streamed: the same images, in the order asked for, whoever decodes them."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from tests.workers.samples import encoded, noise_image, tar, write_folder, write_parquet
from tests.workers.test_training import Alone, equal
from workers.images import DatasetError, EncodedImages, open_dataset
from workers.loading import Source, open_source
from workers.settings import Augmentation, GaussianNoise, ImageFolder, Model, ParquetImages, Training, WebDataset
from workers.training import TrainJob, train

SIZES = [28, 40, 33, 28, 31, 36, 28, 50, 29, 30, 44]


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Eleven images of as many sizes in two classes; scaled and cut to 28 pixels."""
    files = {f"{'ab'[i % 2]}/{i:02d}.png": encoded(noise_image(i, size)) for i, size in enumerate(SIZES)}
    return ImageFolder(kind="image_folder", path=write_folder(tmp_path / "images", files), resize=28, crop=28)


@pytest.fixture(params=[0, 2], ids=["here", "processes"])
def loaders(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


@pytest.fixture
def opened() -> Iterator[list[Source]]:
    sources: list[Source] = []
    yield sources
    for source in sources:
        source.close()


def batches(source: Source, rows: list[list[int]], seeds: list[list[int]] | None = None) -> list[Any]:
    chances = [[0] * len(own) for own in rows] if seeds is None else seeds
    asked = [np.array(own, np.int64) for own in rows], [np.array(own, np.uint64) for own in chances]
    return list(source.batches(*asked))


def test_batches_come_as_asked_for_epoch_after_epoch(folder: ImageFolder, loaders: int, opened: list[Source]) -> None:
    source = open_source("training.dataset", folder, storage=None, loaders=loaders)
    opened.append(source)
    images = open_dataset(folder)
    assert len(source) == 11
    for rows in ([[3, 1, 2], [10], [0, 5]], [[7, 7]], []):
        found = batches(source, rows)
        assert len(found) == len(rows)
        for own, (pixels, labels) in zip(rows, found, strict=True):
            assert torch.equal(pixels, torch.from_numpy(np.stack([images.read(index) for index in own])))
            assert labels.tolist() == images.labels[own].tolist()
            assert (pixels.dtype, labels.dtype) == (torch.uint8, torch.int64)


def test_every_limit_and_only_choose(folder: ImageFolder, opened: list[Source]) -> None:
    chosen = folder.model_copy(update={"every": 2, "limit": 5})
    source = open_source("x", chosen, storage=None, only=np.array([0, 2, 4]))
    opened.append(source)
    images = open_dataset(folder)
    assert len(source) == 3
    ((pixels, _),) = batches(source, [[0, 1, 2]])
    assert torch.equal(pixels, torch.from_numpy(np.stack([images.read(index) for index in (0, 4, 8)])))


def test_tar_files_are_streamed_as_folders_are_and_by_an_index_without_looking(
    folder: ImageFolder, tmp_path: Path, opened: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(folder.path, Path)
    files = sorted(folder.path.rglob("*.png"))
    members = {f"{file.stem}.{kind}": content for file in files for kind, content in (
        ("cls", str("ab".index(file.parent.name)).encode()), ("png", file.read_bytes()))}  # fmt: skip
    write_folder(tmp_path / "tars", {"all.tar": tar(members)})
    tars = WebDataset(kind="webdataset", path=tmp_path / "tars", resize=28, crop=28)
    images = open_dataset(tars)
    assert isinstance(images, EncodedImages)
    monkeypatch.setattr(tarfile, "open", None)
    sources = [
        open_source("x", folder, storage=None, random_crop=20),
        open_source("x", tars, storage=None, random_crop=20, index=images.index),
    ]
    opened.extend(sources)
    (of_folder,), (of_tars,) = (batches(source, [[9, 3, 10]], [[5, 6, 7]]) for source in sources)
    assert all(torch.equal(one, other) for one, other in zip(of_folder, of_tars, strict=True))


def test_a_random_crop_follows_from_its_seed_alone(folder: ImageFolder, opened: list[Source]) -> None:
    source = open_source("x", folder, storage=None, random_crop=20)
    opened.append(source)
    before = torch.random.get_rng_state()
    ((first, _), (second, _)) = batches(source, [[7, 1], [1, 7, 7]], [[2**63 - 1, 8], [8, 2**63 - 1, 9]])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.shape[1:] == (3, 20, 20)
    assert torch.equal(first, second[[1, 0]])
    assert not torch.equal(second[1], second[2])


def test_gray_images_are_streamed_with_one_channel(folder: ImageFolder, opened: list[Source]) -> None:
    """With a random crop and without, of which the luma of a crop is the crop of the luma, but for rounding."""
    gray = folder.model_copy(update={"mode": "gray"})
    for random_crop in (None, 20):
        sources = [open_source("x", own, storage=None, random_crop=random_crop) for own in (folder, gray)]
        opened.extend(sources)
        ((coloured, _),), ((single, _),) = (batches(source, [[7, 1]], [[5, 6]]) for source in sources)
        assert single.shape == (2, 1, *coloured.shape[2:])
        luma = torch.einsum("nchw,c->nhw", coloured.double(), torch.tensor([0.299, 0.587, 0.114]).double())
        assert (single[:, 0].double() - luma).abs().max() <= 2


def test_a_random_crop_is_the_usual_recipes(tmp_path: Path, opened: list[Source]) -> None:
    """Of an image whose pixels say where they are: parts of 8 to 100 % of the area, 3:4 to 4:3, anywhere."""
    across, down = np.meshgrid(np.arange(60) * 4, np.arange(48) * 5)
    where = np.stack([across, down, np.zeros_like(down)], axis=2).astype(np.uint8)
    path = write_folder(tmp_path / "one", {"a/0.png": encoded(where)})
    source = open_source("x", ImageFolder(kind="image_folder", path=path), storage=None, random_crop=32)
    opened.append(source)
    ((pixels, _),) = batches(source, [[0] * 400], [list(range(400))])
    corners = pixels.double().numpy()
    # The first and last pixel of a crop are half a step inside of it.
    width = (corners[:, 0, 16, -1] - corners[:, 0, 16, 0]) / 4 * 32 / 31
    height = (corners[:, 1, -1, 16] - corners[:, 1, 0, 16]) / 5 * 32 / 31
    share, shape = width * height / (60 * 48), width / height
    assert 0.05 < share.min() < 0.15
    assert 0.85 < share.max() <= 1.05
    assert abs(np.median(share) - 0.5) < 0.15
    assert 0.65 < shape.min() < 0.85
    assert 1.2 < shape.max() < 1.5
    assert (corners[:, 0, 16, 0] < 20).any()
    assert (corners[:, 0, 16, 0] > 120).any()
    # To the bit what torchvision makes of the seed.
    torch.manual_seed(7)
    image = Image.open(io.BytesIO(encoded(where)))
    expected = RandomResizedCrop(32)(image)
    assert np.array_equal(pixels[7].numpy(), np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize(("random_crop", "loaders"), [(None, 1), (20, 0)])
def test_a_broken_image_is_named(
    folder: ImageFolder, loaders: int, opened: list[Source], random_crop: int | None
) -> None:
    assert isinstance(folder.path, Path)
    (folder.path / "b" / "05.png").write_bytes(b"no image")
    source = open_source("training.dataset", folder, storage=None, random_crop=random_crop, loaders=loaders)
    opened.append(source)
    with pytest.raises(DatasetError, match=r"training\.dataset: image 8: .*b/05\.png cannot be decoded"):
        batches(source, [[0, 1], [7, 8, 9]])


def test_images_of_different_sizes_are_refused_with_what_to_set(folder: ImageFolder, opened: list[Source]) -> None:
    source = open_source("training.dataset", folder.model_copy(update={"crop": None, "resize": None}), storage=None)
    opened.append(source)
    with pytest.raises(DatasetError, match=r"training\.dataset: its images differ in size: set resize and crop"):
        batches(source, [[0, 1, 2]])


@pytest.fixture
def job(folder: ImageFolder) -> TrainJob:
    training = Training(
        dataset=folder, validation=folder, epochs=2, batch_size=4, seed=3, precision="float32", loaders=0,
        augment=Augmentation(crop=1, flip=True),
    )  # fmt: skip
    return TrainJob(Model(name="tests.networks:tiny_rgb"), training, 10, GaussianNoise(sigma=0.3), threads=1)


def changed(job: TrainJob, **settings: Any) -> TrainJob:
    return dataclasses.replace(job, training=job.training.model_copy(update=settings))


def test_a_network_learns_the_same_from_a_stream_as_from_memory(job: TrainJob, tmp_path: Path) -> None:
    images = open_dataset(job.training.dataset)
    files = [encoded(images.read(index).transpose(1, 2, 0)) for index in range(len(images))]
    table = write_parquet(tmp_path / "same.parquet", files, images.labels.tolist())
    in_memory = ParquetImages(kind="parquet", path=table)
    sessions = []
    for name, asked in (
        ("memory", changed(job, dataset=in_memory, validation=in_memory)),
        ("stream", job),
        ("processes", changed(job, loaders=1, validation=None)),  # each takes seconds to start
    ):
        sessions.append(Alone(tmp_path / name))
        train(asked, sessions[-1])
    memory, stream, processes = sessions
    assert equal(memory.state()["network"], stream.state()["network"])
    for one, other in zip(memory.epochs, stream.epochs, strict=True):
        assert dataclasses.replace(one, wall_s=0) == dataclasses.replace(other, wall_s=0)
    assert equal(memory.state()["network"], processes.state()["network"])


@pytest.mark.parametrize("random_crop", [None, 28])
def test_two_workers_shares_of_a_stream_together_are_the_global_batch(
    job: TrainJob, tmp_path: Path, random_crop: int | None
) -> None:
    asked = changed(job, method="gaussian", random_crop=random_crop, batch_size=5)
    alone = Alone(tmp_path / "alone")
    shares = [Alone(tmp_path / str(rank), rank=rank, world_size=2) for rank in range(2)]
    for session in (alone, *shares):
        train(asked, session)
    of_training = [[shown for shown in session.model.shown if len(shown)] for session in (alone, *shares)]
    for whole, first, second in zip(*of_training, strict=True):
        assert torch.equal(whole[0::2], first)
        assert torch.equal(whole[1::2], second)


def test_every_epoch_crops_anew(job: TrainJob, tmp_path: Path) -> None:
    session = Alone(tmp_path)
    train(changed(job, method="clean", random_crop=28, augment=None, batch_size=11, validation=None), session)
    first, second = session.model.shown
    assert not any(torch.equal(one, other) for one in first for other in second)


def test_processes_that_decode_are_asked_of_the_cluster(job: TrainJob) -> None:
    assert changed(job, loaders=3).cpus == 4
    table = ParquetImages(kind="parquet", path=Path("x"))
    assert changed(job, loaders=3, dataset=table).cpus == 4  # the validation set is a folder
    assert changed(job, loaders=3, dataset=table, validation=None).cpus == 1


_HOLDER = """
import os, sys, time
import numpy as np
from pathlib import Path
from workers.loading import open_source
from workers.settings import ImageFolder

if __name__ == "__main__":
    folder = ImageFolder(kind="image_folder", path=Path(sys.argv[1]), resize=28, crop=28)
    source = open_source("x", folder, storage=None, loaders=2)
    list(source.batches([np.arange(4)] * 3, [np.zeros(4, np.uint64)] * 3))
    print("ready", flush=True)
    time.sleep(600)
"""


def group_of(leader: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_no_process_outlives_a_killed_trainer(folder: ImageFolder, tmp_path: Path) -> None:
    script = tmp_path / "holder.py"
    script.write_text(_HOLDER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, str(script), str(folder.path)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
    ) as holder:  # fmt: skip
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            assert len(group_of(holder.pid)) >= 3  # itself and its two loaders at least
            holder.kill()
            holder.wait()
            deadline = time.monotonic() + 60
            while group_of(holder.pid) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert group_of(holder.pid) == []
        finally:
            for process in group_of(holder.pid):
                os.kill(process, signal.SIGKILL)


def test_seeds_are_of_the_whole_batch() -> None:
    from workers.training import Share

    every: NDArray[np.uint64] = Share(6, slice(None), (1, 2)).seeds(5)
    assert Share(6, slice(1, None, 2), (1, 2)).seeds(5).tolist() == every[1::2].tolist()
    assert len(set(every.tolist())) == 6
    assert Share(6, slice(None), (1, 3)).seeds(5).tolist() != every.tolist()
