"""How each protocol shares alpha among its bounds, and whom it certifies."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_core import (
    CERTIFICATES,
    PROTOCOLS,
    Gaussian,
    Laplace,
    Splitting,
    Uniform,
    certify,
    lower_bound,
    sequences,
    upper_bound,
)
from stn_core.certify import certify_outcomes
from stn_core.confidence import bound_probabilities, outcomes_of_looks
from stn_core.looks import Looks, Round, looks_of

NOISE = {"gaussian": Gaussian(1.0), "laplace": Laplace(1.0), "uniform": Uniform(1.0)}

#: Certificates that need the candidate's probability alone; all others bound the runner-up's as well.
ONE_BOUND = {
    "neyman_pearson_one_class",
    "neyman_pearson_one_class_linf",
    "neyman_pearson_laplace_one_class",
    "neyman_pearson_uniform_one_class",
}

#: A certificate of each number of bounds.
REPRESENTATIVES = ["neyman_pearson_one_class", "neyman_pearson_two_class"]

#: Parts into which alpha is split for three classes: protocol to the divisor of alpha for one bound and for two.
SHARES = {
    "paper": (3, 6),
    "paper_two": (1, 2),
    "split": (1, 2),
    "label": (1, 2),
    "anytime": (1, 2),
    "anytime_label": (1, 2),
    "stages": (1, 2),
}

#: Protocols under which the votes may choose the number of draws.
SEQUENTIAL = ["anytime", "anytime_label", "stages"]

#: Numbers of draws declared for protocol "stages".
STAGES = (10, 100, 1000)

#: Certificates whose bounds come from samples; splitting noise is enumerated.
SAMPLED = [name for name, certificate in CERTIFICATES.items() if certificate.noise in NOISE]

TOP, SECOND, LAST = 70, 20, 10
ALPHA = 0.012


def arguments(certificate: str, protocol: str) -> dict[str, Any]:
    noise = NOISE[CERTIFICATES[certificate].noise]
    return {
        "certificate": certificate,
        "protocol": protocol,
        "noise": noise,
        "alpha": ALPHA,
        "dimension": 12,
        "stages": STAGES if protocol == "stages" else None,
    }


def bounds_by_hand(protocol: str, certificate: str, u: float | None) -> tuple[float, float]:
    """Of TOP and SECOND of 100 votes."""
    error = ALPHA / SHARES[protocol][certificate not in ONE_BOUND]
    if protocol.startswith("anytime"):
        lower, upper = sequences.lower_bound(TOP, 100, error), sequences.upper_bound(SECOND, 100, error)
    else:
        error /= len(STAGES) if protocol == "stages" else 1
        lower, upper = lower_bound(TOP, 100, error, u), upper_bound(SECOND, 100, error, u)
    return float(lower), float(1 - lower if certificate in ONE_BOUND else upper)


#: Each protocol with plain intervals, and with variates where it goes with any.
WITH_VARIATES = [
    (protocol, u) for protocol in SHARES for u in (None, 1e-9, 0.3, 1.0) if u is None or protocol not in SEQUENTIAL
]


def test_every_protocol_and_certificate_is_in_these_tables() -> None:
    assert {*SHARES, "exact"} == set(PROTOCOLS)
    assert {name for name, certificate in CERTIFICATES.items() if certificate.bounds == 1} == ONE_BOUND
    assert {*SAMPLED, "splitting"} == set(CERTIFICATES)


def test_what_the_votes_may_choose() -> None:
    assert [name for name, protocol in PROTOCOLS.items() if protocol.sequential] == SEQUENTIAL


@pytest.mark.parametrize(("protocol", "u"), WITH_VARIATES)
@pytest.mark.parametrize("certificate", SAMPLED)
def test_each_bound_gets_its_share_of_alpha(certificate: str, protocol: str, u: float | None) -> None:
    """Any other share, of either bound, gives another number."""
    counts = [[SECOND, TOP, LAST]]
    uniform = None if u is None else [u]
    certified = certify(counts, counts, [1], **arguments(certificate, protocol), uniform=uniform)
    assert certified.prediction == 1
    assert (certified.p1_lower, certified.p2_upper) == bounds_by_hand(protocol, certificate, u)


@pytest.mark.parametrize(("protocol", "u"), WITH_VARIATES)
@pytest.mark.parametrize("certificate", SAMPLED)
def test_invalid_votes_stay_in_the_trials(certificate: str, protocol: str, u: float | None) -> None:
    counts = [[TOP, SECOND, 0]]
    uniform = None if u is None else [u]
    certified = certify(counts, counts, [0], **arguments(certificate, protocol), draws=[100], uniform=uniform)
    assert (certified.p1_lower, certified.p2_upper) == bounds_by_hand(protocol, certificate, u)
    if protocol != "stages":  # where 90 draws would be none of the stages
        error = ALPHA / SHARES[protocol][certificate not in ONE_BOUND]
        assert certified.p1_lower < lower_bound(TOP, TOP + SECOND, error, u)


@pytest.mark.parametrize(("protocol", "u"), WITH_VARIATES)
@pytest.mark.parametrize("certificate", SAMPLED)
def test_an_image_without_one_valid_vote_abstains(certificate: str, protocol: str, u: float | None) -> None:
    none, uniform = [[0, 0, 0]], None if u is None else [u]
    certified = certify(none, none, [2], **arguments(certificate, protocol), draws=100, uniform=uniform)
    assert certified.abstain
    assert certified.prediction == -1
    assert certified.radius == 0


@pytest.mark.parametrize("certificate", SAMPLED)
def test_split_abstains_where_selection_has_no_valid_vote(certificate: str) -> None:
    assert certify([[100, 0]], [[0, 0]], **arguments(certificate, "split")).abstain
    assert not certify([[100, 0]], [[1, 0]], **arguments(certificate, "split")).abstain


def test_every_image_is_randomised_by_its_own_variate() -> None:
    """Alike votes, unlike variates: each image's bounds are those it has alone, both bounds by the same variate."""
    votes, uniform = np.array([[70, 20, 10], [70, 20, 10], [10, 80, 10], [70, 20, 10]]), [0.9, 0.2, 0.5, 0.9]
    certified = certify(votes, **arguments("renyi", "paper"), uniform=uniform)
    assert certified.p1_lower[0] == certified.p1_lower[3] < certified.p1_lower[1]
    assert certified.p2_upper[0] == certified.p2_upper[3] > certified.p2_upper[1]
    for i, (top, second) in enumerate([(70, 20), (70, 20), (80, 10), (70, 20)]):
        assert certified.p1_lower[i] == lower_bound(top, 100, ALPHA / 6, uniform[i])
        assert certified.p2_upper[i] == upper_bound(second, 100, ALPHA / 6, uniform[i])


