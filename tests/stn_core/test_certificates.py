"""Each certificate against an independent computation of what it stands for, in many digits, and their order."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from numpy.typing import NDArray
from scipy import optimize, sparse

from stn_core import CERTIFICATES

ONE_CLASS = "neyman_pearson_one_class"
TWO_CLASS = "neyman_pearson_two_class"
LAPLACE_ONE_CLASS = "neyman_pearson_laplace_one_class"
LAPLACE_TWO_CLASS = "neyman_pearson_laplace_two_class"
UNIFORM_ONE_CLASS = "neyman_pearson_uniform_one_class"
UNIFORM_TWO_CLASS = "neyman_pearson_uniform_two_class"

#: Those that compute something: the L-infinity ones divide what others compute.
COMPUTED = [name for name, certificate in CERTIFICATES.items() if certificate.norm != "linf"]
LINF = [name for name, certificate in CERTIFICATES.items() if certificate.norm == "linf"]

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


def root(function: Callable[[mpf], mpf], limit: int = 40) -> mpf:
    """The zero of a monotone function between -limit and limit, by bisection."""
    low, high = mpf(-limit), mpf(limit)
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


def laplace_cdf(x: mpf) -> mpf:
    return mp.exp(x) / 2 if x < 0 else 1 - mp.exp(-x) / 2


@cache
def shift_at_which_laplace_half_lines_tie(p1: float, p2: float | None) -> mpf:
    """As ``shift_at_which_half_spaces_tie``, under Laplace noise on a line.

    Its density ratio exp(|x| - |x - r|) never falls as x grows, so half-lines are worst here too.
    """
    with mp.workdps(60):
        a = root(lambda x: laplace_cdf(x) - mpf(p1), 800)
        b = a if p2 is None else root(lambda x: laplace_cdf(-x) - mpf(p2), 800)
        return root(lambda r: laplace_cdf(a - r) - laplace_cdf(r - b), 800)


@pytest.mark.parametrize(("p1", "p2"), PAIRS)
def test_laplace_two_class_is_the_tie_of_the_worst_half_lines(p1: float, p2: float) -> None:
    exact = shift_at_which_laplace_half_lines_tie(p1, p2)
    assert exact - mpf("1e-11") <= unit_radius(LAPLACE_TWO_CLASS, p1, p2) <= exact


@pytest.mark.parametrize("p1", sorted({p1 for p1, _ in PAIRS if p1 > 0.5}))
def test_laplace_one_class_is_the_tie_with_everything_else(p1: float) -> None:
    exact = shift_at_which_laplace_half_lines_tie(p1, None)
    assert exact - mpf("1e-12") <= unit_radius(LAPLACE_ONE_CLASS, p1, 1 - p1) <= exact


@pytest.mark.parametrize(("p1", "p2"), PAIRS)
def test_uniform_two_class_is_half_the_gap_over_the_loss_per_unit_of_shift(p1: float, p2: float) -> None:
    """A shift by r takes r / 2 from the top class and gives it to the runner-up, in rational numbers."""
    exact = (Fraction(p1) - Fraction(p2)) / 2 / Fraction(1, 2)
    for certificate in (UNIFORM_TWO_CLASS, "splitting"):
        assert exact * (1 - Fraction(1, 2**51)) <= Fraction(unit_radius(certificate, p1, p2)) <= exact


@pytest.mark.parametrize("p1", sorted({p1 for p1, _ in PAIRS}))
def test_uniform_one_class_is_that_with_everything_else(p1: float) -> None:
    exact = max(2 * Fraction(p1) - 1, Fraction(0))
    assert Fraction(unit_radius(UNIFORM_ONE_CLASS, p1, min(p1, 1 - p1))) == exact


Masses = NDArray[np.float64]


def laplace_cells(shift: float, cells: int) -> tuple[Masses, Masses]:
    """Masses of Laplace noise on a line cut into cells, before and after it moves by ``shift``.

    The density ratio only varies between 0 and the shift: everything else needs no more than one cell at either side.
    """
    edges = np.array([-np.inf, *np.linspace(min(0.0, shift), max(0.0, shift), cells + 1 if shift else 1), np.inf])

    def masses(x: Masses) -> Masses:
        return np.diff(np.where(x < 0, np.exp(np.minimum(x, 0)) / 2, 1 - np.exp(-np.maximum(x, 0)) / 2))

    return masses(edges), masses(edges - shift)


def uniform_cells(shift: float, cells: int) -> tuple[Masses, Masses]:
    """As ``laplace_cells`` for uniform noise on [-1, 1]: where it was, where it is, and both."""
    edges = np.sort([-1.0, 1.0, -1 + shift, 1 + shift])

    def masses(x: Masses) -> Masses:
        return np.diff(np.clip((x + 1) / 2, 0, 1))

    return masses(edges), masses(edges - shift)


CELLS = {"laplace": laplace_cells, "uniform": uniform_cells}
TWO_CLASSES = {"laplace": LAPLACE_TWO_CLASS, "uniform": UNIFORM_TWO_CLASS}

#: Neither so close nor so extreme that a linear programme of float64 drowns in its tolerances.
MODERATE = [(0.99, 0.005), (0.9, 0.1), (0.9, 0.02), (0.7, 0.3), (0.6, 0.3), (0.45, 0.44), (0.4, 0.2), (0.15, 0.05)]


def least_margin(noise: str, shift: tuple[float, ...], p1: float, p2: float, cells: int = 400) -> float:
    """P(top) - P(runner-up) after noise of independent pixels has moved, at worst: a linear programme.

    Every cell of space is given to the top class, the runner-up and others, in any shares, so that the top class has
    probability p1 and the runner-up p2 before the shift.
    """
    masses = [CELLS[noise](s, cells) for s in shift]
    before, after = (np.ravel(_outer([pair[i] for pair in masses])) for i in (0, 1))
    nothing = np.zeros_like(before)
    eye = sparse.eye_array(len(before))
    result = optimize.linprog(
        np.concatenate([after, -after]),
        A_ub=sparse.hstack([eye, eye]),
        b_ub=np.ones_like(before),
        A_eq=np.array([np.concatenate([before, nothing]), np.concatenate([nothing, before])]),
        b_eq=[p1, p2],
        bounds=(0, 1),
    )
    assert result.success, result.message
    return float(result.fun)


def _outer(vectors: list[Masses]) -> Masses:
    product_measure = vectors[0]
    for vector in vectors[1:]:
        product_measure = np.multiply.outer(product_measure, vector)
    return product_measure


@pytest.mark.parametrize(("p1", "p2"), MODERATE)
@pytest.mark.parametrize("noise", CELLS)
def test_no_sharing_out_of_a_line_beats_the_two_class_radius_and_one_reaches_it(
    noise: str, p1: float, p2: float
) -> None:
    """Neyman-Pearson with both classes at once, and disjoint: what the half-lines above take for granted."""
    radius = unit_radius(TWO_CLASSES[noise], p1, p2)
    assert least_margin(noise, (radius,), p1, p2) == pytest.approx(0, abs=1e-5)
    assert least_margin(noise, (radius * 0.98,), p1, p2) > 1e-5
    assert least_margin(noise, (radius * 1.02,), p1, p2) < -1e-5


@pytest.mark.parametrize(("p1", "p2"), MODERATE)
@pytest.mark.parametrize("noise", CELLS)
def test_no_shift_in_two_dimensions_beats_the_two_class_radius(noise: str, p1: float, p2: float) -> None:
    """An L1 shift may be split over pixels: then it does no more than along one of them."""
    radius = unit_radius(TWO_CLASSES[noise], p1, p2)
    random = np.random.default_rng(0)
    for share in (0.5, *random.random(2)):
        split = (radius * share, radius * (share - 1))
        assert least_margin(noise, split, p1, p2, cells=20) > -1e-6


def least_kept(noise: str, shift: tuple[float, ...], p: float, cells: int) -> float:
    """What a set of probability p keeps, at least, when the noise moves: cells in the order of their density ratio."""
    masses = [CELLS[noise](s, cells) for s in shift]
    before, after = (np.ravel(_outer([pair[i] for pair in masses])) for i in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        order = np.argsort(np.where(before > 0, after / before, np.inf), kind="stable")
    order = order[before[order] > 0]
    return float(np.interp(p, np.cumsum([0, *before[order]]), np.cumsum([0, *after[order]])))


def kept_along_one_pixel(noise: str, shift: float, p: float) -> float:
    """What the certificates' module says: G(G^-1(p) - shift)."""
    if noise == "uniform":
        return max(p - shift / 2, 0.0)
    quantile = float(root(lambda x: laplace_cdf(x) - mpf(p)))
    return float(laplace_cdf(mpf(quantile - shift)))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("noise", CELLS)
