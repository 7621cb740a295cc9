"""From certificates of single images to statements about a data set.

Each image's certificate is false with probability at most alpha, so of many certified images some are not robust. Let N
images be certified or not, each with its own noise; let T of them be *truly* certified at a radius (the smoothed
classifier gives the label there and everywhere within the radius), and C be counted as certified. Every one of the C
that is not one of the T is a false certificate of one of the other N - T images, so C <= T + F, and F is stochastically
at most Binomial(N - T, alpha). Everything here follows from that line.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Ints = NDArray[np.int64]

#: Tail probabilities this close to the limit count as not below it: rounding then never excludes a value.
_SLACK = 1e-9


def truly_certified(certified: ArrayLike, images: int, *, alpha: float, beta: float, independent: bool = True) -> Ints:
    """How many images are truly certified, at least, with probability 1 - beta over the noise.

    The least T that the observation does not exclude at level beta: with independent noise by the binomial tail
    P(Binomial(N - T, alpha) >= C - T), otherwise by Markov's inequality, alpha (N - T) / (C - T), of which Bonferroni's
    correction (all certificates true with probability 1 - N alpha) is a special case.

    Args:
        certified: C, images counted as certified, integers of any shape; every entry is a statement of its own.
        images: N, images that could have been.
        alpha: probability with which one image's certificate may be false, in [0, 1); 0 where certificates are certain.
        beta: probability with which the statement may be false, inside (0, 1).
        independent: whether no two images share noise.

    Returns:
        int64, ``certified``'s shape: T, 0 … ``certified``.

    Raises:
        ValueError: an argument out of range.
    """
    counts = _counts(certified, images)
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1), got {alpha!r}")
    _check_beta(beta)

    def excluded(truly: Ints) -> NDArray[np.bool_]:
        false = np.maximum(counts - truly, 1)
        tail = (
            special.betainc(false, images - counts + 1, alpha)  # P(Binomial(N - T, alpha) >= C - T)
            if independent
            else alpha * (images - truly) / false
        )
        return (truly < counts) & (tail <= beta * (1 - _SLACK))

    return _least(excluded, np.zeros_like(counts), counts)


def population_interval(certified: ArrayLike, images: int, population: int, *, beta: float) -> tuple[Ints, Ints]:
    """How many images of a population are certified, from a simple random sample of it (without replacement).

    Inverts both tails of the hypergeometric distribution at beta / 2: the interval of Clopper & Pearson for samples
    that are a notable part of the population.

    Args:
        certified: how many of the sample are certified, integers of any shape.
        images: size of the sample.
        population: size of the population.
        beta: probability with which the interval may miss, inside (0, 1).

    Returns:
        Least and largest number, int64, ``certified``'s shape.

    Raises:
        ValueError: an argument out of range.
    """
    counts = _counts(certified, images)
    if population < images:
        raise ValueError(f"population must be at least the sample's {images} images, got {population}")
    _check_beta(beta)

    def least(found: Ints) -> Ints:
        def excluded(total: Ints) -> NDArray[np.bool_]:
            return _hypergeometric_tail(found, population, total, images) <= beta / 2 * (1 - _SLACK)

        return _least(excluded, found, population - images + found)

    # What is not certified is certified of the opposite.
    return least(counts), population - least(images - counts)


def _least(excluded: Callable[[Ints], NDArray[np.bool_]], low: Ints, high: Ints) -> Ints:
    """The least value in [low, high] that is not excluded, by bisection; high never is, and those excluded come
    first."""
    while np.any(low < high):
        middle = (low + high) // 2
        out = excluded(middle) & (low < high)
        low, high = np.where(out, middle + 1, low), np.where(out, high, np.minimum(middle, high))
    return low


def _hypergeometric_tail(found: Ints, population: int, total: Ints, sample: int) -> NDArray[np.float64]:
    """P(at least ``found`` of ``sample`` images are among the ``total`` of ``population``)."""
    # Slow to import, and only samples need it.
    from scipy.stats import hypergeom

    return hypergeom.sf(found - 1, population, total, sample)


def _counts(certified: ArrayLike, images: int) -> Ints:
    counts = np.asarray(certified)
    if counts.dtype.kind not in "iu":
        raise ValueError(f"certified must be integers, got {counts.dtype}")
    if images < 1 or np.any((counts < 0) | (counts > images)):
        raise ValueError(f"certified must lie in 0 … images, and images be at least 1, got images = {images}")
    return counts.astype(np.int64)


def _check_beta(beta: float) -> None:
    if not 0 < beta < 1:
        raise ValueError(f"beta must lie inside (0, 1), got {beta!r}")
