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
========== =========================== ============================ ==============================================

Under ``split`` and ``label`` one upper bound, that of the largest other count, covers every runner-up: the true
runner-up is a fixed class, and its own bound is never larger. One-class certificates need lower bounds alone, so
``paper`` then spends alpha / k on each.

Votes lost to NaN logits stay in the number of trials and count for no class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Outward slack on every bound, relative. After polishing, bounds are good to some 1e-14, which the tests check against
#: mpmath: wide enough that rounding never turns a bound inwards, far too narrow to cost any radius.
_SLACK = 1e-13

#: scipy's inverse incomplete beta is off by up to 1e-11 relative, its forward function is not: Newton mends the one by
#: the other.
_POLISH_STEPS = 2


def lower_bound(successes: ArrayLike, trials: ArrayLike, error: ArrayLike) -> Floats:
    """One-sided Clopper-Pearson lower bound on a probability (Clopper & Pearson 1934).

    Args:
        successes: number of successes, 0 to ``trials``.
        trials: number of independent trials, at least 1.
        error: probability with which the bound may exceed the true probability, inside (0, 1). One-sided.

    Returns:
        float64, broadcast shape: the bound, rounded downwards.

    Raises:
        ValueError: counts or error out of range.
    """
    k, n, error = _checked(successes, trials, error)
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = special.betaincinv(k, n - k + 1, error)
        for _ in range(_POLISH_STEPS):
            bound = bound - (special.betainc(k, n - k + 1, bound) - error) / _beta_density(k, n - k + 1, bound)
    return np.where(k == 0, 0.0, bound * (1 - _SLACK))


def upper_bound(successes: ArrayLike, trials: ArrayLike, error: ArrayLike) -> Floats:
    """One-sided Clopper-Pearson upper bound on a probability; as ``lower_bound``, rounded upwards, at most 1."""
    k, n, error = _checked(successes, trials, error)
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = special.betainccinv(k + 1, n - k, error)
        for _ in range(_POLISH_STEPS):
            bound = bound + (special.betaincc(k + 1, n - k, bound) - error) / _beta_density(k + 1, n - k, bound)
    return np.where(k == n, 1.0, np.minimum(1.0, bound * (1 + _SLACK)))


def _beta_density(a: Floats, b: Floats, x: Floats) -> Floats:
    return np.exp((a - 1) * np.log(x) + (b - 1) * np.log1p(-x) - special.betaln(a, b))


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
        shares: number of parts alpha is split into, from (number of classes, bounds needed: 1 or 2).
        rigorous: whether the claim holds under the protocol's own assumptions alone.
    """

    name: str
    claim: str
    candidate: Callable[[Votes], Ints]
    shares: Callable[[int, int], int]
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
    )
}


def bound_probabilities(votes: Votes, protocol: Protocol, *, bounds: int, alpha: float) -> tuple[Ints, Floats, Floats]:
    """Bounds on the candidate's probability and on every other class's.

    Args:
        votes: the counts.
        protocol: which class, and how alpha is shared.
        bounds: 1 to bound the candidate alone (p2_upper is then 1 - p1_lower), 2 to bound the runner-up as well.
        alpha: failure probability of each image's certificate.

    Returns:
        candidate int64 (images,), -1 where there is none; p1_lower and p2_upper float64 (images,).
    """
    candidate = protocol.candidate(votes)
    error = alpha / protocol.shares(votes.num_classes, bounds)
    rows = np.arange(len(candidate))
    top = np.where(candidate >= 0, votes.estimation[rows, candidate], 0)
    p1_lower = _each_once(lower_bound, top, votes.trials, error)
    # Exact where p1_lower >= 1/2 (Sterbenz); below that it exceeds p1_lower, and the image abstains either way.
    p2_upper = 1 - p1_lower
    if bounds == 2:
        others = votes.estimation.copy()
        others[rows, candidate] = -1
        p2_upper = np.minimum(p2_upper, _each_once(upper_bound, others.max(axis=1), votes.trials, error))
    return candidate, p1_lower, p2_upper


def _each_once(
    bound: Callable[[ArrayLike, ArrayLike, ArrayLike], Floats], counts: Ints, trials: Ints, error: float
) -> Floats:
    """``bound`` of every (count, trials) pair, computed once per distinct pair: votes of many images are alike."""
    pairs, inverse = np.unique(np.stack([counts, trials], axis=1), axis=0, return_inverse=True)
    return bound(pairs[:, 0], pairs[:, 1], error)[inverse.reshape(-1)]


def _checked(successes: ArrayLike, trials: ArrayLike, error: ArrayLike) -> tuple[Floats, Floats, Floats]:
    k, n, e = (np.asarray(value, dtype=np.float64) for value in (successes, trials, error))
    if not np.all(n >= 1):
        raise ValueError("trials must be at least 1")
    if not np.all((k >= 0) & (k <= n)):
        raise ValueError("successes must lie between 0 and trials")
    if not np.all((e > 0) & (e < 1)):
        raise ValueError("error must lie inside (0, 1)")
    return k, n, e
