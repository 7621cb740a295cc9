"""L1 radius under uniform noise on [-scale, scale]: scale (p1 - p2) (Yang et al. 2020), and under splitting noise.

A move by r takes at most r / (2 scale) from a set and gives as much to another, whichever pixels it moves. Splitting
noise obeys the same law however its offsets depend on each other (Levine & Feizi 2021).
"""

from __future__ import annotations

import numpy as np

from stn_core.certificates.certificate import Certificate, Floats


def one_class(p1_lower: Floats, p2_upper: Floats) -> Floats:
    """Radius at scale 1 from p1_lower alone; 2 p1 - 1 is exact where it is not negative."""
    return np.maximum(2 * p1_lower - 1, 0.0)


def two_class(p1_lower: Floats, p2_upper: Floats) -> Floats:
    """Radius at scale 1 from both bounds."""
    return np.maximum(np.nextafter(p1_lower - p2_upper, -np.inf), 0.0)


TWO_CLASS = Certificate(
    name="neyman_pearson_uniform_two_class",
    norm="l1",
    noise="uniform",
    bounds=2,
    source="Yang et al. 2020, uniform noise, both classes bounded",
    unit_radius=two_class,
)

ONE_CLASS = Certificate(
    name="neyman_pearson_uniform_one_class",
    norm="l1",
    noise="uniform",
    bounds=1,
    source="Yang et al. 2020, uniform noise",
    unit_radius=one_class,
)

SPLITTING = Certificate(
    name="splitting",
    norm="l1",
    noise="splitting",
    bounds=2,
    source="Levine & Feizi 2021, splitting noise",
    unit_radius=two_class,
)
