"""Bounds on a probability, plain and randomised: against exact binomial tails in 50 digits, and how often they err."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mpmath import mp, mpf
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from stn_core import lower_bound, upper_bound

Floats = NDArray[np.float64]

TRIALS = [1, 2, 10, 100, 1000, 10**5, 10**6]
ERRORS = [0.5, 0.05, 1e-3, 1e-9]
GRID = [(trials, error) for trials in TRIALS for error in ERRORS]


def given_away(trials: int) -> mpf:
    """How much of a bound may be given away, relative to the exact Clopper-Pearson bound."""
    return mpf("1e-12") * max(1, mpf(trials) / 10_000)


NAN = float("nan")

#: (bound, successes, trials, error) for which scipy 1.17's inverse incomplete beta function alone is wrong by 1e-13 to
#: 1e-11, relative: the worst of 26 000 random cases with up to a million trials.
WHERE_SCIPY_IS_WRONG = [
    # Its forward function, by 4e-12 (scipy 1.17), which polishing then copies.
    ("lower", 20, 10**6, 0.9),
    ("lower", 5, 10**6, 0.9),
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
        assert at_least(successes, trials, bound * (1 + given_away(trials))) > error


def check_upper(successes: int, trials: int, error: float) -> None:
    with mp.workdps(50):
        bound = mpf(float(upper_bound(successes, trials, error)))
        assert 0 < bound <= 1
        assert at_most(successes, trials, bound) <= error
        assert at_most(successes, trials, bound * (1 - given_away(trials))) > error


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
    assert 1 - low == pytest.approx(
        float(upper_bound(trials - successes, trials, error)), abs=float(given_away(trials))
    )


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
        (1, NAN, 0.05, "trials"),
        (-1, 10, 0.05, "successes"),
        (11, 10, 0.05, "successes"),
        (NAN, 10, 0.05, "successes"),
        ([3, 11], 10, 0.05, "successes"),
        (3, 10, 0.0, "error"),
        (3, 10, 1.0, "error"),
        (3, 10, NAN, "error"),
    ],
)
def test_bounds_refuse_what_is_out_of_range(
    bound: Callable[..., Any], successes: float | list[int], trials: float, error: float, named: str
) -> None:
    with pytest.raises(ValueError, match=f"^{named} must"):
        bound(successes, trials, error)


@pytest.mark.parametrize("trials", [1, 31, 1000, 10**5])
def test_bounds_are_numbers_however_close_to_one_they_come(trials: int) -> None:
    """All but one success and a tiny error: the upper bound, 1 - error / trials, is 1 in float64."""
    for error in (1e-9, 1e-13, 1e-17, 1e-30):
        assert 1 - 2 * error / trials <= upper_bound(trials - 1, trials, error) <= 1
        assert 0 <= lower_bound(trials - 1, trials, error) < 1


def test_bounds_of_nothing_are_nothing() -> None:
    for bound in (lower_bound, upper_bound):
        assert bound([], 10, 0.05).shape == bound([], 10, 0.05, []).shape == (0,)


# Randomised bounds.

#: Numbers in (0, 1] to randomise by; the first counts as error / (1 - error) for every error in ``ERRORS``.
VARIATES = [1e-300, 0.06, 0.3, 0.999, 1.0]


def more_or_some(successes: int, trials: int, p: mpf, u: mpf) -> mpf:
    """P(X > successes) + u P(X = successes) for X ~ Binomial(trials, p)."""
    term = mp.binomial(trials, successes) * p**successes * (1 - p) ** (trials - successes)
    return at_least(successes, trials, p) - (1 - u) * term


def counted_as(u: float, error: float) -> mpf:
    return min(mpf(1), max(mpf(u), mpf(error) / (1 - mpf(error))))


def check_randomised_lower(successes: int, trials: int, error: float, u: float) -> None:
    with mp.workdps(50):
        bound = mpf(float(lower_bound(successes, trials, error, u)))
        assert 0 < bound < 1
        assert more_or_some(successes, trials, bound, counted_as(u, error)) <= error
        assert more_or_some(successes, trials, bound * (1 + given_away(trials)), counted_as(u, error)) > error


def check_randomised_upper(successes: int, trials: int, error: float, u: float) -> None:
    """Failures are bounded from below; what is given away is absolute, since 1 - bound is what was computed."""
    with mp.workdps(50):
        bound = mpf(float(upper_bound(successes, trials, error, u)))
        assert 0 < bound <= 1
        assert more_or_some(trials - successes, trials, 1 - bound, counted_as(u, error)) <= error
        assert more_or_some(trials - successes, trials, 1 - bound + given_away(trials), counted_as(u, error)) > error


@pytest.mark.parametrize("u", VARIATES)
@pytest.mark.parametrize(("trials", "error"), [*((n, error) for n, error in GRID if n <= 1000), (10**5, 1e-3)])
def test_randomised_bounds_are_stevens_rounded_outwards(trials: int, error: float, u: float) -> None:
    for successes in counts_of(trials):
        if successes > 0:
            check_randomised_lower(successes, trials, error, u)
        if successes < trials:
            check_randomised_upper(successes, trials, error, u)


@pytest.mark.parametrize("u", [0.5, 1 - 1e-15, 1.0])
@pytest.mark.parametrize(("successes", "trials"), [(1, 2), (1, 1000), (2, 1000), (1, 10**5), (1000, 1000)])
def test_randomised_bounds_hold_however_small_the_error(successes: int, trials: int, u: float) -> None:
    """The plain bounds between which the root lies are then many orders of magnitude apart."""
    for error in np.geomspace(1e-9, 1e-20, 56):
        check_randomised_lower(successes, trials, float(error), u)


@pytest.mark.parametrize("trials", TRIALS)
@pytest.mark.parametrize("error", [*ERRORS, 0.9])
def test_the_largest_variate_gives_the_plain_bound(trials: int, error: float) -> None:
    successes = np.array(counts_of(trials))
    np.testing.assert_allclose(
        lower_bound(successes, trials, error, 1.0),
        lower_bound(successes, trials, error),
        rtol=float(given_away(trials)),
    )
    np.testing.assert_allclose(
        upper_bound(successes, trials, error, 1.0),
        upper_bound(successes, trials, error),
        rtol=0,
        atol=float(given_away(trials)),
    )


@pytest.mark.parametrize("trials", TRIALS)
@pytest.mark.parametrize("error", [0.4, 0.05, 1e-3, 1e-9])
def test_unanimous_votes_never_bound_by_luck_alone(trials: int, error: float) -> None:
    """The bound would be 1 for u = error; it ends at the p of which even unanimity is no news."""
    with mp.workdps(50):
        end = (1 - mpf(error)) ** (mpf(1) / trials)
        for u in (error / (1 - error), error, error / 2, 1e-300):
            assert end * (1 - given_away(trials)) < mpf(float(lower_bound(trials, trials, error, u))) <= end < 1
            assert upper_bound(0, trials, error, u) >= 1 - end


def test_no_success_bounds_nothing_from_below_whatever_the_variate() -> None:
    assert not lower_bound(0, 10, 0.05, VARIATES).any()
    assert np.all(upper_bound(10, 10, 0.05, VARIATES) == 1)


variates = st.floats(0, 1, exclude_min=True)


@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(1e-9, 0.9), variates, variates)
@example(trials=1, share=1.0, error=0.9, u=0.5, v=1.0)
@example(trials=10, share=1.0, error=0.3, u=5e-324, v=0.3)
def test_randomised_bounds_are_ordered(trials: int, share: float, error: float, u: float, v: float) -> None:
    """Falling in u, rising with the count, between the plain bounds of a count and the next."""
    k = round(share * trials)
    u, v = sorted((u, v))
    low, high = lower_bound(k, trials, error, [u, v]), upper_bound(k, trials, error, [u, v])
    tiny = float(given_away(trials))
    assert low[1] <= low[0] * (1 + tiny)
    assert high[1] >= high[0] - tiny
    assert np.all(lower_bound(k, trials, error) <= low * (1 + tiny))
    assert np.all(high <= upper_bound(k, trials, error) + tiny)
    assert np.all((low >= 0) & (low < 1) & (high > 0) & (high <= 1))
    if k < trials:
        assert np.all(low <= lower_bound(k + 1, trials, error) * (1 + tiny))
        assert np.all(low <= lower_bound(k + 1, trials, error, [u, v]) * (1 + tiny))
        assert np.all(high <= upper_bound(k + 1, trials, error, [u, v]) + tiny)
    if k > 0:
        assert np.all(high >= upper_bound(k - 1, trials, error) - tiny)


def test_randomised_bounds_broadcast() -> None:
    bounds = lower_bound([[3], [4]], 10, 0.05, [0.1, 0.2, 0.3])
    assert bounds.shape == (2, 3)
    assert bounds[1, 2] == lower_bound(4, 10, 0.05, 0.3)
    assert upper_bound([[3], [4]], 10, 0.05, [0.1, 0.2, 0.3])[1, 2] == upper_bound(4, 10, 0.05, 0.3)


def error_probability(trials: int, error: float, truths: Floats, side: str) -> Floats:
    """The probability, over successes and variate, that a randomised bound lies beyond each true probability.

    Bounds move one way with u, so for every count the variates that err are those below some number. It is found by
    halving, from the bounds alone; the counts' probabilities are scipy's.
    """

    def errs(k: NDArray[np.int64], p: Floats, u: Floats | float) -> NDArray[np.bool_]:
        if side == "lower":
            return lower_bound(k, trials, error, u) > p
        return upper_bound(k, trials, error, u) < p

    p = truths[:, None]
    always, ever = errs(np.arange(trials + 1), p, 1.0), errs(np.arange(trials + 1), p, 1e-300)
    counts, p = np.broadcast_arrays(np.arange(trials + 1), p)
    variates_that_err = always.astype(np.float64)
    some = ever & ~always
    low, high = np.zeros(some.sum()), np.ones(some.sum())
    for _ in range(45):
        middle = (low + high) / 2
        wrong = errs(counts[some], p[some], middle)
        low, high = np.where(wrong, middle, low), np.where(wrong, high, middle)
    variates_that_err[some] = low
    return (stats.binom.pmf(counts, trials, p) * variates_that_err).sum(axis=1)


def spent(trials: int, error: float, truths: Floats) -> Floats:
    """What the lower bound should err with: ``error``, but P(X > k) where variates below error / (1 - error) decide.

    Of the counts, those above k err for every variate and k, for which P(X > k) <= error < P(X >= k), for some.
    """
    counts = np.arange(trials + 1)
    more = stats.binom.sf(counts, trials, truths[:, None])
    k = (more > error).sum(axis=1)
    above = more[np.arange(len(truths)), k]
    variate = (error - above) / stats.binom.pmf(k, trials, truths)
    return np.where(variate > error / (1 - error), error, above)


@pytest.mark.parametrize("side", ["lower", "upper"])
@pytest.mark.parametrize("error", [0.3, 0.05, 1e-3])
@pytest.mark.parametrize("trials", [1, 2, 7, 40, 150])
def test_randomised_bounds_err_with_the_probability_they_are_given(trials: int, error: float, side: str) -> None:
    """Exact over successes and variates: an ``error`` of another size inside would show at every true probability."""
    edges = lower_bound(np.arange(1, trials + 1), trials, error)
    end = (1 - error) ** (1 / trials)
    truths = np.concatenate([(np.arange(200) + 0.5) / 200, edges * (1 - 1e-6), edges * (1 + 1e-6), [end * 0.999999]])
    beyond = np.array([end + (1 - end) * 1e-6, (1 + end) / 2])
    both = np.concatenate([truths, beyond])
    expected = spent(trials, error, both)
    err = error_probability(trials, error, both if side == "lower" else 1 - both, side)
    assert np.all(err <= error * (1 + 1e-9))
    np.testing.assert_allclose(err, expected, rtol=1e-6, atol=1e-12)
    assert not err[len(truths) :].any()  # beyond the end nothing ever errs
    if error <= 0.05:
        assert np.mean(expected[:200] == error) > 0.8  # so most true probabilities use up all of it


@pytest.mark.parametrize(("trials", "error"), [(40, 0.05), (150, 1e-3)])
def test_the_plain_bound_errs_less_often(trials: int, error: float) -> None:
    """What randomising gains, and that ``error_probability``'s equality is not met by just any bound."""
    truths = (np.arange(200) + 0.5) / 200
    counts = np.arange(trials + 1)
    errs = lower_bound(counts, trials, error) > truths[:, None]
    plain = (stats.binom.pmf(counts, trials, truths[:, None]) * errs).sum(axis=1)
    assert np.all(plain <= error)
    assert plain.mean() < 0.85 * error_probability(trials, error, truths, "lower").mean()


