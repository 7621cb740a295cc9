"""Clopper-Pearson bounds, held against exact binomial tails in 50 digits, and how each protocol shares alpha."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from statsmodels.stats.proportion import proportion_confint

from stn_core import CERTIFICATES, PROTOCOLS, certify, lower_bound, upper_bound

TRIALS = [1, 2, 10, 100, 1000, 10**5, 10**6]
ERRORS = [0.5, 0.05, 1e-3, 1e-9]
GRID = [(trials, error) for trials in TRIALS for error in ERRORS]

#: How much of a bound may be given away, relative to the exact Clopper-Pearson bound.
GIVEN_AWAY = mpf("1e-12")

#: (bound, successes, trials, error) for which scipy 1.17's inverse incomplete beta function alone is wrong by 1e-13 to
#: 1e-11, relative: the worst of 26 000 random cases with up to a million trials.
WHERE_SCIPY_IS_WRONG = [
    ("lower", 10_000, 10**6, 1e-9),
    ("lower", 43_968, 503_779, 3.661079920189271e-09),
    ("lower", 66_631, 494_719, 5.961812192426932e-06),
    ("upper", 5, 448_232, 0.41798042529252216),
    ("upper", 2, 473_257, 0.157068840633998),
    ("upper", 26, 971_922, 0.304152891300024),
    ("upper", 1, 530_700, 4.638707786641454e-06),
    ("upper", 2, 786_597, 0.39376931713034685),
    ("upper", 15, 807_937, 0.1955616626973383),
]


def at_least(successes: int, trials: int, p: mpf) -> mpf:
    """P(X >= successes) for X ~ Binomial(trials, p), summed term by term."""
    term = mp.binomial(trials, successes) * p**successes * (1 - p) ** (trials - successes)
    total, odds = term, p / (1 - p)
    for k in range(successes, trials):
        term *= odds * (trials - k) / (k + 1)
        total += term
        if term <= total * mpf("1e-45"):
            break
    return total


def at_most(successes: int, trials: int, p: mpf) -> mpf:
    return at_least(trials - successes, trials, 1 - p)


def check_lower(successes: int, trials: int, error: float) -> None:
    """The bound lies below the p at which ``successes`` or more have probability ``error``, and just below."""
    with mp.workdps(50):
        bound = mpf(float(lower_bound(successes, trials, error)))
        assert 0 < bound <= 1
        assert at_least(successes, trials, bound) <= error
        assert at_least(successes, trials, bound * (1 + GIVEN_AWAY)) > error


def check_upper(successes: int, trials: int, error: float) -> None:
    with mp.workdps(50):
        bound = mpf(float(upper_bound(successes, trials, error)))
        assert 0 < bound <= 1
        assert at_most(successes, trials, bound) <= error
        assert at_most(successes, trials, bound * (1 - GIVEN_AWAY)) > error


def counts_of(trials: int) -> list[int]:
    near_the_ends = {0, 1, 2, trials - 2, trials - 1, trials}
    return sorted(
        {*near_the_ends, trials // 50, trials // 10, trials // 2, trials - trials // 10} & {*range(trials + 1)}
    )


@pytest.mark.parametrize(("trials", "error"), GRID)
def test_lower_bound_is_clopper_pearson_rounded_down(trials: int, error: float) -> None:
    for successes in counts_of(trials):
        if successes > 0:
            check_lower(successes, trials, error)


@pytest.mark.parametrize(("trials", "error"), GRID)
def test_upper_bound_is_clopper_pearson_rounded_up(trials: int, error: float) -> None:
    for successes in counts_of(trials):
        if successes < trials:
            check_upper(successes, trials, error)


@pytest.mark.parametrize(("side", "successes", "trials", "error"), WHERE_SCIPY_IS_WRONG)
def test_bounds_hold_where_scipy_does_not(side: str, successes: int, trials: int, error: float) -> None:
    {"lower": check_lower, "upper": check_upper}[side](successes, trials, error)


@pytest.mark.parametrize("trials", TRIALS)
def test_no_success_bounds_nothing_from_below_and_no_failure_nothing_from_above(trials: int) -> None:
    assert lower_bound(0, trials, 0.05) == 0
    assert upper_bound(trials, trials, 0.05) == 1


@pytest.mark.parametrize("error", ERRORS)
def test_bounds_are_the_one_sided_halves_of_statsmodels_two_sided_interval(error: float) -> None:
    for trials in TRIALS:
        successes = np.array(counts_of(trials))
        low, high = proportion_confint(successes, trials, alpha=2 * error, method="beta")
        np.testing.assert_allclose(lower_bound(successes, trials, error), low, rtol=2e-11)
        np.testing.assert_allclose(upper_bound(successes, trials, error), high, rtol=2e-11)


@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(1e-9, 0.5))
def test_bounds_enclose_the_observed_frequency_and_mirror_each_other(trials: int, share: float, error: float) -> None:
    successes = round(share * trials)
    low, high = lower_bound(successes, trials, error), upper_bound(successes, trials, error)
    assert 0 <= low <= successes / trials <= high <= 1
    assert 1 - low == pytest.approx(float(upper_bound(trials - successes, trials, error)), abs=1e-12)


def test_bounds_broadcast() -> None:
    bounds = lower_bound([[3], [4]], 10, [0.05, 0.1, 0.2])
    assert bounds.shape == (2, 3)
    assert bounds[1, 2] == lower_bound(4, 10, 0.2)


@pytest.mark.parametrize("bound", [lower_bound, upper_bound])
@pytest.mark.parametrize(
    ("successes", "trials", "error", "named"),
    [
        (0, 0, 0.05, "trials"),
        (0, -1, 0.05, "trials"),
        (1, float("nan"), 0.05, "trials"),
        (-1, 10, 0.05, "successes"),
        (11, 10, 0.05, "successes"),
        (float("nan"), 10, 0.05, "successes"),
        ([3, 11], 10, 0.05, "successes"),
        (3, 10, 0.0, "error"),
        (3, 10, 1.0, "error"),
        (3, 10, float("nan"), "error"),
    ],
)
def test_bounds_refuse_what_is_out_of_range(
    bound: Callable[..., Any], successes: float | list[int], trials: float, error: float, named: str
) -> None:
    with pytest.raises(ValueError, match=f"^{named} must"):
        bound(successes, trials, error)


TOP, SECOND, LAST = 70, 20, 10
#: Parts into which alpha is split for three classes: (protocol, certificate) to the divisor of alpha.
SHARES = {
    ("paper", "neyman_pearson_one_class"): 3,
    ("paper", "neyman_pearson_two_class"): 6,
    ("paper", "renyi"): 6,
    ("paper_two", "neyman_pearson_one_class"): 1,
    ("paper_two", "neyman_pearson_two_class"): 2,
    ("paper_two", "renyi"): 2,
    ("split", "neyman_pearson_one_class"): 1,
    ("split", "neyman_pearson_two_class"): 2,
    ("split", "renyi"): 2,
    ("label", "neyman_pearson_one_class"): 1,
    ("label", "neyman_pearson_two_class"): 2,
    ("label", "renyi"): 2,
}


def test_every_protocol_and_certificate_is_in_the_table_of_shares() -> None:
    assert set(SHARES) == {(protocol, certificate) for protocol in PROTOCOLS for certificate in CERTIFICATES}


@pytest.mark.parametrize(("protocol", "certificate"), SHARES)
def test_each_bound_gets_its_share_of_alpha(protocol: str, certificate: str) -> None:
    alpha = 0.012
    counts = [[SECOND, TOP, LAST]]
    certified = certify(counts, counts, [1], certificate=certificate, protocol=protocol, sigma=1.0, alpha=alpha)
    error = alpha / SHARES[protocol, certificate]
    p1_lower = lower_bound(TOP, 100, error)
    one_class = certificate == "neyman_pearson_one_class"
    assert certified.prediction == 1
    assert certified.p1_lower == p1_lower
    assert certified.p2_upper == (1 - p1_lower if one_class else upper_bound(SECOND, 100, error))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_invalid_votes_stay_in_the_trials(protocol: str, certificate: str) -> None:
    alpha = 0.012
    counts = [[TOP, SECOND, 0]]
    certified = certify(
        counts, counts, [0], certificate=certificate, protocol=protocol, sigma=1.0, alpha=alpha, draws=[100]
    )
    error = alpha / SHARES[protocol, certificate]
    p1_lower = lower_bound(TOP, 100, error)
    one_class = certificate == "neyman_pearson_one_class"
    assert certified.p1_lower == p1_lower < lower_bound(TOP, TOP + SECOND, error)
    assert certified.p2_upper == (1 - p1_lower if one_class else upper_bound(SECOND, 100, error))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_an_image_without_one_valid_vote_abstains(protocol: str, certificate: str) -> None:
    certified = certify(
        [[0, 0, 0]], [[0, 0, 0]], [2], certificate=certificate, protocol=protocol, sigma=1.0, alpha=0.05, draws=100
    )
    assert certified.abstain
    assert certified.prediction == -1
    assert certified.radius == 0


@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_split_abstains_where_selection_has_no_valid_vote(certificate: str) -> None:
    kwargs: dict[str, Any] = {"certificate": certificate, "protocol": "split", "sigma": 1.0, "alpha": 0.05}
    assert certify([[100, 0]], [[0, 0]], **kwargs).abstain
    assert not certify([[100, 0]], [[1, 0]], **kwargs).abstain
