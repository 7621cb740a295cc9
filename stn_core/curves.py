"""Certified accuracy as a function of radius."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def certified_correct(radius: ArrayLike, correct: ArrayLike, radii: ArrayLike) -> NDArray[np.int64]:
    """How many images are certified, correctly, at each radius asked for.

    Args:
        radius: each image's certified radius, float64 (images,).
        correct: whether the image's certified prediction is its label; False where it abstains, (images,).
        radii: radii asked for, in the same unit, (points,).

    Returns:
        int64 (points,): images that are correct with ``radius >= r``. Divide by *all* images, the failed and missing
        ones included, to get certified accuracy.
    """
    values = np.asarray(radius, dtype=np.float64)
    # NaN sorts as if it were larger than any radius: it certifies nothing.
    kept = np.sort(values[np.asarray(correct, dtype=bool) & ~np.isnan(values)])
    return len(kept) - np.searchsorted(kept, np.asarray(radii, dtype=np.float64), side="left")