def test_a_set_loses_most_by_a_shift_along_one_pixel(noise: str, p: float) -> None:
    random = np.random.default_rng(1)
    for shift in (0.05, 0.7, 1.9):
        least = kept_along_one_pixel(noise, shift, p)
        assert least_kept(noise, (shift,), p, cells=2000) == pytest.approx(least, abs=1e-6)
        for _ in range(2):
            shares = random.dirichlet([1, 1]) * random.choice([-1, 1], 2)
            assert least_kept(noise, tuple(shift * shares), p, cells=200) >= least - 1e-9
            shares = random.dirichlet([1, 1, 1])
            assert least_kept(noise, tuple(shift * shares), p, cells=30) >= least - 1e-9


@settings(max_examples=50)
@given(st.lists(st.fractions(-2, 2, max_denominator=1000), min_size=1, max_size=5), st.fractions(Fraction(1, 100), 4))
def test_shifted_cubes_share_all_but_the_l1_shift_over_two_scales(shift: list[Fraction], scale: Fraction) -> None:
    common = Fraction(1)
    for s in shift:
        common *= max(Fraction(0), min(scale, s + scale) - max(-scale, s - scale)) / (2 * scale)
    loss = sum(map(abs, shift)) / (2 * scale)
    assert 1 - common <= loss
    if len(shift) == 1 and loss <= 1:
        assert 1 - common == loss


