"""Bounds on a probability that hold at every number of draws at once, so that votes may decide when to stop.

For each threshold tau there is an *e-process* E(tau), the evidence against p <= tau: a mixture of likelihood ratios of
q against tau over alternatives q above tau. One more draw multiplies the ratio by q / tau or by (1 - q) / (1 - tau),
on average by p q / tau + (1 - p) (1 - q) / (1 - tau), which is 1 where p = tau and grows with p. So E(tau) is a
supermartingale that begins at 1 wherever p <= tau, and by Ville's inequality (1939) it ever reaches 1 / error with at
most that probability. The lower bound is the tau at which it has just reached it.

Alternatives are told by u = (1 - q) / (1 - tau), which runs from 0 (hardly a failure) to 1 (as many as tau allows);
the mixture is in u, the same for every tau. With k successes and f failures

    E(tau) = integral from 0 to 1 of ((1 - u (1 - tau)) / tau)^k u^f du,

which decreases in tau: whoever claims p > tau has the evidence for every smaller threshold too, and as the one p that
is true errs with one threshold only, no correction for many thresholds is due. log E is convex in tau, each factor
log(u + (1 - u) / tau) being so; Newton's method relies on that.

The mixture is even in u, and the integral an incomplete beta function. Nothing here depends on how many draws there
will be or on when they were looked at: draws may be added to votes of long ago, and the bounds still hold.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from stn_core import intervals

Floats = NDArray[np.float64]

#: An incomplete beta function below this has lost digits. It counts as none, which is less evidence than there is.
_LEAST = 1e-290


def lower_bound(successes: ArrayLike, trials: ArrayLike, error: ArrayLike) -> Floats:
    """Lower bound on a probability, from counts at any time.

    With probability at least 1 - ``error`` the probability is above the bounds of *all* numbers of trials of one
    sequence: the largest of them may be used, or the one at which the votes said to stop.

    Args:
        successes: number of successes, 0 to ``trials``.
        trials: number of independent trials, 0 to 10 000 000.
        error: probability with which some bound may ever exceed the true probability, inside (0, 1). One-sided.

    Returns:
        float64, broadcast shape: the bound, rounded downwards; 0 without trials.

    Raises:
        ValueError: counts or error out of range.
    """
    k, n, e = np.broadcast_arrays(*intervals.checked(successes, trials, error, fewest=0))
    bound = np.zeros(k.shape)
    some = k > 0
    bound[some] = _root(k[some], n[some], e[some]) * (1 - intervals.slack(n[some]))
    return bound


def upper_bound(successes: ArrayLike, trials: ArrayLike, error: ArrayLike) -> Floats:
    """Upper bound on a probability, from counts at any time; as ``lower_bound``, rounded upwards, at most 1."""
    k, n, e = intervals.checked(successes, trials, error, fewest=0)
    # Failures are successes of the opposite; the difference costs half a unit in the last place of 1.
    return np.minimum(1.0, (1 - lower_bound(n - k, n, e)) * (1 + intervals.slack(n)) + 2.0**-53)


def log_evidence(successes: ArrayLike, trials: ArrayLike, threshold: ArrayLike) -> Floats:
    """Natural logarithm of the evidence (an e-value) against p <= ``threshold``; -infinity where it underflows.

    Args:
        successes: number of successes, 0 to ``trials``.
        trials: number of independent trials, 0 to 10 000 000.
        threshold: inside (0, 1).

    Raises:
        ValueError: counts or threshold out of range.
    """
    k, n, tau = intervals.checked(successes, trials, threshold, fewest=0, name="threshold")
    return _log_evidence(*np.broadcast_arrays(k, n - k, tau))[0]


def spending_lower_bound(successes: ArrayLike, trials: ArrayLike, error: float, stages: Collection[int]) -> Floats:
    """The simpler alternative: ``error`` shared equally among numbers of trials that were declared beforehand.

    Clopper-Pearson at each of the ``stages`` (Horvath et al. 2022); the bounds of all stages hold at once, by the union
    bound. 0 at any other number of trials.
    """
    return _at_stages(intervals.lower_bound, 0.0, successes, trials, error, stages)


def spending_upper_bound(successes: ArrayLike, trials: ArrayLike, error: float, stages: Collection[int]) -> Floats:
    """As ``spending_lower_bound``; 1 where the number of trials is none of the ``stages``."""
    return _at_stages(intervals.upper_bound, 1.0, successes, trials, error, stages)


def _root(k: Floats, n: Floats, error: Floats) -> Floats:
    """The tau at which the evidence is 1 / error, for k of at least 1."""
    f, enough = n - k, -np.log(error)

    def lacking(tau: Floats, i: NDArray[np.intp]) -> tuple[Floats, Floats]:
        evidence, slope = _log_evidence(k[i], f[i], tau)
        return enough[i] - evidence, -slope

    # No ratio exceeds 1 where tau is the share of successes or more. Clopper-Pearson at a smaller error is close.
    start = np.clip(np.nan_to_num(special.betaincinv(k, f + 1, error / np.sqrt(n + 1))), 1e-300, k / n)
    return intervals.monotone_root(lacking, np.zeros_like(k), k / n, start)


def _log_evidence(k: Floats, f: Floats, tau: Floats) -> tuple[Floats, Floats]:
    """The logarithm of the evidence, and its derivative by tau.

    By v = u (1 - tau) and with a = f + 1,

        E = tau^-k (1 - tau)^-a B(a, k + 1) I(1 - tau; a, k + 1),    E' = E (a / (1 - tau) - k / tau) - 1 / (1 - tau).
    """
    a, rest = f + 1, 1 - tau
    inside = special.betainc(a, k + 1, rest)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_inside = np.log(np.where(inside < _LEAST, 0.0, inside))
        evidence = _log_beta(a, k + 1) + log_inside - k * np.log(tau) - a * np.log1p(-tau)
        return evidence, a / rest - k / tau - np.exp(-evidence) / rest


def _log_beta(x: Floats, y: Floats) -> Floats:
    """log B(x, y), good to the rounding of log Gamma of the smaller alone; scipy's is to that of the larger."""
    x, y = np.minimum(x, y), np.maximum(x, y)
    # Stirling's series of log Gamma(y) - log Gamma(x + y), to 1e-15 from 50 on.
    series = (1 / y - 1 / (x + y)) / 12 - (y**-3 - (x + y) ** -3) / 360 + (y**-5 - (x + y) ** -5) / 1260
    large = special.gammaln(x) + x - x * np.log(y) - (x + y - 0.5) * np.log1p(x / y) + series
    return np.where(y < 50, special.betaln(x, y), large)


def _at_stages(
    bound: Callable[[ArrayLike, ArrayLike, ArrayLike], Floats],
    nothing: float,
    successes: ArrayLike,
    trials: ArrayLike,
    error: float,
    stages: Collection[int],
) -> Floats:
    declared = np.unique(np.asarray(stages, dtype=np.float64))
    if not len(declared) or declared[0] < 1:
        raise ValueError("stages must be numbers of draws, at least 1 each")
    k, n, e = np.broadcast_arrays(*intervals.checked(successes, trials, error, fewest=0))
    result = np.full(k.shape, nothing)
    here = np.isin(n, declared)
    result[here] = bound(k[here], n[here], e[here] / len(declared))
    return result