def test_bounds_stay_numbers_where_the_label_has_hardly_a_vote() -> None:
    """Another class has all votes but one and error is tiny: its upper bound is 1 to the last digit of float64."""
    votes = np.zeros((1, 100), dtype=np.int64)
    votes[0, :2] = 1, 10**6 - 1
    certified = certify(votes, labels=[0], **{**arguments("renyi", "label"), "alpha": 1e-10})
    assert certified.abstain
    assert certified.p2_upper == 1 - certified.p1_lower


# Sequential protocols.


@pytest.mark.parametrize("protocol", SEQUENTIAL)
def test_sequential_protocols_have_no_randomised_intervals(protocol: str) -> None:
    with pytest.raises(ValueError, match="no randomised intervals"):
        certify([[70, 30]], [[70, 30]], [0], **arguments("renyi", protocol), uniform=[0.5])


@pytest.mark.parametrize("stages", [None, ()])
def test_stages_have_to_be_declared(stages: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match="needs the stages that were declared"):
        certify([[70, 30]], [[70, 30]], **{**arguments("renyi", "stages"), "stages": stages})


@pytest.mark.parametrize("protocol", ["anytime", "stages"])
def test_protocols_that_select_need_selection_votes(protocol: str) -> None:
    with pytest.raises(ValueError, match="needs selection votes"):
        certify([[70, 30]], **arguments("renyi", protocol))


def test_no_bound_between_the_stages() -> None:
    certified = certify([[99, 0]], [[1, 0]], **arguments("renyi", "stages"))
    assert (certified.p1_lower, certified.p2_upper, certified.prediction) == (0, 1, -1)


