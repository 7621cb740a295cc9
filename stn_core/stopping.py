"""How many more draws an image needs: a pure function of the votes it has, so that any order gives the same run.

The adaptive rule draws in rounds. After each it asks of every image whether its certificate is settled: reached, or not
likely enough to be reached to be worth the draws. What is certified rests on bounds that hold whatever the rule does;
all that is said of chances here decides only how many draws are spent, and how many certificates are missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

from stn_core import confidence
from stn_core.certificates import Certificate
from stn_core.confidence import PROTOCOLS, bound_probabilities, bounds_of, outcomes_of_looks
from stn_core.looks import Ints, Looks, latest

Floats = NDArray[np.float64]

__all__ = ["AdaptiveDraws", "FixedDraws", "Looks", "Rule", "Together", "adaptive_rule", "latest"]

# How the rule goes on. None of these touches what is certified. They were chosen for few draws and few certificates
# missed, on the probabilities of one network under one noise (benchmarks/adaptive.py; others are there too).
# Values near them do hardly worse.

#: Draws of the first round.
_FIRST = 60

#: By how much a round multiplies an image's draws: at most, so that odd votes at the beginning cost little; and at
#: least, so that no round is spent on next to nothing. After so many rounds each is as large as it may be.
_MOST_GROWTH, _LEAST_GROWTH, _ROUNDS = 2.5, 1.1, 10

#: An image whose certificate would exceed a radius by less than this, in units of the noise's scale, may be given up.
_MARGIN = 0.0375

#: What it costs to go on in vain, as a share of the draws so far.
_IN_VAIN = 0.35

#: Failures, and successes, that are added to those counted where chances are told: images that hardly ever fail are
#: common.
_PRIOR = 0.25

#: Where the whole curve is asked for, an image may turn out to fail less often than is told with this chance.
_OPTIMISM = 0.1

#: How close together the numbers of draws lie at which certificates are foreseen.
_STEP = 1.04

#: Images that chances are told of at once, to bound memory.
_BLOCK = 4096


class Rule(Protocol):
    """When an image has votes enough."""

    def more(self, looks: Looks) -> Ints:
        """Draws of each image's next round, int64 (images,); 0 where it has enough."""


@dataclass(frozen=True)
class FixedDraws:
    """The same number for every image, whatever its votes.

    Attributes:
        draws: estimation draws of each image.
    """

    draws: int

    def more(self, looks: Looks) -> Ints:
        return np.maximum(self.draws - latest(looks, looks.trials), 0)


@dataclass(frozen=True)
class Together:
    """As many draws as the most demanding of several rules asks for.

    Attributes:
        rules: one at least.
    """

    rules: tuple[Rule, ...]

    def more(self, looks: Looks) -> Ints:
        return np.maximum.reduce([rule.more(looks) for rule in self.rules])


def adaptive_rule(
    certificate: Certificate,
    *,
    scale: float,
    dimension: int | None,
    alpha: float,
    draws: int,
    radii: Sequence[float] | None = None,
    tolerance: float | None = None,
    stages: Sequence[int] | None = None,
) -> AdaptiveDraws:
    """The rule that stops where an image's certificate is settled.

    With ``radii``: at each of them the image is certified, or has little hope to be, or it has all its draws. With
    ``tolerance``: the certified radius is so near to what the image would plausibly have with all its draws. To be
    reduced under protocol "anytime" or "anytime_label", or "stages" where those are given, at the same ``alpha``.

    Args:
        certificate: what is certified.
        scale: the noise's, in [0, 1] pixel units.
        dimension: values in an image; only certificates of L-infinity need it.
        alpha: failure probability of each image's certificate.
        draws: the most that any image has.
        radii: in [0, 1] pixel units; 0 asks only for a certified answer. Of a fine grid each step is settled by
            itself, which takes nearly all the draws: use ``tolerance``.
        tolerance: in the same units.
        stages: numbers of draws at which votes are looked at, increasing, the last one at most ``draws``; None for
            bounds that hold at any number.

    Raises:
        ValueError: an argument is out of range, or radii and tolerance are both given, or neither.
    """
    if (radii is None) == (tolerance is None):
        raise ValueError("give either radii or tolerance")
    if radii is not None and (not len(radii) or min(radii) < 0):
        raise ValueError("radii must be at least 0, and one at least")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance!r}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie inside (0, 1), got {alpha!r}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    if stages is not None and not (
        len(stages) and list(stages) == sorted({*stages}) and stages[0] >= 1 and stages[-1] <= draws
    ):
        raise ValueError(f"stages must increase from 1 to at most draws, {draws}, got {tuple(stages)}")
    return AdaptiveDraws(
        certificate,
        scale,
        dimension,
        alpha,
        draws,
        None if radii is None else tuple(sorted({float(radius) for radius in radii})),
        tolerance,
        None if stages is None else tuple(int(stage) for stage in stages),
    )


