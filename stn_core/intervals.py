"""One-sided bounds on a probability from counts: Clopper-Pearson, plain and randomised. Rounded outwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]

#: Outward slack on every bound, relative, for up to 10 000 trials, and in proportion beyond. After polishing, bounds
#: are good to some 1e-14 there, and to 6e-12 at a million trials, as mpmath says: wide enough that rounding never turns
#: a bound inwards, far too narrow to cost any radius.
_SLACK = 1e-13
_SLACK_TRIALS = 1e4

#: Up to here the tests find every bound on the right side of the exact one; at ten times as many, some are not.
MOST_TRIALS = 10_000_000

#: scipy's inverse incomplete beta is off by up to 1e-11 relative, its forward function is not: Newton mends the one by
#: the other.
_POLISH_STEPS = 2

#: At most; each is Newton's or, where that would leave the bracket, halves it.
_ROOT_STEPS = 200


def lower_bound(successes: ArrayLike, trials: ArrayLike, error: ArrayLike, uniform: ArrayLike | None = None) -> Floats:
    """One-sided lower bound on a probability, exact in the sense of Clopper & Pearson (1934).

    The bound L(k) solves P_p(X >= k) = error for X binomial; that probability jumps with k, so the bound errs less
    often than it may. The randomised bound (Stevens 1950) solves P_p(X > k) + u P_p(X = k) = error with u uniform on
    (0, 1] and independent of X, and u = 1 gives L(k). It errs with probability ``error``, no more and hardly less.

    Numbers u below error / (1 - error) count as that, which only lowers the bound: for n successes of n it then stays
    at or below (1 - error)^(1 / n), where hardly a vote could fail, instead of reaching 1 by luck of u alone.

    Args:
        successes: number of successes, 0 to ``trials``.
        trials: number of independent trials, 1 to 10 000 000: beyond, scipy's functions lose too many digits.
        error: probability with which the bound may exceed the true probability, inside (0, 1). One-sided.
        uniform: u of the randomised bound; None for the plain one.

    Returns:
        float64, broadcast shape: the bound, rounded downwards.

    Raises:
        ValueError: counts, error or uniform out of range.
    """
    k, n, e = checked(successes, trials, error)
    if uniform is None:
        # Without a success there is no bound to find; any other count stands in for it.
        return np.where(k == 0, 0.0, _clopper_pearson(np.maximum(k, 1), n, e) * (1 - slack(n)))
    k, n, e, u = np.broadcast_arrays(k, n, e, _checked_uniform(uniform))
    bound = _randomised(k, n, e, np.clip(u, np.minimum(e / (1 - e), 1.0), 1.0)).reshape(k.shape)
    return np.where(k == 0, 0.0, bound * (1 - slack(n)))


def upper_bound(successes: ArrayLike, trials: ArrayLike, error: ArrayLike, uniform: ArrayLike | None = None) -> Floats:
    """One-sided upper bound on a probability; as ``lower_bound``, rounded upwards, at most 1."""
    k, n, e = checked(successes, trials, error)
    if uniform is None:
        with np.errstate(divide="ignore", invalid="ignore"):
            bound = special.betainccinv(k + 1, n - k, e)
            for _ in range(_POLISH_STEPS):
                bound = bound + (special.betaincc(k + 1, n - k, bound) - e) / _beta_density(k + 1, n - k, bound)
        # The density vanishes where the bound rounds to 1, and the step with it.
        return np.where((k == n) | np.isnan(bound), 1.0, np.minimum(1.0, bound * (1 + slack(n))))
    # Failures are successes of the opposite; the difference costs half a unit in the last place of 1.
    return np.minimum(1.0, (1 - lower_bound(n - k, n, e, uniform)) * (1 + slack(n)) + 2.0**-53)


def slack(trials: Floats) -> Floats:
    """How far bounds from that many trials are moved outwards, relative."""
    return _SLACK * np.maximum(trials / _SLACK_TRIALS, 1.0)


def _clopper_pearson(k: Floats, n: Floats, error: Floats) -> Floats:
    """The lower bound itself, not rounded, for k of 1 to n."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = special.betaincinv(k, n - k + 1, error)
        for _ in range(_POLISH_STEPS):
            bound = bound - (special.betainc(k, n - k + 1, bound) - error) / _beta_density(k, n - k + 1, bound)
    return bound


