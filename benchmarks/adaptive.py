"""Forward passes where votes decide how many each image needs, against the same number for all of them.

One-class radii of Cohen et al. at alpha = 0.001, images as often certified within a point of a hundred. The images'
probabilities are those of a real network, ResNet-50 on ImageNet; for another, give yours to ``compare``, or recorded
votes to ``compare_votes``. Ratios are passes of the one over passes of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from scipy import special

from benchmarks.measure import Row
from stn_core import CERTIFICATES, PROTOCOLS, intervals, sequences
from stn_core.certify import certify_outcomes
from stn_core.confidence import outcomes_of_looks
from stn_core.looks import Looks, latest
from stn_core.stopping import AdaptiveDraws, adaptive_rule, foreseen

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALPHA = 0.001
DRAWS = 100_000
SELECTION_DRAWS = 100
CERTIFICATE = CERTIFICATES["neyman_pearson_one_class"]


@dataclass(frozen=True)
class Population:
    """What a log says of images' probabilities.

    Attributes:
        name: of network and noise.
        below_half: images that abstain.
        by_radius: images whose radius lies in [0, 0.1), [0.1, 0.2), … sigma, up to the largest that is possible.
        saturated: images with that one: all votes agree.
    """

    name: str
    below_half: int
    by_radius: tuple[int, ...]
    saturated: int

    def probabilities(self, per_image: int) -> Floats:
        """Probabilities of the selected class, ``per_image`` of each image, spread evenly in its bin.

        Images that abstain continue the density of radii below sigma to the other side of 1/2, which puts more of them
        near 1/2, where they cost most, than a network does that is often quite wrong. Of those whose votes all agree
        the log says no more than that their failures are about one in DRAWS or rarer; they get one.
        """
        inside = np.concatenate(
            [0.1 * (i + (np.arange(n * per_image) + 0.5) / (n * per_image)) for i, n in enumerate(self.by_radius) if n]
        )
        # Printed radii are of lower bounds. The logs' largest radius, 3.91 sigma, is that of DRAWS agreeing votes at an
        # error of 0.01, so all of them are of that error.
        failures = np.arange(DRAWS // 2)
        printed = special.ndtri(intervals.lower_bound(DRAWS - failures, DRAWS, 0.01))
        share = 1 - (np.interp(-inside, -printed, failures) + 0.5) / (DRAWS + 1)
        density = sum(self.by_radius[:10])
        below = special.ndtr(-(np.arange(self.below_half * per_image) + 0.5) / (density * per_image))
        return np.concatenate([share, below, np.full(self.saturated * per_image, 1 - 1 / (DRAWS + 2))])


# Counts of images from the logs that Cohen, Rosenfeld & Kolter 2019 published with their code, of every hundredth image
# of ImageNet's validation set: github.com/locuslab/smoothing, data/certify/imagenet/resnet50/noise_S/test/sigma_S. That
# of sigma = 0.25 ends at the 427th image.
# fmt: off
POPULATIONS = {
    0.25: Population(
        "ResNet-50, ImageNet, sigma 0.25", 38,
        (5, 11, 11, 5, 13, 7, 8, 6, 10, 10, 12, 3, 2, 5, 6, 6, 7, 6, 9, 3,
         7, 8, 7, 3, 9, 6, 5, 10, 7, 4, 4, 5, 4, 11, 7, 1, 10, 8, 6), 122),
    0.5: Population(
        "ResNet-50, ImageNet, sigma 0.5", 82,
        (15, 8, 16, 13, 13, 18, 16, 14, 12, 6, 9, 4, 6, 5, 6, 7, 6, 9, 9, 10,
         2, 7, 9, 8, 5, 8, 11, 7, 5, 2, 12, 5, 8, 12, 1, 4, 9, 7, 6), 88),
    1.0: Population(
        "ResNet-50, ImageNet, sigma 1", 149,
        (25, 15, 18, 20, 12, 7, 9, 15, 13, 5, 12, 8, 12, 7, 11, 11, 11, 7, 9, 8,
         7, 7, 6, 3, 7, 8, 6, 2, 1, 3, 5, 5, 6, 0, 3, 3, 2, 4, 0), 38),
}
# fmt: on

#: What is asked of each image, in units of sigma, and the share of passes that is the goal.
ASKED: dict[str, tuple[tuple[float, ...], float]] = {
    "radius sigma": ((1.0,), 0.005),
    "radius 2 sigma": ((2.0,), 0.017),
    "radius 3 sigma": ((3.0,), 0.055),
    "radii 0, sigma, 2 sigma, 3 sigma": ((0.0, 1.0, 2.0, 3.0), 0.08),
}

STAGES = (60, 200, 600, 2_000, 6_000, 20_000, 50_000, 100_000)


@dataclass(frozen=True)
class Passes:
    """What a rule comes to.

    Attributes:
        share: forward passes, selection included, over those of a fixed number.
        certified, fixed: share of the images certified at each radius, adaptively and with the fixed number.
        rounds: of each image, on average; and the most of any.
    """

    share: float
    certified: Floats
    fixed: Floats
    rounds: float
    most_rounds: int


def follow(rule: AdaptiveDraws, images: int, draw: Callable[[Ints, Ints, Ints], Ints]) -> Looks:
    """All looks at images that are drawn as a rule says.

    Args:
        rule: of stopping.
        images: how many.
        draw: from which images, how many draws they had, and how many they get, to votes for the candidate among these.
    """
    nothing = np.empty(0, dtype=np.int64)
    looks = Looks(np.zeros(images, dtype=np.int64), nothing, nothing, nothing, nothing)
    going = np.arange(images)
    while len(going):
        # The rule looks at each image alone, so those that have enough are not asked about again.
        at = np.isin(looks.image, going)
        image = np.searchsorted(going, looks.image[at])
        own = Looks(looks.candidate[going], image, looks.top[at], looks.runner_up[at], looks.trials[at])
        more = rule.more(own)
        going, more, before, top = (
            values[more > 0] for values in (going, more, latest(own, own.trials), latest(own, own.top))
        )
        top, trials = top + draw(going, before, more), before + more
        image = np.concatenate([looks.image, going])
        order = np.argsort(image, kind="stable")
        columns = ((looks.top, top), (looks.runner_up, trials - top), (looks.trials, trials))
        looks = Looks(looks.candidate, image[order], *(np.concatenate(column)[order] for column in columns))
    return looks


def compare(
    probabilities: Floats, radii: Sequence[float], *, seed: int = 0, stages: Sequence[int] | None = None
) -> Passes:
    """An adaptive number of draws against DRAWS of each image, at radii in units of sigma.

    Args:
        probabilities: each image's of the class that is certified, float64 (images,): of a network of yours, the share
            of some thousand votes will do.
        radii: what each image is asked for.
        seed: of the votes.
        stages: at which to look, for shared alpha; None for bounds at any number.
    """
    rng = np.random.default_rng(seed)

    def draw(images: Ints, before: Ints, more: Ints) -> Ints:
        return rng.binomial(more, probabilities[images])

    return _compared(len(probabilities), radii, stages, draw, rng.binomial(DRAWS, probabilities))


def compare_votes(agrees: NDArray[np.bool_], radii: Sequence[float]) -> Passes:
    """``compare`` on recorded votes, bool (images, DRAWS): whether each draw, in order, was for the candidate."""
    sums = np.concatenate([np.zeros((len(agrees), 1), dtype=np.int64), np.cumsum(agrees, axis=1)], axis=1)

    def draw(images: Ints, before: Ints, more: Ints) -> Ints:
        return sums[images, before + more] - sums[images, before]

    return _compared(len(agrees), radii, None, draw, sums[:, DRAWS])


def _compared(
    images: int,
    radii: Sequence[float],
    stages: Sequence[int] | None,
    draw: Callable[[Ints, Ints, Ints], Ints],
    fixed: Ints,
) -> Passes:
    rule = adaptive_rule(CERTIFICATE, scale=1.0, dimension=None, alpha=ALPHA, draws=DRAWS, radii=radii, stages=stages)
    looks = follow(rule, images, draw)
    result = certify_outcomes(
        outcomes_of_looks(looks, 1000),
        certificate=CERTIFICATE,
        protocol=PROTOCOLS["anytime" if stages is None else "stages"],
        scale=1.0,
        alpha=ALPHA,
        stages=stages,
    )
    bound = intervals.lower_bound(fixed, DRAWS, ALPHA)
    rounds = np.bincount(looks.image, minlength=images)
    return Passes(
        float((latest(looks, looks.trials).mean() + SELECTION_DRAWS) / (DRAWS + SELECTION_DRAWS)),
        np.array([np.mean(~result.abstain & (result.radius >= radius)) for radius in radii]),
        np.array([np.mean((bound > 0.5) & (special.ndtri(bound) >= radius)) for radius in radii]),
        float(rounds.mean()),
        int(rounds.max()),
    )


def two_sided(successes: Ints, trials: Ints, error: float) -> Floats:
    """The plain mixture: likelihood ratios of all q alike, below the threshold too (Robbins 1970)."""
    k, n = (np.asarray(values, dtype=np.float64) for values in np.broadcast_arrays(successes, trials))
    low, high = np.zeros(k.shape), k / np.maximum(n, 1)
    for _ in range(45):
        tau = (low + high) / 2
        with np.errstate(divide="ignore"):
            evidence = special.betaln(k + 1, n - k + 1) - special.xlogy(k, tau) - special.xlog1py(n - k, -tau)
        enough = evidence >= -np.log(error)
        low, high = np.where(enough, tau, low), np.where(enough, high, tau)
    return low


@contextmanager
def _plain_mixture() -> Iterator[None]:
    """The same rule and protocol by the plain mixture's bound."""
    with mock.patch.object(sequences, "lower_bound", two_sided):
        foreseen.cache_clear()
        yield
    foreseen.cache_clear()


