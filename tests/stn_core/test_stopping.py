"""The adaptive rule: what it stops at is certified, it ends, looks at each image alone, and spoils no bound."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from stn_core import CERTIFICATES, PROTOCOLS, intervals, sequences
from stn_core.certify import Certified, certify_outcomes
from stn_core.confidence import outcomes_of_looks
from stn_core.looks import Looks
from stn_core.stopping import AdaptiveDraws, FixedDraws, Rule, adaptive_rule, latest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ONE_CLASS, TWO_CLASS = "neyman_pearson_one_class", "neyman_pearson_two_class"
ALPHA = 0.001


def rule_for(certificate: str = ONE_CLASS, **changes: Any) -> AdaptiveDraws:
    arguments: dict[str, Any] = {"scale": 0.5, "dimension": 12, "alpha": ALPHA, "draws": 20_000}
    if "tolerance" not in changes:
        arguments["radii"] = [0.5]
    return adaptive_rule(CERTIFICATES[certificate], **{**arguments, **changes})


def no_looks(images: int) -> Looks:
    nothing = np.empty(0, dtype=np.int64)
    return Looks(np.zeros(images, dtype=np.int64), nothing, nothing, nothing, nothing)


def with_round(looks: Looks, draws: Ints, top: Ints, runner_up: Ints) -> Looks:
    """One more look at each image that has draws."""
    (seen,) = np.nonzero(draws)
    image = np.concatenate([looks.image, seen])
    order = np.argsort(image, kind="stable")
    columns = (
        (values, (latest(looks, values) + new)[seen])
        for values, new in ((looks.top, top), (looks.runner_up, runner_up), (looks.trials, draws))
    )
    return Looks(looks.candidate, image[order], *(np.concatenate(column)[order] for column in columns))


def run(rule: Rule, p: Floats, seed: int = 0, looks: Looks | None = None, second: Floats | None = None) -> Looks:
    """Draw as the rule says until it wants no more; ``p`` and ``second`` are the probabilities of two classes."""
    rng = np.random.default_rng(seed)
    looks = no_looks(len(p)) if looks is None else looks
    for _ in range(100):
        draws = rule.more(looks)
        if not draws.any():
            return looks
        top = rng.binomial(draws, p)
        rest = draws - top
        looks = with_round(looks, draws, top, rest if second is None else rng.binomial(rest, second / (1 - p)))
    raise AssertionError("does not end")


def certified(rule: AdaptiveDraws, looks: Looks) -> Certified:
    """As the reducer does it."""
    return certify_outcomes(
        outcomes_of_looks(looks, 10),
        certificate=rule.certificate,
        protocol=PROTOCOLS["anytime" if rule.stages is None else "stages"],
        scale=rule.scale,
        alpha=rule.alpha,
        dimension=rule.dimension,
        stages=rule.stages,
    )


def part_of(looks: Looks, images: Ints) -> Looks:
    """The same images in another order, or some of them."""
    at = np.concatenate([np.flatnonzero(looks.image == image) for image in images])
    place = np.full(len(looks.candidate), -1)
    place[images] = np.arange(len(images))
    return Looks(looks.candidate[images], place[looks.image[at]], looks.top[at], looks.runner_up[at], looks.trials[at])


# What is settled.


@pytest.mark.parametrize(
    "certificate", [ONE_CLASS, TWO_CLASS, "renyi", "neyman_pearson_one_class_linf", "neyman_pearson_laplace_one_class"]
)
def test_sure_images_are_certified_at_every_radius_for_few_draws(certificate: str) -> None:
    """By the reducer's own computation, to the last digit of the radius."""
    scale = 1 / np.sqrt(12) if certificate.endswith("linf") else 1.0
    radii = [0.0, 0.3 * scale, 0.5 * scale]
    rule = rule_for(certificate, radii=radii)
    looks = run(rule, np.full(200, 0.999))
    assert np.all(certified(rule, looks).radius >= radii[-1])
    assert latest(looks, looks.trials).max() < 0.05 * rule.draws


