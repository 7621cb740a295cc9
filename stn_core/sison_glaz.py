"""Simultaneous intervals of Sison & Glaz (1995) for class probabilities: what the paper's released script used.

They are not conservative, and where one class has nearly all votes their true coverage falls far below what they claim:
100 votes of 100 give a lower bound of 1. Nothing here uses them but the comparison with the paper's own figures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]


def sison_glaz(counts: ArrayLike, alpha: float) -> tuple[Floats, Floats]:
    """Lower and upper ends, one pair for each class.

    The half width c is such that multinomial counts whose probabilities are the observed shares deviate by at most c in
    every class with probability 1 - alpha; that probability is computed exactly, where the original takes an Edgeworth
    expansion. Ends are set as R's package MultinomialCI sets them.

    Args:
        counts: votes, int (images, classes), at least one in each row.
        alpha: the probability with which, it is claimed, some interval misses.

    Returns:
        Two arrays float64 (images, classes), inside [0, 1].
    """
    votes = np.atleast_2d(np.asarray(counts, dtype=np.int64))
    distinct, inverse = np.unique(np.sort(votes, axis=1), axis=0, return_inverse=True)
    found = [_half_width(row[row > 0], 1 - alpha) for row in distinct]
    widths = np.array(found, dtype=np.float64).reshape(-1, 2)[inverse.reshape(-1)]
    trials = votes.sum(axis=1, keepdims=True)
    shares, c, delta = votes / trials, widths[:, :1] / trials, widths[:, 1:] / trials
    return np.maximum(shares - c, 0.0), np.minimum(shares + c + 2 * delta, 1.0)


def _half_width(counts: NDArray[np.int64], confidence: float) -> tuple[int, float]:
    """The largest c whose probability does not reach the confidence (0 where none does), and how far on to the next."""
    before = 0.0
    for c in range(1, int(counts.sum()) + 1):
        now = _within(counts, c)
        if now > confidence:
            return c - 1, (confidence - before) / (now - before)
        before = now
    return int(counts.sum()), 0.0


def _within(counts: NDArray[np.int64], c: int) -> float:
    """The probability that multinomial counts deviate from their means, which are ``counts``, by at most c each.

    As Poisson counts that are conditioned on their sum (Levin 1981).
    """
    trials = int(counts.sum())
    sums = np.ones(1)
    for count in counts:
        values = np.arange(trials + 1)
        probabilities = np.where(np.abs(values - count) <= c, stats.poisson.pmf(values, count), 0.0)
        sums = np.convolve(sums, probabilities)[: trials + 1]
    return float(sums[trials] / stats.poisson.pmf(trials, trials))
