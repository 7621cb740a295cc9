"""From vote counts to bounds on class probabilities that hold with stated confidence.

A *protocol* says which class is certified, which probabilities are bounded, and how the failure probability ``alpha``
is shared among the bounds it needs. With probability at least 1 - alpha over the noise, an image's certificate is true:

========== =========================== ============================ ==============================================
protocol   certifies                   error of each bound           assumes
========== =========================== ============================ ==============================================
paper      the most voted class        alpha / (2 k): both bounds   nothing: selection on the same votes is paid
                                       of all k classes              for by covering every class
paper_two  the most voted class        alpha / 2: the two bounds    the top two classes were fixed beforehand.
                                       used                          They were not: for comparison with the
                                                                     paper's figures only, not a guarantee
split      the most voted class of     alpha / 2 (two-class) or     selection votes are independent of estimation
           the selection votes         alpha (one-class)             votes
label      the image's label           alpha / 2 or alpha           the label is not chosen by the votes
exact      the most voted class        none: votes are the          the draws are all the noise there is
                                       probabilities                 (splitting noise)
========== =========================== ============================ ==============================================

Under ``split`` and ``label`` one upper bound, that of the largest other count, covers every runner-up: the true
runner-up is a fixed class, and its own bound is never larger. One-class certificates need lower bounds alone, so
``paper`` then spends alpha / k on each. No other class can have more than the candidate leaves, so p2_upper is at most
1 - p1_lower, whichever is smaller.

Votes lost to NaN logits stay in the number of trials and count for no class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stn_core.intervals import Floats, lower_bound, upper_bound

Ints = NDArray[np.int64]

#: How a count bounds a probability: see ``intervals.lower_bound``.
Interval = Literal["clopper_pearson", "randomised"]


@dataclass(frozen=True)
class Votes:
    """Validated counts of one set of images.

    Attributes:
        estimation: votes that bounds are computed from, int64 (images, classes).
        trials: estimation draws of each image, NaN votes included, int64 (images,).
        selection: votes of the selection phase, int64 (images, classes), or None.
        labels: true classes, int64 (images,), or None.
    """

    estimation: Ints
    trials: Ints
    selection: Ints | None
    labels: Ints | None

    @property
    def num_classes(self) -> int:
        return self.estimation.shape[1]


@dataclass(frozen=True)
class Protocol:
    """Which class is certified, and how alpha is shared among the bounds.

    Attributes:
        name: as in specs and tables.
        claim: what holds with probability 1 - alpha, for people.
        candidate: the class each image is to be certified for, int64 (images,); -1 where there is none.
        shares: number of parts alpha is split into, from (number of classes, bounds needed: 1 or 2); None where votes
            are the probabilities themselves.
        rigorous: whether the claim holds under the protocol's own assumptions alone.
    """

    name: str
    claim: str
    candidate: Callable[[Votes], Ints]
    shares: Callable[[int, int], int] | None
    rigorous: bool = True


def _most_voted(votes: Votes) -> Ints:
    return votes.estimation.argmax(axis=1)


def _most_voted_in_selection(votes: Votes) -> Ints:
    if votes.selection is None:
        raise ValueError("protocol 'split' needs selection votes, and there are none; use 'paper', or count some")
    # An image without a single valid selection vote has no candidate.
    return np.where(votes.selection.any(axis=1), votes.selection.argmax(axis=1), -1)


def _label(votes: Votes) -> Ints:
    if votes.labels is None:
        raise ValueError("protocol 'label' needs the images' labels, and there are none")
    return votes.labels


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "paper",
            "selection and bounds on the same votes, corrected for every class",
            _most_voted,
            lambda classes, bounds: bounds * classes,
        ),
        Protocol(
            "paper_two",
            "selection and bounds on the same votes, corrected for the bounds used only: not a guarantee",
            _most_voted,
            lambda classes, bounds: bounds,
            rigorous=False,
        ),
        Protocol(
            "split",
            "selection on separate votes (Cohen et al. 2019)",
            _most_voted_in_selection,
            lambda classes, bounds: bounds,
        ),
        Protocol(
            "label",
            "the label's own probability, for certified accuracy",
            _label,
            lambda classes, bounds: bounds,
        ),
        Protocol(
            "exact",
            "all noise enumerated: certain, alpha plays no part",
            _most_voted,
            None,
        ),
    )
}


def check_protocol(protocol: Protocol, noise: str) -> None:
    """Raise ValueError unless ``protocol`` fits votes under that kind of noise."""
    if protocol.shares is None and noise != "splitting":
        raise ValueError(
            f"protocol {protocol.name!r} needs splitting noise, whose draws are all there are, not {noise}"
        )
    if protocol.shares is not None and noise == "splitting":
        raise ValueError(f"votes under splitting noise are exact: use protocol 'exact' instead of {protocol.name!r}")


@dataclass(frozen=True)
class Outcomes:
    """All that bounds depend on, each different outcome once: votes of many images are alike.

    Attributes:
        candidate: each image's class to be certified, int64 (images,); -1 where there is none.
        top, runner_up, trials: the candidate's votes, the most of any other class, and the draws, int64 (outcomes,).
        of_image: each image's outcome, (images,).
        num_classes: number of classes.
    """

    candidate: Ints
    top: Ints
    runner_up: Ints
    trials: Ints
    of_image: NDArray[np.intp]
    num_classes: int


def outcomes_of(votes: Votes, protocol: Protocol) -> Outcomes:
    """What the votes come to under a protocol; the costly part, common to all certificates and levels."""
    candidate = protocol.candidate(votes)
    top = np.where(candidate >= 0, votes.estimation[np.arange(len(candidate)), candidate], 0)
    first, second = _largest_two(votes.estimation)
    distinct, of_image = _distinct(top, np.where(top == first, second, first), votes.trials)
    return Outcomes(candidate, *distinct, of_image, votes.num_classes)


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


def _distinct(top: Ints, runner_up: Ints, trials: Ints) -> tuple[tuple[Ints, Ints, Ints], NDArray[np.intp]]:
    """The different (top, runner_up, trials), and which one each image has."""
    most = int(trials.max(initial=0)) + 1
    if most >= 2**20:  # the code below would overflow
        triples, inverse = np.unique(np.stack([top, runner_up, trials], axis=1), axis=0, return_inverse=True)
        return (triples[:, 0], triples[:, 1], triples[:, 2]), inverse.reshape(-1)
    codes = (trials * most + top) * most + runner_up
    if most**3 <= 4 * len(codes):  # a table of all codes is then faster than sorting
        place = np.zeros(most**3, dtype=np.intp)
        place[codes] = 1
        distinct = np.flatnonzero(place)
        place[distinct] = np.arange(len(distinct))
        inverse = place[codes]
    else:
        distinct, inverse = np.unique(codes, return_inverse=True)
    return (distinct // most % most, distinct % most, distinct // most**2), inverse


def bound_probabilities(
    outcomes: Outcomes, protocol: Protocol, *, bounds: int, alpha: float, uniform: Floats | None = None
) -> tuple[Floats, Floats, NDArray[np.intp] | slice]:
    """Bounds on the candidate's probability and on every other class's.

    Args:
        outcomes: what the votes came to under ``protocol``.
        protocol: how alpha is shared.
        bounds: 1 to bound the candidate alone (p2_upper is then 1 - p1_lower), 2 to bound the runner-up as well.
        alpha: failure probability of each image's certificate.
        uniform: each image's variate for randomised intervals, float64 (images,); None for Clopper-Pearson. One
            variate serves both bounds: their errors add up however they depend on each other.

    Returns:
        p1_lower and p2_upper, float64, of every different outcome, and the index that spreads them over the images.
    """
    top, runner_up, trials = outcomes.top, outcomes.runner_up, outcomes.trials
    spread: NDArray[np.intp] | slice = outcomes.of_image
    if protocol.shares is None:
        # Quotients of integers, off by half a unit in the last place at most.
        p1_lower = np.maximum(np.nextafter(top / trials, -np.inf), 0.0)
        # The difference is exact where p1_lower >= 1/2; elsewhere it is far above the runner-up, or the image abstains.
        return p1_lower, np.minimum(np.nextafter(runner_up / trials, np.inf), 1 - p1_lower), spread
    if uniform is not None:
        top, runner_up, trials = top[spread], runner_up[spread], trials[spread]
        spread = slice(None)
    error = alpha / protocol.shares(outcomes.num_classes, bounds)
    p1_lower = lower_bound(top, trials, error, uniform)
    # Exact where p1_lower >= 1/2 (Sterbenz); below that it exceeds p1_lower, and the image abstains either way.
    p2_upper = 1 - p1_lower
    if bounds == 2:
        p2_upper = np.minimum(p2_upper, upper_bound(runner_up, trials, error, uniform))
    return p1_lower, p2_upper, spread
