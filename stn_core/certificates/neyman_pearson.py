"""L2 radius under Gaussian noise: sigma / 2 (Phi^-1(p1) - Phi^-1(p2)) (Cohen, Rosenfeld & Kolter 2019, Theorem 1)."""

from __future__ import annotations

from scipy import special

from stn_core.certificates.quantile import two_and_one_class

TWO_CLASS, ONE_CLASS = two_and_one_class(
    "neyman_pearson",
    "l2",
    "gaussian",
    special.ndtri,
    (
        "Cohen, Rosenfeld & Kolter 2019, Theorem 1",
        "Cohen, Rosenfeld & Kolter 2019, Theorem 1 with p2 = 1 - p1",
    ),
)
