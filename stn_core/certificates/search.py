"""Maxima over one parameter, for many images at once. A value that is not quite the maximum is a valid radius too."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import numpy as np

from stn_core.certificates.certificate import Floats

_GOLDEN = (np.sqrt(5) - 1) / 2
#: Shrinks [0, 1] to 5e-8. An objective is flat at a maximum inside, so its value there is good to far better than 1e-9.
_STEPS = 35
#: Vectors longer than this are worked through piecewise, to stay in cache.
_BLOCK = 8192


def maximum(objective: Callable[[Floats], Floats], high: Floats) -> Floats:
    """The largest value of a quasi-concave function of x in (0, high), elementwise, by golden section.

    Args:
        objective: from x, float64 (images,), to values, (images,); evaluated inside the interval only.
        high: the interval's end, float64 (images,).
    """
    low = np.zeros_like(high)
    left, right = (1 - _GOLDEN) * high, _GOLDEN * high
    at_left, at_right = objective(left), objective(right)
    for _ in range(_STEPS):
        rising = at_left < at_right
        low, high = np.where(rising, left, low), np.where(rising, high, right)
        new = np.where(rising, low + _GOLDEN * (high - low), high - _GOLDEN * (high - low))
        at_new = objective(new)
        left, right = np.where(rising, right, new), np.where(rising, new, left)
        at_left, at_right = np.where(rising, at_right, at_new), np.where(rising, at_new, at_left)
    return np.maximum(at_left, at_right)


def blockwise(function: Callable[[Floats, Floats], Floats]) -> Callable[[Floats, Floats], Floats]:
    """``function`` of (p1, p2), vectors, as one of arrays of any shape, a block at a time."""

    @wraps(function)  # by whose name it can be pickled
    def whole(p1: Floats, p2: Floats) -> Floats:
        first, second = (np.ravel(p) for p in np.broadcast_arrays(p1, p2))
        blocks = [function(first[i : i + _BLOCK], second[i : i + _BLOCK]) for i in range(0, first.size, _BLOCK)]
        return np.concatenate([np.empty(0), *blocks]).reshape(np.broadcast_shapes(np.shape(p1), np.shape(p2)))

    return whole
