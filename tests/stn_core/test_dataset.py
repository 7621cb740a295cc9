"""Statements about data sets: against sums over all that can happen, in integers and fractions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import product
from math import ceil, comb, floor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, hypergeom
from statsmodels.stats.proportion import proportion_confint

from stn_core.dataset import population_interval, truly_certified

Ints = NDArray[np.int64]

#: Tails this close to the limit may fall on either side of it.
ROUNDING = Fraction(1, 10**8)

IMAGES = [1, 2, 3, 7, 25]
ALPHAS = [0.0, 0.001, 0.01, 0.1, 0.3]
BETAS = [0.001, 0.05, 0.3]
GRID = list(product(IMAGES, ALPHAS, BETAS))


@cache
def at_least(count: int, trials: int, p: float) -> Fraction:
    """P(Binomial(trials, p) >= count), exactly."""
    above, whole = p.as_integer_ratio()
    ways = (comb(trials, k) * above**k * (whole - above) ** (trials - k) for k in range(max(count, 0), trials + 1))
    return Fraction(sum(ways), whole**trials)


def exactly(count: int, trials: int, p: float) -> Fraction:
    return at_least(count, trials, p) - at_least(count + 1, trials, p)


def bounds(images: int, alpha: float, beta: float, independent: bool = True) -> Ints:
    """For every number that can be counted."""
    return truly_certified(np.arange(images + 1), images, alpha=alpha, beta=beta, independent=independent)


def least_not_excluded(counted: int, tail: Callable[[int], Fraction], beta: float) -> int:
    """By trying every number: the first T whose tail is above beta."""
    limit = Fraction(beta) * (1 - Fraction(1, 10**9))  # ties are not excluded
    return next(truly for truly in range(counted + 1) if truly == counted or tail(truly) > limit)


@pytest.mark.parametrize(("images", "alpha", "beta"), GRID)
def test_bound_is_the_first_number_that_the_binomial_tail_does_not_exclude(
    images: int, alpha: float, beta: float
) -> None:
    expected = [
        least_not_excluded(c, lambda t, c=c: at_least(c - t, images - t, alpha), beta) for c in range(images + 1)
    ]
    np.testing.assert_array_equal(bounds(images, alpha, beta), expected)


@pytest.mark.parametrize(("images", "alpha", "beta"), GRID)
def test_bound_for_shared_noise_is_the_first_number_that_markov_does_not_exclude(
    images: int, alpha: float, beta: float
) -> None:
    expected = [
        least_not_excluded(c, lambda t, c=c: Fraction(alpha) * (images - t) / (c - t), beta) for c in range(images + 1)
    ]
    np.testing.assert_array_equal(bounds(images, alpha, beta, independent=False), expected)


@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize("alpha", [1e-6, 0.001, 0.02])
@pytest.mark.parametrize("images", [500, 10_000])
def test_bound_is_that_number_for_whole_data_sets(images: int, alpha: float, independent: bool) -> None:
    """The same by scipy's binomial distribution, over every T at once."""
    beta = 0.01
    for counted in (1, images // 50, images // 3, images - 1, images):
        truly = np.arange(counted)
        false = counted - truly
        tail = binom.sf(false - 1, images - truly, alpha) if independent else alpha * (images - truly) / false
        excluded = tail <= beta * (1 - 1e-9)
        assert np.all(np.diff(excluded.astype(int)) <= 0)  # those excluded come first
        bound = truly_certified(counted, images, alpha=alpha, beta=beta, independent=independent)
        assert bound == excluded.sum()


def check_valid_and_none_larger(bounds: Ints, images: int, alpha: float, beta: float) -> None:
    """Whatever T is, the bound is above it with probability beta at most; raised anywhere, it would not be.

    At worst, each image that is not truly certified is counted with probability alpha. A larger bound that does not
    fall as more are counted errs wherever T is the bound and C at least what it is.
    """
    for truly in range(images + 1):
        others = images - truly
        wrong = sum(exactly(f, others, alpha) for f in range(others + 1) if bounds[truly + f] > truly)
        assert wrong <= Fraction(beta), "above the truth too often"
    for counted, truly in enumerate(bounds):
        if truly < counted:
            tail = at_least(counted - truly, images - truly, alpha)
            assert tail > Fraction(beta) * (1 - ROUNDING), "needlessly small"


@pytest.mark.parametrize(("images", "alpha", "beta"), GRID)
def test_bound_is_above_the_truth_with_probability_beta_at_most_and_none_larger_is(
    images: int, alpha: float, beta: float
) -> None:
    check_valid_and_none_larger(bounds(images, alpha, beta), images, alpha, beta)


@pytest.mark.parametrize(
    ("factor_of_alpha", "factor_of_beta", "complaint"),
    [(0.5, 1, "too often"), (1, 2, "too often"), (2, 1, "needlessly"), (1, 0.5, "needlessly")],
)
def test_that_check_notices_wrong_probabilities(factor_of_alpha: float, factor_of_beta: float, complaint: str) -> None:
    images, alpha, beta = 25, 0.1, 0.05
    wrong = bounds(images, factor_of_alpha * alpha, factor_of_beta * beta)
    with pytest.raises(AssertionError, match=complaint):
        check_valid_and_none_larger(wrong, images, alpha, beta)


@pytest.mark.parametrize(("images", "alpha", "beta"), GRID)
def test_bound_is_valid_where_fewer_certificates_are_false(images: int, alpha: float, beta: float) -> None:
    """alpha is only the largest probability, and images that are truly certified may be missed as well."""
    bound = bounds(images, alpha, beta)
    for truly, missed in product(range(images + 1), (0, 1, 3)):
        others, found = images - truly, max(truly - missed, 0)
        wrong = sum(exactly(f, others, alpha / 3) for f in range(others + 1) if bound[found + f] > truly)
        assert wrong <= Fraction(beta)


@pytest.mark.parametrize(("images", "alpha", "beta"), GRID)
def test_bound_for_shared_noise_holds_for_the_noise_that_is_worst_for_it(
    images: int, alpha: float, beta: float
) -> None:
    """Markov's inequality is an equality where f images, any, are false together, and otherwise none."""
    bound = bounds(images, alpha, beta, independent=False)
    for truly in range(images + 1):
        for false in range(1, images - truly + 1):
            probability = min(Fraction(1), Fraction(alpha) * (images - truly) / false)
            if bound[truly + false] > truly:
                assert probability <= Fraction(beta)
            else:
                assert probability > Fraction(beta) * (1 - ROUNDING)


@pytest.mark.parametrize(("images", "alpha", "beta"), GRID)
def test_bound_for_shared_noise_holds_where_one_coin_decides_on_all_images(
    images: int, alpha: float, beta: float
) -> None:
    """All images that are not truly certified are counted at once, with probability alpha, or none is."""
    bound = bounds(images, alpha, beta, independent=False)
    for truly in range(images + 1):
        wrong = Fraction(alpha) * bool(bound[images] > truly) + (1 - Fraction(alpha)) * bool(bound[truly] > truly)
        assert wrong <= Fraction(beta)


def test_the_bound_for_independent_noise_does_not_hold_for_one_coin() -> None:
    """Why shared noise has a bound of its own: here both images' certificates are false together far too often."""
    assert bounds(2, 0.1, 0.05)[2] == 1
    assert truly_certified(2, 2, alpha=0.1, beta=0.05, independent=False) == 0


@pytest.mark.parametrize("independent", [True, False])
@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(1e-12, 0.999), st.floats(0, 0.999))
def test_nothing_is_taken_away_where_bonferroni_allows(
    independent: bool, images: int, share: float, beta: float, part: float
) -> None:
    """images x alpha <= beta: all certificates are true at once, with probability 1 - beta."""
    counted = round(share * images)
    bound = truly_certified(counted, images, alpha=part * beta / images, beta=beta, independent=independent)
    assert bound == counted