def split(value: Fraction, offset: Fraction, scale: Fraction) -> Fraction:
    """Levine & Feizi 2021: the middle of a value's interval, where [0, 1] is split at offset + multiples of 2 scale."""
    below = offset + (value - offset) // (2 * scale) * 2 * scale
    return (max(below, Fraction(0)) + min(below + 2 * scale, Fraction(1))) / 2


@pytest.mark.parametrize("scale", [Fraction(1, 8), Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(1)])
def test_splitting_noise_tells_images_apart_as_often_as_uniform_noise_loses_mass(scale: Fraction) -> None:
    """Hence the same radii. All offsets counted; pixels have the same one, shifted: no independence is needed."""
    offsets = [Fraction(2 * i + 1, 32) for i in range(int(2 * scale * 16))]
    shifts = (Fraction(0), Fraction(3, 16), Fraction(1, 2))
    values = [Fraction(i, 8) for i in range(9)]

    def told_apart(image: tuple[Fraction, ...], other: tuple[Fraction, ...]) -> Fraction:
        differ = sum(
            any(split(x, o + t, scale) != split(y, o + t, scale) for x, y, t in zip(image, other, shifts, strict=False))
            for o in offsets
        )
        return Fraction(differ, len(offsets))

    for x, y in product(values, values):
        assert told_apart((x,), (y,)) == min(1, abs(x - y) / (2 * scale))
    random = np.random.default_rng(2)
    for _ in range(100):
        image, other = (tuple(Fraction(int(i), 16) for i in random.integers(0, 17, 3)) for _ in range(2))
        assert told_apart(image, other) <= sum(abs(x - y) for x, y in zip(image, other, strict=True)) / (2 * scale)


@cache
def exact_pixeldp(p1: float, p2: float) -> mpf:
    """Lecuyer et al. 2019, Proposition 2 and the Gaussian mechanism (Dwork & Roth 2014, Theorem A.1) at sigma = 1.

    Searched over delta; its largest epsilon solves p1 = exp(2 epsilon) p2 + (1 + exp(epsilon)) delta, quadratic in
    exp(epsilon). The certificate searches the other way round.
    """
    with mp.workdps(50):
        a, b = mpf(p1), mpf(p2)

        def size(share: mpf) -> mpf:
            delta = share * (a - b) / 2  # at share = 1, epsilon is 0
            if not 0 < share < 1:
                return mpf(0)
            growth = 2 * (a - delta) / (delta + mp.sqrt(delta**2 + 4 * b * (a - delta)))
            return min(mp.log(growth), mpf(1)) / mp.sqrt(2 * mp.log(mpf("1.25") / delta))

        return maximum(size, mpf(0), mpf(1), 100)


