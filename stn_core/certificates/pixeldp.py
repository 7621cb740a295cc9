"""PixelDP's radii, by differential privacy (Lecuyer et al. 2019), at their best (epsilon, delta) for every image.

Noise that makes an image's scores (epsilon, delta)-private for changes of size L keeps the top class if

    p1 > exp(2 epsilon) p2 + (1 + exp(epsilon)) delta                                              (Proposition 2).

The Gaussian mechanism gives L = sigma epsilon / sqrt(2 log(1.25 / delta)) in L2 for epsilon <= 1, the Laplace mechanism
L = scale epsilon in L1 with delta = 0. For each epsilon the best delta is the largest that the condition allows, and
the best epsilon is searched for; PixelDP fixes both beforehand. Scores are votes here, not softmax outputs.
"""

from __future__ import annotations

import numpy as np

from stn_core.certificates.certificate import Certificate, Floats
from stn_core.certificates.search import blockwise, maximum

#: Rounding of the evaluation, given away downwards.
_SLACK = 1e-12


def _largest_epsilon(p1: Floats, p2: Floats) -> Floats:
    """Where delta would be 0: log(p1 / p2) / 2, without overflow, and exact where the two nearly agree."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(p1 < 2 * p2, np.log1p((p1 - p2) / p2), np.log(p1) - np.log(p2)) / 2


@blockwise
def gaussian(p1_lower: Floats, p2_upper: Floats) -> Floats:
    """L2 radius at sigma = 1."""

    def radius(epsilon: Floats) -> Floats:
        # exp(2 epsilon) = 1 + expm1(2 epsilon), so that p1 - p2 does not drown where they nearly agree.
        delta = ((p1_lower - p2_upper) - p2_upper * np.expm1(2 * epsilon)) / (1 + np.exp(epsilon))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.where(delta > 0, epsilon / np.sqrt(2 * np.log(1.25 / delta)), 0.0)

    high = np.minimum(1.0, _largest_epsilon(p1_lower, p2_upper))
    # The end itself too: often epsilon = 1 is the best that is allowed, and the objective still rises there.
    return np.maximum(maximum(radius, high), radius(high)) * (1 - _SLACK)


def laplace(p1_lower: Floats, p2_upper: Floats) -> Floats:
    """L1 radius at scale 1."""
    return np.maximum(_largest_epsilon(p1_lower, p2_upper), 0.0) * (1 - _SLACK)


GAUSSIAN = Certificate(
    name="pixeldp",
    norm="l2",
    noise="gaussian",
    bounds=2,
    source="Lecuyer et al. 2019, Proposition 2, Gaussian mechanism",
    unit_radius=gaussian,
)

LAPLACE = Certificate(
    name="pixeldp_laplace",
    norm="l1",
    noise="laplace",
    bounds=2,
    source="Lecuyer et al. 2019, Proposition 2, Laplace mechanism",
    unit_radius=laplace,
)
