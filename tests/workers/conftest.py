from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from workers.images import ImageSet, open_dataset
from workers.settings import Digits


@pytest.fixture(scope="session")
def digits() -> ImageSet:
    """The 500 held-out digits; opening them takes a second."""
    return open_dataset(Digits(kind="digits"))


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """These networks are so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