#: How far PixelDP's search may end below the supremum, relative: 2e-8 where epsilon ends at 1, which it never tries.
PIXELDP_GIVEN_AWAY = mpf("1e-9")


@pytest.mark.parametrize(("p1", "p2"), [*PAIRS, (0.9, 0.0), (1.0, 0.0), (1e-8, 0.0)])
def test_pixeldp_is_the_supremum_over_epsilon_and_delta_and_never_above(p1: float, p2: float) -> None:
    exact = exact_pixeldp(p1, p2)
    assert exact * (1 - PIXELDP_GIVEN_AWAY) <= unit_radius("pixeldp", p1, p2) <= exact


def test_pixeldp_is_above_every_valid_choice_of_epsilon_and_delta() -> None:
    """No search at all: each choice on a grid that fulfils Proposition 2 gives a radius, and none is larger."""
    epsilon, delta = np.meshgrid(np.linspace(1e-3, 1, 300), np.geomspace(1e-6, 0.5, 500))
    size = epsilon / np.sqrt(2 * np.log(1.25 / delta))
    for p1, p2 in MODERATE:
        valid = p1 >= np.exp(2 * epsilon) * p2 + (1 + np.exp(epsilon)) * delta
        best = size[valid].max()
        radius = unit_radius("pixeldp", p1, p2)
        assert best * (1 - 2e-8) <= radius
        assert radius <= best * 1.05


def gaussian_delta(epsilon: mpf, size: mpf) -> mpf:
    """Least delta for which noise of sigma = 1 is (epsilon, delta)-private for changes of L2 size ``size``.

    Balle & Wang 2018, Theorem 8: what the Gaussian mechanism can do, exactly.
    """
    return mp.ncdf(size / 2 - epsilon / size) - mp.exp(epsilon) * mp.ncdf(-size / 2 - epsilon / size)


def classical_size(epsilon: mpf, delta: mpf) -> mpf:
    return epsilon / mp.sqrt(2 * mp.log(mpf("1.25") / delta))


def test_the_gaussian_mechanism_is_as_private_as_pixeldp_takes_it_to_be() -> None:
    """Proposition 2 never needs a delta above 1/2, since 2 delta < p1."""
    with mp.workdps(60):
        for epsilon, delta in product(
            ("1e-6", "0.001", "0.1", "0.5", "0.9", "1"), ("1e-40", "1e-12", "1e-5", "0.01", "0.1", "0.3", "0.5")
        ):
            size = classical_size(mpf(epsilon), mpf(delta))
            assert gaussian_delta(mpf(epsilon), size) <= mpf(delta)


def test_the_gaussian_mechanism_is_not_so_private_for_large_epsilon() -> None:
    """Why epsilon ends at 1, and that the test above could fail."""
    assert gaussian_delta(mpf(10), classical_size(mpf(10), mpf("0.1"))) > mpf("0.1")


def test_what_pixeldp_searches_over_rises_and_then_falls() -> None:
    """Golden section needs it: radii over epsilon have one maximum, for every pair on a grid."""
    p1 = np.concatenate([np.geomspace(1e-6, 0.1, 12), np.linspace(0.15, 0.999, 30), 1 - np.geomspace(1e-4, 1e-9, 6)])
    shares = np.concatenate([[0.0], np.geomspace(1e-9, 0.1, 12), np.linspace(0.15, 0.99, 25), [0.999, 1 - 1e-6]])
    for p in p1:
        p2 = (min(p, 1 - p) * shares)[:, None]
        with np.errstate(divide="ignore"):
            high = np.minimum(1.0, np.log(p / p2) / 2)
        epsilon = high * (np.arange(1, 400) / 400)
        delta = ((p - p2) - p2 * np.expm1(2 * epsilon)) / (1 + np.exp(epsilon))
        change = np.sign(np.diff(epsilon / np.sqrt(2 * np.log(1.25 / delta)), axis=1))
        assert np.all(np.diff(change, axis=1) <= 0)


