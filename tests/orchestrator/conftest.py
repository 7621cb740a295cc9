from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.networks import tiny, tiny_rgb
from tests.orchestrator.runs import NOISES, MadeRun, count, invented, mnist_spec, parquet_spec, plan_of
from tests.workers.samples import encoded, noise_image, write_mnist, write_parquet
from workers.images import open_dataset
from workers.settings import Digits


def answers(network: nn.Module, images: NDArray[np.uint8]) -> list[int]:
    """Labels for images (images, channels, height, width): what the network says of three in four, else another class.

    The networks of these tests have learned nothing; with labels of their own choice they are right often enough for
    certified accuracies to mean something.
    """
    with torch.inference_mode():
        said = network(torch.from_numpy(images).float() / 255).argmax(dim=1).tolist()
    return [(label + (number % 4 == 3)) % 10 for number, label in enumerate(said)]


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 digits, labelled by ``answers``, as MNIST's raw files, which open faster than the package."""
    digits = open_dataset(Digits(kind="digits"))
    images = np.stack([digits.read(index) for index in range(25)])
    split = images[:, 0], answers(tiny(), images)
    return write_mnist(tmp_path_factory.mktemp("mnist"), split, split)


@pytest.fixture(scope="session")
def made(few_digits: Path) -> MadeRun:
    """20 digits in shards of 8, 8 and 4, with selection and estimation votes."""
    return count(mnist_spec(few_digits))


@pytest.fixture(scope="session")
def one_phase(few_digits: Path) -> MadeRun:
    """20 digits in one shard, without selection votes."""
    return count(mnist_spec(few_digits, sampling={"draws": 32, "seed": 2}, resources={"shard_size": 20}))


@pytest.fixture(scope="session")
def with_nan(few_digits: Path) -> MadeRun:
    """20 digits, about half of whose draws give NaN logits."""
    return count(mnist_spec(few_digits, model={"name": "tests.networks:nan"}))


@pytest.fixture(scope="session")
def with_failures(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """8 RGB images in shards of 3, 3 and 2; images 1 and 6 cannot be counted."""
    images = [noise_image(seed) for seed in range(8)]
    labels = answers(tiny_rgb(), np.stack(images).transpose(0, 3, 1, 2).copy())
    files = [b"no image at all" if number in (1, 6) else encoded(image) for number, image in enumerate(images)]
    path = write_parquet(tmp_path_factory.mktemp("images") / "x.parquet", files, labels)
    return count(parquet_spec(path, model={"name": "tests.networks:tiny_rgb", "num_classes": 10}))


@pytest.fixture(scope="session")
def by_noise(few_digits: Path, made: MadeRun) -> dict[str, MadeRun]:
    """20 digits in shards of 8, 8 and 4, under each kind of noise."""
    return {
        name: made if name == "plain" else count(mnist_spec(few_digits, **sections))
        for name, sections in NOISES.items()
    }


@pytest.fixture(scope="session")
def of_a_part() -> MadeRun:
    """Invented votes of 120 images of 500, one of them tied or lost here and there, in shards of 50."""
    return invented(plan_of(), sure=0.3)
