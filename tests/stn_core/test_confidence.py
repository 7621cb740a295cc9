"""How each protocol shares alpha among its bounds, and whom it certifies."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_core import CERTIFICATES, PROTOCOLS, Gaussian, Laplace, Splitting, Uniform, certify, lower_bound, upper_bound

NOISE = {"gaussian": Gaussian(1.0), "laplace": Laplace(1.0), "uniform": Uniform(1.0)}

#: Certificates that need the candidate's probability alone; all others bound the runner-up's as well.
ONE_BOUND = {
    "neyman_pearson_one_class",
    "neyman_pearson_one_class_linf",
    "neyman_pearson_laplace_one_class",
    "neyman_pearson_uniform_one_class",
}

#: Parts into which alpha is split for three classes: protocol to the divisor of alpha for one bound and for two.
SHARES = {"paper": (3, 6), "paper_two": (1, 2), "split": (1, 2), "label": (1, 2)}

#: Certificates whose bounds come from samples; splitting noise is enumerated.
SAMPLED = [name for name, certificate in CERTIFICATES.items() if certificate.noise in NOISE]

TOP, SECOND, LAST = 70, 20, 10
ALPHA = 0.012


def arguments(certificate: str, protocol: str) -> dict[str, Any]:
    noise = NOISE[CERTIFICATES[certificate].noise]
    return {"certificate": certificate, "protocol": protocol, "noise": noise, "alpha": ALPHA, "dimension": 12}


def test_every_protocol_and_certificate_is_in_these_tables() -> None:
    assert {*SHARES, "exact"} == set(PROTOCOLS)
    assert {name for name, certificate in CERTIFICATES.items() if certificate.bounds == 1} == ONE_BOUND
    assert {*SAMPLED, "splitting"} == set(CERTIFICATES)


@pytest.mark.parametrize("u", [None, 1e-9, 0.3, 1.0])
@pytest.mark.parametrize("protocol", SHARES)
@pytest.mark.parametrize("certificate", SAMPLED)
def test_each_bound_gets_its_share_of_alpha(certificate: str, protocol: str, u: float | None) -> None:
    """Any other share, of either bound, gives another number."""
    counts = [[SECOND, TOP, LAST]]
    uniform = None if u is None else [u]
    certified = certify(counts, counts, [1], **arguments(certificate, protocol), uniform=uniform)
    error = ALPHA / SHARES[protocol][certificate not in ONE_BOUND]
    p1_lower = lower_bound(TOP, 100, error, u)
    assert certified.prediction == 1
    assert certified.p1_lower == p1_lower
    assert certified.p2_upper == (1 - p1_lower if certificate in ONE_BOUND else upper_bound(SECOND, 100, error, u))


@pytest.mark.parametrize("u", [None, 0.3])
@pytest.mark.parametrize("protocol", SHARES)
@pytest.mark.parametrize("certificate", SAMPLED)
def test_invalid_votes_stay_in_the_trials(certificate: str, protocol: str, u: float | None) -> None:
    counts = [[TOP, SECOND, 0]]
    uniform = None if u is None else [u]
    certified = certify(counts, counts, [0], **arguments(certificate, protocol), draws=[100], uniform=uniform)
    error = ALPHA / SHARES[protocol][certificate not in ONE_BOUND]
    p1_lower = lower_bound(TOP, 100, error, u)
    assert certified.p1_lower == p1_lower < lower_bound(TOP, TOP + SECOND, error, u)
    assert certified.p2_upper == (1 - p1_lower if certificate in ONE_BOUND else upper_bound(SECOND, 100, error, u))


@pytest.mark.parametrize("uniform", [None, [1e-9]], ids=str)
@pytest.mark.parametrize("protocol", SHARES)
@pytest.mark.parametrize("certificate", SAMPLED)
def test_an_image_without_one_valid_vote_abstains(certificate: str, protocol: str, uniform: list[float] | None) -> None:
    none = [[0, 0, 0]]
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
