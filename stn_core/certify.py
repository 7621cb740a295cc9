"""From vote counts to certificates: predictions, abstentions and radii (the paper, Algorithm 1, steps 6 and 7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stn_core.certificates import CERTIFICATES, Certificate
from stn_core.confidence import PROTOCOLS, Protocol, Votes, bound_probabilities
from stn_core.naming import pick


@dataclass(frozen=True)
class Certified:
    """One certificate per image; every field is an array of length images.

    Attributes:
        prediction: the certified class, int64; -1 where ``abstain``. Never read it without ``abstain``.
        abstain: True where the votes do not separate the candidate from the others (p1_lower <= p2_upper).
        radius: no perturbation of at most this size, in the certificate's norm and in [0, 1] pixel units, changes
            the prediction; float64, rounded down, 0 where ``abstain``.
        p1_lower: lower bound on the candidate's probability under noise.
        p2_upper: upper bound on every other class's, at most 1 - p1_lower.
    """

    prediction: NDArray[np.int64]
    abstain: NDArray[np.bool_]
    radius: NDArray[np.float64]
    p1_lower: NDArray[np.float64]
    p2_upper: NDArray[np.float64]


def certify(
    estimation: ArrayLike,
    selection: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    *,
    certificate: str | Certificate,
    protocol: str | Protocol,
    sigma: float,
    alpha: float,
    draws: ArrayLike | None = None,
) -> Certified:
    """Certify images from their votes.

    Args:
        estimation: votes per class, integers (images, classes).
        selection: votes of a separate selection phase, integers (images, classes); only protocol "split" reads it.
        labels: true classes, integers (images,); only protocol "label" reads it.
        certificate: a name in ``CERTIFICATES``: "renyi", "neyman_pearson_one_class", "neyman_pearson_two_class".
        protocol: a name in ``PROTOCOLS``: "paper", "paper_two", "split", "label".
        sigma: the noise's standard deviation, in [0, 1] pixel units.
        alpha: probability with which an image's certificate may be false, inside (0, 1).
        draws: estimation draws per image, an integer or (images,), where some votes were invalid (NaN logits); None
            means that every draw voted.

    Returns:
        Certified, one entry per image.

    Raises:
        ValueError: an argument does not fit the description above; the message names it.
    """
    chosen_certificate = (
        certificate if isinstance(certificate, Certificate) else pick(CERTIFICATES, certificate, "certificate")
    )
    chosen_protocol = protocol if isinstance(protocol, Protocol) else pick(PROTOCOLS, protocol, "protocol")
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be a positive finite number, got {sigma!r}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie inside (0, 1), got {alpha!r}")
    votes = as_votes(estimation, selection, labels, draws)

    candidate, p1_lower, p2_upper = bound_probabilities(
        votes, chosen_protocol, bounds=chosen_certificate.bounds, alpha=alpha
    )
    # The formulas are symmetric in p1 and p2: without this test they would hand out false certificates.
    certified = (candidate >= 0) & (p1_lower > p2_upper)
    radius = np.zeros(len(candidate))
    if certified.any():
        pairs, inverse = np.unique(
            np.stack([p1_lower[certified], p2_upper[certified]], axis=1), axis=0, return_inverse=True
        )
        unit = chosen_certificate.unit_radius(pairs[:, 0], pairs[:, 1])
        # One step down, so that the product's own rounding cannot lift the radius.
        radius[certified] = np.maximum(np.nextafter(sigma * unit, -np.inf), 0.0)[inverse.reshape(-1)]
    return Certified(
        prediction=np.where(certified, candidate, -1),
        abstain=~certified,
        radius=radius,
        p1_lower=p1_lower,
        p2_upper=p2_upper,
    )


def as_votes(
    estimation: ArrayLike,
    selection: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    draws: ArrayLike | None = None,
) -> Votes:
    """Validate counts. Raises ValueError naming the argument that is wrong."""
    counts = _as_counts(estimation, "estimation")
    images, classes = counts.shape
    total = counts.sum(axis=1)
    trials = total if draws is None else _as_integers(draws, "draws")
    if trials.shape not in ((), (images,)):
        raise ValueError(f"draws must be one number or one per image, ({images},), got shape {trials.shape}")
    trials = np.broadcast_to(trials, (images,))
    if np.any(trials < total):
        raise ValueError("draws must be at least the votes counted in every row of estimation")
    if np.any(trials < 1):
        raise ValueError("every image needs at least one draw; leave images without votes out, or count them first")

    checked_selection = None
    if selection is not None:
        checked_selection = _as_counts(selection, "selection")
        if checked_selection.shape != counts.shape:
            raise ValueError(
                f"selection must have the shape of estimation, {counts.shape}, got {checked_selection.shape}"
            )
    checked_labels = None
    if labels is not None:
        checked_labels = _as_integers(labels, "labels")
        if checked_labels.shape != (images,):
            raise ValueError(f"labels must have one entry per image, ({images},), got {checked_labels.shape}")
        if images and not (checked_labels.min() >= 0 and checked_labels.max() < classes):
            raise ValueError(f"labels must lie in 0 … {classes - 1}")
    return Votes(counts, trials, checked_selection, checked_labels)


def _as_counts(values: ArrayLike, name: str) -> NDArray[np.int64]:
    counts = _as_integers(values, name)
    if counts.ndim != 2 or counts.shape[1] < 2:
        raise ValueError(f"{name} must be (images, classes) with at least two classes, got shape {counts.shape}")
    if counts.size and counts.min() < 0:
        raise ValueError(f"{name} must not hold negative counts")
    return counts


def _as_integers(values: ArrayLike, name: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    return array.astype(np.int64)
