"""What a certificate is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Certificate:
    """A bound that turns class probabilities into a radius.

    Attributes:
        name: as in specs and tables.
        norm: the perturbation's norm.
        noise: kind of noise the bound holds for.
        bounds: 1 if it needs p1_lower alone, 2 if it needs p2_upper as well.
        source: paper and theorem.
        unit_radius: (p1_lower, p2_upper), each float64 in [0, 1] with p1_lower > p2_upper, to the radius at
            noise scale 1; rounded downwards, never negative. Radii are linear in the scale.
    """

    name: str
    norm: Literal["l2", "l1"]
    noise: str
    bounds: Literal[1, 2]
    source: str
    unit_radius: Callable[[Floats, Floats], Floats]
