"""Two procedures on the same images: by how much their rates differ, and whether they do.

Both succeed on an image, neither does, only the one, or only the other. What differs between them is in the last two
counts alone. Images are a simple random sample of all that there might be.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]

#: Halvings of an interval of length 2 at most: less than 1e-15 is left of it.
_HALVINGS = 52


def mcnemar(only_one: ArrayLike, only_other: ArrayLike) -> Floats:
    """p-values of McNemar's exact test (1947), two-sided: were both rates equal, an image on which exactly one of the
    two succeeds would be each one's as often, so its counts are those of fair coins.

    Args:
        only_one, only_other: images on which that one alone succeeds, integers of any shape.

    Returns:
        float64, broadcast shape, in (0, 1]: the chance of counts as far apart or farther, at most.

    Raises:
        ValueError: a count is negative, or none.
    """
    one, other = _counts(only_one), _counts(only_other)
    fewer, more = np.minimum(one, other), np.maximum(one, other)
    # P(X <= fewer), X binomial of fewer + more fair coins; where there are none, the result is 1 below.
    return np.minimum(1.0, np.where(more == 0, 1.0, 2 * special.betainc(np.maximum(more, 1.0), fewer + 1, 0.5)))


def difference_interval(
    only_one: ArrayLike, only_other: ArrayLike, images: int, *, level: float
) -> tuple[Floats, Floats]:
    """The one's rate less the other's, on all images of which these are a random sample: Tango's score interval (1998).

    All differences that the score test does not reject at ``level``, for the value of the other free probability that
    is likeliest under each. In contrast to the mean plus or minus its standard error it has a length where no image
    tells the two apart. It misses the truth with a chance of about ``level``, not of at most that:
    docs/statistics.md says how far off, by exact sums.

    Args:
        only_one, only_other: images on which that one alone succeeds, integers of any shape.
        images: how many there are, the others included.
        level: chance of missing the truth, inside (0, 1).

    Returns:
        Lower and upper end, float64, broadcast shape, in [-1, 1], rounded outwards.

    Raises:
        ValueError: an argument out of range.
    """
    one, other = np.broadcast_arrays(_counts(only_one), _counts(only_other))
    if images < 1 or np.any(one + other > images):
        raise ValueError(f"there are {images} images, fewer than counted, or none")
    if not 0 < level < 1:
        raise ValueError(f"level must lie inside (0, 1), got {level!r}")
    quantile = float(special.ndtri(1 - level / 2))
    # What the one has less than the other is what the other has more.
    return _lower(one, other, images, quantile), -_lower(other, one, images, quantile)


def _lower(more: Floats, less: Floats, images: int, quantile: float) -> Floats:
    """The least difference that is not rejected as too small."""
    low, high = np.full(more.shape, -1.0), (more - less) / images
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        excess = more - less - images * middle
        rejected = excess > quantile * np.sqrt(images * _variance(middle, more, less, images))
        low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return low


def _variance(difference: Floats, more: Floats, less: Floats, images: int) -> Floats:
    """Of one image's contribution to the difference, at the likeliest probabilities under which it is ``difference``.

    These are q + difference and q, q the larger root of 2 n q^2 + b q + c; whichever form of it loses no digits.
    """
    b = (2 * images - more + less) * difference - more - less
    c = -less * difference * (1 - difference)
    root = np.sqrt(np.maximum(b * b - 8 * images * c, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where(b > 0, -2 * c / (b + root), (root - b) / (4 * images))
    q = np.clip(q, np.maximum(0.0, -difference), (1 - difference) / 2)
    return np.maximum(2 * q + difference - difference**2, 0.0)


def holm(p_values: ArrayLike) -> Floats:
    """p-values that pay for all of their number (Holm 1979): with probability 1 - level none of the true hypotheses has
    one at or below level, however the tests depend on each other.

    Args:
        p_values: of all tests made, float64 (tests,).

    Returns:
        float64 (tests,): never below ``p_values``, at most 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def _counts(values: ArrayLike) -> Floats:
    counts = np.asarray(values)
    if counts.dtype.kind not in "iu" or np.any(counts < 0):
        raise ValueError("counts must be integers, not negative")
    return counts.astype(np.float64)