@pytest.mark.parametrize("independent", [True, False])
@given(st.integers(1, 10**6), st.floats(0, 0.99), st.floats(1e-12, 0.999))
def test_bound_grows_with_the_count_from_nothing_and_never_exceeds_it(
    independent: bool, images: int, alpha: float, beta: float
) -> None:
    counted = np.unique(np.linspace(0, images, 200).astype(int))
    bound = truly_certified(counted, images, alpha=alpha, beta=beta, independent=independent)
    assert np.all((bound >= 0) & (bound <= counted))
    assert np.all(np.diff(bound) >= 0)
    if alpha == 0:
        np.testing.assert_array_equal(bound, counted)


@given(st.integers(1, 10**5), st.floats(0, 1), st.floats(0, 0.99), st.floats(1e-12, 0.499))
def test_less_doubt_or_more_risk_never_lowers_the_bound_nor_does_independence(
    images: int, share: float, alpha: float, beta: float
) -> None:
    counted = round(share * images)
    bound = truly_certified(counted, images, alpha=alpha, beta=beta)
    assert bound <= truly_certified(counted, images, alpha=alpha / 2, beta=beta)
    assert bound <= truly_certified(counted, images, alpha=alpha, beta=beta * 2)
    assert bound >= truly_certified(counted, images, alpha=alpha, beta=beta, independent=False)


