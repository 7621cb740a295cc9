from __future__ import annotations

import dataclasses
import pickle
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from stn_core.noise import Draws, Phase
from stn_core.stopping import FixedDraws
from stn_core.votes import count_votes
from tests.networks import nan, tiny, tiny_rgb
from tests.workers.samples import encoded, noise_image, write_parquet
from workers.counting import CountJob, count_images, load_model, read_images
from workers.counts_table import SCHEMA, dense
from workers.images import ImageSet, open_dataset
from workers.rounds import first_round
from workers.settings import (
    Digits,
    GaussianNoise,
    LaplaceNoise,
    Model,
    Noise,
    Normalization,
    ParquetImages,
    SplittingNoise,
    StoreSettings,
    UniformNoise,
)

CPU = torch.device("cpu")

JOB = CountJob(
    store=StoreSettings(run="unused"),
    dataset=Digits(kind="digits"),
    model=Model(name="tests.networks:tiny"),
    noise=GaussianNoise(sigma=0.7),
    seed=3,
    selection_draws=16,
    rule=FixedDraws(24),
    protocol="split",
    sequential=False,
    num_classes=10,
    image_shape=(1, 28, 28),
    indices=range(64),
    shard_size=64,
    batch_size=None,
    precision="float32",
    compile=False,
    device="cpu",
    threads=1,
    plan_sha256="",
    model_sha256="",
    dataset_sha256="",
)


def counted(
    job: CountJob, images: ImageSet, shards: Sequence[int] = (0,), network: nn.Module | None = None
) -> pa.Table:
    """The rows of some shards, sorted by index."""
    model = load_model(job.model, job.num_classes) if network is None else network
    return pa.concat_tables(
        count_images(
            job,
            read_images(job, job.shard_indices(shard), images),
            first_round(job.shard_indices(shard), job.rule, job.selection_draws),
            model,
            CPU,
        )
        for shard in shards
    ).sort_by("index")


def with_sampling(job: CountJob, draws: int | None = None, **changes: int) -> CountJob:
    return dataclasses.replace(job, rule=job.rule if draws is None else FixedDraws(draws), **changes)


def draws_of(job: CountJob) -> int:
    assert isinstance(job.rule, FixedDraws)
    return job.rule.draws


@pytest.fixture(scope="module")
def whole(digits: ImageSet) -> pa.Table:
    """64 digits counted as one shard."""
    return counted(JOB, digits)


def test_a_row_per_image_in_index_order_with_the_documented_columns(whole: pa.Table, digits: ImageSet) -> None:
    assert whole.schema.equals(SCHEMA)
    assert whole["index"].to_pylist() == list(range(64))
    assert whole["key"].to_pylist() == list(range(64))
    assert whole["label"].to_pylist() == digits.labels[:64].tolist()
    assert whole["error"].null_count == 64


def test_every_draw_votes_once(whole: pa.Table) -> None:
    assert set(whole["draws"].to_pylist()) == {24}
    assert set(whole["selection_draws"].to_pylist()) == {16}
    assert set(dense(whole["estimation"], 10).sum(axis=1)) == {24}
    assert set(dense(whole["selection"], 10).sum(axis=1)) == {16}
    assert set(whole["invalid"].to_pylist()) == set(whole["selection_invalid"].to_pylist()) == {0}


def test_votes_are_spread_so_that_equality_below_means_something(whole: pa.Table) -> None:
    votes = dense(whole["estimation"], 10)
    assert ((votes > 0).sum(axis=1) > 1).mean() > 0.5
    assert len(np.unique(votes, axis=0)) > 30


