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
anytime    as split                    as split, of a bound that    and the draws follow no plan but one made of the
                                       holds at all times at once    votes so far (or of nothing)
anytime_   as label                    the same                     and as anytime
label
stages     as split                    1 / K of split's at each of  as split; the stages were declared beforehand
                                       K stages
========== =========================== ============================ ==============================================

Under ``split`` and ``label`` one upper bound, that of the largest other count, covers every runner-up: the true
runner-up is a fixed class, and its own bound is never larger. One-class certificates need lower bounds alone, so
``paper`` then spends alpha / k on each. No other class can have more than the candidate leaves, so p2_upper is at most
1 - p1_lower, whichever is smaller.

Under the last three, which are *sequential*, an image may be looked at many times, and its votes may decide how many
draws it gets: the largest lower and the least upper bound of its looks hold. Under the others the number of draws must
not depend on the votes, and there is one look.

Votes lost to NaN logits stay in the number of trials and count for no class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stn_core import intervals, sequences
from stn_core.intervals import Floats
from stn_core.looks import Ints, Looks, standings

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
        certifies: whom: the most voted class of the votes that bounds are computed from, the most voted of the
            selection votes, or the label.
        shares: number of parts alpha is split into, from (number of classes, bounds needed: 1 or 2); None where votes
            are the probabilities themselves.
        rigorous: whether the claim holds under the protocol's own assumptions alone.
        looks: at how many numbers of draws bounds may be read: "one" that was fixed beforehand; "any", the votes may
            decide; "stages", some that were declared beforehand, and the votes may decide at which to stop.
    """

    name: str
    claim: str
    certifies: Literal["estimation", "selection", "label"]
    shares: Callable[[int, int], int] | None
    rigorous: bool = True
    looks: Literal["one", "any", "stages"] = "one"

    @property
    def sequential(self) -> bool:
        """Whether the claim holds where the votes chose the number of draws."""
        return self.looks != "one"


def candidates(
    protocol: Protocol, *, estimation: Ints | None = None, selection: Ints | None = None, labels: Ints | None = None
) -> Ints:
    """The class each image is to be certified for, int64 (images,); -1 where there is none.

    Args:
        protocol: says which of the others is read.
        estimation, selection: votes, int64 (images, classes).
        labels: true classes, int64 (images,).

    Raises:
        ValueError: what the protocol reads is missing.
    """
    if protocol.certifies == "label":
        if labels is None:
            raise ValueError(f"protocol {protocol.name!r} needs the images' labels, and there are none")
        return labels
    if protocol.certifies == "selection":
        if selection is None:
            raise ValueError(
                f"protocol {protocol.name!r} needs selection votes, and there are none; use 'paper', or count some"
            )
        # An image without a single valid selection vote has no candidate.
        return np.where(selection.any(axis=1), selection.argmax(axis=1), -1)
    if estimation is None:
        raise ValueError(f"protocol {protocol.name!r} needs estimation votes, and there are none")
    return estimation.argmax(axis=1)


def _times_classes(classes: int, bounds: int) -> int:
    return classes * bounds


def _bounds_alone(classes: int, bounds: int) -> int:
    return bounds


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "paper", "selection and bounds on the same votes, corrected for every class", "estimation", _times_classes
        ),
        Protocol(
            "paper_two",
            "selection and bounds on the same votes, corrected for the bounds used only: not a guarantee",
            "estimation",
            _bounds_alone,
            rigorous=False,
        ),
        Protocol("split", "selection on separate votes (Cohen et al. 2019)", "selection", _bounds_alone),
        Protocol("label", "the label's own probability, for certified accuracy", "label", _bounds_alone),
        Protocol("exact", "all noise enumerated: certain, alpha plays no part", "estimation", None),
        Protocol(
            "anytime",
            "selection on separate votes, bounds that hold at every number of draws at once",
            "selection",
            _bounds_alone,
            looks="any",
        ),
        Protocol(
            "anytime_label",
            "the label's own probability, bounds that hold at every number of draws at once",
            "label",
            _bounds_alone,
            looks="any",
        ),
        Protocol(
            "stages",
            "selection on separate votes, alpha shared among the stages at which votes are looked at",
            "selection",
            _bounds_alone,
            looks="stages",
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
        of_look: each look's outcome, (looks,).
        image: each look's image, int64 (looks,); None where every image has just one, in the order of images.
        num_classes: number of classes.
    """

    candidate: Ints
    top: Ints
    runner_up: Ints
    trials: Ints
    of_look: NDArray[np.intp]
    image: Ints | None
    num_classes: int


def outcomes_of(votes: Votes, protocol: Protocol) -> Outcomes:
    """What the votes come to under a protocol; the costly part, common to all certificates and levels."""
    candidate = candidates(protocol, estimation=votes.estimation, selection=votes.selection, labels=votes.labels)
    distinct, of_look = _distinct(*standings(candidate, votes.estimation), votes.trials)
    return Outcomes(candidate, *distinct, of_look, None, votes.num_classes)


