"""What every data set is: images by number."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class DatasetError(Exception):
    """The data set as a whole cannot be used; the message says what to change."""


class UnreadableImage(Exception):
    """One image cannot be used; the others can."""


class ImageSet(ABC):
    """Images with labels, by index from 0.

    Attributes:
        labels: int64 (images,).
        num_classes: labels are expected in 0 … num_classes - 1.
        fingerprint: sha-256 that changes when the images or labels do (of contents for arrays; of names and sizes, not
            contents, for files).
        classes: what the data set calls its classes, by label; None where it does not say.
    """

    labels: NDArray[np.int64]
    num_classes: int
    fingerprint: str
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> int:
        """The image's identity, 0 to 2**63 - 1."""
        return index

    @abstractmethod
    def read(self, index: int) -> Pixels:
        """The image as uint8 (channels, height, width). Raises UnreadableImage; what may pass is another error."""