@pytest.mark.parametrize("independent", [True, False])
def test_bound_has_the_shape_of_the_counts(independent: bool) -> None:
    counts = np.array([[0, 10, 500], [30, 499, 250]], dtype=np.int32)
    bound = truly_certified(counts, 500, alpha=0.01, beta=0.05, independent=independent)
    assert bound.dtype == np.int64
    for index in np.ndindex(2, 3):
        alone = truly_certified(int(counts[index]), 500, alpha=0.01, beta=0.05, independent=independent)
        assert np.shape(alone) == ()
        assert bound[index] == alone


def expected_discounted(truly: int, images: int, alpha: float) -> Fraction:
    """E[C] (1 - alpha) at worst: what the paper counts as robust, an accuracy times its confidence."""
    others = images - truly
    return sum(exactly(f, others, alpha) * (truly + f) for f in range(others + 1)) * (1 - Fraction(alpha))


@pytest.mark.parametrize("images", [1, 5, 25])
@pytest.mark.parametrize("alpha", [0.001, 0.1, 0.5])
def test_accuracy_times_confidence_is_no_lower_bound_not_even_on_average(images: int, alpha: float) -> None:
    """The paper's convention, accuracy x (1 - alpha), is too high for poor classifiers, such as those with T = 0.

    It is right on average from T = N (1 - alpha) / (2 - alpha) on, nearly half the images.
    """
    assert expected_discounted(0, images, alpha) > 0
    for truly in range(images + 1):
        enough = truly >= images * (1 - Fraction(alpha)) / (2 - Fraction(alpha))
        assert (expected_discounted(truly, images, alpha) <= truly) == enough


def test_accuracy_times_confidence_is_false_far_too_often_even_where_it_is_right_on_average() -> None:
    """498 of 1000 truly certified at alpha = 1%: it takes 1% away, and is too high for 38% of all noise."""
    truly, images, alpha = 498, 1000, 0.01
    assert truly >= images * (1 - alpha) / (2 - alpha)
    false = np.arange(images - truly + 1)
    probability = binom.pmf(false, images - truly, alpha)
    assert probability[(truly + false) * (1 - alpha) > truly].sum() == pytest.approx(0.38, abs=0.01)
    assert probability[bounds(images, alpha, 0.05)[truly:] > truly].sum() <= 0.05


#: (population, sample)
SAMPLES = [(1, 1), (2, 1), (5, 3), (12, 1), (12, 5), (12, 11), (12, 12), (40, 9)]


def draws(found: int, population: int, total: int, sample: int) -> Fraction:
    """P(``found`` of a sample of images are among ``total`` of the population's), exactly: by counting samples."""
    if not 0 <= found <= sample:
        return Fraction(0)
    return Fraction(comb(total, found) * comb(population - total, sample - found), comb(population, sample))


@cache
def draws_at_least(found: int, population: int, total: int, sample: int) -> Fraction:
    return sum((draws(x, population, total, sample) for x in range(found, sample + 1)), Fraction(0))


