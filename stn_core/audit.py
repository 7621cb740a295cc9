"""Published certificates held against their votes, by a path of its own.

What computes them goes backwards: from a tail probability to a bound, from two bounds to the largest radius. Here
everything goes forwards: a bound is put into the binomial tail, a radius into the certificate's own condition, in 40
digits. Both must hold where they were published and fail a little further out. None of the code that computes bounds
or radii is imported, so a mistake in it is not repeated here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

Ints = NDArray[np.int64]

#: How far a tail at a bound may exceed its share of alpha, relative: what its evaluation in floating point may err.
_TAIL = 1e-9
#: A bound must fail this much further out: relative, and absolute for up to 10 000 draws, in proportion beyond.
_BOUND, _BOUND_ABSOLUTE, _BOUND_DRAWS = 1e-9, 1e-12, 1e4
#: Bounds of the exact protocol are this near to the fraction of votes.
_EXACT = 1e-15
#: A radius must fail this much further out: relative, and in units of the noise's scale.
_RADIUS, _RADIUS_ABSOLUTE = 1e-6, 1e-12

#: Bounds and radii remembered: many images have the same votes.
_REMEMBERED = 2**16
#: What two questions about the same bounds share.
_AT_HAND = 64

_mp = mpmath.mp.clone()
_mp.dps = 40
_TINY = _mp.mpf("1e-30")


@dataclass(frozen=True)
class Terms:
    """What a certificate was computed under.

    Attributes:
        certificate, protocol: names, as in tables.
        scale: the noise's, in [0, 1] pixel units.
        alpha: failure probability of one image's certificate.
        classes: number of classes.
        dimension: values in an image, channels x height x width.
        interval: "clopper_pearson" or "randomised".
        stages: numbers of draws after which protocol "stages" looks.
    """

    certificate: str
    protocol: str
    scale: float
    alpha: float
    classes: int
    dimension: int
    interval: str
    stages: tuple[int, ...] = ()


#: Votes of the candidate, the most of any other class, and draws, invalid ones included.
Look = tuple[int, int, int]


@dataclass(frozen=True)
class Standing:
    """What an image's votes come to under a protocol.

    Attributes:
        candidate: the class to be certified; -1 where there is none.
        looks: after each round of draws, in order; of protocols for a fixed number, one; none where the image could
            not be counted.
    """

    candidate: int
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class Claim:
    """What is published of an image.

    Attributes:
        prediction: the certified class; None where it abstains.
        p1_lower, p2_upper: bounds on its probability and on every other class's.
        radius: in the certificate's norm, in [0, 1] pixel units.
    """

    prediction: int | None
    p1_lower: float
    p2_upper: float
    radius: float


#: An image without votes: it abstains, with bounds that hold of anything.
NOTHING = Claim(None, 0.0, 1.0, 0.0)


def audit(
    terms: Terms,
    claim: Claim,
    *,
    estimation: Sequence[int],
    selection: Sequence[int],
    label: int,
    draws: int,
    uniform: float | None = None,
) -> list[str]:
    """What is wrong with a certificate, by the votes of its image; empty where nothing is.

    Args:
        terms: what it was computed under.
        claim: what is published.
        estimation, selection: votes per class.
        label: true class.
        draws: estimation draws, invalid ones included.
        uniform: the image's variate, where intervals are randomised.
    """
    if terms.protocol not in _SHARES:
        return [f"not re-derived: no rule for protocol {terms.protocol!r}"]
    (candidate,), (top,), (runner_up,) = standings(terms.protocol, [estimation], [selection], [label])
    looks = ((int(top), int(runner_up), draws),) if draws else ()
    return audit_standing(terms, claim, Standing(int(candidate), looks), uniform)


def standings(protocol: str, estimation: ArrayLike, selection: ArrayLike, labels: ArrayLike) -> tuple[Ints, Ints, Ints]:
    """``Standing.candidate``, ``top`` and ``runner_up`` of many images.

    Args:
        protocol: one that ``has_rule`` knows.
        estimation, selection: votes per class, integers (images, classes).
        labels: true classes, (images,); one that is no class has no votes.
    """
    counts, first = np.array(estimation, dtype=np.int64), np.asarray(selection, dtype=np.int64)
    # The lowest of the classes that share the most votes.
    if protocol in ("label", "anytime_label"):
        candidate = np.asarray(labels, dtype=np.int64)
    elif protocol in ("split", "anytime", "stages"):
        candidate = np.where(first.sum(axis=1) > 0, first.argmax(axis=1), -1)
    else:
        candidate = counts.argmax(axis=1)
    own = np.flatnonzero((candidate >= 0) & (candidate < counts.shape[1]))
    top = np.zeros_like(candidate)
    top[own] = counts[own, candidate[own]]
    counts[own, candidate[own]] = -1
    return candidate, top, counts.max(axis=1)


def has_rule(certificate: str, protocol: str) -> bool:
    """Whether such certificates can be re-derived here."""
    return certificate in _RULES and protocol in _SHARES


def audit_standing(terms: Terms, claim: Claim, standing: Standing, uniform: float | None = None) -> list[str]:
    """``audit``, for votes that have been looked through: as several certificates share that."""
    rule = _RULES.get(terms.certificate)
    if rule is None or terms.protocol not in _SHARES:
        return [f"not re-derived: no rule for {terms.certificate!r} under {terms.protocol!r}"]
    if terms.interval not in ("clopper_pearson", "randomised"):
        return [f"not re-derived: no rule for interval {terms.interval!r}"]
    if not standing.looks:
        return [] if claim == NOTHING else ["certifies an image that has no votes"]
    if not (0 <= claim.p1_lower <= 1 and 0 <= claim.p2_upper <= 1 and 0 <= claim.radius < math.inf):
        return [f"bounds or radius are out of range: {claim.p1_lower!r}, {claim.p2_upper!r}, {claim.radius!r}"]
    if terms.interval == "randomised" and terms.protocol in _SEQUENTIAL:
        return [f"intervals are randomised, which protocol {terms.protocol!r} does not bear"]
    if terms.interval == "randomised" and _SHARES[terms.protocol] is not None:
        if uniform is None or not 0 < uniform <= 1:
            return [f"intervals are randomised, and its variate is {uniform!r}"]
    else:
        uniform = None
    found = _answer(terms, claim, standing)
    p1, p2 = claim.p1_lower, claim.p2_upper
    shares = _SHARES[terms.protocol]
    if shares is None:
        found += _exact_bounds(standing, claim)
    else:
        share, looks = terms.alpha / shares(terms.classes, rule.bounds), standing.looks
        if terms.protocol == "stages":
            share /= max(1, len(set(terms.stages)))
            looks = tuple(look for look in looks if look[2] in terms.stages)
        found += _bounds(looks, share, rule.bounds, uniform, p1, p2, terms.protocol in _ANYTIME)
    if claim.prediction is not None and p1 > p2:
        found += _radius(terms.certificate, p1, p2, claim.radius, terms.scale, terms.dimension if rule.linf else 1)
    return found


# --- The answer ----------------------------------------------------------------------------------------------------

#: Parts that alpha is split into, by number of classes and of bounds. None where votes are the probabilities.
_SHARES: dict[str, Callable[[int, int], int] | None] = {
    "paper": lambda classes, bounds: classes * bounds,  # any class might have been the one
    "paper_two": lambda classes, bounds: bounds,
    "split": lambda classes, bounds: bounds,
    "label": lambda classes, bounds: bounds,
    "anytime": lambda classes, bounds: bounds,
    "anytime_label": lambda classes, bounds: bounds,
    "stages": lambda classes, bounds: bounds,
    "exact": None,
}

_ANYTIME = {"anytime", "anytime_label"}
_SEQUENTIAL = {*_ANYTIME, "stages"}


def _answer(terms: Terms, claim: Claim, standing: Standing) -> list[str]:
    """Complaints about the class, and about who abstains."""
    if claim.prediction is None:
        found = ["has a radius although it abstains"] if claim.radius else []
        if standing.candidate >= 0 and claim.p1_lower > claim.p2_upper:
            found.append("abstains although its bounds part the classes")
        return found
    if claim.prediction != standing.candidate:
        whom = f"certifies class {standing.candidate}" if standing.candidate >= 0 else "certifies none"
        return [f"certifies class {claim.prediction}, where protocol {terms.protocol!r} {whom}"]
    return [] if claim.p1_lower > claim.p2_upper else ["does not abstain although its bounds do not part the classes"]


# --- Bounds --------------------------------------------------------------------------------------------------------


@lru_cache(_REMEMBERED)
def _bounds(
    looks: tuple[Look, ...], share: float, bounds: int, uniform: float | None, p1: float, p2: float, anytime: bool
) -> tuple[str, ...]:
    """Complaints about bounds that may err with probability ``share`` each, the best of all looks."""
    # A variate below this counts as it, so that luck alone lifts no bound to 1.
    u = 1.0 if uniform is None else min(1.0, max(uniform, share / (1 - share)))
    own, others = (", ".join(f"{look[which]} of {look[2]}" for look in looks) + " votes" for which in (0, 1))
    beyond = _BOUND_ABSOLUTE * max([1.0, *(draws / _BOUND_DRAWS for _, _, draws in looks)])

    def at_least(p: float) -> float:
        """How likely so many votes of the candidate are, were its probability p, at the look where that is least:
        P(X > top) + u P(X = top), or one over the evidence against p."""
        if anytime:
            return 1 / max([1.0, *(_evidence(top, draws - top, p) for top, _, draws in looks)])
        tails = ((float(binom.sf(top, n, p)), float(binom.sf(top - 1, n, p))) for top, _, n in looks)
        return min([1.0, *((1 - u) * more + u * as_many for more, as_many in tails)])

    def at_most(p: float) -> float:
        """The same of so few votes of any other class: P(X < runner_up) + u P(X = runner_up)."""
        if anytime:
            return 1 / max([1.0, *(_evidence(draws - votes, votes, 1 - p) for _, votes, draws in looks)])
        tails = ((float(binom.cdf(votes - 1, n, p)), float(binom.cdf(votes, n, p))) for _, votes, n in looks)
        return min([1.0, *((1 - u) * fewer + u * as_many for fewer, as_many in tails)])

    found = []
    if not any(top for top, _, _ in looks):
        found += [] if p1 == 0 else [f"p1_lower is {p1!r} without a vote"]
    elif p1 and not at_least(p1) <= share * (1 + _TAIL):
        found.append(f"p1_lower {p1!r} is too large for {own}")
    elif not at_least(min(1.0, p1 + p1 * _BOUND + beyond)) >= share * (1 - _TAIL):
        found.append(f"p1_lower {p1!r} is smaller than {own} allow")

    rest = 1 - p1
    if bounds == 1 or p2 > rest:
        found += [] if p2 == rest else [f"p2_upper {p2!r} is not what p1_lower {p1!r} leaves"]
        return tuple(found)
    if p2 != rest and not at_most(p2) <= share * (1 + _TAIL):
        found.append(f"p2_upper {p2!r} is too small for {others}")
    elif not at_most(max(0.0, p2 - p2 * _BOUND - beyond)) >= share * (1 - _TAIL):
        found.append(f"p2_upper {p2!r} is larger than {others} need")
    return tuple(found)


_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(64)


def _evidence(successes: int, failures: int, tau: float) -> float:
    """The evidence against p <= tau, by quadrature: the integral over u from 0 to 1 of ((1 - u (1 - tau)) /
    tau)^successes u^failures. One over it bounds the probability that votes ever are so many."""
    if not 0 < tau < 1:
        return math.inf if tau <= 0 else 1 / (failures + 1)
    rest = successes * (1 - tau)
    peak = min(1.0, failures / (rest + failures * (1 - tau))) if failures else 0.0
    width = 1 / math.sqrt(max(4.0, rest * (1 - tau) + (rest * rest if not peak else failures / peak**2)))
    ends = sorted({0.0, 1.0, *(min(1.0, max(0.0, peak + step * width)) for step in range(-40, 41))})
    low, high = np.array(ends[:-1])[:, None], np.array(ends[1:])[:, None]
    u = (high + low) / 2 + (high - low) / 2 * _NODES
    with np.errstate(divide="ignore", over="ignore"):
        log_ratio = successes * np.log1p((1 - u) * ((1 - tau) / tau)) + failures * np.log(u)
        pieces = np.exp(log_ratio) @ _NODE_WEIGHTS
    return float((pieces * (high - low)[:, 0] / 2).sum())


def _exact_bounds(standing: Standing, claim: Claim) -> list[str]:
    """Complaints about bounds where votes are the probabilities."""
    p1, p2 = claim.p1_lower, claim.p2_upper
    ((votes, others, draws),) = standing.looks
    top, runner_up = Fraction(votes, draws), Fraction(others, draws)
    found = []
    if not top - Fraction(_EXACT) <= Fraction(p1) <= top:
        found.append(f"p1_lower {p1!r} is not {votes} of {draws}, rounded down")
    if not (runner_up <= Fraction(p2) <= runner_up + Fraction(_EXACT) or p2 == 1 - p1):
        found.append(f"p2_upper {p2!r} is not {others} of {draws}, rounded up")
    return found


# --- Radii ---------------------------------------------------------------------------------------------------------


@lru_cache(_REMEMBERED)
def _radius(certificate: str, p1: float, p2: float, radius: float, scale: float, divisor: int) -> tuple[str, ...]:
    """Complaints about a radius, that of an L2 certificate over the root of ``divisor``."""
    holds = _RULES[certificate].holds
    # Logarithms of 0 are of no use, and no sound bound is that near to 0 or 1.
    first, second = min(_mp.mpf(p1), 1 - _TINY), max(_mp.mpf(p2), _TINY)
    distance = _mp.mpf(radius) * _mp.sqrt(divisor) / _mp.mpf(scale)
    if not holds(first, second, distance):
        return (f"radius {radius!r} is too large for p1_lower {p1!r} and p2_upper {p2!r}",)
    if holds(first, second, distance * (1 + _RADIUS) + _RADIUS_ABSOLUTE):
        return (f"radius {radius!r} is smaller than p1_lower {p1!r} and p2_upper {p2!r} allow",)
    return ()


#: A probability in many digits: mpmath has no types.
_Real = Any


def _normal(p: _Real, shift: _Real) -> _Real:
    """What a half-space of probability p under Gaussian noise has, moved by ``shift`` standard deviations."""
    return _mp.ncdf(_boundary(p) + shift)


@lru_cache(_AT_HAND)
def _boundary(p: _Real) -> _Real:
    """Where the half-space ends."""
    return _mp.sqrt(2) * _mp.erfinv(2 * p - 1)


def _laplace(p: _Real, shift: _Real) -> _Real:
    """The same of a half-line under Laplace noise of scale 1."""
    x = (_mp.log(2 * p) if p < 0.5 else -_mp.log(2 * (1 - p))) + shift
    return _mp.exp(x) / 2 if x < 0 else 1 - _mp.exp(-x) / 2


def _uniform(p: _Real, shift: _Real) -> _Real:
    """The same of an interval's end under uniform noise on [-1, 1]; splitting noise obeys the same law."""
    return p + shift / 2


