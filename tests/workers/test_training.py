from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stn_core.training import losses
from tests.networks import tiny
from tests.workers.samples import encoded, noise_image, write_mnist, write_parquet
from workers.images import DatasetError, ImageSet, open_dataset
from workers.settings import (
    NEEDS,
    Attack,
    Augmentation,
    Digits,
    GaussianNoise,
    LaplaceNoise,
    Mnist,
    Model,
    Noise,
    ParquetImages,
    SplittingNoise,
    Training,
    UniformNoise,
)
from workers.training import STATE, Epoch, Share, TrainJob, augmented, batch_random, epoch_order, train

#: One of each kind; splitting noise of this scale has 51 offsets.
NOISES: dict[str, Noise] = {
    "gaussian": GaussianNoise(sigma=0.5),
    "laplace": LaplaceNoise(kind="laplace", scale=0.4),
    "uniform": UniformNoise(kind="uniform", scale=0.3),
    "splitting": SplittingNoise(kind="splitting", scale=0.1),
}


class Recorder(nn.Module):
    """Passes on to a network, and keeps what it was shown."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.shown: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append(images.detach().clone())
        logits: torch.Tensor = self.network(images)
        return logits


class Alone:
    """``workers.training.Session`` in this process, as one of ``world_size`` workers; keeps all that is reported."""

    def __init__(self, kept: Path, *, rank: int = 0, world_size: int = 1, restored: Path | None = None) -> None:
        self.rank, self.world_size, self.device = rank, world_size, torch.device("cpu")
        self.kept, self._restored = kept, restored
        self.epochs: list[Epoch] = []
        self.checkpoints: list[Path | None] = []
        self.within: list[Path | None] = []

    def prepare(self, model: nn.Module) -> nn.Module:
        self.model = Recorder(model)
        return self.model

    def restored(self) -> bytes | None:
        return None if self._restored is None else (self._restored / STATE).read_bytes()

    def report(self, epochs: Sequence[Epoch], checkpoint: Path | None) -> None:
        assert [epoch.epoch for epoch in epochs] == list(range(1, len(epochs) + 1))
        self.epochs.append(epochs[-1])
        folder = None if checkpoint is None else self.kept / f"epoch-{len(epochs)}"
        if checkpoint is not None and folder is not None:
            shutil.copytree(checkpoint, folder)
        self.checkpoints.append(folder)

    def save(self, checkpoint: Path | None) -> None:
        folder = None if checkpoint is None else self.kept / f"within-{len(self.within)}"
        if checkpoint is not None and folder is not None:
            shutil.copytree(checkpoint, folder)
        self.within.append(folder)

    def first_says(self, word: bool) -> bool:
        return word

    def state(self, epoch: int = -1) -> dict[str, Any]:
        folder = self.checkpoints[epoch]
        assert folder is not None
        content: dict[str, Any] = torch.load(folder / STATE, weights_only=True)
        return content

    def gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]


@pytest.fixture(scope="module")
def few_digits(digits: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 digits as MNIST's raw files, which open faster than the package."""
    images = np.stack([digits.read(index)[0] for index in range(23)])
    labels = digits.labels[:23].tolist()
    return write_mnist(tmp_path_factory.mktemp("mnist"), (images, labels), (images, labels))


@pytest.fixture
def job(few_digits: Path) -> TrainJob:
    training = Training(
        dataset=Mnist(kind="mnist", path=few_digits, split="train"),
        epochs=3,
        batch_size=8,
        learning_rate=0.01,
        weight_decay=0.1,
        seed=5,
        precision="float32",
    )
    return TrainJob(
        model=Model(name="tests.networks:tiny"),
        training=training,
        num_classes=10,
        noise=NOISES["gaussian"],
        threads=1,
    )


def changed(job: TrainJob, **settings: Any) -> TrainJob:
    return dataclasses.replace(job, training=job.training.model_copy(update=settings))