#: Three images: one looked at three times, one twice, one never; the last has no candidate.
ROUNDS = [
    Round(np.array([1, 0]), np.array([[0, 9, 1], [8, 2, 0]]), np.array([10, 11])),
    Round(np.array([0, 3, 2]), np.array([[30, 5, 0], [3, 3, 3], [0, 0, 0]]), np.array([40, 9, 0])),
    Round(np.array([1, 0]), np.array([[40, 40, 10], [45, 1, 3]]), np.array([90, 49])),
]
LOOKS = Looks(
    candidate=np.array([0, 1, 0, -1]),
    image=np.array([0, 0, 0, 1, 1, 3]),
    top=np.array([8, 38, 83, 9, 49, 0]),
    runner_up=np.array([2, 7, 8, 1, 40, 3]),
    trials=np.array([11, 51, 100, 10, 100, 9]),
)


def test_looks_add_rounds_up_by_image_and_time() -> None:
    looks = looks_of(LOOKS.candidate, iter(ROUNDS), 3)
    for name, expected in vars(LOOKS).items():
        np.testing.assert_array_equal(getattr(looks, name), expected, err_msg=name)


@pytest.mark.parametrize(("image", "message"), [([0, 0], "at most once"), ([0, 4], "0 … 3"), ([-1, 0], "0 … 3")])
def test_a_round_names_each_image_once(image: list[int], message: str) -> None:
    votes = Round(np.array(image), np.ones((2, 3), dtype=np.int64), np.array([3, 3]))
    with pytest.raises(ValueError, match=message):
        looks_of(LOOKS.candidate, [votes], 3)


@pytest.mark.parametrize("certificate", [*REPRESENTATIVES, "renyi"])
@pytest.mark.parametrize("protocol", SEQUENTIAL)
def test_the_best_bounds_of_all_looks_are_taken(certificate: str, protocol: str) -> None:
    chosen, alpha = CERTIFICATES[certificate], 0.05
    certified = certify_outcomes(
        outcomes_of_looks(LOOKS, 3),
        certificate=chosen,
        protocol=PROTOCOLS[protocol],
        scale=1.0,
        alpha=alpha,
        stages=STAGES,
    )
    for image in range(4):
        at = LOOKS.image == image
        pairs = list(zip(LOOKS.top[at], LOOKS.runner_up[at], LOOKS.trials[at], strict=True))
        error = alpha / chosen.bounds
        if protocol == "stages":
            low = [lower_bound(k, n, error / 3) for k, _, n in pairs if n in STAGES]
            high = [upper_bound(s, n, error / 3) for _, s, n in pairs if n in STAGES]
        else:
            low = [sequences.lower_bound(k, n, error) for k, _, n in pairs]
            high = [sequences.upper_bound(s, n, error) for _, s, n in pairs]
        p1 = max(low, default=0.0)
        p2 = min([1 - p1, *high]) if chosen.bounds == 2 else 1 - p1
        assert certified.p1_lower[image] == p1
        assert certified.p2_upper[image] == p2
        is_certified = p1 > p2 and LOOKS.candidate[image] >= 0
        assert certified.abstain[image] == (not is_certified)
        expected = chosen.radius(np.array([p1]), np.array([p2]), 1.0)[0] if is_certified else 0.0
        assert certified.radius[image] == expected
    assert certified.prediction[0] == 0
    assert certified.p1_lower[2] == 0


def test_an_earlier_look_may_be_the_best() -> None:
    """Nine of ten, then forty of ninety: the first look's bound still holds, and is the larger one."""
    p1_lower, _, spread = bound_probabilities(outcomes_of_looks(LOOKS, 3), PROTOCOLS["anytime"], bounds=1, alpha=0.05)
    assert p1_lower[spread][1] == sequences.lower_bound(9, 10, 0.05) > sequences.lower_bound(49, 100, 0.05)


@pytest.mark.parametrize("protocol", ["paper", "paper_two", "split", "label", "exact"])
def test_protocols_for_a_fixed_number_of_draws_take_one_look(protocol: str) -> None:
    with pytest.raises(ValueError, match="fixed beforehand"):
        bound_probabilities(outcomes_of_looks(LOOKS, 3), PROTOCOLS[protocol], bounds=1, alpha=0.05)


# Protocol "exact".


def splitting(draws: int) -> Splitting:
    noise = Splitting(draws / 510)
    assert noise.draws == draws
    return noise


