"""Radii by the Neyman-Pearson lemma, for noise with a quantile function: tight for what they are told.

A set of probability p under noise keeps at least G(G^-1(p) - r / scale) of it when the image moves by r, G being the
noise's distribution function. The set that is worst for the top class and the one that is best for the runner-up need
not overlap, since p1 + p2 <= 1, so two classes tie first at

    radius = scale / 2 (G^-1(p1) - G^-1(p2)),        with p2 <= 1 - p1 alone: scale G^-1(p1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stn_core.certificates.certificate import Certificate, Floats, Norm

#: Absolute and relative error allowed to a quantile, rounded downwards by. The tests hold it against mpmath.
_SLACK = 1e-14


def two_and_one_class(
    name: str, norm: Norm, noise: str, quantile: Callable[[Floats], Floats], sources: tuple[str, str]
) -> tuple[Certificate, Certificate]:
    """The certificates ``NAME_two_class`` and ``NAME_one_class``, with a source each.

    Args:
        name: what their names begin with.
        norm, noise: theirs.
        quantile: G^-1, elementwise, infinite at 0 and 1.
        sources: paper and theorem of each.
    """

    return (
        Certificate(f"{name}_two_class", norm, noise, 2, sources[0], _TwoClass(quantile)),
        Certificate(f"{name}_one_class", norm, noise, 1, sources[1], _OneClass(quantile)),
    )


@dataclass(frozen=True)
class _TwoClass:
    quantile: Callable[[Floats], Floats]

    def __call__(self, p1_lower: Floats, p2_upper: Floats) -> Floats:
        return np.maximum((_below(self.quantile(p1_lower)) + _below(-self.quantile(p2_upper))) / 2, 0.0)


@dataclass(frozen=True)
class _OneClass:
    quantile: Callable[[Floats], Floats]

    def __call__(self, p1_lower: Floats, p2_upper: Floats) -> Floats:
        return np.maximum(_below(self.quantile(p1_lower)), 0.0)


def _below(quantile: Floats) -> Floats:
    """The quantile, rounded downwards; infinite ones stay."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(quantile), quantile - _SLACK * (1 + np.abs(quantile)), quantile)