#: Each method under each noise it knows.
METHODS = [
    *((method, kind) for method in ("clean", "madry", "trades", "alp") for kind in ("gaussian",)),
    *((method, kind) for method in ("gaussian", "stn") for kind in NOISES),
    *((method, kind) for method in ("consistency", "smoothadv") for kind in ("gaussian", "uniform")),
]


def whole(rows: int) -> Share:
    """All of a batch, for one worker."""
    return Share(rows, slice(None), (0, 0))


def by(job: TrainJob, method: str, **settings: Any) -> TrainJob:
    """The job by another method, against a small attack where it has one."""
    attack = Attack(epsilon=0.1, steps=2) if method in NEEDS["attack"] else None
    return changed(job, method=method, attack=attack, **settings)


def untimed(epochs: Sequence[Epoch]) -> list[Epoch]:
    return [dataclasses.replace(epoch, wall_s=0) for epoch in epochs]


def saved_epochs(session: Alone) -> list[Epoch]:
    return [Epoch(**epoch) for epoch in session.state()["epochs"]]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- Order and noise -----------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000), images=st.integers(0, 200))
def test_an_epochs_order_is_a_permutation_and_repeatable(seed: int, epoch: int, images: int) -> None:
    order = epoch_order(seed, epoch, images)
    assert sorted(order.tolist()) == list(range(images))
    assert np.array_equal(order, epoch_order(seed, epoch, images))


def test_the_order_differs_by_epoch_and_by_seed() -> None:
    orders = [epoch_order(seed, epoch, 50).tolist() for seed in range(3) for epoch in range(5)]
    assert len({tuple(order) for order in orders}) == 15


@pytest.mark.parametrize("kind", NOISES)
def test_noise_is_fresh_for_every_image_step_epoch_and_seed(kind: str) -> None:
    noise, images = NOISES[kind].build(), torch.full((4, 1, 5, 6), 128, dtype=torch.uint8)
    rows = torch.cat(
        [
            noise.disturb(images, batch_random(seed, epoch, step)).flatten(1)
            for seed in (0, 1)
            for epoch in (0, 1)
            for step in (0, 1)
        ]
    )
    assert rows.dtype == torch.float32
    assert len(torch.unique(rows, dim=0)) == 32
    assert torch.equal(rows[:4], noise.disturb(images, batch_random(0, 0, 0)).flatten(1))


def test_noise_of_a_batch_is_no_part_of_its_epochs_order() -> None:
    assert batch_random(5, 0, 0).permutation(50).tolist() != epoch_order(5, 0, 50).tolist()


def test_gaussian_noise_is_standard_normal_times_sigma() -> None:
    black = torch.zeros((100, 1, 28, 28), dtype=torch.uint8)
    noise = NOISES["gaussian"].build().disturb(black, batch_random(1, 2, 3)) / 0.5
    # 78 400 values: five standard errors.
    assert abs(float(noise.mean())) < 5 / 280
    assert abs(float(noise.std()) - 1) < 5 / 280 / 2**0.5


# --- What the network is shown -------------------------------------------------------------------------------------


def test_an_epoch_shows_whole_batches_in_its_order(job: TrainJob, digits: ImageSet, tmp_path: Path) -> None:
    session = Alone(tmp_path)
    train(changed(job, method="clean", epochs=2), session)
    assert [len(batch) for batch in session.model.shown] == [
        8,
        8,
    ] * 2  # 23 images: the last 7 of each order are left out
    for epoch in range(2):
        order = epoch_order(5, epoch, 23)[:16]
        expected = torch.from_numpy(np.stack([digits.read(index) for index in order.tolist()])).float() / 255
        assert torch.equal(torch.cat(session.model.shown[2 * epoch : 2 * epoch + 2]), expected)


