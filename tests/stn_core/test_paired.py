from __future__ import annotations

from math import nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, norm
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from stn_core.paired import difference_interval, holm, mcnemar

Floats = NDArray[np.float64]


def outcomes(images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every pair of counts that there can be, as two columns."""
    one, other = np.meshgrid(np.arange(images + 1), np.arange(images + 1), indexing="ij")
    possible = one + other <= images
    return one[possible], other[possible]


def chances(images: int, one: float, other: float) -> Floats:
    """Of each of ``outcomes``, where an image is the one's alone or the other's alone with these probabilities."""
    more, less = outcomes(images)
    both = images - more - less
    ways = special.gammaln(images + 1) - sum(special.gammaln(count + 1) for count in (more, less, both))
    logs = special.xlogy(more, one) + special.xlogy(less, other) + special.xlogy(both, max(0.0, 1 - one - other))
    return np.exp(ways + logs)


# --- The interval --------------------------------------------------------------------------------------------------


def score(difference: float, more: int, less: int, images: int) -> float:
    """Tango's statistic, with the likeliest probabilities under ``difference`` found by a search, not by a formula."""

    def surprise(less_often: float) -> float:
        more_often = less_often + difference
        rest = 1 - more_often - less_often
        logs = special.xlogy(more, more_often) + special.xlogy(less, less_often)
        return -float(logs + special.xlogy(images - more - less, rest))

    bounds = max(0.0, -difference), (1 - difference) / 2
    less_often = float(minimize_scalar(surprise, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x)
    variance = (2 * less_often + difference - difference**2) / images
    return float(((more - less) / images - difference) / np.sqrt(variance))


@given(st.data())
def test_its_ends_are_where_a_search_of_the_likelihood_puts_them(data: st.DataObject) -> None:
    images = data.draw(st.integers(2, 400))
    more = data.draw(st.integers(0, images))
    less = data.draw(st.integers(0, images - more))
    level = data.draw(st.sampled_from([0.01, 0.05, 0.3]))
    low, high = (float(end) for end in difference_interval(more, less, images, level=level))
    quantile = norm.isf(level / 2)
    assert -1 <= low <= (more - less) / images <= high <= 1
    if less < images:
        assert score(low, more, less, images) == pytest.approx(quantile, rel=1e-4)
    else:
        assert low == -1
    if more < images:
        assert score(high, more, less, images) == pytest.approx(-quantile, rel=1e-4)
    else:
        assert high == 1


@pytest.mark.parametrize(("more", "less", "images"), [(0, 0, 20), (1, 0, 20), (7, 3, 40), (0, 12, 30), (29, 0, 30)])
def test_all_that_the_score_test_does_not_reject_is_inside_and_nothing_else(more: int, less: int, images: int) -> None:
    low, high = (float(end) for end in difference_interval(more, less, images, level=0.05))
    for difference in np.linspace(-0.999, 0.999, 120):
        accepted = abs(score(float(difference), more, less, images)) <= norm.isf(0.025)
        assert accepted == (low <= difference <= high), difference


def test_where_no_image_tells_them_apart_it_is_wilsons_about_nothing() -> None:
    low, high = difference_interval(0, 0, 100, level=0.05)
    square = norm.isf(0.025) ** 2
    assert float(high) == -float(low) == pytest.approx(square / (100 + square), rel=1e-12)


def covered(images: int, low: Floats, high: Floats) -> list[float]:
    """How often such intervals, one for each outcome, hold the truth, exactly: over a grid of true probabilities, many
    of them small, where approximations fail first."""
    grid = np.array([0, 0.1, 0.3, 0.5, 1, 1.5, 2, 3, 4, 5.5, 7, 10, 15]) / images
    return [
        float(chances(images, one, other)[(low <= one - other) & (one - other <= high)].sum())
        for one in grid
        for other in grid
        if one + other <= 1
    ]


@pytest.mark.parametrize(("images", "level", "least"), [(20, 0.05, 0.92), (100, 0.05, 0.92), (60, 0.01, 0.985)])
def test_it_covers_the_truth_as_often_as_the_page_says(images: int, level: float, least: float) -> None:
    more, less = outcomes(images)
    often = covered(images, *difference_interval(more, less, images, level=level))
    assert min(often) >= least
    assert 1 - level < np.mean(often) < 1 - level / 4
    # The sums can tell: the mean plus or minus its standard error is far off.
    mean, quantile = (more - less) / images, norm.isf(level / 2)
    error = quantile * np.sqrt(((more + less) / images - mean**2) / images)
    assert min(covered(images, mean - error, mean + error)) < 0.5


@given(st.integers(0, 50), st.integers(0, 50), st.integers(100, 10**6))
def test_what_the_one_has_more_the_other_has_less(more: int, less: int, images: int) -> None:
    low, high = difference_interval(more, less, images, level=0.05)
    assert difference_interval(less, more, images, level=0.05) == (-high, -low)
    wider = difference_interval(more, less, images, level=0.01)
    assert wider[0] < low < high < wider[1]


def test_it_takes_counts_of_any_shape() -> None:
    more, less = np.array([[3], [5]]), np.array([0, 2, 4])
    low, high = difference_interval(more, less, 30, level=0.1)
    assert low.shape == high.shape == (2, 3)
    assert (low[1, 2], high[1, 2]) == difference_interval(5, 4, 30, level=0.1)


@pytest.mark.parametrize(
    ("arguments", "level", "says"),
    [
        ((3, 2, 4), 0.05, "there are 4 images"),
        ((0, 0, 0), 0.05, "there are 0 images"),
        ((-1, 2, 4), 0.05, "counts must be integers"),
        ((1.5, 2, 4), 0.05, "counts must be integers"),
        ((1, 2, 4), 0.0, "level must lie inside"),
        ((1, 2, 4), nan, "level must lie inside"),
    ],
)
def test_what_is_no_interval_is_refused(arguments: tuple[int, int, int], level: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        difference_interval(*arguments, level=level)


# --- The test ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_its_p_value_is_that_of_fair_coins(one: int, other: int) -> None:
    p_value = float(mcnemar(one, other))
    assert p_value == pytest.approx(reference_mcnemar([[5, one], [other, 7]], exact=True).pvalue, rel=1e-9, abs=1e-300)
    if one + other:
        assert p_value == pytest.approx(binomtest(one, one + other).pvalue, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("level", [0.3, 0.05, 0.01])
def test_it_errs_no_more_often_than_it_says(level: float) -> None:
    one, other = outcomes(40)
    rejected = mcnemar(one, other) <= level
    errors = [chances(40, often, often)[rejected].sum() for often in np.linspace(0, 0.5, 26)]
    assert level / 4 < max(errors) <= level


# --- Many tests ----------------------------------------------------------------------------------------------------


@settings(max_examples=25)  # theirs takes a tenth of a second
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_holms_correction_is_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], rel=1e-12)


def test_no_tests_need_no_correction() -> None:
    assert holm([]).shape == (0,)
