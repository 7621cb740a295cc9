"""L2 radius under Gaussian noise by the Neyman-Pearson lemma (Cohen, Rosenfeld & Kolter 2019, Theorem 1).

Two-class: sigma / 2 (Phi^-1(p1) - Phi^-1(p2)). One-class, with p2 <= 1 - p1: sigma Phi^-1(p1).
Both are tight for what they are told.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from stn_core.certificates.certificate import Certificate, Floats

#: Absolute and relative error allowed to scipy's ndtri, rounded downwards by. The tests hold it against mpmath.
_SLACK = 1e-14


def _below(quantile: Floats) -> Floats:
    """The quantile, rounded downwards; infinite ones stay."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(quantile), quantile - _SLACK * (1 + np.abs(quantile)), quantile)


def one_class(p1_lower: Floats, p2_upper: Floats) -> Floats:
    """Radius at sigma = 1 from p1_lower alone."""
    return np.maximum(_below(special.ndtri(p1_lower)), 0.0)


def two_class(p1_lower: Floats, p2_upper: Floats) -> Floats:
    """Radius at sigma = 1 from both bounds."""
    return np.maximum((_below(special.ndtri(p1_lower)) + _below(-special.ndtri(p2_upper))) / 2, 0.0)


ONE_CLASS = Certificate(
    name="neyman_pearson_one_class",
    norm="l2",
    noise="gaussian",
    bounds=1,
    source="Cohen, Rosenfeld & Kolter 2019, Theorem 1 with p2 = 1 - p1",
    unit_radius=one_class,
)

TWO_CLASS = Certificate(
    name="neyman_pearson_two_class",
    norm="l2",
    noise="gaussian",
    bounds=2,
    source="Cohen, Rosenfeld & Kolter 2019, Theorem 1",
    unit_radius=two_class,
)