def draws_at_most(found: int, population: int, total: int, sample: int) -> Fraction:
    return 1 - draws_at_least(found + 1, population, total, sample)


def intervals(population: int, sample: int, beta: float) -> tuple[Ints, Ints]:
    """For every number that can be found."""
    return population_interval(np.arange(sample + 1), sample, population, beta=beta)


@pytest.mark.parametrize("beta", [0.001, 0.05, 0.4])
@pytest.mark.parametrize(("population", "sample"), SAMPLES)
def test_interval_holds_the_numbers_that_neither_tail_excludes(population: int, sample: int, beta: float) -> None:
    limit = Fraction(beta) / 2 * (1 - Fraction(1, 10**9))  # ties are not excluded
    low, high = intervals(population, sample, beta)
    for found in range(sample + 1):
        inside = [
            total
            for total in range(population + 1)
            if draws_at_least(found, population, total, sample) > limit
            and draws_at_most(found, population, total, sample) > limit
        ]
        assert inside == list(range(low[found], high[found] + 1))


@pytest.mark.parametrize("beta", [0.01, 0.05])
@pytest.mark.parametrize(("population", "sample"), [(1000, 10), (1000, 300), (10_000, 500), (50_000, 49_990)])
def test_interval_ends_where_the_tails_exclude_for_large_populations(population: int, sample: int, beta: float) -> None:
    """By scipy's hypergeometric distribution, whose tails are monotone in the total."""
    for found in (0, 1, sample // 3, sample - 1, sample):
        low, high = population_interval(found, sample, population, beta=beta)
        assert hypergeom.sf(found - 1, population, low, sample) > beta / 2
        assert hypergeom.cdf(found, population, high, sample) > beta / 2
        if low > 0:
            assert hypergeom.sf(found - 1, population, low - 1, sample) <= beta / 2
        if high < population:
            assert hypergeom.cdf(found, population, high + 1, sample) <= beta / 2


def check_coverage(low: Ints, high: Ints, population: int, beta: float) -> None:
    """Either end misses with probability beta / 2 at most; moved inwards anywhere, it would miss more often."""
    sample, half = len(low) - 1, Fraction(beta) / 2
    for total in range(population + 1):
        probability = [draws(found, population, total, sample) for found in range(sample + 1)]
        assert sum(p for p, end in zip(probability, low, strict=True) if end > total) <= half, "too narrow"
        assert sum(p for p, end in zip(probability, high, strict=True) if end < total) <= half, "too narrow"
    for found, (least, largest) in enumerate(zip(low, high, strict=True)):
        assert draws_at_least(found, population, least, sample) > half * (1 - ROUNDING), "too wide"
        assert draws_at_most(found, population, largest, sample) > half * (1 - ROUNDING), "too wide"


@pytest.mark.parametrize("beta", [0.001, 0.05, 0.4])
@pytest.mark.parametrize(("population", "sample"), SAMPLES)
def test_interval_misses_with_probability_beta_at_most_whatever_the_truth(
    population: int, sample: int, beta: float
) -> None:
    check_coverage(*intervals(population, sample, beta), population, beta)


@pytest.mark.parametrize(("factor", "complaint"), [(2, "too narrow"), (0.5, "too wide")])
def test_that_check_notices_a_wrong_beta(factor: float, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_coverage(*intervals(40, 9, factor * 0.05), 40, 0.05)


@pytest.mark.parametrize("beta", [1e-9, 0.05, 0.999])
@pytest.mark.parametrize("population", [1, 2, 37, 10_000])
def test_whole_population_is_known_exactly(population: int, beta: float) -> None:
    counted = np.unique(np.linspace(0, population, 38).astype(int))
    low, high = population_interval(counted, population, population, beta=beta)
    np.testing.assert_array_equal(low, counted)
    np.testing.assert_array_equal(high, counted)


@pytest.mark.parametrize("beta", [0.001, 0.05])
@pytest.mark.parametrize(("population", "sample"), [*SAMPLES, (100, 50), (1000, 100), (10_000, 100), (10_000, 5_000)])
def test_interval_is_no_wider_than_clopper_pearsons_in_whole_images(population: int, sample: int, beta: float) -> None:
    """That one is for samples with replacement, from which a part of the population is never known."""
    found = np.unique(np.linspace(0, sample, 41).astype(int))
    low, high = population_interval(found, sample, population, beta=beta)
    wide_low, wide_high = proportion_confint(found, sample, alpha=beta, method="beta")
    assert np.all(low >= [floor(population * p + 1e-6) for p in wide_low])
    assert np.all(high <= [ceil(population * p - 1e-6) for p in wide_high])


def test_interval_approaches_clopper_pearsons_as_the_population_grows() -> None:
    found = np.array([0, 1, 30, 50])
    low, high = population_interval(found, 50, 10**7, beta=0.05)
    wide_low, wide_high = proportion_confint(found, 50, alpha=0.05, method="beta")
    np.testing.assert_allclose(low / 10**7, wide_low, rtol=0, atol=1e-6)
    np.testing.assert_allclose(high / 10**7, wide_high, rtol=0, atol=1e-6)


@given(st.integers(1, 2000), st.floats(0, 1), st.floats(0, 1), st.floats(1e-6, 0.99))
def test_interval_holds_what_was_seen_and_mirrors_its_opposite(
    population: int, part: float, share: float, beta: float
) -> None:
    sample = max(1, round(part * population))
    found = round(share * sample)
    low, high = population_interval(found, sample, population, beta=beta)
    assert found <= low <= high <= population - (sample - found)
    assert low < found / sample * population + 1  # whole images
    assert high > found / sample * population - 1
    opposite = population_interval(sample - found, sample, population, beta=beta)
    assert (population - high, population - low) == opposite


def test_interval_has_the_shape_of_the_counts() -> None:
    counts = np.array([[0, 10], [30, 50], [49, 25]], dtype=np.uint8)
    low, high = population_interval(counts, 50, 200, beta=0.05)
    assert low.dtype == high.dtype == np.int64
    for index in np.ndindex(3, 2):
        alone = population_interval(int(counts[index]), 50, 200, beta=0.05)
        assert np.shape(alone) == (2,)
        assert (low[index], high[index]) == alone


GOOD: dict[str, dict[str, Any]] = {
    "truly_certified": {"certified": 3, "images": 10, "alpha": 0.01, "beta": 0.05},
    "population_interval": {"certified": 3, "images": 10, "population": 20, "beta": 0.05},
}

ALL = [
    ({"certified": 3.0}, "certified must be integers, got float64"),
    ({"certified": [True, False]}, "certified must be integers, got bool"),
    ({"certified": -1}, r"certified must lie in 0 … images.*images = 10"),
    ({"certified": [3, 11]}, r"certified must lie in 0 … images.*images = 10"),
    ({"certified": np.array(2**64 - 1, dtype=np.uint64)}, r"certified must lie in 0 … images.*images = 10"),
    ({"certified": 0, "images": 0}, "images be at least 1, got images = 0"),
    ({"beta": 0.0}, r"beta must lie inside \(0, 1\), got 0.0"),
    ({"beta": 1.0}, r"beta must lie inside \(0, 1\), got 1.0"),
    ({"beta": float("nan")}, r"beta must lie inside \(0, 1\), got nan"),
]
BAD = [
    *((name, change, message) for name in GOOD for change, message in ALL),
    ("truly_certified", {"alpha": -0.1}, r"alpha must lie in \[0, 1\), got -0.1"),
    ("truly_certified", {"alpha": 1.0}, r"alpha must lie in \[0, 1\), got 1.0"),
    ("truly_certified", {"alpha": float("nan")}, r"alpha must lie in \[0, 1\), got nan"),
    ("population_interval", {"population": 9}, "population must be at least the sample's 10 images, got 9"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_arguments_out_of_range_are_named(name: str, change: dict[str, Any], message: str) -> None:
    function = {"truly_certified": truly_certified, "population_interval": population_interval}[name]
    arguments = GOOD[name] | change
    with pytest.raises(ValueError, match=message):
        function(arguments.pop("certified"), arguments.pop("images"), **dict(arguments))
    assert np.all(np.asarray(function(**GOOD[name])) >= 0)
