from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.orchestrator.runs import MadeRun, count, digits_spec, parquet_spec
from tests.workers.samples import encoded, noise_image, write_mnist, write_parquet
from workers.images import open_dataset
from workers.settings import Digits


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """These networks are so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def made() -> MadeRun:
    """20 digits in shards of 8, 8 and 4, with selection and estimation votes."""
    return count(digits_spec())


@pytest.fixture(scope="session")
def one_phase(few_digits: Path) -> MadeRun:
    """12 digits in one shard, without selection votes."""
    dataset = {"kind": "mnist", "path": str(few_digits)}
    return count(digits_spec(dataset=dataset, sampling={"draws": 32, "seed": 2}, resources={"shard_size": 12}))


@pytest.fixture(scope="session")
def with_failures(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """8 RGB images in shards of 3, 3 and 2; images 1 and 6 cannot be counted."""
    images = [encoded(noise_image(seed)) for seed in range(8)]
    images[1], images[6] = b"no image at all", b""
    path = write_parquet(tmp_path_factory.mktemp("images") / "x.parquet", images, [0, 1, 2, 3, 4, 5, 6, 9])
    return count(parquet_spec(path))


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 digits as MNIST's raw files, which open faster than the package."""
    digits = open_dataset(Digits(kind="digits"))
    images, labels = np.stack([digits.read(index)[0] for index in range(12)]), digits.labels[:12].tolist()
    return write_mnist(tmp_path_factory.mktemp("mnist"), (images, labels), (images, labels))