_Shift = Callable[[_Real, _Real], _Real]
_Holds = Callable[[_Real, _Real, _Real], bool]


def _two_classes(shift: _Shift) -> _Holds:
    """The most that the class can lose leaves it with no less than the most that another can win."""
    return lambda p1, p2, distance: bool(shift(p1, -distance) >= shift(p2, distance))


def _one_class(shift: _Shift) -> _Holds:
    """The most that the class can lose leaves it with half."""
    return lambda p1, p2, distance: bool(shift(p1, -distance) >= 0.5)


def _renyi(p1: _Real, p2: _Real, distance: _Real) -> bool:
    """The paper's Theorem 2: some order's divergence is too small at this distance for the classes to change places."""
    return bool(_largest_renyi(p1, p2) >= distance**2)


@lru_cache(_AT_HAND)
def _largest_renyi(p1: _Real, p2: _Real) -> _Real:
    """The largest squared distance of any order above 1."""
    log_p1, log_p2 = _mp.log(p1), _mp.log(p2)

    def squared(x: _Real) -> _Real:
        """That of the order 1 + beta, for beta = x / (1 - x)."""
        if x == 1:
            return _mp.zero
        beta = x / (1 - x)
        if beta == 0:
            log_mean = (log_p1 + log_p2) / 2
        else:
            log_mean = -_mp.log((_mp.exp(-beta * log_p1) + _mp.exp(-beta * log_p2)) / 2) / beta
        return -2 / (1 + beta) * _mp.log(1 - p1 - p2 + 2 * _mp.exp(log_mean))

    return _most(squared, _mp.zero, _mp.one)