@pytest.mark.parametrize("bound", [lower_bound, upper_bound])
@pytest.mark.parametrize("uniform", [0.0, -0.1, 1 + 2**-52, NAN, float("inf"), [0.5, 0.0], [NAN, 0.5]], ids=str)
def test_randomised_bounds_refuse_variates_out_of_range(
    bound: Callable[..., Any], uniform: float | list[float]
) -> None:
    with pytest.raises(ValueError, match=r"^uniform must lie in \(0, 1\]$"):
        bound(3, 10, 0.05, uniform)


@pytest.mark.parametrize("bound", [lower_bound, upper_bound])
@pytest.mark.parametrize("failures", [0, 1, 20, 999])
@pytest.mark.parametrize("u", [None, 0.3])
def test_bounds_of_ten_million_trials_lie_on_the_right_side(
    bound: Callable[..., object], failures: int, u: float | None
) -> None:
    """By sums of the binomial's first terms in fifty digits: the largest number of trials that is accepted."""
    trials, error = 10_000_000, 0.0005

    def at_most(count: int, q: mpf) -> mpf:
        term = total = (1 - q) ** trials
        for i in range(1, count + 1):
            term *= q / (1 - q) * (trials - i + 1) / i
            total += term
        return total if count >= 0 else mpf(0)

    with mp.workdps(50):
        found = mpf(float(bound(trials - failures if bound is lower_bound else failures, trials, error, u)))
        q, weight = 1 - found if bound is lower_bound else found, mpf(u or 1)
        spent = (1 - weight) * at_most(failures - 1, q) + weight * at_most(failures, q)
        assert spent <= error
        assert spent > error * (1 - mpf("1e-2"))


@pytest.mark.parametrize("bound", [lower_bound, upper_bound])
def test_more_trials_than_can_be_bounded_accurately_are_refused(bound: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="trials must be at most 10000000"):
        bound(5, 10_000_001, 0.05)