PER_IMAGE = 20
SEEDS = (0, 1, 2)


def rows() -> Iterator[Row]:
    """Of the goals' network; the same by simpler bounds; and the same network under other noise."""
    ours = POPULATIONS[0.5]
    for asked, (radii, goal) in ASKED.items():
        yield _row(f"adaptive: {asked}, {ours.name}", ours, radii, goal=f"≤ {goal:g}")
    for asked, (radii, _) in ASKED.items():
        yield _row(f"adaptive, alpha shared by {len(STAGES)} stages: {asked}, {ours.name}", ours, radii, stages=STAGES)
    for asked, (radii, _) in ASKED.items():
        with _plain_mixture():
            yield _row(f"adaptive, plain mixture: {asked}, {ours.name}", ours, radii)
    for sigma in (0.25, 1.0):
        for asked, (radii, _) in ASKED.items():
            yield _row(f"adaptive: {asked}, {POPULATIONS[sigma].name}", POPULATIONS[sigma], radii)


def _row(
    name: str, population: Population, radii: Sequence[float], *, goal: str = "", stages: Sequence[int] | None = None
) -> Row:
    p = population.probabilities(PER_IMAGE)
    found = [compare(p, radii, seed=seed, stages=stages) for seed in SEEDS]
    shares = [each.share for each in found]
    certified, fixed = (
        _percent(np.mean([getattr(each, of) for each in found], axis=0)) for of in ("certified", "fixed")
    )
    rounds = f"{np.mean([each.rounds for each in found]):.1f} rounds, at most {max(each.most_rounds for each in found)}"
    passes = float(np.median(shares)) * (DRAWS + SELECTION_DRAWS)
    detail = f"{passes:.0f} passes an image; certified {certified} %, of the other {fixed} %; {rounds}"
    return Row(name, f"passes of {DRAWS} draws each", float(np.median(shares)), min(shares), max(shares), detail, goal)


def _percent(shares: Floats) -> str:
    return ", ".join(f"{100 * share:.1f}" for share in shares)