@pytest.mark.parametrize(("p1", "p2"), PAIRS)
def test_pixeldp_laplace_is_the_largest_epsilon_that_proposition_2_allows(p1: float, p2: float) -> None:
    """With delta = 0: p1 > exp(2 epsilon) p2, and L = epsilon at scale 1."""
    with mp.workdps(60):
        exact = root(lambda epsilon: mpf(p1) - mp.exp(2 * epsilon) * mpf(p2), 800)
        assert exact == pytest.approx(mp.log(mpf(p1) / mpf(p2)) / 2, rel=1e-9)
        assert exact * (1 - mpf("2e-12")) <= unit_radius("pixeldp_laplace", p1, p2) <= exact


def theorem_3(p1: float, p2: float) -> mpf:
    """Li, Chen, Wang & Carin 2019, Theorem 3 at lambda = 1."""
    with mp.workdps(60):
        return -mp.log1p(mpf(p2) - mpf(p1))


@pytest.mark.parametrize(("p1", "p2"), PAIRS)
def test_renyi_laplace_is_theorem_3_rounded_down(p1: float, p2: float) -> None:
    exact = theorem_3(p1, p2)
    assert exact * (1 - mpf("1e-11")) <= unit_radius("renyi_laplace", p1, p2) <= exact


def laplace_renyi(alpha: mpf, p1: float, p2: float) -> mpf:
    """The largest shift that Theorem 1 of Li, Chen, Wang & Carin 2019 allows at order alpha, under Laplace noise.

    Rényi divergences of shifted Laplace distributions as the paper gives them (from van Erven & Harremoës 2014).
    """
    with mp.workdps(50):
        a, b = mpf(p1), mpf(p2)
        mean = ((a ** (1 - alpha) + b ** (1 - alpha)) / 2) ** (1 / (1 - alpha))
        allowed = -mp.log1p(-(a + b - 2 * mean))

        def divergence(r: mpf) -> mpf:
            far, near = mp.exp((alpha - 1) * r), mp.exp(-alpha * r)
            return mp.log((alpha * far + (alpha - 1) * near) / (2 * alpha - 1)) / (alpha - 1)

        return root(lambda r: divergence(abs(r)) * mp.sign(r) - allowed, 100)


@pytest.mark.parametrize(("p1", "p2"), MODERATE)
def test_renyi_laplace_is_the_limit_of_theorem_1_for_large_alpha(p1: float, p2: float) -> None:
    limit = unit_radius("renyi_laplace", p1, p2)
    away = [abs(laplace_renyi(mpf(10) ** x, p1, p2) - limit) / limit for x in (2, 4, 6)]
    assert away[2] < away[1] < away[0]
    assert away[2] < mpf("2e-5")


def test_theorem_3_is_that_limit_and_not_the_best_that_theorem_1_gives() -> None:
    """Other orders are valid as well, and give more where 2 p1 < 1, or where p1 + p2 < 1: Theorem 3 is not tight."""
    assert laplace_renyi(mpf(2), 0.4, 0.2) > theorem_3(0.4, 0.2) * mpf("1.2")
    assert laplace_renyi(mpf(5), 0.9, 0.05) > theorem_3(0.9, 0.05) * mpf("1.01")
    for p1, p2 in MODERATE:
        for alpha in (mpf("1.01"), mpf(2), mpf(10), mpf(1000)):
            assert laplace_renyi(alpha, p1, p2) <= shift_at_which_laplace_half_lines_tie(p1, p2) * (1 + mpf("1e-12"))


#: Far below any bound that votes can give, far above where quotients of float64 overflow.
TINY = 1e-300


@st.composite
def probabilities(draw: st.DrawFn) -> tuple[float, float]:
    """(p1, p2) with p1 > p2 > 0 and p1 + p2 <= 1."""
    p1 = draw(st.floats(1e-250, 1, exclude_max=True))
    share = draw(st.one_of(st.floats(0, 1), st.sampled_from([1e-12, 0.5, 1 - 1e-9, 1.0])))
    p2 = max(TINY, min(p1, 1 - p1) * share)
    return p1, p2 if p2 < p1 else float(np.nextafter(p1, 0))


