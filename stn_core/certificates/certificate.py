"""What a certificate is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Norm = Literal["l2", "l1", "linf"]


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
        dimension_power: radii are divided by (number of pixels, channels counted) to this power.
    """

    name: str
    norm: Norm
    noise: str
    bounds: Literal[1, 2]
    source: str
    unit_radius: Callable[[Floats, Floats], Floats]
    dimension_power: float = 0.0

    def radius(self, p1_lower: Floats, p2_upper: Floats, scale: float, dimension: int | None = None) -> Floats:
        """Radii in [0, 1] pixel units, rounded downwards.

        Args:
            p1_lower, p2_upper: as ``unit_radius`` takes them.
            scale: the noise's scale, in [0, 1] pixel units.
            dimension: channels x height x width of an image; only ``dimension_power`` other than 0 needs it.

        Raises:
            ValueError: the dimension is needed and missing.
        """
        # One step down after each operation, so that its own rounding cannot lift the radius.
        radius = np.nextafter(scale * self.unit_radius(p1_lower, p2_upper), -np.inf)
        if self.dimension_power:
            if not isinstance(dimension, int) or dimension < 1:
                raise ValueError(
                    f"certificate {self.name!r} needs dimension, the number of values in an image, got {dimension!r}"
                )
            divisor = np.nextafter(np.float64(dimension) ** self.dimension_power, np.inf)
            radius = np.nextafter(radius / divisor, -np.inf)
        return np.maximum(radius, 0.0)
