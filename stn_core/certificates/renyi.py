"""Radii by Renyi divergence: L2 under Gaussian, L1 under Laplace noise (Li, Chen, Wang & Carin 2019, Theorems 2, 3).

    L^2 = sup over alpha > 1 of  -(2 sigma^2 / alpha) log(1 - p1 - p2 + 2 M(p1, p2)),

M the generalised mean of exponent 1 - alpha. Every alpha gives a valid radius, so a supremum found numerically errs on
the safe side. With beta = alpha - 1 and t = log(p1 / p2),

    M = sqrt(p1 p2) cosh(beta t / 2)^(-1/beta),        p1 + p2 = 2 sqrt(p1 p2) cosh(t / 2),

so that p1 + p2 - 2M = 2 sqrt(p1 p2) [2 sinh^2(t / 4) - expm1(-log cosh(beta t / 2) / beta)] is a sum of two positive
terms: nothing cancels where p1 and p2 are close. The objective is quasi-concave in beta, and its maximum lies in
[0, 1] (beta = 0 is the geometric mean, the limit alpha -> 1).

Under Laplace noise the paper takes alpha to infinity, and what remains is L = -lambda log(1 - p1 + p2). A finite alpha
is often better, but never better than the tight radius of ``neyman_pearson``, so it is not searched for.
"""

from __future__ import annotations

import numpy as np

from stn_core.certificates.certificate import Certificate, Floats
from stn_core.certificates.search import blockwise, maximum

#: Rounding of the evaluation itself, given away downwards; far below the 1e-9 that the tests demand.
_SLACK = 1e-12
_LOG_2 = np.log(2)


@blockwise
def unit_radius(p1_lower: Floats, p2_upper: Floats) -> Floats:
    """Radius at sigma = 1, to 1e-9 relative and never above the supremum."""
    objective = _Objective(p1_lower, p2_upper)
    best = np.maximum(objective.at_zero(), maximum(objective, np.ones_like(p1_lower)))
    return np.sqrt(2 * np.maximum(best, 0)) * (1 - _SLACK)


def unit_radius_laplace(p1_lower: Floats, p2_upper: Floats) -> Floats:
    """L1 radius at scale 1: -log(1 - p1 + p2)."""
    gap = p1_lower - p2_upper
    with np.errstate(divide="ignore"):
        # 1 - p1 is exact where p1 is at least 1/2: its digits must not drown in p1 - p2.
        radius = np.where(gap > 0.5, -np.log((1 - p1_lower) + p2_upper), -np.log1p(-np.minimum(gap, 0.5)))
    return np.maximum(radius, 0.0) * (1 - _SLACK)


class _Objective:
    """-log(1 - p1 - p2 + 2M) / alpha as a function of beta = alpha - 1, for vectors p1 > p2."""

    def __init__(self, p1: Floats, p2: Floats) -> None:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            close = p1 < 2 * p2
            # log(p1 / p2), exact to rounding also where p1 and p2 nearly agree.
            self._t = np.where(close, np.log1p((p1 - p2) / p2), np.log(p1) - np.log(p2))
            self._log_mean = (np.log(p1) + np.log(p2)) / 2
        self._sum = p1 + p2
        self._rest = np.maximum((1 - p1) - p2, 0)
        self._twice_mean = 2 * np.sqrt(p1) * np.sqrt(p2)
        self._close = close
        self._sinh = np.where(close, 2 * np.sinh(np.where(close, self._t, 0) / 4) ** 2, 0)

    def __call__(self, beta: Floats) -> Floats:
        with np.errstate(invalid="ignore", over="ignore"):
            x = beta * self._t / 2
            log_cosh = np.where(
                x < 1, np.log1p(2 * np.sinh(np.minimum(x, 1) / 2) ** 2), x + np.log1p(np.exp(-2 * x)) - _LOG_2
            )
            return self._at(log_cosh / beta) / (1 + beta)

    def at_zero(self) -> Floats:
        """The limit alpha -> 1, where M is the geometric mean."""
        return self._at(np.zeros_like(self._sum))

    def _at(self, shrink: Floats) -> Floats:
        """-log(1 - g) with g = p1 + p2 - 2M and M = sqrt(p1 p2) exp(-shrink); p2 = 0 makes M vanish."""
        with np.errstate(invalid="ignore", divide="ignore"):
            twice_m = np.where(self._twice_mean > 0, 2 * np.exp(self._log_mean - shrink), 0.0)
            g = np.where(self._close, self._twice_mean * (self._sinh - np.expm1(-shrink)), self._sum - twice_m)
            return np.where(g < 0.5, -np.log1p(-np.minimum(g, 0.5)), -np.log(self._rest + twice_m))


CERTIFICATE = Certificate(
    name="renyi",
    norm="l2",
    noise="gaussian",
    bounds=2,
    source="Li, Chen, Wang & Carin 2019, Theorem 2",
    unit_radius=unit_radius,
)

LAPLACE = Certificate(
    name="renyi_laplace",
    norm="l1",
    noise="laplace",
    bounds=2,
    source="Li, Chen, Wang & Carin 2019, Theorem 3",
    unit_radius=unit_radius_laplace,
)