@pytest.mark.parametrize(("shard_size", "batch_size"), [(7, None), (1, None), (30, 16)])
def test_shards_of_any_size_in_any_order_give_the_same_rows(
    whole: pa.Table, digits: ImageSet, shard_size: int, batch_size: int | None
) -> None:
    job = dataclasses.replace(JOB, shard_size=shard_size, batch_size=batch_size)
    shards = list(range(-(-64 // shard_size)))
    random.Random(1).shuffle(shards)
    assert counted(job, digits, shards).equals(whole)


def test_shards_are_consecutive_and_the_last_may_be_shorter() -> None:
    job = dataclasses.replace(JOB, indices=range(0, 50, 5), shard_size=4)
    assert [list(job.shard_indices(shard)) for shard in range(3)] == [[0, 5, 10, 15], [20, 25, 30, 35], [40, 45]]


def test_an_image_keeps_its_votes_in_a_smaller_selection(whole: pa.Table, digits: ImageSet) -> None:
    sparser = counted(dataclasses.replace(JOB, indices=range(0, 64, 9)), digits)
    assert sparser.equals(whole.take(list(range(0, 64, 9))))


def test_counting_again_gives_the_same_rows_and_another_seed_others(whole: pa.Table, digits: ImageSet) -> None:
    assert counted(JOB, digits).equals(whole)
    other = counted(with_sampling(JOB, seed=4), digits)
    assert not np.array_equal(dense(other["estimation"], 10), dense(whole["estimation"], 10))


def test_selection_and_estimation_draws_are_different_noise(digits: ImageSet) -> None:
    rows = counted(with_sampling(JOB, draws=24, selection_draws=24), digits)
    assert not np.array_equal(dense(rows["selection"], 10), dense(rows["estimation"], 10))


def test_neither_phase_depends_on_how_many_draws_the_other_has(whole: pa.Table, digits: ImageSet) -> None:
    without = counted(with_sampling(JOB, selection_draws=0), digits)
    assert without["estimation"].equals(whole["estimation"])
    assert dense(without["selection"], 10).sum() == 0
    assert set(without["selection_draws"].to_pylist()) == {0}
    fewer = counted(with_sampling(JOB, draws=8), digits)
    assert fewer["selection"].equals(whole["selection"])


def test_nan_logits_vote_for_no_class_and_are_counted(digits: ImageSet) -> None:
    rows = counted(dataclasses.replace(JOB, model=Model(name="tests.networks:nan")), digits, network=nan())
    for phase, draws, invalid in (
        ("estimation", "draws", "invalid"),
        ("selection", "selection_draws", "selection_invalid"),
    ):
        lost = rows[invalid].to_numpy()
        assert lost.sum() > 0
        assert np.array_equal(dense(rows[phase], 10).sum(axis=1) + lost, rows[draws].to_numpy())
    assert rows["error"].null_count == 64


# --- Kinds of noise ------------------------------------------------------------------------------------------------

NOISES: dict[str, Noise] = {
    "plain": GaussianNoise(sigma=0.7),
    "sound": GaussianNoise(sigma=0.7, sampler="sound"),
    "laplace": LaplaceNoise(kind="laplace", scale=0.5),
    "uniform": UniformNoise(kind="uniform", scale=1.0),
    "splitting": SplittingNoise(kind="splitting", scale=0.4),
}


def under(name: str, draws: int = 24) -> CountJob:
    """``JOB`` under a kind of noise; splitting noise has 204 draws, of one phase."""
    sampling = {"draws": 204, "selection_draws": 0} if name == "splitting" else {"draws": draws}
    return with_sampling(dataclasses.replace(JOB, noise=NOISES[name]), **sampling)


class Coarse(nn.Module):
    """Its logits are ten pixels in few steps, so that they tie often; NaN where the first pixel is above 0.05.

    Exact, whatever the batch.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = (images[:, 0, 14, 9:19] * 3).floor()
        return logits.masked_fill((images[:, 0, 0, 0] > 0.05)[:, None], float("nan"))


@pytest.mark.parametrize("name", NOISES)
def test_a_shards_rows_are_what_count_votes_says_of_its_images(digits: ImageSet, name: str) -> None:
    job = dataclasses.replace(under(name), shard_size=25, indices=range(3, 64))
    rows = counted(job, digits, [2, 0, 1])
    pixels = np.stack([digits.read(index) for index in job.indices])
    phases: tuple[tuple[Phase, int, str, str], ...] = (
        ("selection", job.selection_draws, "selection_invalid", "selection_ties"),
        ("estimation", draws_of(job), "invalid", "ties"),
    )
    for phase, draws, invalid, ties in phases:
        tally = count_votes(
            tiny(),
            pixels,
            noise=NOISES[name].build(),
            draws=draws,
            num_classes=10,
            seed=3,
            keys=job.indices,
            phase=phase,
        )
        assert np.array_equal(dense(rows[phase], 10), tally.votes)
        assert rows[invalid].to_pylist() == tally.invalid.tolist()
        assert rows[ties].to_pylist() == tally.ties.tolist()
    assert ((dense(rows["estimation"], 10) > 0).sum(axis=1) > 1).mean() > 0.2


@pytest.mark.parametrize("name", NOISES)
def test_shards_of_any_size_give_the_same_rows_under_any_noise(digits: ImageSet, name: str) -> None:
    job = under(name)
    whole = counted(job, digits)
    assert counted(dataclasses.replace(job, shard_size=7, batch_size=16), digits, [9, *range(9)]).equals(whole)


def test_each_kind_of_noise_has_votes_of_its_own(digits: ImageSet) -> None:
    votes = {dense(counted(under(name), digits)["estimation"], 10).tobytes() for name in NOISES}
    assert len(votes) == len(NOISES)


@pytest.mark.parametrize("name", NOISES)
def test_votes_ties_and_invalid_draws_are_those_of_the_logits_one_by_one(digits: ImageSet, name: str) -> None:
    job = dataclasses.replace(under(name), indices=range(0, 64, 5), shard_size=5, batch_size=16)
    rows = counted(job, digits, [0, 1, 2], network=Coarse())
    phases: tuple[tuple[Phase, int, str, str], ...] = (
        ("selection", job.selection_draws, "selection_invalid", "selection_ties"),
        ("estimation", draws_of(job), "invalid", "ties"),
    )
    for phase, draws, invalid, ties in phases:
        votes = dense(rows[phase], 10)
        for row, index in enumerate(job.indices) if draws else ():
            noisy = torch.empty(draws, 1, 28, 28)
            image = torch.from_numpy(digits.read(index))[None]
            owner = torch.zeros(draws, dtype=torch.int64)
            NOISES[name].build().perturb(noisy, image, owner, [Draws(3, index, phase, 0, draws)])
            logits = Coarse()(noisy).numpy()
            valid = logits[~np.isnan(logits).any(axis=1)]
            shared = (valid == valid.max(axis=1, keepdims=True)).sum(axis=1) > 1
            first = [line.tolist().index(line.max()) for line in valid]
            assert votes[row].tolist() == np.bincount(first, minlength=10).tolist()
            assert rows[invalid][row].as_py() == draws - len(valid)
            assert rows[ties][row].as_py() == shared.sum()
    assert min(rows["ties"].to_numpy().sum(), rows["invalid"].to_numpy().sum()) > 0


def test_a_network_that_always_ties_votes_for_the_first_class(digits: ImageSet) -> None:
    rows = counted(JOB, digits, network=_AllEqual())
    assert set(rows["ties"].to_pylist()) == {24}
    assert set(rows["selection_ties"].to_pylist()) == {16}
    assert dense(rows["estimation"], 10)[:, 0].tolist() == [24] * 64


class _AllEqual(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.new_zeros(len(images), 10)


def test_splitting_counts_every_offset_once_whatever_the_image_is_called(digits: ImageSet) -> None:
    # Exact votes have no chance in them: the image's identity plays no part, the seed only shifts the offsets.
    job = dataclasses.replace(under("splitting"), indices=range(4))
    rows = counted(job, digits)
    assert set(rows["draws"].to_pylist()) == {204}
    pixels = np.stack([digits.read(0)] * 4)
    tally = count_votes(
        tiny(), pixels, noise=NOISES["splitting"].build(), draws=204, num_classes=10, seed=3, keys=[5, 6, 7, 2**60]
    )
    assert all(np.array_equal(votes, dense(rows["estimation"], 10)[0]) for votes in tally.votes)


# --- Images that cannot be counted ---------------------------------------------------------------------------------

GOOD = [encoded(noise_image(seed)) for seed in range(6)]
LABELS = [0, 1, 2, 3, 4, 5]


def encoded_job(path: Path, images: Sequence[bytes], labels: Sequence[int]) -> tuple[CountJob, ImageSet]:
    dataset = ParquetImages(kind="parquet", path=write_parquet(path, images, labels))
    job = dataclasses.replace(
        JOB, dataset=dataset, model=Model(name="tests.networks:tiny_rgb"), image_shape=(3, 28, 28), indices=range(6)
    )
    return job, open_dataset(dataset)


@pytest.mark.parametrize(
    ("image", "label", "reason"),
    [
        (GOOD[2], 17, r"label 17 .*0 … 9"),
        (GOOD[2], -1, "label -1"),
        (b"no image at all", 2, "decoded"),
        (GOOD[2][:300], 2, "decoded"),
        (encoded(noise_image(2, size=30)), 2, r"\(3, 30, 30\).*\(3, 28, 28\)"),
    ],
    ids=["label too large", "label negative", "undecodable", "cut short", "another size"],
)
def test_an_image_that_cannot_be_counted_is_a_row_with_a_reason_and_costs_no_other_its_votes(
    tmp_path: Path, image: bytes, label: int, reason: str
) -> None:
    expected = counted(*encoded_job(tmp_path / "good.parquet", GOOD, LABELS))
    rows = counted(
        *encoded_job(tmp_path / "bad.parquet", [*GOOD[:2], image, *GOOD[3:]], [*LABELS[:2], label, *LABELS[3:]])
    )
    others = [0, 1, 3, 4, 5]
    assert rows.take(others).equals(expected.take(others))
    broken = rows.slice(2, 1).to_pylist()[0]
    assert re.search(reason, broken.pop("error"))
    assert broken == {
        "index": 2,
        "key": 2,
        "label": label,
        "selection": [],
        "estimation": [],
        "selection_draws": 0,
        "draws": 0,
        "selection_invalid": 0,
        "invalid": 0,
        "selection_ties": 0,
        "ties": 0,
    }


def test_a_shard_of_broken_images_alone_is_rows_with_reasons(tmp_path: Path) -> None:
    rows = counted(*encoded_job(tmp_path / "bad.parquet", [b"junk"] * 6, LABELS))
    assert rows["error"].null_count == 0
    assert set(rows["draws"].to_pylist()) == {0}
    assert rows.schema.equals(SCHEMA)


# --- Loading the model ---------------------------------------------------------------------------------------------


def test_normalisation_happens_inside_the_model() -> None:
    images = torch.rand(2, 3, 28, 28)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    normalization = Normalization(mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    model = load_model(Model(name="tests.networks:tiny_rgb", normalization=normalization), 10)
    with torch.inference_mode():
        expected = tiny_rgb()((images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
        assert torch.equal(model(images), expected)
        assert torch.equal(load_model(Model(name="tests.networks:tiny_rgb"), 10)(images), tiny_rgb()(images))


def trained() -> nn.Module:
    """``tiny`` with other weights."""
    network = tiny()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    return network


def load_checkpoint(path: Path) -> nn.Module:
    return load_model(Model(name="tests.networks:tiny", checkpoint=path), 10)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
def test_a_checkpoints_weights_are_loaded(tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(trained().state_dict()), tmp_path / "model.pt")
    loaded = load_checkpoint(tmp_path / "model.pt").network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained().state_dict().items())


def refusal(path: Path) -> str:
    """The message with which a checkpoint is refused: one line that names the file."""
    with pytest.raises(ValueError, match=path.name) as caught:
        load_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (tiny_rgb(), r"'0.weight' is \(8, 3, 5, 5\), the network's \(8, 1, 5, 5\)"),
        (nn.Sequential(nn.Linear(2, 2)), "'0.weight' is"),
        (nn.Sequential(*tiny(), nn.Linear(10, 10)), "has no '4.weight'"),
        (nn.Sequential(*list(tiny())[:2]), "has no '3.weight'"),
    ],
    ids=["other channels", "other shape", "more layers", "fewer layers"],
)
def test_the_weights_of_another_network_are_refused_by_name(tmp_path: Path, network: nn.Module, reason: str) -> None:
    torch.save(network.state_dict(), tmp_path / "model.pt")
    message = refusal(tmp_path / "model.pt")
    assert "another network" in message
    assert re.search(reason, message)


@pytest.mark.parametrize(
    "content", [3, None, ["a"], {"state_dict": 3}, {"a": 1}, torch.zeros(3)], ids=lambda value: type(value).__name__
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert "no state dict" in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("kept", [0, 1, 10, 1000, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, kept: float) -> None:
    torch.save(tiny().state_dict(), tmp_path / "model.pt")
    content = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [b"accuracy: 0.93\n", b"<!doctype html>\n<html>Not found</html>", bytes(100)])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    refusal(tmp_path / "model.pt")


def test_a_missing_checkpoint_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "no checkpoint at" in refusal(tmp_path / "nowhere.pt")
    (tmp_path / "folder.pt").mkdir()
    refusal(tmp_path / "folder.pt")


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self._target, "owned")


@pytest.mark.parametrize("save", ["torch", "torch legacy", "pickle"])
def test_a_checkpoints_code_is_never_run(tmp_path: Path, save: str) -> None:
    target, path = tmp_path / "written by the checkpoint", tmp_path / "model.pt"
    content = {"state_dict": {**tiny().state_dict(), "extra": Malicious(target)}}
    if save == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))  # the newest that torch reads without a word
    else:
        torch.save(content, path, _use_new_zipfile_serialization=save == "torch")
    refusal(path)
    assert not target.exists()
    if save != "pickle":  # the file is as malicious as it looks
        torch.load(path, weights_only=False)
        assert target.exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(tiny(), tmp_path / "model.pt")
    refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["mnits", "resnet81"])
def test_an_unknown_network_is_refused_with_the_nearest_name(name: str) -> None:
    nearest = {"mnits": "mnist", "resnet81": "resnet18"}[name]
    with pytest.raises(ValueError, match=f"'{name}', did you mean '{nearest}'"):
        load_model(Model(name=name), 10)
