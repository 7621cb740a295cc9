"""What votes came to, each time that they were looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Round:
    """The votes of one round of draws alone.

    Attributes:
        image: which image each row is of, each at most once, int64 (rows,).
        estimation: votes per class, int64 (rows, classes).
        draws: NaN votes included, int64 (rows,).
    """

    image: Ints
    estimation: Ints
    draws: Ints


@dataclass(frozen=True)
class Looks:
    """What images' votes came to each time that they were looked at: after every round of draws.

    Attributes:
        candidate: each image's class to be certified, int64 (images,); -1 where there is none.
        image: which image each look is at, int64 (looks,); looks at the same image follow each other in time.
        top: the candidate's votes so far, int64 (looks,).
        runner_up: the most votes so far of any other class, int64 (looks,).
        trials: estimation draws so far, int64 (looks,).
    """

    candidate: Ints
    image: Ints
    top: Ints
    runner_up: Ints
    trials: Ints


def looks_of(candidate: Ints, rounds: Iterable[Round], num_classes: int) -> Looks:
    """The looks that rounds of draws, in their order, come to: one for each row with draws, by image and time.

    Args:
        candidate: each image's class to be certified, int64 (images,); -1 where there is none.
        rounds: the votes of each, of any of the images.
        num_classes: number of classes.

    Raises:
        ValueError: a round names an image twice, or one that is not there.
    """
    votes = np.zeros((len(candidate), num_classes), dtype=np.int64)
    draws = np.zeros(len(candidate), dtype=np.int64)
    parts = [(np.empty(0, dtype=np.int64),) * 4]
    for each in rounds:
        image = each.image[each.draws > 0]
        if len(np.unique(image)) != len(image):
            raise ValueError("a round must name each image at most once")
        if len(image) and not 0 <= image.min() <= image.max() < len(candidate):
            raise ValueError(f"a round must name images 0 … {len(candidate) - 1}")
        votes[image] += each.estimation[each.draws > 0]
        draws[image] += each.draws[each.draws > 0]
        parts.append((image, *standings(candidate[image], votes[image]), draws[image]))
    image, top, runner_up, trials = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(image, kind="stable")
    return Looks(candidate, image[order], top[order], runner_up[order], trials[order])


def latest(looks: Looks, values: Ints) -> Ints:
    """Of values for each look, those at the last look at each image, int64 (images,); 0 where there was none."""
    last = np.zeros(len(looks.candidate), dtype=np.int64)
    last[looks.image] = values  # of several for one place numpy keeps the last
    return last


def standings(candidate: Ints, votes: Ints) -> tuple[Ints, Ints]:
    """The candidate's votes (0 where it is -1), and the most of any other class, of each row of (images, classes)."""
    top = np.where(candidate >= 0, votes[np.arange(len(candidate)), candidate], 0)
    first, second = _largest_two(votes)
    return top, np.where(top == first, second, first)


def _largest_two(counts: Ints) -> tuple[Ints, Ints]:
    """The largest and the second largest count of each row, equal where two classes share the largest."""
    # Class by class, over as many rows as stay in cache: a row is too short to start a vectorised function for.
    size = max(1024, 2**17 // counts.shape[1])
    first, second = np.empty(len(counts), dtype=np.int64), np.full(len(counts), -1)
    for start in range(0, len(counts), size):
        columns = np.ascontiguousarray(counts[start : start + size].T)
        most, next_most = first[start : start + size], second[start : start + size]
        most[:] = columns[0]
        for column in columns[1:]:
            np.maximum(next_most, np.minimum(most, column), out=next_most)
            np.maximum(most, column, out=most)
    return first, second
