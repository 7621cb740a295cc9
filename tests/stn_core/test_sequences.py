"""Bounds for all times at once: how often they ever err, by exact sums over paths; against integrals and mpmath."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mpmath import mp, mpf
from numpy.typing import NDArray

from stn_core import intervals
from stn_core.sequences import log_evidence, lower_bound, spending_lower_bound, spending_upper_bound, upper_bound

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

ERRORS = [0.5, 0.05, 1e-3, 1e-9]


def evidence_by_integration(k: int, f: int, tau: float) -> mpf:
    """The definition: the likelihood ratio of q against tau, averaged over u = (1 - q) / (1 - tau), even on (0, 1)."""
    t = mpf(tau)

    def ratio(u: mpf) -> mpf:
        q = 1 - u * (1 - t)
        return (q / t) ** k * ((1 - q) / (1 - t)) ** f

    return mp.quad(ratio, mp.linspace(0, 1, 33))


def evidence_by_mpmath(k: int, f: int, tau: mpf) -> mpf:
    """The same in 60 digits, for tau below k / (k + f): incomplete beta functions summed term by term."""
    a = f + 1
    if tau > 0.5:
        # B(1 - tau; a, k + 1) = (1 - tau)^a tau^(k + 1) / a x 2F1(a + k + 1, 1; a + 1; 1 - tau).
        return tau / a * rising_series(a + k + 1, a + 1, 1 - tau)
    # The rest of B(a, k + 1) is the same with both sides exchanged.
    scale = mp.exp(-k * mp.log(tau) - a * mp.log(1 - tau))
    return scale * mp.beta(a, k + 1) - tau / (k + 1) * rising_series(a + k + 1, k + 2, tau)


def rising_series(a: mpf, c: mpf, x: mpf) -> mpf:
    """2F1(a, 1; c; x), whose terms are positive and in the end fall."""
    term = series = mpf(1)
    j = 0
    while term > series * mpf("1e-50") or x * (a + j) > c + j:
        term *= x * (a + j) / (c + j)
        series += term
        j += 1
    return series


@pytest.mark.parametrize("tau", [0.01, 0.5, 0.8413, 0.99865])
@pytest.mark.parametrize(("k", "f"), [(0, 0), (1, 0), (0, 1), (7, 0), (50, 3), (400, 100), (300, 2), (5, 60)])
def test_evidence_is_an_average_of_likelihood_ratios(k: int, f: int, tau: float) -> None:
    with mp.workdps(30):
        expected = mp.log(evidence_by_integration(k, f, tau))
    assert log_evidence(k, k + f, tau) == pytest.approx(float(expected), abs=1e-9)


def test_no_draws_are_no_evidence() -> None:
    assert log_evidence(0, 0, [0.1, 0.5, 0.99]) == pytest.approx(np.zeros(3), abs=1e-12)
    assert lower_bound(0, 0, 0.05) == 0
    assert upper_bound(0, 0, 0.05) == 1


def test_evidence_too_small_for_a_float_is_none() -> None:
    assert log_evidence(0, 10_000_000, 0.9) == -np.inf
    assert lower_bound(0, 10_000_000, 0.9) == 0


# One step.

counts = st.integers(0, 3000)


@given(counts, counts, st.floats(1e-3, 1 - 1e-3), st.floats(0, 1))
def test_evidence_does_not_grow_on_average_where_the_probability_is_at_most_the_threshold(
    k: int, f: int, tau: float, share: float
) -> None:
    """One more draw, with probability p = share x tau of success; exactly the same on average where p = tau."""
    now, *after = log_evidence([k, k + 1, k], [k + f, k + f + 1, k + f + 1], tau)
    assume(np.all(np.isfinite([now, *after])))
    success, failure = np.exp(np.array(after) - now)
    assert tau * success + (1 - tau) * failure == pytest.approx(1, abs=1e-6)
    assert share * tau * success + (1 - share * tau) * failure <= 1 + 1e-6


@given(counts, counts, st.floats(1e-3, 1 - 1e-3), st.floats(1e-3, 1 - 1e-3))
def test_less_is_claimed_wherever_more_is(k: int, f: int, one: float, other: float) -> None:
    """Nested: evidence falls with the threshold, so that p > tau is never claimed without p > tau' for tau' < tau."""
    low, high = sorted((one, other))
    assert log_evidence(k, k + f, low) >= log_evidence(k, k + f, high) - 1e-8


# The bounds.


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("trials", [1, 10, 1000, 10**5, 10**7])
def test_the_lower_bound_is_where_evidence_suffices_rounded_down(trials: int, error: float) -> None:
    """In 60 digits: enough at the bound, and no longer enough just above it."""
    k = np.unique([1, trials // 100, trials // 2, trials - trials // 100, trials - 1, trials])
    k = k[k > 0]
    for successes, bound in zip(k.tolist(), lower_bound(k, trials, error).tolist(), strict=True):
        failures, p = trials - successes, mpf(bound)
        with mp.workdps(60):
            given_away = mpf("1e-12") * max(1, trials / 10_000)
            assert 0 < bound < 1
            assert evidence_by_mpmath(successes, failures, p) * error >= 1
            above = p * (1 + given_away)
            assert above >= 1 or evidence_by_mpmath(successes, failures, above) * error < 1


@given(st.integers(0, 10**7), st.floats(0, 1), st.floats(1e-12, 1 - 1e-6))
def test_bounds_are_probabilities_on_either_side_of_the_share(n: int, share: float, error: float) -> None:
    k = round(share * n)
    low, high = float(lower_bound(k, n, error)), float(upper_bound(k, n, error))
    assert 0 <= low <= (k / n if n else 0) + 1e-12
    assert (k / n if n else 1) - 1e-12 <= high <= 1
    # Of the opposite, up to the rounding of a difference from 1.
    assert high >= 1 - float(lower_bound(n - k, n, error))
    assert high <= (1 - float(lower_bound(n - k, n, error))) * (1 + 1e-9) + 1e-15


@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(1e-12, 0.9))
def test_bounds_rise_with_successes_fall_with_failures_and_widen_with_smaller_errors(
    n: int, share: float, error: float
) -> None:
    k = min(round(share * n), n - 1)
    slack = 1 - 1e-10 * max(1.0, n / 1e4)
    for bound in (lower_bound, upper_bound):
        assert bound(k, n, error) <= bound(k + 1, n, error) / slack
        assert bound(k + 1, n + 1, error) >= bound(k, n, error) * slack
        assert bound(k, n + 1, error) <= bound(k, n, error) / slack
    assert lower_bound(k, n, error / 2) <= lower_bound(k, n, error)
    assert upper_bound(k, n, error / 2) >= upper_bound(k, n, error)


def test_bounds_broadcast_and_keep_their_shape() -> None:
    k, n, error = np.array([[0], [3]]), np.array([5, 10, 20]), 0.05
    together = lower_bound(k, n, error)
    assert together.shape == (2, 3)
    assert together[1, 2] == lower_bound(3, 20, error)
    assert lower_bound(3, 20, error).shape == ()
    assert upper_bound(k, n, [[0.1], [0.2]]).shape == (2, 3)


@pytest.mark.parametrize("bound", [lower_bound, upper_bound])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, -1, 0.05), "trials must be at least 0"),
        ((1, 10**7 + 1, 0.05), "at most 10000000"),
        ((-1, 5, 0.05), "successes must lie"),
        ((6, 5, 0.05), "successes must lie"),
        ((1, 5, 0.0), "error must lie"),
        ((1, 5, 1.0), "error must lie"),
        ((1, 5, float("nan")), "error must lie"),
    ],
)
def test_what_is_out_of_range_is_refused(
    bound: Callable[..., Floats], arguments: tuple[int, int, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bound(*arguments)


def test_a_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold must lie"):
        log_evidence(1, 5, 1.0)


# How often bounds ever err: every path, exactly.


def ever_true(is_false: Callable[[NDArray[np.int64], int], Bools], p: float, horizon: int) -> float:
    """The probability that ``is_false`` of (successes 0 to n, n) holds at some n up to ``horizon``."""
    alive, lost = np.ones(1), 0.0
    for n in range(1, horizon + 1):
        alive = np.append(alive * (1 - p), 0) + np.append(0, alive * p)
        false = is_false(np.arange(n + 1), n)
        lost += float(alive[false].sum())
        alive[false] = 0
    return lost


def just_below(bounds: Floats) -> Floats:
    return bounds[bounds > 0] * (1 - 1e-9)


HORIZON = 300


@pytest.mark.parametrize("error", [0.3, 0.05, 0.001])
def test_lower_bounds_ever_err_with_at_most_their_error(error: float) -> None:
    """At round probabilities, and just below what some counts claim, where errors are likeliest."""
    bounds = {n: lower_bound(np.arange(n + 1), n, error) for n in range(1, HORIZON + 1)}
    grid = [0.02, 0.3, 0.5, 0.7, 0.9, 0.99, *just_below(bounds[5]), *just_below(bounds[60][[40, 55, 60]])]
    likeliest = max(ever_true(lambda k, n, p=p: bounds[n] > p, p, HORIZON) for p in grid)
    assert 0.3 * error < likeliest <= error


@pytest.mark.parametrize("error", [0.3, 0.05, 0.001])
def test_upper_bounds_ever_err_with_at_most_their_error(error: float) -> None:
    bounds = {n: upper_bound(np.arange(n + 1), n, error) for n in range(1, HORIZON + 1)}
    grid = [0.01, 0.1, 0.3, 0.5, 0.7, 0.98]
    likeliest = max(ever_true(lambda k, n, p=p: bounds[n] < p, p, HORIZON) for p in grid)
    assert 0.3 * error < likeliest <= error


def test_the_same_sums_catch_twice_the_error() -> None:
    p, error = 0.9, 0.05
    assert ever_true(lambda k, n: lower_bound(k, n, 3 * error) > p, p, HORIZON) > error


@pytest.mark.parametrize("p", [0.3, 0.5, 0.9])
def test_looking_at_clopper_pearson_after_every_draw_errs_far_more_often(p: float) -> None:
    error = 0.05
    assert ever_true(lambda k, n: intervals.lower_bound(k, n, error) > p, p, HORIZON) > 2.5 * error


# Stages.

STAGES = (10, 40, 160)


def test_stages_share_the_error() -> None:
    k = np.array([9, 38, 150, 30])
    n = np.array([10, 40, 160, 41])
    expected = [*intervals.lower_bound(k[:3], n[:3], 0.05 / 3), 0]
    np.testing.assert_array_equal(spending_lower_bound(k, n, 0.05, STAGES), expected)
    expected = [*intervals.upper_bound(k[:3], n[:3], 0.05 / 3), 1]
    np.testing.assert_array_equal(spending_upper_bound(k, n, 0.05, STAGES), expected)


@pytest.mark.parametrize("p", [0.3, 0.52, 0.7, 0.9, 0.96])
def test_bounds_at_stages_ever_err_with_at_most_their_error(p: float) -> None:
    error = 0.1
    assert 0 < ever_true(lambda k, n: spending_lower_bound(k, n, error, STAGES) > p, p, 200) <= error
    assert 0 < ever_true(lambda k, n: spending_upper_bound(k, n, error, STAGES) < p, p, 200) <= error


@pytest.mark.parametrize("stages", [(), (0, 10), (-5,)])
def test_stages_are_numbers_of_draws(stages: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="stages must be numbers of draws"):
        spending_lower_bound(5, 10, 0.05, stages)