@dataclass(frozen=True)
class AdaptiveDraws:
    """Draws until each image's certificate is settled. ``adaptive_rule`` makes it, and says what its fields are."""

    certificate: Certificate
    scale: float
    dimension: int | None
    alpha: float
    draws: int
    radii: tuple[float, ...] | None
    tolerance: float | None
    stages: tuple[int, ...] | None

    def more(self, looks: Looks) -> Ints:
        now = latest(looks, looks.trials)
        goal = np.where((looks.candidate >= 0) & (now == 0), self._first, now)
        (own,) = np.nonzero((looks.candidate >= 0) & (now > 0) & (now < self._last))
        if len(own):
            top, runner_up = (latest(looks, votes)[own] for votes in (looks.top, looks.runner_up))
            failures = _failures(self.certificate, top, runner_up, now[own])
            settle = self._for_curve if self.radii is None else self._for_radii
            wanted = settle(self._reached(looks)[own], failures, now[own])
            goal[own] = self._round(wanted, now[own], np.bincount(looks.image, minlength=len(now))[own])
        return goal - now

    @property
    def _protocol(self) -> confidence.Protocol:
        return PROTOCOLS["anytime" if self.stages is None else "stages"]

    @property
    def _first(self) -> int:
        return min(_FIRST, self.draws) if self.stages is None else self.stages[0]

    @property
    def _last(self) -> int:
        return self.draws if self.stages is None else self.stages[-1]

    def _reached(self, looks: Looks) -> Floats:
        """The radius each image is certified at, by the reducer's own bounds and formula; -1 where it abstains."""
        p1_lower, p2_upper, spread = bound_probabilities(
            outcomes_of_looks(looks, 2),
            self._protocol,
            bounds=self.certificate.bounds,
            alpha=self.alpha,
            stages=self.stages,
        )
        return _radius(self, p1_lower, p2_upper)[spread]

    def _for_radii(self, reached: Floats, failures: Floats, now: Ints) -> Floats:
        """Draws at which the next radius is foreseen, 0 where there is none or little hope for it."""
        radius = np.searchsorted(np.array(self.radii), reached, side="right")
        wanted = np.zeros(len(now))
        (open_,) = np.nonzero(radius < len(self.radii or ()))
        columns = np.stack([radius[open_], failures[open_], now[open_]], axis=1)
        cases, inverse = np.unique(columns, axis=0, return_inverse=True)  # many images are alike
        foreseen = [_foresee(self, *cases[i : i + _BLOCK].T) for i in range(0, len(cases), _BLOCK)]
        wanted[open_] = np.concatenate([np.empty(0), *foreseen])[inverse.reshape(-1)]
        return wanted

    def _for_curve(self, reached: Floats, failures: Floats, now: Ints) -> Floats:
        """Draws at which the radius is foreseen to be within the tolerance, 0 where it is."""
        assert self.tolerance is not None
        lower, _ = bounds_of(self._protocol, self.alpha / self.certificate.bounds, stages=self.stages)
        # An image that fails as rarely as is plausible, at the end.
        rate = special.betaincinv(failures + 0.5, now - failures + 0.5, _OPTIMISM)
        last = np.full(len(now), self._last)
        more = np.rint(rate * (last - now))
        best = lower(np.clip(last - failures - more, 0, last), last)
        gap = np.maximum(_radius(self, best, 1 - best), 0.0) - np.maximum(reached, 0.0)
        # It narrows with the square root of the number of draws.
        return np.where(gap <= self.tolerance, 0.0, now * (gap / self.tolerance) ** 2)

    def _round(self, wanted: Floats, now: Ints, number: Ints) -> Ints:
        """Draws after the next round, for images that want so many and had ``number`` rounds; 0 wants no more."""
        if self.stages is not None:
            following = np.searchsorted(self.stages, now, side="right")
            return np.where(wanted > 0, np.array(self.stages)[following], now)
        least = np.where(number < _ROUNDS, _LEAST_GROWTH, _MOST_GROWTH)
        goal = np.ceil(np.clip(wanted, now * least, now * _MOST_GROWTH))
        return np.where(wanted > 0, np.minimum(goal, self.draws), now).astype(np.int64)