@st.composite
def near_certainty(draw: st.DrawFn) -> tuple[float, float]:
    """(p1, p2) as ``probabilities``, with 1 - p1 from 1e-16 to 1e-3 and p2 of about that size."""
    p1 = 1 - 10 ** draw(st.floats(-16, -3)) * draw(st.floats(0.5, 1))
    return min(p1, 1 - 2**-53), max(TINY, (1 - min(p1, 1 - 2**-53)) * draw(st.floats(0, 1)))


def assert_at_most(radius: float, other: float, rounding: float = 2e-12) -> None:
    """Up to rounding, downwards by 1e-12 relative, or 1e-14 of a quantile (Neyman-Pearson): up to 690 for Laplace."""
    assert radius <= other * (1 + 2e-12) + rounding


LAPLACE_ROUNDING = 1e-11


@settings(max_examples=200)
@given(probabilities())
def test_renyi_is_never_above_the_tight_radius(pair: tuple[float, float]) -> None:
    assert_at_most(unit_radius("renyi", *pair), unit_radius(TWO_CLASS, *pair))


@settings(max_examples=200)
@given(probabilities())
def test_using_less_never_gives_more(pair: tuple[float, float]) -> None:
    assert_at_most(unit_radius(ONE_CLASS, *pair), unit_radius(TWO_CLASS, *pair))


@pytest.mark.parametrize("certificate", COMPUTED)
@settings(max_examples=150)
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
        (LAPLACE_ONE_CLASS, 1.0, 0.0, np.inf),
        (LAPLACE_TWO_CLASS, 1.0, 0.0, np.inf),
        (LAPLACE_TWO_CLASS, 0.3, 0.0, np.inf),
        ("renyi_laplace", 1.0, 0.0, np.inf),
        ("renyi_laplace", 0.5, 0.0, np.log(2)),
        ("pixeldp_laplace", 1.0, 0.0, np.inf),
        ("pixeldp_laplace", 0.3, 0.0, np.inf),
        (UNIFORM_ONE_CLASS, 1.0, 0.0, 1.0),
        (UNIFORM_TWO_CLASS, 1.0, 0.0, 1.0),
        (UNIFORM_TWO_CLASS, 0.5, 0.0, 0.5),
        ("splitting", 1.0, 0.0, 1.0),
    ],
)
def test_radius_at_the_ends_of_the_unit_interval(certificate: str, p1: float, p2: float, radius: float) -> None:
    assert unit_radius(certificate, p1, p2) == pytest.approx(radius, rel=1e-9)


@pytest.mark.parametrize("certificate", COMPUTED)
@settings(max_examples=150)
@given(pair=probabilities(), share=st.floats(0, 1))
def test_radius_grows_with_p1(certificate: str, pair: tuple[float, float], share: float) -> None:
    p1, p2 = pair
    less = p2 + (p1 - p2) * share
    assert_at_most(unit_radius(certificate, max(less, np.nextafter(p2, 1)), p2), unit_radius(certificate, p1, p2))


@pytest.mark.parametrize("certificate", COMPUTED)
@settings(max_examples=150)
@given(pair=probabilities(), share=st.floats(0, 1))
def test_radius_shrinks_with_p2(certificate: str, pair: tuple[float, float], share: float) -> None:
    p1, p2 = pair
    assert_at_most(unit_radius(certificate, p1, p2), unit_radius(certificate, p1, max(TINY, p2 * share)))


