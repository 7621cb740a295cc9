"""Numbers as people read them: never more than is known."""

from __future__ import annotations

import math

import numpy as np

#: Norms as people write them.
NORMS = {"l1": "L1", "l2": "L2", "linf": "L-infinity"}

#: In place of what nobody knows.
UNKNOWN = "—"


def percent(fraction: float) -> str:
    """A fraction in percent, one decimal, never rounded up: 0.69999 is 69.9 %."""
    return f"{math.floor(fraction * 1000) / 10:.1f} %"


def percent_up(fraction: float) -> str:
    """A fraction in percent, one decimal, never rounded down: for the upper end of an interval."""
    return f"{math.ceil(fraction * 1000) / 10:.1f} %"


def radius_text(radius: float) -> str:
    """As it was asked for, every digit: rounded, a radius could be shown that is larger than the one certified."""
    return str(np.format_float_positional(radius, trim="-"))


def radius_down(radius: float) -> str:
    """A certified radius with four decimals, never rounded up."""
    return f"{math.floor(radius * 10_000) / 10_000:.4f}"