def _foresee(rule: AdaptiveDraws, radius: Floats, failures: Floats, now: Floats) -> Floats:
    """Draws at which images are foreseen to be certified, 0 where that is not worth them.

    Args:
        rule: with radii.
        radius: which of them each image is to be certified at next, (images,).
        failures, now: of draws so far, (images,).
    """
    table = foreseen(rule)
    allowed, enough = table.allowed[radius.astype(int)], table.enough[radius.astype(int), None]
    f, n = failures[:, None], now[:, None]
    ahead = np.maximum(table.marks - n, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The chance that the draws ahead fail no more often than is allowed: by a beta distribution, that of the rate
        # given the votes, widened by the spread of the draws ahead.
        part = ahead / table.marks
        rate = np.clip((allowed - f + 0.5) / ahead, 0, 1)
        chance = special.betainc((f + _PRIOR) * part, (n - f + _PRIOR) * part, rate)
    chance = np.where((ahead > 0) & (allowed >= f) & (table.marks <= enough), chance, 0.0)
    # A certificate is worth the draws that take one beyond the margin. An image in vain is found out soon.
    gain = chance * (enough - ahead) - (1 - chance) * _IN_VAIN * np.minimum(ahead, n)
    on_course = (ahead > 0) & (allowed >= f / n * table.marks)
    first = np.where(on_course.any(axis=1), table.marks[on_course.argmax(axis=1)], rule.draws)
    return np.where((gain > 0).any(axis=1), first, 0.0)


@dataclass(frozen=True)
class Foreseen:
    """What certificates at a rule's radii take.

    Attributes:
        marks: numbers of draws, increasing, int64 (marks,).
        allowed: the most failures with which an image is certified there, int64 (radii, marks); -1 where with none.
        enough: the draws that take an image there which would exceed the radius by the margin, int64 (radii,).
    """

    marks: Ints
    allowed: Ints
    enough: Ints


@lru_cache(64)
def foreseen(rule: AdaptiveDraws) -> Foreseen:
    """What certificates at a rule's radii take."""
    radii = np.array(rule.radii)
    if rule.stages is None:
        steps = int(np.ceil(np.log(rule.draws) / np.log(_STEP))) + 2
        marks = np.unique(np.ceil(np.geomspace(1, rule.draws, steps)).astype(np.int64))
    else:
        marks = np.array(rule.stages)
    lower, _ = bounds_of(rule._protocol, rule.alpha / rule.certificate.bounds, stages=rule.stages)
    trials = np.broadcast_to(marks, (len(radii), len(marks)))
    low, high = np.full(trials.shape, -1), trials + 1
    while np.any(high - low > 1):
        middle = (low + high) // 2
        p1 = lower(trials - np.maximum(middle, 0), trials)
        certified = _radius(rule, p1, 1 - p1) >= radii[:, None]
        low, high = np.where(certified, middle, low), np.where(certified, high, middle)

    unit = rule.scale / float(rule.dimension or 1) ** rule.certificate.dimension_power
    beyond = low >= marks * _rate(rule, radii + _MARGIN * unit)[:, None]
    enough = np.where(beyond.any(axis=1), marks[beyond.argmax(axis=1)], marks[-1])
    return Foreseen(marks, low, enough)


def _rate(rule: AdaptiveDraws, radii: Floats) -> Floats:
    """How often an image may fail that is certified at the radii by its probability itself."""
    low, high = np.zeros(len(radii)), np.full(len(radii), 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        certified = _radius(rule, 1 - middle, middle) >= radii
        low, high = np.where(certified, middle, low), np.where(certified, high, middle)
    return low


def _radius(rule: AdaptiveDraws, p1: Floats, p2: Floats) -> Floats:
    """As the reducer computes it; -1 where the bounds do not part."""
    radius = np.full(p1.shape, -1.0)
    apart = p1 > p2
    radius[apart] = rule.certificate.radius(p1[apart], p2[apart], rule.scale, rule.dimension)
    return radius


def _failures(certificate: Certificate, top: Ints, runner_up: Ints, trials: Ints) -> Floats:
    """Draws that were not for the candidate.

    Where the runner-up is bounded too: as many as would give a two-class image, p2 = 1 - p1, the same radius.
    """
    if certificate.bounds == 1:
        return (trials - top).astype(np.float64)
    p1 = (top + 0.5) / (trials + 1)
    p2 = np.minimum((runner_up + 0.5) / (trials + 1), 1 - p1)
    rest = np.geomspace(0.5, 1e-9, 2000)[1:]
    radii = certificate.unit_radius(1 - rest, rest)
    equal = (1 - p1 + p2) / 2  # where they do not part
    apart = p1 > p2
    equal[apart] = np.exp(np.interp(certificate.unit_radius(p1[apart], p2[apart]), radii, np.log(rest)))
    return np.clip(np.rint((trials + 1) * equal - 0.5), 0, trials)