def outcomes_of_looks(looks: Looks, num_classes: int) -> Outcomes:
    """What several looks at each image come to; for sequential protocols, under which all of them hold at once."""
    distinct, of_look = _distinct(looks.top, looks.runner_up, looks.trials)
    return Outcomes(looks.candidate, *distinct, of_look, looks.image, num_classes)


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
    outcomes: Outcomes,
    protocol: Protocol,
    *,
    bounds: int,
    alpha: float,
    uniform: Floats | None = None,
    stages: Sequence[int] | None = None,
) -> tuple[Floats, Floats, NDArray[np.intp] | slice]:
    """Bounds on the candidate's probability and on every other class's.

    Of an image's looks the largest lower bound is taken, and the least upper one. An image without any has 0 and 1.

    Args:
        outcomes: what the votes came to under ``protocol``.
        protocol: how alpha is shared.
        bounds: 1 to bound the candidate alone (p2_upper is then 1 - p1_lower), 2 to bound the runner-up as well.
        alpha: failure probability of each image's certificate.
        uniform: each image's variate for randomised intervals, float64 (images,); None for Clopper-Pearson. One
            variate serves both bounds: their errors add up however they depend on each other.
        stages: numbers of draws at which votes are looked at, declared beforehand; only protocol "stages" reads them.

    Returns:
        p1_lower and p2_upper, float64, of every different outcome, and the index that spreads them over the images.

    Raises:
        ValueError: the protocol is for one look, and there are more; it needs stages, and there are none; or it is
            sequential, and intervals are randomised.
    """
    if protocol.sequential and uniform is not None:
        raise ValueError(f"protocol {protocol.name!r} has no randomised intervals: use clopper_pearson")
    if not protocol.sequential and outcomes.image is not None:
        raise ValueError(f"protocol {protocol.name!r} holds for a number of draws that was fixed beforehand only")
    top, runner_up, trials = outcomes.top, outcomes.runner_up, outcomes.trials
    spread: NDArray[np.intp] | slice = outcomes.of_look
    if protocol.shares is None:
        # Quotients of integers, off by half a unit in the last place at most.
        p1_lower = np.maximum(np.nextafter(top / trials, -np.inf), 0.0)
        # The difference is exact where p1_lower >= 1/2; elsewhere it is far above the runner-up, or the image abstains.
        return p1_lower, np.minimum(np.nextafter(runner_up / trials, np.inf), 1 - p1_lower), spread
    if uniform is not None:
        top, runner_up, trials = top[spread], runner_up[spread], trials[spread]
        spread = slice(None)
    lower, upper = bounds_of(protocol, alpha / protocol.shares(outcomes.num_classes, bounds), uniform, stages)
    p1_lower = lower(top, trials)
    p2_upper = upper(runner_up, trials) if bounds == 2 else np.ones_like(p1_lower)
    if outcomes.image is not None:
        p1_lower, p2_upper, spread = _best(p1_lower, p2_upper, outcomes.of_look, outcomes.image, outcomes.candidate)
    # Exact where p1_lower >= 1/2 (Sterbenz); below that it exceeds p1_lower, and the image abstains either way.
    return p1_lower, np.minimum(p2_upper, 1 - p1_lower), spread


_Bound = Callable[[Ints, Ints], Floats]


def bounds_of(
    protocol: Protocol, error: float, uniform: Floats | None = None, stages: Sequence[int] | None = None
) -> tuple[_Bound, _Bound]:
    """Functions from (successes, trials) to lower and to upper bounds, which err with probability ``error`` each.

    Raises:
        ValueError: the protocol needs stages, and there are none.
    """
    if protocol.looks == "any":
        return (
            lambda k, n: sequences.lower_bound(k, n, error),
            lambda k, n: sequences.upper_bound(k, n, error),
        )
    if protocol.looks == "stages":
        if not stages:
            raise ValueError(f"protocol {protocol.name!r} needs the stages that were declared, and there are none")
        return (
            lambda k, n: sequences.spending_lower_bound(k, n, error, stages),
            lambda k, n: sequences.spending_upper_bound(k, n, error, stages),
        )
    return (
        lambda k, n: intervals.lower_bound(k, n, error, uniform),
        lambda k, n: intervals.upper_bound(k, n, error, uniform),
    )


def _best(
    lower: Floats, upper: Floats, of_look: NDArray[np.intp], image: Ints, candidate: Ints
) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """The largest lower and the least upper bound of each image's looks: the different pairs, and each image's."""
    # By rank, so that images with the same two bounds are found by their codes. An image without looks has 0 and 1.
    lowers, rank_lower = np.unique([0.0, *lower], return_inverse=True)
    uppers, rank_upper = np.unique([*upper, 1.0], return_inverse=True)
    highest = np.zeros(len(candidate), dtype=np.intp)
    lowest = np.full(len(candidate), len(uppers) - 1)
    np.maximum.at(highest, image, rank_lower[1:][of_look])
    np.minimum.at(lowest, image, rank_upper[:-1][of_look])
    pairs, spread = np.unique(highest * len(uppers) + lowest, return_inverse=True)
    return lowers[pairs // len(uppers)], uppers[pairs % len(uppers)], spread