def drawn(noise: Noise, clean: torch.Tensor, step: int) -> torch.Tensor:
    """What an image of the first epoch becomes, seed 5, by each kind's textbook."""
    random = np.random.default_rng([5, 0, step, 1])
    if isinstance(noise, GaussianNoise):
        return clean + noise.sigma * torch.from_numpy(random.standard_normal(clean.shape, dtype=np.float32))
    if isinstance(noise, LaplaceNoise):
        return clean + torch.from_numpy(random.laplace(0, noise.scale, clean.shape).astype(np.float32))
    if isinstance(noise, UniformNoise):
        return clean + torch.from_numpy(random.uniform(-noise.scale, noise.scale, clean.shape).astype(np.float32))
    levels = (clean * 255).round().numpy().astype(np.float64)
    period = 510 * noise.scale
    split = random.integers(0, round(period), levels.shape) + 0.5
    low = split + np.floor((levels - split) / period) * period
    middle = (np.maximum(low, 0) + np.minimum(low + period, 255)) / 2
    return torch.from_numpy((middle / 255).astype(np.float32))


def shown(job: TrainJob, session: Alone) -> list[torch.Tensor]:
    train(job, session)
    return session.model.shown


@pytest.mark.parametrize("kind", NOISES)
def test_the_network_is_shown_pixels_under_the_jobs_noise(job: TrainJob, tmp_path: Path, kind: str) -> None:
    clean = shown(changed(job, method="clean", epochs=1), Alone(tmp_path / "clean"))
    asked = dataclasses.replace(changed(job, method="gaussian", epochs=1, gamma=None), noise=NOISES[kind])
    noisy = shown(asked, Alone(tmp_path / "noisy"))
    assert len(clean) == len(noisy) == 2
    for step, (image, found) in enumerate(zip(clean, noisy, strict=True)):
        expected = drawn(NOISES[kind], image, step)
        if kind == "gaussian":  # to the bit as it ever was: checkpoints are known by their settings
            assert torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert not torch.equal(found, image)


def test_networks_for_the_sound_sampler_are_trained_as_for_the_plain_one(job: TrainJob, tmp_path: Path) -> None:
    plain, sound = Alone(tmp_path / "plain"), Alone(tmp_path / "sound")
    train(changed(job, epochs=1), plain)
    train(dataclasses.replace(changed(job, epochs=1), noise=GaussianNoise(sigma=0.5, sampler="sound")), sound)
    assert all(map(torch.equal, plain.model.shown, sound.model.shown))
    assert equal(plain.state()["network"], sound.state()["network"])


@pytest.mark.parametrize("kind", NOISES)
def test_stability_training_shows_clean_and_noisy_images_at_once(job: TrainJob, tmp_path: Path, kind: str) -> None:
    clean = shown(changed(job, method="clean", epochs=1), Alone(tmp_path / "clean"))
    both = shown(dataclasses.replace(changed(job, epochs=1), noise=NOISES[kind]), Alone(tmp_path / "both"))
    for step, (image, pair) in enumerate(zip(clean, both, strict=True)):
        first, second = pair.chunk(2)
        assert torch.equal(first, image)
        torch.testing.assert_close(second, drawn(NOISES[kind], image, step), rtol=0, atol=1e-6)


def test_several_copies_of_an_image_have_noise_of_their_own(job: TrainJob, tmp_path: Path) -> None:
    clean = shown(changed(job, method="clean", epochs=1), Alone(tmp_path / "clean"))
    three = shown(changed(job, method="consistency", epochs=1, draws=3), Alone(tmp_path / "three"))
    for step, (image, copies) in enumerate(zip(clean, three, strict=True)):
        random = np.random.default_rng([5, 0, step, 1])
        noise = random.standard_normal((3, *image.shape), dtype=np.float32)
        assert torch.equal(copies, (image + 0.5 * torch.from_numpy(noise)).flatten(0, 1))


