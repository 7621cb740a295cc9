"""Numbers as people read them: never more than is known."""

from __future__ import annotations

import math

import numpy as np

#: Norms as people write them.
NORMS = {"l1": "L1", "l2": "L2", "linf": "L-infinity"}

#: In place of what nobody knows.
UNKNOWN = "—"

#: Of negative numbers, as wide as a plus.
MINUS = "−"


def percent(fraction: float) -> str:
    """A fraction in percent, one decimal, never rounded up: 0.69999 is 69.9 %."""
    return f"{math.floor(fraction * 1000) / 10:.1f} %"


def percent_up(fraction: float) -> str:
    """A fraction in percent, one decimal, never rounded down: for the upper end of an interval."""
    return f"{math.ceil(fraction * 1000) / 10:.1f} %"


def radius_text(radius: float) -> str:
    """As it was asked for, every digit: rounded, a radius could be shown that is larger than the one certified."""
    return str(np.format_float_positional(radius, trim="-"))


def points(count: int, images: int) -> str:
    """A difference of so many images, in percentage points with its sign, one decimal, never rounded away from 0."""
    tenths = abs(count) * 1000 // images
    return f"{'+' if count > 0 else MINUS if count < 0 else ''}{tenths // 10}.{tenths % 10}"


def points_between(low: float, high: float) -> str:
    """An interval of differences, in percentage points, one decimal, rounded outwards."""
    return f"{points(math.floor(low * 1000), 1000)} to {points(math.ceil(high * 1000), 1000)}"


def p_text(p_value: float) -> str:
    """A p-value, four decimals, never rounded down."""
    return "<0.0001" if p_value < 1e-4 else f"{math.ceil(p_value * 1e4 * (1 - 1e-12)) / 1e4:.4f}"


def radius_down(radius: float) -> str:
    """A certified radius with four decimals, never rounded up."""
    return f"{math.floor(radius * 10_000) / 10_000:.4f}"
