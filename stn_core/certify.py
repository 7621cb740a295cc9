"""From vote counts to certificates: predictions, abstentions and radii (the paper, Algorithm 1, steps 6 and 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stn_core.certificates import CERTIFICATES, Certificate, certificates_for
from stn_core.confidence import PROTOCOLS, Outcomes, Protocol, Votes, bound_probabilities, check_protocol, outcomes_of
from stn_core.naming import pick
from stn_core.noise import Noise, Splitting


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
    noise: Noise,
    alpha: float,
    draws: ArrayLike | None = None,
    dimension: int | None = None,
    uniform: ArrayLike | None = None,
    stages: Sequence[int] | None = None,
) -> Certified:
    """Certify images from their votes.

    Args:
        estimation: votes per class, integers (images, classes).
        selection: votes of a separate selection phase, integers (images, classes); protocols "split", "anytime" and
            "stages" read it.
        labels: true classes, integers (images,); protocols "label" and "anytime_label" read it.
        certificate: a name in ``CERTIFICATES``, or one of your own.
        protocol: a name in ``PROTOCOLS``: "paper", "paper_two", "split", "label", "exact", and for draws whose number
            the votes decided "anytime", "anytime_label", "stages".
        noise: what the votes were counted under, such as ``Gaussian(0.5)``.
        alpha: probability with which an image's certificate may be false, inside (0, 1). Protocol "exact" ignores it.
        draws: estimation draws per image, an integer or (images,), where some votes were invalid (NaN logits); None
            means that every draw voted.
        dimension: values in an image, channels x height x width; only L-infinity certificates need it.
        uniform: each image's own variate in (0, 1] for randomised intervals, independent of its votes, (images,):
            ``interval_variates``. None for Clopper-Pearson.
        stages: numbers of draws that were declared beforehand; only protocol "stages" reads it.

    Returns:
        Certified, one entry per image.

    Raises:
        ValueError: an argument does not fit the description above, or certificate, protocol and noise do not fit each
            other; the message names what to change.
    """
    chosen_certificate = (
        certificate if isinstance(certificate, Certificate) else pick(CERTIFICATES, certificate, "certificate")
    )
    chosen_protocol = protocol if isinstance(protocol, Protocol) else pick(PROTOCOLS, protocol, "protocol")
    votes = as_votes(estimation, selection, labels, draws)
    check_noise(chosen_certificate, noise.kind)
    check_protocol(chosen_protocol, noise.kind)
    if isinstance(noise, Splitting) and np.any(votes.trials != noise.draws):
        raise ValueError(f"splitting noise of scale {noise.scale!r} has {noise.draws} draws: count exactly those")
    return certify_outcomes(
        outcomes_of(votes, chosen_protocol),
        certificate=chosen_certificate,
        protocol=chosen_protocol,
        scale=noise.scale,
        alpha=alpha,
        dimension=dimension,
        uniform=None if uniform is None else _as_variates(uniform, len(votes.trials)),
        stages=stages,
    )


def check_noise(certificate: Certificate, noise: str) -> None:
    """Raise ValueError unless ``certificate`` holds for that kind of noise."""
    if certificate.noise != noise:
        fitting = ", ".join(certificates_for(noise)) or "none"
        raise ValueError(
            f"certificate {certificate.name!r} holds for {certificate.noise} noise, the votes' is {noise}; "
            f"for that: {fitting}"
        )


def certify_outcomes(
    outcomes: Outcomes,
    *,
    certificate: Certificate,
    protocol: Protocol,
    scale: float,
    alpha: float,
    dimension: int | None = None,
    uniform: NDArray[np.float64] | None = None,
    stages: Sequence[int] | None = None,
) -> Certified:
    """``certify`` for votes that have been validated and looked through, so that several certificates share that work.

    Args:
        outcomes: what the votes came to under ``protocol``.
        certificate, protocol: they fit each other and the votes' noise.
        scale: the noise's, in [0, 1] pixel units.
        alpha, dimension, uniform, stages: as in ``certify``.

    Raises:
        ValueError: alpha lies outside (0, 1), the dimension or the stages are needed and missing, or the protocol does
            not go with several looks or with variates.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie inside (0, 1), got {alpha!r}")
    p1_lower, p2_upper, spread = bound_probabilities(
        outcomes, protocol, bounds=certificate.bounds, alpha=alpha, uniform=uniform, stages=stages
    )
    # The formulas are symmetric in p1 and p2: without this test they would hand out false certificates.
    separated = p1_lower > p2_upper
    radius = np.zeros(len(separated))
    radius[separated] = certificate.radius(p1_lower[separated], p2_upper[separated], scale, dimension)
    certified = separated[spread] & (outcomes.candidate >= 0)
    return Certified(
        prediction=np.where(certified, outcomes.candidate, -1),
        abstain=~certified,
        radius=radius[spread] * certified,
        p1_lower=p1_lower[spread],
        p2_upper=p2_upper[spread],
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
    total = counts @ np.ones(classes, dtype=np.int64)  # three times as fast as the sum of short rows
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


def _as_variates(values: ArrayLike, images: int) -> NDArray[np.float64]:
    try:
        variates = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"uniform must be numbers, got {values!r:.50}") from None
    if variates.shape != (images,):
        raise ValueError(f"uniform must have one entry per image, ({images},), got shape {variates.shape}")
    if not np.all((variates > 0) & (variates <= 1)):
        raise ValueError("uniform must lie in (0, 1]")
    return variates


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
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must be below 2**63")
    return array.astype(np.int64, copy=False)
