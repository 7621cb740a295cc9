"""Each certificate against an independent computation of what it stands for, in many digits, and their order."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from stn_core import CERTIFICATES

ONE_CLASS = "neyman_pearson_one_class"
TWO_CLASS = "neyman_pearson_two_class"

#: (p1, p2) with p1 > p2 and p1 + p2 <= 1: p1 near 1, p2 near 0, both nearly equal, both tiny, p1 + p2 = 1.
PAIRS = [
    (1 - 2**-53, 2**-53),
    (1 - 2**-53, 1e-300),
    (1 - 1e-12, 1e-13),
    (0.999, 0.001),
    (0.999, 1e-9),
    (0.99, 0.005),
    (0.9, 0.1),
    (0.9, 0.05),
    (0.9, 1e-50),
    (0.7, 0.3),
    (0.6, 0.3),
    (0.6, 0.29),
    (0.51, 0.49),
    (0.51, 0.2549),
    (0.51, 1e-10),
    (0.5 + 1e-9, 0.5 - 1e-9),
    (0.5 + 2**-52, 0.5 - 2**-52),
    (0.5, 0.5 - 2**-54),
    (0.4, 0.4 - 1e-9),
    (0.4, 0.39),
    (0.4, 0.2),
    (0.1, 0.0999),
    (0.1, 0.05),
    (0.1, 1e-5),
    (1e-3, 4.99e-4),
    (1e-8, 1e-8 - 1e-20),
    (1e-8, 1e-12),
    (1e-100, 5e-101),
    (1e-100, 1e-250),
]


def unit_radius(certificate: str, p1: float, p2: float) -> float:
    return float(CERTIFICATES[certificate].unit_radius(np.array([p1]), np.array([p2]))[0])


def maximum(objective: Callable[[mpf], mpf], low: mpf, high: mpf, points: int) -> mpf:
    """The largest value on [low, high]: a grid, then golden section around its best point."""
    grid = [low + (high - low) * i / points for i in range(points + 1)]
    best = max(range(points + 1), key=lambda i: objective(grid[i]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, points)]
    left, right = high - (high - low) / mp.phi, low + (high - low) / mp.phi
    at_left, at_right = objective(left), objective(right)
    for _ in range(60):
        if at_left < at_right:
            low, left, at_left = left, right, at_right
            right = low + (high - low) / mp.phi
            at_right = objective(right)
        else:
            high, right, at_right = right, left, at_left
            left = high - (high - low) / mp.phi
            at_left = objective(left)
    return max(at_left, at_right)


@cache
def exact_renyi(p1: float, p2: float) -> mpf:
    """Li, Chen, Wang & Carin 2019, Theorem 2 at sigma = 1, as printed: a supremum over alpha = 1 + 10**x.

    A hundred digits, because 1 - 2 M_1 + 2 M_{1 - alpha} cancels nearly all of fifty where p1 and p2 nearly agree.
    """
    with mp.workdps(100):
        a, b = mpf(p1), mpf(p2)

        def squared(x: mpf) -> mpf:
            alpha = 1 + mpf(10) ** x
            mean = ((a ** (1 - alpha) + b ** (1 - alpha)) / 2) ** (1 / (1 - alpha))
            return -2 / alpha * mp.log1p(-(a + b - 2 * mean))

        limit = -2 * mp.log1p(-(a + b - 2 * mp.sqrt(a * b)))  # alpha -> 1: the geometric mean
        return mp.sqrt(max(limit, maximum(squared, mpf(-12), mpf(6), 180)))


@pytest.mark.parametrize(("p1", "p2"), PAIRS)
def test_renyi_is_the_supremum_of_theorem_2_and_never_above(p1: float, p2: float) -> None:
    with mp.workdps(100):
        exact = exact_renyi(p1, p2)
        assert exact * (1 - mpf("1e-9")) <= unit_radius("renyi", p1, p2) <= exact


@pytest.mark.parametrize("p1", [1e-300, 1e-8, 0.3, 0.5, 0.9, 1 - 1e-9, 1 - 2**-53])
def test_renyi_without_a_runner_up_is_the_limit_of_alpha_to_one(p1: float) -> None:
    with mp.workdps(400):
        exact = mp.sqrt(-2 * mp.log(1 - mpf(p1)))
        assert exact * (1 - mpf("1e-9")) <= unit_radius("renyi", p1, 0.0) <= exact


@pytest.mark.parametrize("p1", [0.3, 0.9, 1 - 1e-9])
def test_renyi_approaches_that_limit_as_the_runner_up_vanishes(p1: float) -> None:
    radii = [unit_radius("renyi", p1, p2) for p2 in (1e-3, 1e-9, 1e-30, 1e-300, 0.0)]
    assert radii == sorted(radii)
    assert radii[-2] == pytest.approx(radii[-1], rel=1e-9)


@cache
def shift_at_which_half_spaces_tie(p1: float, p2: float | None) -> mpf:
    """How far noise must be shifted until the worst-case classifier no longer prefers the top class.

    By the Neyman-Pearson lemma the worst classifier says "top" on the half-space x <= a and "runner-up" on x >= b, of
    probabilities p1 and p2; a shift by r leaves Phi(a - r) and Phi(r - b). Without p2 the runner-up has all the rest.
    """
    with mp.workdps(60):
        a = root(lambda x: mp.ncdf(x) - mpf(p1))
        b = a if p2 is None else root(lambda x: mp.ncdf(-x) - mpf(p2))
        return root(lambda r: mp.ncdf(a - r) - mp.ncdf(r - b))


def root(function: Callable[[mpf], mpf]) -> mpf:
    """The zero of a monotone function between -40 and 40, by bisection."""
    low, high = mpf(-40), mpf(40)
    falling = function(low) > 0
    for _ in range(110):
        middle = (low + high) / 2
        if (function(middle) > 0) == falling:
            low = middle
        else:
            high = middle
    return low


@pytest.mark.parametrize(("p1", "p2"), PAIRS)
def test_neyman_pearson_two_class_is_the_tie_of_the_worst_half_spaces(p1: float, p2: float) -> None:
    exact = shift_at_which_half_spaces_tie(p1, p2)
    assert exact - mpf("1e-12") <= unit_radius(TWO_CLASS, p1, p2) <= exact


@pytest.mark.parametrize("p1", sorted({p1 for p1, _ in PAIRS if p1 > 0.5}))
def test_neyman_pearson_one_class_is_the_tie_with_everything_else(p1: float) -> None:
    exact = shift_at_which_half_spaces_tie(p1, None)
    assert exact - mpf("1e-12") <= unit_radius(ONE_CLASS, p1, 1 - p1) <= exact


def test_neyman_pearson_one_class_ignores_the_runner_up_and_needs_a_majority() -> None:
    assert unit_radius(ONE_CLASS, 0.8, 0.2) == unit_radius(ONE_CLASS, 0.8, 0.001)
    assert unit_radius(ONE_CLASS, 0.5, 0.1) == unit_radius(ONE_CLASS, 0.4, 0.1) == 0


@given(st.floats(0.5, 1, exclude_min=True, exclude_max=True))
def test_one_and_two_class_agree_where_the_runner_up_has_all_the_rest(p1: float) -> None:
    assert unit_radius(ONE_CLASS, p1, 1 - p1) == pytest.approx(unit_radius(TWO_CLASS, p1, 1 - p1), abs=1e-12)


#: Far below any bound that votes can give, far above where quotients of float64 overflow.
TINY = 1e-300


@st.composite
def probabilities(draw: st.DrawFn) -> tuple[float, float]:
    """(p1, p2) with p1 > p2 > 0 and p1 + p2 <= 1."""
    p1 = draw(st.floats(1e-250, 1, exclude_max=True))
    share = draw(st.one_of(st.floats(0, 1), st.sampled_from([1e-12, 0.5, 1 - 1e-9, 1.0])))
    p2 = max(TINY, min(p1, 1 - p1) * share)
    return p1, p2 if p2 < p1 else float(np.nextafter(p1, 0))


def assert_at_most(radius: float, other: float) -> None:
    """Up to rounding, which is downwards by 1e-12 relative (Rényi) or some 1e-14 absolute (Neyman-Pearson)."""
    assert radius <= other * (1 + 2e-12) + 2e-12


@settings(max_examples=300)
@given(probabilities())
def test_renyi_is_never_above_the_tight_radius(pair: tuple[float, float]) -> None:
    assert_at_most(unit_radius("renyi", *pair), unit_radius(TWO_CLASS, *pair))


@settings(max_examples=300)
@given(probabilities())
def test_using_less_never_gives_more(pair: tuple[float, float]) -> None:
    assert_at_most(unit_radius(ONE_CLASS, *pair), unit_radius(TWO_CLASS, *pair))


@pytest.mark.parametrize("certificate", CERTIFICATES)
@settings(max_examples=300)
@given(pair=probabilities())
def test_radius_is_a_number_and_not_negative(certificate: str, pair: tuple[float, float]) -> None:
    assert unit_radius(certificate, *pair) >= 0


@pytest.mark.parametrize(
    ("certificate", "p1", "p2", "radius"),
    [
        (ONE_CLASS, 1.0, 0.0, np.inf),
        (TWO_CLASS, 1.0, 0.0, np.inf),
        (TWO_CLASS, 0.6, 0.0, np.inf),
        ("renyi", 1.0, 0.0, np.inf),
        ("renyi", 0.5, 2**-1074, np.sqrt(2 * np.log(2))),
    ],
)
def test_radius_at_the_ends_of_the_unit_interval(certificate: str, p1: float, p2: float, radius: float) -> None:
    assert unit_radius(certificate, p1, p2) == pytest.approx(radius, rel=1e-9)


@pytest.mark.parametrize("certificate", CERTIFICATES)
@settings(max_examples=300)
@given(pair=probabilities(), share=st.floats(0, 1))
def test_radius_grows_with_p1(certificate: str, pair: tuple[float, float], share: float) -> None:
    p1, p2 = pair
    less = p2 + (p1 - p2) * share
    assert_at_most(unit_radius(certificate, max(less, np.nextafter(p2, 1)), p2), unit_radius(certificate, p1, p2))


@pytest.mark.parametrize("certificate", CERTIFICATES)
@settings(max_examples=300)
@given(pair=probabilities(), share=st.floats(0, 1))
def test_radius_shrinks_with_p2(certificate: str, pair: tuple[float, float], share: float) -> None:
    p1, p2 = pair
    assert_at_most(unit_radius(certificate, p1, p2), unit_radius(certificate, p1, max(TINY, p2 * share)))


@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_a_vector_gives_what_its_elements_give_one_by_one(certificate: str) -> None:
    p1, p2 = np.array(PAIRS * 400).T  # longer than any block it may be worked through in
    together = CERTIFICATES[certificate].unit_radius(p1, p2)
    one_by_one = [unit_radius(certificate, *pair) for pair in PAIRS] * 400
    np.testing.assert_allclose(together, one_by_one, rtol=1e-14)
    assert CERTIFICATES[certificate].unit_radius(p1[:0], p2[:0]).shape == (0,)
    assert CERTIFICATES[certificate].unit_radius(p1.reshape(4, -1), p2.reshape(4, -1)).shape == (4, len(p1) // 4)