def test_an_image_stops_as_soon_as_its_bound_suffices_and_not_before() -> None:
    """At many numbers of draws, with failures about as many as are allowed: the bound is the reducer's to the digit."""
    rule = rule_for(radii=[1.0])
    n = np.repeat(np.arange(300, 6300, 5), 9)
    allowed = np.sum(sequences.lower_bound(n - np.arange(150)[:, None], n, ALPHA) > special.ndtr(2.0), axis=0) - 1
    failures = np.maximum(allowed + np.tile(np.arange(-4, 5), len(n) // 9), 0)
    looks = Looks(np.zeros(len(n), dtype=np.int64), np.arange(len(n)), n - failures, failures, n)
    is_certified = certified(rule, looks).radius >= 1.0
    np.testing.assert_array_equal(rule.more(looks) == 0, is_certified)
    assert 0.3 < np.mean(is_certified) < 0.7


def test_radius_0_asks_for_an_answer() -> None:
    rule = rule_for(radii=[0.0])
    looks = run(rule, np.full(100, 0.7))
    assert not certified(rule, looks).abstain.any()
    assert latest(looks, looks.trials).max() < 2000


@pytest.mark.parametrize("p", [0.0, 0.3, 0.7])
def test_hopeless_images_stop_early(p: float) -> None:
    looks = run(rule_for(radii=[0.5, 1.0]), np.full(500, p))
    assert latest(looks, looks.trials).mean() < 0.02 * 20_000


def test_hardly_any_image_beyond_the_margin_is_given_up() -> None:
    """A fixed number of draws certifies all of these; futility costs at most a few of them."""
    rule, p = rule_for(), special.ndtr(1.0 + np.linspace(0.1, 3, 1000))
    fixed = special.ndtri(intervals.lower_bound(np.random.default_rng(1).binomial(rule.draws, p), rule.draws, ALPHA))
    assert np.mean(fixed >= 1) > 0.98
    looks = run(rule, p)
    assert np.mean(certified(rule, looks).radius >= 0.5) > 0.94
    assert latest(looks, looks.trials).mean() < 0.05 * rule.draws


def test_a_two_class_certificate_counts_on_a_weak_runner_up() -> None:
    """p1 alone would be hopeless at half of all votes; a fifth for the runner-up lifts the radius above 0.2."""
    rule = rule_for(TWO_CLASS, radii=[0.15])
    p = np.full(200, 0.5)
    looks = run(rule, p, second=np.full(200, 0.1))
    assert np.mean(certified(rule, looks).radius >= 0.15) > 0.95


def test_tolerance_stops_near_to_what_all_draws_would_give() -> None:
    rule, p = rule_for(tolerance=0.1), special.ndtr(np.linspace(-1, 3, 400))
    looks = run(rule, p)
    n = rule.draws
    now = np.stack([latest(looks, looks.top), latest(looks, looks.trials)])
    in_the_end = now[0] + np.random.default_rng(1).binomial(n - now[1], p)
    bound = np.maximum(sequences.lower_bound(in_the_end, n, ALPHA), 0.5)
    missing = 0.5 * special.ndtri(bound) - certified(rule, looks).radius
    assert np.mean(missing <= 0.1) > 0.9  # nine of ten is what it aims at
    assert missing.max() < 0.2
    assert latest(looks, looks.trials).mean() < 0.4 * n
    wider = run(rule_for(tolerance=0.2), p)
    assert latest(wider, wider.trials).mean() < 0.6 * latest(looks, looks.trials).mean()


# How it ends.


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
    st.sampled_from(
        [
            {"radii": [0.5]},
            {"radii": [0.0, 0.3, 0.5, 1.2]},
            {"tolerance": 0.05},
            {"draws": 7},
            {"draws": 300, "radii": np.arange(0, 1, 0.05)},
            {"stages": (30, 100, 1000)},
            {"stages": (30, 100, 1000), "tolerance": 0.05},
            {"certificate": "renyi"},
            {"certificate": "neyman_pearson_uniform_one_class", "radii": [0.4, 3.0]},
        ]
    ),
    st.integers(0, 1000),
)
def test_every_image_ends_within_its_draws_and_some_dozen_rounds(
    p: list[float], changes: dict[str, Any], seed: int
) -> None:
    rule = rule_for(**changes)
    looks = run(rule, np.array(p), seed)
    assert latest(looks, looks.trials).max() <= rule.draws
    assert np.bincount(looks.image).max() <= 20
    if rule.stages is not None:
        assert {*looks.trials.tolist()} <= {*rule.stages}
    first = looks.trials[np.unique(looks.image, return_index=True)[1]]
    assert len({*first.tolist()}) == 1


def test_a_dozen_rounds_are_enough_for_nearly_all() -> None:
    rule = rule_for(radii=[0.0, 0.5, 1.0, 1.5], draws=100_000)
    looks = run(rule, special.ndtr(np.random.default_rng(0).uniform(-1, 4, 2000)))
    assert np.mean(np.bincount(looks.image) <= 12) > 0.99


@pytest.mark.parametrize("changes", [{}, {"tolerance": 0.1}, {"stages": (50, 500, 5000)}])
def test_an_image_without_a_candidate_needs_no_draws(changes: dict[str, Any]) -> None:
    rule = rule_for(**changes)
    looks = dataclasses.replace(no_looks(2), candidate=np.array([-1, 3]))
    assert rule.more(looks).tolist() == [0, 60 if rule.stages is None else 50]
    looks = with_round(looks, np.array([40, 0]), np.array([0, 0]), np.array([20, 0]))
    assert rule.more(looks)[0] == 0


@pytest.mark.parametrize("changes", [{"radii": [0.0, 0.5, 1.0]}, {"tolerance": 0.05}, {"stages": (50, 400, 2000)}])
def test_images_do_not_influence_each_other(changes: dict[str, Any]) -> None:
    """Nor does their order, or who is asked about together."""
    rule, p = rule_for(**changes), special.ndtr(np.linspace(-1, 3, 60))
    looks = no_looks(len(p))
    rng = np.random.default_rng(0)
    for _ in range(4):
        draws = rule.more(looks)
        order = rng.permutation(len(p))
        np.testing.assert_array_equal(rule.more(part_of(looks, order)), draws[order])
        for images in np.array_split(order, 7):
            np.testing.assert_array_equal(rule.more(part_of(looks, images)), draws[images])
        top = rng.binomial(draws, p)
        looks = with_round(looks, draws, top, draws - top)


@pytest.mark.parametrize("certificate", [name for name in CERTIFICATES if name != "splitting"])
def test_rules_can_be_pickled(certificate: str) -> None:
    rule = rule_for(certificate)
    again = pickle.loads(pickle.dumps(rule))
    assert again == rule
    assert hash(again) == hash(rule)
    looks = run(rule, np.full(3, 0.99))
    np.testing.assert_array_equal(again.more(looks), rule.more(looks))


def test_a_fixed_number_is_drawn_whatever_the_votes() -> None:
    rule = FixedDraws(100)
    looks = with_round(no_looks(3), np.array([40, 0, 100]), np.array([1, 0, 100]), np.array([39, 0, 0]))
    assert rule.more(looks).tolist() == [60, 100, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radii": None}, "either radii or tolerance"),
        ({"radii": [0.5], "tolerance": 0.1}, "either radii or tolerance"),
        ({"radii": []}, "radii must"),
        ({"radii": [-0.1]}, "radii must"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"alpha": 1.0}, "alpha must lie"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"stages": ()}, "stages must increase"),
        ({"stages": (100, 50)}, "stages must increase"),
        ({"stages": (50, 30_000)}, "stages must increase"),
        ({"stages": (0, 50)}, "stages must increase"),
    ],
)
def test_what_does_not_fit_is_refused(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule_for(**changes)


# Foresight.


@pytest.mark.parametrize(
    ("failures", "seems"),
    [(0, "certified"), (1, "certified"), (40, "hopeless")],
)
def test_the_next_round_goes_where_the_image_is_foreseen_to_be_settled(failures: int, seems: str) -> None:
    """Radius 2 sigma, after 300 draws: so many as then suffice if failures come as before, and hardly more."""
    rule = rule_for(radii=[1.0])
    looks = with_round(no_looks(1), np.array([300]), np.array([300 - failures]), np.array([failures]))
    more = rule.more(looks)
    if seems == "hopeless":
        assert more == 0
        return
    new = round(failures * int(more[0]) / 300)
    then = with_round(looks, more, more - new, np.array([new]))
    assert 0 < more <= 1.5 * 300
    if failures == 0:
        assert rule.more(then) == 0
        n = np.array([0.95 * (300 + more[0])]).astype(int)
        assert rule.more(with_round(no_looks(1), n, n, 0 * n)) > 0


# What it claims holds.

#: Certified wrongly with this probability at most, here.
LEVEL = 0.1


def certified_wrongly(looks_at: Callable[[Floats], Looks], rule: AdaptiveDraws, p: float, images: int) -> int:
    """Of images whose radius is just below the rule's, those that get a bound above their probability."""
    result = certified(rule, looks_at(np.full(images, p)))
    return int(np.sum(result.p1_lower > p))


@pytest.mark.parametrize("changes", [{"radii": [0.5]}, {"radii": [0.0, 0.5, 1.0]}, {"tolerance": 0.1}])
@pytest.mark.parametrize("p", [0.501, 0.84, 0.95])
def test_votes_that_decide_when_to_stop_make_no_bound_err_more_often(changes: dict[str, Any], p: float) -> None:
    rule, images = rule_for(**changes, alpha=LEVEL, draws=3000), 4000
    wrong = certified_wrongly(lambda p: run(rule, p), rule, p, images)
    assert wrong <= stats.binom.isf(1e-6, images, LEVEL)


def test_the_same_looks_would_show_clopper_pearson_to_fail() -> None:
    """A rule that looks at plain bounds after each round, and stops where one suffices, errs twice as often as said."""
    images, p = 4000, 0.84
    rng = np.random.default_rng(0)
    draws = np.diff([0, *np.unique(np.geomspace(30, 3000, 12).astype(int))])
    trials = np.cumsum(draws)
    successes = np.cumsum(rng.binomial(draws, p, (images, len(draws))), axis=1)
    ever = (intervals.lower_bound(successes, trials, LEVEL) > p).any(axis=1)
    assert ever.sum() > 2 * images * LEVEL


def test_draws_added_later_spoil_nothing() -> None:
    """First to 300 draws for one radius, then to 5000 for another, because of what the first gave."""
    images, p = 4000, 0.9
    first, then = rule_for(alpha=LEVEL, draws=300), rule_for(alpha=LEVEL, draws=5000, radii=[0.6])
    before = run(first, np.full(images, p))
    after = run(then, np.full(images, p), seed=1, looks=before)
    assert len(after.image) > len(before.image)
    wrong = int(np.sum(certified(then, after).p1_lower > p))
    assert wrong <= stats.binom.isf(1e-6, images, LEVEL)


def test_stages_share_alpha_and_hold() -> None:
    rule, images, p = rule_for(alpha=LEVEL, draws=3000, stages=(30, 300, 3000)), 4000, 0.84
    wrong = certified_wrongly(lambda p: run(rule, p), rule, p, images)
    assert wrong <= stats.binom.isf(1e-6, images, LEVEL)