def _randomised(k: Floats, n: Floats, error: Floats, u: Floats) -> Floats:
    """The root p of (1 - u) P_p(X > k) + u P_p(X >= k) = error, between the plain bounds at k and k + 1."""
    k, n, error, u = (np.ravel(values) for values in (k, n, error, u))
    last = k == n
    a = np.where(k == 0, 1.0, k)  # such rows are 0 whatever is found here
    # A little wider than the plain bounds, which are roots themselves where u is 1.
    low = _clopper_pearson(a, n, error) * (1 - slack(n))
    high = np.where(last, 1.0, _clopper_pearson(np.where(last, a, a + 1), n, error) * (1 + slack(n)))
    return monotone_root(lambda p, i: _excess(p, a[i], n[i], error[i], u[i]), low, high, (low + high) / 2)


def monotone_root(
    function: Callable[[Floats, NDArray[np.intp]], tuple[Floats, Floats]], low: Floats, high: Floats, start: Floats
) -> Floats:
    """Roots of increasing functions, elementwise, by Newton's steps, or by halving where those would leave the bracket.

    Args:
        function: from points and which elements they are for, to the functions' values and slopes there.
        low, high: the brackets, float64 (elements,).
        start: where to begin, inside them.
    """
    root, low, high = start.copy(), low.copy(), high.copy()
    open_ = np.arange(root.size)
    for _ in range(_ROOT_STEPS):
        x = root[open_]
        value, slope = function(x, open_)
        lower, upper = np.where(value < 0, x, low[open_]), np.where(value < 0, high[open_], x)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = x - value / slope
        step = np.where((newton > lower) & (newton < upper), newton, (lower + upper) / 2)
        root[open_], low[open_], high[open_] = step, lower, upper
        open_ = open_[np.abs(step - x) > 1e-15 * x]
        if not open_.size:
            break
    return root


def _excess(p: Floats, k: Floats, n: Floats, error: Floats, u: Floats) -> tuple[Floats, Floats]:
    """(1 - u) P_p(X > k) + u P_p(X >= k) - error and its derivative by p, for k of 1 to n."""
    last = k == n
    b = np.where(last, 1.0, n - k)
    more = np.where(last, 0.0, special.betainc(k + 1, b, p))
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (1 - u) * np.where(last, 0.0, _beta_density(k + 1, b, p)) + u * _beta_density(k, n - k + 1, p)
    return (1 - u) * more + u * special.betainc(k, n - k + 1, p) - error, slope


def _beta_density(a: Floats, b: Floats, x: Floats) -> Floats:
    return np.exp((a - 1) * np.log(x) + (b - 1) * np.log1p(-x) - special.betaln(a, b))


def checked(
    successes: ArrayLike, trials: ArrayLike, error: ArrayLike, *, fewest: int = 1, name: str = "error"
) -> tuple[Floats, Floats, Floats]:
    """Counts and a probability inside (0, 1), called ``name``, as float64. Raises ValueError where they are not."""
    k, n, e = (np.asarray(value, dtype=np.float64) for value in (successes, trials, error))
    if not np.all(n >= fewest):
        raise ValueError(f"trials must be at least {fewest}")
    if not np.all(n <= MOST_TRIALS):
        raise ValueError(f"trials must be at most {MOST_TRIALS}: bounds from more are not accurate enough to be proved")
    if not np.all((k >= 0) & (k <= n)):
        raise ValueError("successes must lie between 0 and trials")
    if not np.all((e > 0) & (e < 1)):
        raise ValueError(f"{name} must lie inside (0, 1)")
    return k, n, e


def _checked_uniform(uniform: ArrayLike) -> Floats:
    u = np.asarray(uniform, dtype=np.float64)
    if not np.all((u > 0) & (u <= 1)):
        raise ValueError("uniform must lie in (0, 1]")
    return u
