"""L1 radius under Laplace noise: -scale log(2 (1 - p1)), with both classes bounded -scale / 2 log(4 p2 (1 - p1)).

(For p1 > 1/2.) Moving by r and then by s, along whichever pixels, keeps what moving by r + s along one keeps, so the
bound along one pixel is the bound in L1. The first is Teng, Lee & Yuan 2020 in the binary case; the second is never
less than their max(log(p1 / p2) / 2, -log(1 - p1 + p2)) for several classes, and tight.
"""

from __future__ import annotations

import numpy as np

from stn_core.certificates.certificate import Floats
from stn_core.certificates.quantile import two_and_one_class


def quantile(p: Floats) -> Floats:
    """Of the Laplace distribution of scale 1."""
    with np.errstate(divide="ignore"):
        return np.where(p > 0.5, -np.log(2 * (1 - p)), np.log(2 * p))


TWO_CLASS, ONE_CLASS = two_and_one_class(
    "neyman_pearson_laplace",
    "l1",
    "laplace",
    quantile,
    (
        "Teng, Lee & Yuan 2020, made tight for two classes (docs/statistics.md)",
        "Teng, Lee & Yuan 2020, binary case",
    ),
)