@pytest.mark.parametrize("certificate", COMPUTED)
def test_a_vector_gives_what_its_elements_give_one_by_one(certificate: str) -> None:
    p1, p2 = np.array(PAIRS * 400).T  # longer than any block it may be worked through in
    together = CERTIFICATES[certificate].unit_radius(p1, p2)
    one_by_one = [unit_radius(certificate, *pair) for pair in PAIRS] * 400
    np.testing.assert_allclose(together, one_by_one, rtol=1e-14)
    assert CERTIFICATES[certificate].unit_radius(p1[:0], p2[:0]).shape == (0,)
    assert CERTIFICATES[certificate].unit_radius(p1.reshape(4, -1), p2.reshape(4, -1)).shape == (4, len(p1) // 4)


#: What the certificates with a formula stand for, exactly.
FORMULAS: dict[str, Callable[[mpf, mpf], mpf]] = {
    "renyi_laplace": lambda a, b: -mp.log1p(b - a),
    "pixeldp_laplace": lambda a, b: mp.log(a / b) / 2,
    LAPLACE_TWO_CLASS: lambda a, b: (laplace_quantile(a) - laplace_quantile(b)) / 2,
    LAPLACE_ONE_CLASS: lambda a, b: max(laplace_quantile(a), mpf(0)),
    UNIFORM_TWO_CLASS: lambda a, b: a - b,
    UNIFORM_ONE_CLASS: lambda a, b: max(2 * a - 1, mpf(0)),
    "splitting": lambda a, b: a - b,
}


def laplace_quantile(p: mpf) -> mpf:
    return mp.log(2 * p) if p < 0.5 else -mp.log(2 * (1 - p))


@pytest.mark.parametrize("certificate", FORMULAS)
@settings(max_examples=200)
@given(pair=st.one_of(probabilities(), near_certainty()))
def test_radius_is_never_above_its_formula(certificate: str, pair: tuple[float, float]) -> None:
    with mp.workdps(60):
        assert unit_radius(certificate, *pair) <= FORMULAS[certificate](*map(mpf, pair))


@pytest.mark.parametrize(
    ("one_class", "two_class"),
    [(LAPLACE_ONE_CLASS, LAPLACE_TWO_CLASS), (UNIFORM_ONE_CLASS, UNIFORM_TWO_CLASS)],
)
@given(p1=st.floats(0.5, 1, exclude_min=True, exclude_max=True))
def test_one_and_two_class_agree_in_l1_where_the_runner_up_has_all_the_rest(
    one_class: str, two_class: str, p1: float
) -> None:
    assert unit_radius(one_class, p1, 1 - p1) == pytest.approx(unit_radius(two_class, p1, 1 - p1), abs=2e-12)


@given(st.floats(0.5, 1, exclude_min=True, exclude_max=True))
def test_theorem_3_is_tight_for_two_classes(p1: float) -> None:
    """Teng, Lee & Yuan 2020: in the binary case, all that Laplace noise allows."""
    with mp.workdps(60):
        assert unit_radius(LAPLACE_ONE_CLASS, p1, 1 - p1) == pytest.approx(theorem_3(p1, 1 - p1), rel=1e-11, abs=2e-14)


#: (certificate, one that is never smaller): those of a family know the same, and the last ones are tight.
ORDER = [
    ("pixeldp", TWO_CLASS),
    ("renyi_laplace", LAPLACE_TWO_CLASS),
    ("pixeldp_laplace", LAPLACE_TWO_CLASS),
    (LAPLACE_ONE_CLASS, LAPLACE_TWO_CLASS),
    (UNIFORM_ONE_CLASS, UNIFORM_TWO_CLASS),
]


@pytest.mark.parametrize(("certificate", "larger"), ORDER)
@settings(max_examples=200)
@given(pair=st.one_of(probabilities(), near_certainty()))
def test_no_radius_is_above_the_tight_one(certificate: str, larger: str, pair: tuple[float, float]) -> None:
    rounding = LAPLACE_ROUNDING if larger == LAPLACE_TWO_CLASS else 2e-12
    assert_at_most(unit_radius(certificate, *pair), unit_radius(larger, *pair), rounding)


@settings(max_examples=200)
@given(st.one_of(probabilities(), near_certainty()))
def test_tight_laplace_is_never_below_teng_lee_and_yuan(pair: tuple[float, float]) -> None:
    """Their Theorem for several classes: max(log(p1 / p2) / 2, -log(1 - p1 + p2))."""
    with mp.workdps(60):
        teng = max(mp.log(mpf(pair[0]) / mpf(pair[1])) / 2, theorem_3(*pair))
        assert unit_radius(LAPLACE_TWO_CLASS, *pair) >= teng - LAPLACE_ROUNDING


def test_pixeldp_is_never_above_renyi_for_a_top_class_of_more_than_a_tenth() -> None:
    p1 = np.concatenate([np.linspace(0.1012, 0.11, 20), np.linspace(0.12, 0.99, 60), 1 - np.geomspace(1e-3, 1e-12, 10)])
    shares = np.concatenate(
        [[0], np.geomspace(1e-12, 1e-3, 20), np.linspace(0.002, 0.998, 499), 1 - 10.0 ** -np.arange(3, 10)]
    )
    first, second = np.broadcast_arrays(p1[:, None], np.minimum(p1, 1 - p1)[:, None] * shares)
    pixeldp, renyi = (CERTIFICATES[name].unit_radius(first, second) for name in ("pixeldp", "renyi"))
    assert np.all(pixeldp <= renyi)


@pytest.mark.parametrize(("p1", "p2"), [(0.1, 0.0094), (0.05, 0.001), (0.01, 0.005), (1e-4, 5e-5)])
def test_pixeldp_is_above_renyi_for_top_classes_below_that(p1: float, p2: float) -> None:
    """Neither certificate is always the better one: the threshold lies at p1 = 0.10117, p2 = 0.0095."""
    with mp.workdps(100):
        assert unit_radius("pixeldp", p1, p2) > exact_renyi(p1, p2)
        assert unit_radius("pixeldp", p1, p2) < shift_at_which_half_spaces_tie(p1, p2)


@given(st.one_of(probabilities(), near_certainty()))
def test_splitting_gives_the_numbers_of_uniform_noise(pair: tuple[float, float]) -> None:
    assert unit_radius("splitting", *pair) == unit_radius(UNIFORM_TWO_CLASS, *pair)


@pytest.mark.parametrize("scale", [0.12, 0.25, 1 / 3, 1.0])
@pytest.mark.parametrize("certificate", COMPUTED)
def test_radius_is_linear_in_the_scale_and_rounded_down(certificate: str, scale: float) -> None:
    p1, p2 = np.array(PAIRS).T
    units = CERTIFICATES[certificate].unit_radius(p1, p2)
    radii = CERTIFICATES[certificate].radius(p1, p2, scale)
    for unit, radius in zip(map(Fraction, units), map(Fraction, radii), strict=True):
        assert unit * Fraction(scale) * (1 - Fraction(1, 2**51)) <= radius <= unit * Fraction(scale)
    np.testing.assert_array_equal(CERTIFICATES[certificate].radius(p1, p2, scale, 3072), radii)


def test_every_l2_certificate_can_be_read_in_l_infinity_and_no_other() -> None:
    in_l2 = [name for name, certificate in CERTIFICATES.items() if certificate.norm == "l2"]
    assert [f"{name}_linf" for name in in_l2] == LINF
    for name in in_l2:
        assert CERTIFICATES[f"{name}_linf"].unit_radius is CERTIFICATES[name].unit_radius


@pytest.mark.parametrize("dimension", [1, 2, 3 * 32 * 32, 3 * 224 * 224, 10**9 + 7])
@pytest.mark.parametrize("certificate", LINF)
def test_l_infinity_radius_is_the_l2_one_over_the_root_of_the_dimension_rounded_down(
    certificate: str, dimension: int
) -> None:
    """A change of each of d values by r has L2 size r sqrt(d); no other of L-infinity size r has more."""
    p1, p2 = np.array(PAIRS).T
    in_l2 = CERTIFICATES[certificate.removesuffix("_linf")]
    radii = CERTIFICATES[certificate].radius(p1, p2, 0.25, dimension)
    with mp.workdps(50):
        for unit, radius in zip(in_l2.unit_radius(p1, p2), radii, strict=True):
            exact = mpf(float(unit)) / 4 / mp.sqrt(dimension)
            assert exact * (1 - mpf("1e-15")) <= mpf(float(radius)) <= exact


@pytest.mark.parametrize("dimension", [None, 0, -3])
@pytest.mark.parametrize("certificate", LINF)
def test_l_infinity_needs_the_dimension(certificate: str, dimension: int | None) -> None:
    with pytest.raises(ValueError, match=f"certificate '{certificate}' needs dimension.* got {dimension}"):
        CERTIFICATES[certificate].radius(np.array([0.9]), np.array([0.1]), 0.25, dimension)
