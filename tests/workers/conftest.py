from __future__ import annotations

import pytest

from workers.images import ImageSet, open_dataset
from workers.settings import Digits


@pytest.fixture(scope="session")
def digits() -> ImageSet:
    """The 500 held-out digits; opening them takes a second."""
    return open_dataset(Digits(kind="digits"))
