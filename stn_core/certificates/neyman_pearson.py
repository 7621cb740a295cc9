"""Radii by the Neyman-Pearson lemma: tight for what they are told.

A set of probability p under noise keeps at least G(G^-1(p) - r / scale) of it when the image moves by r, G being the
noise's distribution function. For Gaussian noise and L2 that is Cohen, Rosenfeld & Kolter 2019: G = Phi. For Laplace
noise and L1 it holds with G the Laplace distribution's function, since moving by r + s is moving by r and then by s,
along whichever pixels. The set that is worst for the top class and the one that is best for the runner-up do not
overlap, so

    radius = scale / 2 (G^-1(p1) - G^-1(p2)),        with p2 <= 1 - p1 alone: scale G^-1(p1).

For Laplace noise and p1 > 1/2 these are -scale / 2 log(4 p2 (1 - p1)) and -scale log(2 (1 - p1)): the second is Teng,
Lee & Yuan 2020 in the binary case, the first never less than their max(log(p1 / p2) / 2, -log(1 - p1 + p2)) for several
classes.

Uniform noise on [-scale, scale] loses at most r / (2 scale) of a set when the image moves by r in L1, so

    radius = scale (p1 - p2),        with p2 <= 1 - p1 alone: scale (2 p1 - 1)

(Yang et al. 2020), and splitting noise the same (Levine & Feizi 2021), however its offsets depend on each other.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from stn_core.certificates.certificate import Certificate, Floats

#: Absolute and relative error allowed to a quantile, rounded downwards by. The tests hold it against mpmath.
_SLACK = 1e-14


def _below(quantile: Floats) -> Floats:
    """The quantile, rounded downwards; infinite ones stay."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(quantile), quantile - _SLACK * (1 + np.abs(quantile)), quantile)


def _laplace_quantile(p: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.where(p > 0.5, -np.log(2 * (1 - p)), np.log(2 * p))


def one_class(p1_lower: Floats, p2_upper: Floats) -> Floats:
    """Radius at sigma = 1 from p1_lower alone."""
    return np.maximum(_below(special.ndtri(p1_lower)), 0.0)


def two_class(p1_lower: Floats, p2_upper: Floats) -> Floats:
    """Radius at sigma = 1 from both bounds."""
    return np.maximum((_below(special.ndtri(p1_lower)) + _below(-special.ndtri(p2_upper))) / 2, 0.0)


def laplace_one_class(p1_lower: Floats, p2_upper: Floats) -> Floats:
    """L1 radius at scale 1 from p1_lower alone."""
    return np.maximum(_below(_laplace_quantile(p1_lower)), 0.0)


def laplace_two_class(p1_lower: Floats, p2_upper: Floats) -> Floats:
    """L1 radius at scale 1 from both bounds."""
    return np.maximum((_below(_laplace_quantile(p1_lower)) + _below(-_laplace_quantile(p2_upper))) / 2, 0.0)


def uniform_one_class(p1_lower: Floats, p2_upper: Floats) -> Floats:
    """L1 radius at scale 1 from p1_lower alone; 2 p1 - 1 is exact where it is not negative."""
    return np.maximum(2 * p1_lower - 1, 0.0)


def uniform_two_class(p1_lower: Floats, p2_upper: Floats) -> Floats:
    """L1 radius at scale 1 from both bounds."""
    return np.maximum(np.nextafter(p1_lower - p2_upper, -np.inf), 0.0)


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

LAPLACE_ONE_CLASS = Certificate(
    name="neyman_pearson_laplace_one_class",
    norm="l1",
    noise="laplace",
    bounds=1,
    source="Teng, Lee & Yuan 2020, binary case",
    unit_radius=laplace_one_class,
)

LAPLACE_TWO_CLASS = Certificate(
    name="neyman_pearson_laplace_two_class",
    norm="l1",
    noise="laplace",
    bounds=2,
    source="Teng, Lee & Yuan 2020, made tight for two classes (docs/statistics.md)",
    unit_radius=laplace_two_class,
)

UNIFORM_ONE_CLASS = Certificate(
    name="neyman_pearson_uniform_one_class",
    norm="l1",
    noise="uniform",
    bounds=1,
    source="Yang et al. 2020, uniform noise",
    unit_radius=uniform_one_class,
)

UNIFORM_TWO_CLASS = Certificate(
    name="neyman_pearson_uniform_two_class",
    norm="l1",
    noise="uniform",
    bounds=2,
    source="Yang et al. 2020, uniform noise, both classes bounded",
    unit_radius=uniform_two_class,
)

SPLITTING = Certificate(
    name="splitting",
    norm="l1",
    noise="splitting",
    bounds=2,
    source="Levine & Feizi 2021, splitting noise",
    unit_radius=uniform_two_class,
)