@st.composite
def enumerated(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """Votes of some images under one splitting noise, lost votes and ties included, and its number of draws."""
    draws = draw(st.integers(2, 3000))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        cuts = draw(st.lists(st.integers(0, draws), min_size=3, max_size=3))
        ends = sorted(cuts)
        rows.append([ends[0], ends[1] - ends[0], ends[2] - ends[1]])
    return rows, draws


@given(enumerated(), st.sampled_from([1e-9, 0.05, 0.99]))
def test_exact_bounds_are_the_probabilities_one_step_outwards(votes: tuple[list[list[int]], int], alpha: float) -> None:
    """In rational numbers. Two steps bound the double rounding of a quotient and of the step away from it."""
    rows, draws = votes
    certified = certify(
        rows, certificate="splitting", protocol="exact", noise=splitting(draws), alpha=alpha, draws=draws
    )
    for i, row in enumerate(rows):
        second, top = sorted(row)[-2:]
        p1, p2 = Fraction(top, draws), Fraction(second, draws)
        lower, upper = certified.p1_lower[i], certified.p2_upper[i]
        assert Fraction(lower) <= p1 <= Fraction(np.nextafter(np.nextafter(lower, 2), 2))
        assert Fraction(np.nextafter(np.nextafter(upper, -1), -1)) <= p2 <= Fraction(upper)
        assert certified.abstain[i] == (top == second)
        assert certified.prediction[i] == (-1 if top == second else row.index(top))
        scale = Fraction(draws / 510)
        radius = Fraction(certified.radius[i])
        assert radius <= scale * (p1 - p2)
        assert certified.abstain[i] or radius >= scale * (p1 - p2 - Fraction(1, 2**50))


def test_exact_certificates_spend_no_alpha() -> None:
    """Neither the level nor a variate changes anything, and one vote more than the others have suffices."""
    kwargs: dict[str, Any] = {"certificate": "splitting", "protocol": "exact", "noise": splitting(100)}
    votes = [[34, 33, 33], [100, 0, 0], [50, 50, 0], [0, 1, 99]]
    strict, lax = certify(votes, **kwargs, alpha=1e-9), certify(votes, **kwargs, alpha=0.9)
    randomised = certify(votes, **kwargs, alpha=0.05, uniform=[1e-9, 0.3, 0.7, 1.0])
    assert strict.prediction.tolist() == [0, 0, -1, 2]
    for other in (lax, randomised):
        for field in ("prediction", "abstain", "radius", "p1_lower", "p2_upper"):
            np.testing.assert_array_equal(getattr(strict, field), getattr(other, field))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": Gaussian(0.2), "certificate": "renyi"}, "protocol 'exact' needs splitting noise.* not gaussian"),
        ({"noise": Uniform(0.2), "certificate": "neyman_pearson_uniform_two_class"}, "needs splitting noise"),
        ({"protocol": "paper"}, "use protocol 'exact' instead of 'paper'"),
        ({"protocol": "paper_two"}, "use protocol 'exact' instead of 'paper_two'"),
        ({"protocol": "split", "selection": [[1, 2]]}, "use protocol 'exact' instead of 'split'"),
        ({"protocol": "label", "labels": [0]}, "use protocol 'exact' instead of 'label'"),
        ({"noise": splitting(101)}, "has 101 draws: count exactly those"),
        ({"noise": splitting(99)}, "has 99 draws: count exactly those"),
        ({"draws": 101}, "has 100 draws: count exactly those"),
        ({"uniform": [2.0]}, r"uniform must lie in \(0, 1\]"),
        ({"estimation": [[90, 9]]}, "has 100 draws: count exactly those"),
        ({"estimation": [[90, 10], [90, 10]], "draws": [100, 200]}, "has 100 draws: count exactly those"),
    ],
)
def test_exact_and_splitting_noise_need_each_other_and_every_draw(
    arguments: Mapping[str, object], message: str
) -> None:
    valid: dict[str, Any] = {
        "estimation": [[90, 10]],
        "certificate": "splitting",
        "protocol": "exact",
        "noise": splitting(100),
        "alpha": 0.05,
    }
    assert certify(**valid).prediction == 0
    with pytest.raises(ValueError, match=message) as refusal:
        certify(**{**valid, **arguments})
    assert "\n" not in str(refusal.value)