def _renyi_laplace(p1: _Real, p2: _Real, distance: _Real) -> bool:
    """The paper's Theorem 3."""
    return bool(1 - _mp.exp(-distance) <= p1 - p2)


def _pixeldp(p1: _Real, p2: _Real, distance: _Real) -> bool:
    """Lecuyer et al. 2019: some epsilon, with the delta that the Gaussian mechanism needs at this distance, keeps p1 on
    top."""
    if distance == 0:
        return bool(p1 > p2)

    def excess(epsilon: _Real) -> _Real:
        factor, delta = _mp.exp(epsilon), 1.25 * _mp.exp(-((epsilon / distance) ** 2) / 2)
        return p1 - factor**2 * p2 - (1 + factor) * delta

    # Beyond log(p1 / p2) / 2 nothing is left for delta.
    return bool(_most(excess, _mp.zero, min(_mp.one, _mp.log(p1 / p2) / 2)) >= 0)


def _pixeldp_laplace(p1: _Real, p2: _Real, distance: _Real) -> bool:
    """The same with the Laplace mechanism, whose epsilon is the distance and whose delta is 0."""
    return bool(p1 >= _mp.exp(2 * distance) * p2)


def _most(function: Callable[[_Real], _Real], low: _Real, high: _Real) -> _Real:
    """The largest value between low and high: the best point of a grid, then golden section about it."""
    points = [low + (high - low) * i / 16 for i in range(17)]
    values = [function(point) for point in points]
    best = max(range(17), key=values.__getitem__)
    low, high = points[max(best - 1, 0)], points[min(best + 1, 16)]
    golden = (_mp.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = function(left), function(right)
    most = max(values[best], at_left, at_right)
    # To 1e-8 of the interval: the value at a maximum is then right to twice as many digits.
    for _ in range(34):
        if at_left < at_right:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = function(right)
        else:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = function(left)
        most = max(most, at_left, at_right)
    return most


@dataclass(frozen=True)
class _Rule:
    """A certificate.

    Attributes:
        bounds: 2 if it needs both, 1 if p2_upper is what p1_lower leaves.
        holds: whether (p1, p2, distance) is certified, the distance in units of the noise's scale.
        linf: whether its radius is that of an L2 certificate, over the root of the dimension.
    """

    bounds: int
    holds: _Holds
    linf: bool = False


_L2 = {
    "renyi": _Rule(2, _renyi),
    "neyman_pearson_two_class": _Rule(2, _two_classes(_normal)),
    "neyman_pearson_one_class": _Rule(1, _one_class(_normal)),
    "pixeldp": _Rule(2, _pixeldp),
}

_RULES = {
    **_L2,
    "renyi_laplace": _Rule(2, _renyi_laplace),
    "neyman_pearson_laplace_two_class": _Rule(2, _two_classes(_laplace)),
    "neyman_pearson_laplace_one_class": _Rule(1, _one_class(_laplace)),
    "pixeldp_laplace": _Rule(2, _pixeldp_laplace),
    "neyman_pearson_uniform_two_class": _Rule(2, _two_classes(_uniform)),
    "neyman_pearson_uniform_one_class": _Rule(1, _one_class(_uniform)),
    "splitting": _Rule(2, _two_classes(_uniform)),
    # ||delta||_2 <= sqrt(d) ||delta||_inf.
    **{f"{name}_linf": _Rule(rule.bounds, rule.holds, linf=True) for name, rule in _L2.items()},
}