def test_only_the_images_named_are_learned_of(job: TrainJob, digits: ImageSet, tmp_path: Path) -> None:
    only = np.array([3, 5, 8, 9, 11, 13, 14, 17])
    asked = dataclasses.replace(changed(job, method="clean", epochs=1), only=only)
    (found,) = shown(asked, Alone(tmp_path))
    order = only[epoch_order(5, 0, 8)]
    assert torch.equal(
        found, torch.from_numpy(np.stack([digits.read(index) for index in order.tolist()])).float() / 255
    )


def test_the_dual_is_trained_to_a_radius_that_rises(job: TrainJob, tmp_path: Path) -> None:
    training = job.training.model_copy(update={"method": "dual", "radius": 0.8, "warmup": 2.0})
    assert [training.loss(epochs) for epochs in (0, 1, 3)] == [losses.Dual(radius) for radius in (0.0, 0.4, 0.8)]

    class Bare(Alone):
        def prepare(self, model: nn.Module) -> nn.Module:
            return model

    session = Bare(tmp_path)
    train(
        dataclasses.replace(job, training=training.model_copy(update={"epochs": 12, "precision": "bfloat16"})), session
    )
    # The radius has risen by the third epoch; from then on more and more is certified.
    assert session.epochs[-1].loss < session.epochs[2].loss
    assert session.epochs[-1].accuracy > session.epochs[2].accuracy


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_optimizers_are_what_they_are_called(job: TrainJob, tmp_path: Path, optimizer: str) -> None:
    session = Alone(tmp_path)
    train(changed(job, optimizer=optimizer), session)
    for epoch in range(3):
        (group,) = session.state(epoch)["optimizer"]["param_groups"]
        assert group["weight_decay"] == 0.1
        if optimizer == "sgd":
            assert (group["momentum"], group["nesterov"]) == (0.9, True)
        else:
            assert group["betas"][1] == 0.999
    assert session.epochs[2].loss < session.epochs[0].loss


def test_the_rate_falls_to_a_tenth_after_each_third_of_the_epochs(job: TrainJob, tmp_path: Path) -> None:
    session = Alone(tmp_path)
    train(changed(job, schedule="step", epochs=6, learning_rate=0.1, optimizer="sgd"), session)
    assert [epoch.learning_rate for epoch in session.epochs] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    resumed = Alone(tmp_path / "resumed", restored=session.checkpoints[3])
    train(changed(job, schedule="step", epochs=6, learning_rate=0.1, optimizer="sgd"), resumed)
    assert equal(resumed.state()["network"], session.state()["network"])


def test_the_regularisers_weight_rises_from_nothing(job: TrainJob, tmp_path: Path) -> None:
    training = job.training.model_copy(update={"gamma": 4.0, "warmup": 2.0})
    weights = [training.loss(epochs) for epochs in (0, 0.5, 1, 2, 3)]
    assert weights == [losses.Stability(gamma) for gamma in (0, 1, 2, 4, 4)]
    # 23 images in batches of 8 are two steps an epoch: the first is by the label alone.
    asked = changed(job, gamma=4.0, warmup=1e9, epochs=1)
    session, plain = Alone(tmp_path / "warming"), Alone(tmp_path / "plain")
    train(asked, session)
    train(changed(job, gamma=0.0, epochs=1), plain)
    for found, expected in zip(session.gradients(), plain.gradients(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_every_and_limit_choose_the_training_images(job: TrainJob, digits: ImageSet, tmp_path: Path) -> None:
    dataset = job.training.dataset.model_copy(update={"every": 5, "limit": 3})
    session = Alone(tmp_path)
    train(changed(job, method="clean", epochs=1, dataset=dataset, batch_size=3), session)
    found = {image.numpy().tobytes() for image in (session.model.shown[0] * 255).round().to(torch.uint8)}
    assert found == {digits.read(index).tobytes() for index in (0, 5, 10)}


def test_fewer_images_than_a_batch_are_one_batch(job: TrainJob, tmp_path: Path) -> None:
    session = Alone(tmp_path)
    train(changed(job, method="clean", epochs=1, batch_size=100), session)
    assert [len(batch) for batch in session.model.shown] == [23]


@pytest.mark.parametrize(
    ("method", "kind"), [("clean", "gaussian"), *((method, kind) for method in ("gaussian", "stn") for kind in NOISES)]
)
def test_two_workers_shares_together_are_the_global_batch(
    job: TrainJob, tmp_path: Path, method: str, kind: str
) -> None:
    asked = changed(job, method=method, epochs=2, batch_size=7)
    asked = dataclasses.replace(asked, noise=NOISES[kind])
    alone = Alone(tmp_path / "alone")
    shares = [Alone(tmp_path / str(rank), rank=rank, world_size=2) for rank in range(2)]
    for session in (alone, *shares):
        train(asked, session)
    for whole, first, second in zip(*(session.model.shown for session in (alone, *shares)), strict=True):
        halves = 2 if method == "stn" else 1  # stability training shows clean and noisy images at once
        for part, own, other in zip(whole.chunk(halves), first.chunk(halves), second.chunk(halves), strict=True):
            assert (len(own), len(other)) == (4, 3)
            assert torch.equal(part[0::2], own)
            assert torch.equal(part[1::2], other)


@pytest.mark.parametrize("method", ["madry", "trades", "alp"])
def test_two_workers_attacks_start_where_one_workers_do(job: TrainJob, tmp_path: Path, method: str) -> None:
    # One step: the workers of this test do not average their gradients, and so part afterwards.
    dataset = job.training.dataset.model_copy(update={"limit": 7})
    asked = by(job, method, epochs=1, batch_size=7, dataset=dataset)
    alone = Alone(tmp_path / "alone")
    shares = [Alone(tmp_path / str(rank), rank=rank, world_size=2) for rank in range(2)]
    for session in (alone, *shares):
        train(asked, session)
    whole, first, second = (session.model.shown[-1] for session in (alone, *shares))
    for rank, share in enumerate((first, second)):
        if method != "madry":  # shown with the clean ones
            assert torch.equal(whole[:7][rank::2], share[: len(share) // 2])
        expected = whole[-7:][rank::2]
        # A slope next to zero may be of either sign, by the rounding of another batch's arithmetic.
        assert (share[-len(expected) :] - expected).abs().gt(1e-6).double().mean() < 0.01


def test_the_mean_of_two_workers_gradients_is_the_global_batchs(job: TrainJob, tmp_path: Path) -> None:
    # One step of 7 images, 4 and 3: unequal shares are where a plain mean would be wrong.
    asked = changed(job, epochs=1, batch_size=7, dataset=job.training.dataset.model_copy(update={"limit": 7}))
    alone = Alone(tmp_path / "alone")
    shares = [Alone(tmp_path / str(rank), rank=rank, world_size=2) for rank in range(2)]
    for session in (alone, *shares):
        train(asked, session)
    for whole, first, second in zip(*(session.gradients() for session in (alone, *shares)), strict=True):
        assert whole.abs().max() > 0
        torch.testing.assert_close((first + second) / 2, whole, rtol=1e-4, atol=1e-6)


def test_one_worker_keeps_the_checkpoints_and_all_report(job: TrainJob, tmp_path: Path) -> None:
    shares = [Alone(tmp_path / str(rank), rank=rank, world_size=2) for rank in range(2)]
    for session in shares:
        train(job, session)
    assert [[epoch.epoch for epoch in session.epochs] for session in shares] == [[1, 2, 3]] * 2
    assert all(folder is not None for folder in shares[0].checkpoints)
    assert shares[1].checkpoints == [None] * 3


# --- Figures of epochs ---------------------------------------------------------------------------------------------


def test_an_epochs_figures_are_those_of_its_images(job: TrainJob, tmp_path: Path) -> None:
    # One step a epoch, so that the network does not change between images.
    asked = changed(job, method="clean", batch_size=23, validation=job.training.dataset, augment=None)
    session = Alone(tmp_path)
    train(asked, session)
    assert [epoch.epoch for epoch in session.epochs] == [1, 2, 3]
    for before, after in pairwise(range(3)):
        network = tiny()
        network.load_state_dict(session.state(before)["network"])
        images = session.model.shown[0]
        labels = torch.from_numpy(open_dataset(job.training.dataset).labels[epoch_order(5, 0, 23)])
        with torch.no_grad():
            logits = network(images)
        right = float((logits.argmax(dim=1) == labels).double().mean())
        # What an epoch ends with on held-out images is what the next one begins with on the same.
        assert session.epochs[before].validation_clean == right
        assert session.epochs[after].accuracy == right
        assert session.epochs[after].loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), abs=1e-5)
    assert all(epoch.wall_s > 0 for epoch in session.epochs)
    # The schedule goes up, and down.
    rates = [epoch.learning_rate for epoch in session.epochs]
    assert rates[0] < rates[1] > rates[2] > 0
    assert rates[1] <= 0.01


def test_accuracy_under_noise_is_that_of_noisy_copies(job: TrainJob, tmp_path: Path) -> None:
    loud, quiet = GaussianNoise(sigma=100), GaussianNoise(sigma=1e-6)
    dataset = Digits(kind="digits", split="train", limit=400)
    for noise, session in ((loud, Alone(tmp_path / "loud")), (quiet, Alone(tmp_path / "quiet"))):
        asked = changed(job, method="clean", dataset=dataset, validation=dataset, batch_size=20)
        train(dataclasses.replace(asked, noise=noise), session)
        clean, noisy = session.epochs[-1].validation_clean, session.epochs[-1].validation_noisy
        assert clean is not None
        assert noisy is not None
        assert clean > 0.6
        assert noisy == clean if noise is quiet else noisy < 0.3


def test_one_worker_measures_and_what_it_measures_changes_nothing(job: TrainJob, tmp_path: Path) -> None:
    sessions = [Alone(tmp_path / name, rank=rank, world_size=2) for rank, name in ((0, "0"), (1, "1"), (0, "without"))]
    measured = changed(job, validation=job.training.dataset)
    for session, asked in zip(sessions, (measured, measured, job), strict=True):
        train(asked, session)
    first, second, without = sessions
    assert first.epochs[0].validation_noisy is not None
    assert second.epochs[0].validation_clean is second.epochs[0].validation_noisy is None
    assert equal(first.state()["network"], without.state()["network"])


# --- Varied images -------------------------------------------------------------------------------------------------


def test_shifted_and_mirrored_images_are_all_there_can_be() -> None:
    image = torch.arange(1, 2 * 3 * 4 + 1, dtype=torch.uint8).reshape(2, 3, 4)
    found = augmented(
        image.expand(2000, -1, -1, -1), Augmentation(crop=1, flip=True), np.random.default_rng(1), whole(2000)
    )
    expected = set()
    for mirrored in (image, image.flip(2)):
        padded = nn.functional.pad(mirrored, (1, 1, 1, 1))
        expected |= {
            padded[:, top : top + 3, left : left + 4].numpy().tobytes() for top in range(3) for left in range(3)
        }
    shown = [one.numpy().tobytes() for one in found]
    assert len(expected) == 18
    assert set(shown) == expected
    # Each as often as any other: a chance of 1 in 18, five standard errors.
    counts = np.array([shown.count(one) for one in expected])
    assert abs(counts - 2000 / 18).max() < 5 * np.sqrt(2000 / 18)


@pytest.mark.parametrize("settings", [Augmentation(), Augmentation(flip=True), Augmentation(crop=2)])
def test_what_is_not_asked_for_does_not_happen(settings: Augmentation) -> None:
    images = torch.randint(0, 255, (50, 3, 8, 8), dtype=torch.uint8)
    found = augmented(images, settings, np.random.default_rng(2), whole(len(images)))
    same = (found == images).all(dim=(1, 2, 3))
    mirrored = (found == images.flip(3)).all(dim=(1, 2, 3))
    if settings.crop:
        assert not (mirrored & ~same).any()
        assert not same.all()
    else:
        assert (same | mirrored).all()
        assert bool(mirrored.any()) == settings.flip


def test_varied_images_differ_by_epoch_and_are_the_same_for_any_number_of_workers(
    job: TrainJob, tmp_path: Path
) -> None:
    asked = changed(job, method="clean", augment=Augmentation(crop=2, flip=True), batch_size=23, epochs=2)
    alone = Alone(tmp_path / "alone")
    shares = [Alone(tmp_path / str(rank), rank=rank, world_size=2) for rank in range(2)]
    for session in (alone, *shares):
        train(asked, session)
    for whole, first, second in zip(*(session.model.shown for session in (alone, *shares)), strict=True):
        assert torch.equal(whole[0::2], first)
        assert torch.equal(whole[1::2], second)
    first, second = ({image.numpy().tobytes() for image in shown} for shown in alone.model.shown)
    assert not first & second


# --- Going on after an interruption --------------------------------------------------------------------------------


def with_dropout() -> nn.Module:
    """``tiny``, half of its features dropped while training."""
    *layers, last = tiny()
    return nn.Sequential(*layers, nn.Dropout(0.5), last)


@pytest.mark.parametrize("interrupted_after", [1, 2])
@pytest.mark.parametrize(
    ("method", "network"),
    [
        ("stn", "tests.networks:tiny"),
        ("clean", "tests.networks:tiny"),
        ("trades", "tests.networks:tiny"),
        ("madry", "tests.workers.test_training:with_dropout"),
        ("stn", "tests.workers.test_training:with_dropout"),
    ],
)
def test_resumed_training_ends_with_the_weights_of_uninterrupted_training(
    job: TrainJob, tmp_path: Path, method: str, network: str, interrupted_after: int
) -> None:
    asked = dataclasses.replace(by(job, method), model=Model(name=network))
    straight = Alone(tmp_path / "straight")
    train(asked, straight)
    resumed = Alone(tmp_path / "resumed", restored=straight.checkpoints[interrupted_after - 1])
    train(asked, resumed)
    assert [epoch.epoch for epoch in resumed.epochs] == list(range(interrupted_after + 1, 4))
    assert untimed(resumed.epochs) == untimed(straight.epochs[interrupted_after:])
    assert untimed(saved_epochs(resumed)) == untimed(straight.epochs)
    assert equal(resumed.state()["network"], straight.state()["network"])
    assert not equal(straight.state()["network"], straight.state(interrupted_after - 1)["network"])


@pytest.mark.parametrize("schedule", ["one_cycle", "step"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_goes_on_within_an_epoch_as_if_nothing_had_happened(
    job: TrainJob, tmp_path: Path, optimizer: str, schedule: str
) -> None:
    varied = changed(job, optimizer=optimizer, schedule=schedule, augment=Augmentation(crop=2, flip=True), batch_size=5)
    asked = dataclasses.replace(varied, model=Model(name="tests.workers.test_training:with_dropout"))
    straight = Alone(tmp_path / "straight")
    train(asked, straight)
    assert straight.within == []  # there was no time to lose
    often = Alone(tmp_path / "often")
    train(changed(asked, checkpoint_s=0), often)
    # Four steps an epoch, and a checkpoint after each but the last, which ends it.
    assert len(often.within) == 3 * 3
    for number, kept in enumerate(often.within):
        resumed = Alone(tmp_path / f"resumed-{number}", restored=kept)
        train(asked, resumed)
        assert len(resumed.model.shown) == len(straight.model.shown) * (12 - number - number // 3 - 1) // 12
        assert untimed(saved_epochs(resumed)) == untimed(straight.epochs) == untimed(often.epochs)
        assert equal(resumed.state()["network"], straight.state()["network"])


def test_a_checkpoint_within_an_epoch_is_due_by_the_time_since_the_last(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr("workers.training.time.monotonic", lambda: float(next(clock)))
    sessions = [Alone(tmp_path / str(number)) for number in range(2)]
    for session, seconds in zip(sessions, (4.0, 1e9), strict=True):
        train(changed(job, epochs=1, batch_size=1, checkpoint_s=seconds), session)
    assert 23 // 4 <= len(sessions[0].within) <= 23 // 2  # every step looks at the clock twice
    assert sessions[1].within == []


def test_a_checkpoint_of_earlier_versions_is_gone_on_from(job: TrainJob, tmp_path: Path) -> None:
    straight = Alone(tmp_path / "straight")
    train(job, straight)
    state = straight.state(0)
    del state["begun"]
    (tmp_path / "old").mkdir()
    torch.save(state, tmp_path / "old" / STATE)
    resumed = Alone(tmp_path / "resumed", restored=tmp_path / "old")
    train(job, resumed)
    assert equal(resumed.state()["network"], straight.state()["network"])


def test_a_finished_training_has_nothing_left_to_do(job: TrainJob, tmp_path: Path) -> None:
    straight = Alone(tmp_path / "straight")
    train(job, straight)
    again = Alone(tmp_path / "again", restored=straight.checkpoints[-1])
    train(job, again)
    assert again.epochs == []
    assert equal(again.model.network.network.state_dict(), straight.state()["network"])


def test_training_twice_gives_the_same_weights_and_another_seed_others(job: TrainJob, tmp_path: Path) -> None:
    sessions = [Alone(tmp_path / str(number)) for number in range(3)]
    for session, seed in zip(sessions, (5, 5, 6), strict=True):
        train(changed(job, epochs=1, seed=seed), session)
    first, second, third = (session.state()["network"] for session in sessions)
    assert equal(first, second)
    assert not equal(first, third)


def test_the_models_own_checkpoint_is_where_the_result_goes_and_is_not_read(job: TrainJob, tmp_path: Path) -> None:
    absent = job.model.model_copy(update={"checkpoint": tmp_path / "not written yet.pt"})
    train(dataclasses.replace(changed(job, epochs=1), model=absent), Alone(tmp_path / "a"))


def test_a_checkpoint_holds_the_bare_networks_names(job: TrainJob, tmp_path: Path) -> None:
    session = Alone(tmp_path)
    train(changed(job, epochs=1), session)
    assert list(session.state()["network"]) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert [epoch["epoch"] for epoch in session.state()["epochs"]] == [1]


# --- Learning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "kind"), METHODS)
def test_the_loss_on_digits_falls(job: TrainJob, tmp_path: Path, method: str, kind: str) -> None:
    session = Alone(tmp_path)
    train(dataclasses.replace(by(job, method), noise=NOISES[kind]), session)
    losses = [epoch.loss for epoch in session.epochs]
    assert losses[0] > losses[1] > losses[2] > 0


def test_training_on_the_packaged_digits_learns_them(job: TrainJob, tmp_path: Path) -> None:
    dataset = Digits(kind="digits", split="train", limit=200)
    session = Alone(tmp_path)
    train(changed(job, dataset=dataset, batch_size=50), session)
    assert session.epochs[-1].loss < 0.8 * session.epochs[0].loss


def test_training_images_of_different_sizes_are_refused_with_what_to_set(job: TrainJob, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [encoded(noise_image(0, size=size)) for size in (8, 9)], [0, 1])
    with pytest.raises(DatasetError, match=r"training\.dataset: .*: set resize and crop"):
        train(changed(job, dataset=ParquetImages(kind="parquet", path=path)), Alone(tmp_path))
