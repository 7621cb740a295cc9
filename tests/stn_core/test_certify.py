"""From counts to certificates: published figures, abstention, symmetries, and input that must be refused."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from stn_core import CERTIFICATES, PROTOCOLS, Certified, certify, lower_bound

ONE_CLASS = "neyman_pearson_one_class"
TWO_CLASS = "neyman_pearson_two_class"
EVERY_WAY = [(certificate, protocol) for certificate in CERTIFICATES for protocol in PROTOCOLS]


def certify_alike(counts: ArrayLike, certificate: str, protocol: str, alpha: float, sigma: float = 1.0) -> Certified:
    """Certify under any protocol: the selection votes fall like the others, and the label is the most voted class."""
    votes = np.asarray(counts)
    return certify(
        votes,
        votes,
        votes.argmax(axis=1),
        certificate=certificate,
        protocol=protocol,
        noise=Gaussian(sigma),
        alpha=alpha,
    )


@pytest.mark.parametrize("protocol", ["split", "label"])
@pytest.mark.parametrize(
    ("counts", "one_class", "two_class"),
    [
        # Cohen, Rosenfeld & Kolter 2019: with n = 100,000 and alpha = 0.001 no radius beyond 3.8 sigma can
        # be certified. In full: Phi^-1(alpha^(1/n)).
        ([100_000, 0, 0, 0, 0], 3.811, None),
        # Worked out from their Theorem 1 and Clopper-Pearson bounds at 0.001, or 0.0005 where there are two.
        ([60_000, 10_000, 10_000, 10_000, 10_000], 0.241, 0.752),
        ([48_000] + [5_000] * 10 + [2_000], 0.0, 0.780),
    ],
)
def test_neyman_pearson_anchors(protocol: str, counts: list[int], one_class: float, two_class: float | None) -> None:
    one = certify_alike([counts], ONE_CLASS, protocol, alpha=0.001)
    assert one.radius[0] == pytest.approx(one_class, abs=5e-4)
    assert one.abstain[0] == (one_class == 0)
    if two_class is not None:
        two = certify_alike([counts], TWO_CLASS, protocol, alpha=0.001)
        assert two.radius[0] == pytest.approx(two_class, abs=5e-4)
        assert not two.abstain[0]


def test_renyi_anchors_at_the_papers_sample_size() -> None:
    """A hundred unanimous votes at 95 %, as in Li, Chen, Wang & Carin 2019, section 4: the largest radius there is."""
    p1_lower = lower_bound([100], 100, 0.05)
    one_hypothesis = CERTIFICATES["renyi"].unit_radius(p1_lower, 1 - p1_lower)
    assert one_hypothesis[0] == pytest.approx(1.535, abs=5e-4)
    two_hypotheses = certify_alike([[0, 100, 0]], "renyi", "paper_two", alpha=0.05)
    assert two_hypotheses.radius[0] == pytest.approx(1.458, abs=5e-4)


@pytest.mark.parametrize(("certificate", "protocol"), EVERY_WAY)
@pytest.mark.parametrize(
    "counts", [[50, 49, 1], [50, 50, 0], [34, 33, 33], [40, 40, 20], [1, 0, 0], [0, 1, 1]], ids=str
)
def test_abstains_where_votes_do_not_separate(certificate: str, protocol: str, counts: list[int]) -> None:
    certified = certify_alike([counts], certificate, protocol, alpha=0.05)
    assert certified.abstain[0]
    assert certified.prediction[0] == -1
    assert certified.radius[0] == 0


@pytest.mark.parametrize(("certificate", "protocol"), EVERY_WAY)
def test_certifies_where_votes_separate_clearly(certificate: str, protocol: str) -> None:
    certified = certify_alike([[5, 90, 5]], certificate, protocol, alpha=0.05)
    assert not certified.abstain[0]
    assert certified.prediction[0] == 1
    assert certified.radius[0] > 0.5


@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_split_and_label_certify_their_own_class_only(certificate: str) -> None:
    votes, other = [[5, 90, 5]], [[9, 1, 0]]
    kwargs: dict[str, Any] = {"certificate": certificate, "sigma": 1.0, "alpha": 0.05}
    assert certify(votes, other, protocol="split", **kwargs).abstain[0]
    assert certify(votes, other, [0], protocol="label", **kwargs).abstain[0]
    assert certify(votes, other, [0], protocol="paper", **kwargs).prediction[0] == 1


def test_a_certificate_and_a_protocol_may_be_given_themselves() -> None:
    votes = [[5, 90, 5]]
    by_name = certify(votes, certificate="renyi", protocol="paper", noise=Gaussian(1.0), alpha=0.05)
    given = certify(
        votes, certificate=CERTIFICATES["renyi"], protocol=PROTOCOLS["paper"], noise=Gaussian(1.0), alpha=0.05
    )
    assert given.radius == by_name.radius


Counts = NDArray[np.int64]


@st.composite
def count_tables(draw: st.DrawFn) -> Counts:
    """Votes of 1 to 5 images for 2 to 6 classes, each image with a vote; some close, some one-sided, some repeated."""
    classes = draw(st.integers(2, 6))
    count = st.one_of(st.integers(0, 3), st.integers(0, 200), st.integers(0, 100_000))
    row = st.lists(count, min_size=classes, max_size=classes).filter(any)
    return np.array(draw(st.lists(row, min_size=1, max_size=5)), dtype=np.int64)


ways = st.sampled_from(EVERY_WAY)
alphas = st.sampled_from([0.5, 0.05, 1e-3, 1e-9])


@settings(max_examples=200)
@given(count_tables(), ways, alphas)
def test_fields_agree_with_each_other(counts: Counts, way: tuple[str, str], alpha: float) -> None:
    certified = certify_alike(counts, *way, alpha)
    assert np.all(certified.radius >= 0)  # and so not NaN
    assert np.all(np.isfinite(certified.radius))
    assert np.all(certified.p1_lower >= 0)
    assert np.all(certified.p2_upper <= 1 - certified.p1_lower)
    np.testing.assert_array_equal(certified.abstain, ~(certified.p1_lower > certified.p2_upper))
    np.testing.assert_array_equal(certified.prediction, np.where(certified.abstain, -1, counts.argmax(axis=1)))
    assert not certified.radius[certified.abstain].any()


@settings(max_examples=200)
@given(count_tables(), ways, alphas, st.floats(1e-3, 1e3))
def test_radius_is_linear_in_sigma(counts: Counts, way: tuple[str, str], alpha: float, sigma: float) -> None:
    unit = certify_alike(counts, *way, alpha).radius
    scaled = certify_alike(counts, *way, alpha, sigma).radius
    np.testing.assert_allclose(scaled, sigma * unit, rtol=4 * np.finfo(float).eps)


@settings(max_examples=200)
@given(count_tables(), ways, alphas, st.floats(1e-3, 1e3))
def test_radius_is_sigma_times_the_unit_radius_rounded_down(
    counts: Counts, way: tuple[str, str], alpha: float, sigma: float
) -> None:
    certified = certify_alike(counts[:1], *way, alpha, sigma)
    if not certified.abstain:
        unit = CERTIFICATES[way[0]].unit_radius(certified.p1_lower, certified.p2_upper)
        exact = Fraction(sigma) * Fraction(unit[0])
        assert exact * Fraction(1 - 1e-15) <= Fraction(certified.radius[0]) <= exact


@settings(max_examples=200)
@given(count_tables(), ways, alphas, st.randoms(use_true_random=False))
def test_renaming_classes_renames_predictions_only(
    counts: Counts, way: tuple[str, str], alpha: float, random: Random
) -> None:
    new_name = np.array(random.sample(range(counts.shape[1]), counts.shape[1]))
    renamed = np.empty_like(counts)
    renamed[:, new_name] = counts
    before, after = certify_alike(counts, *way, alpha), certify_alike(renamed, *way, alpha)
    np.testing.assert_array_equal(after.radius, before.radius)
    np.testing.assert_array_equal(after.abstain, before.abstain)
    np.testing.assert_array_equal(after.p2_upper, before.p2_upper)
    np.testing.assert_array_equal(after.prediction, np.where(before.abstain, -1, new_name[before.prediction]))


@settings(max_examples=200)
@given(count_tables(), ways, alphas, st.integers(1, 1000))
def test_more_votes_for_the_top_never_lower_the_radius(
    counts: Counts, way: tuple[str, str], alpha: float, more: int
) -> None:
    richer = counts.copy()
    richer[np.arange(len(counts)), counts.argmax(axis=1)] += more
    assert np.all(certify_alike(richer, *way, alpha).radius >= certify_alike(counts, *way, alpha).radius)


@settings(max_examples=200)
@given(count_tables(), st.sampled_from(list(CERTIFICATES)), alphas, st.integers(1, 1000))
def test_more_invalid_votes_never_raise_the_radius(counts: Counts, certificate: str, alpha: float, more: int) -> None:
    kwargs: dict[str, Any] = {"certificate": certificate, "protocol": "paper", "sigma": 1.0, "alpha": alpha}
    total = counts.sum(axis=1)
    assert np.all(certify(counts, draws=total + more, **kwargs).radius <= certify(counts, draws=total, **kwargs).radius)


@settings(max_examples=100)
@given(count_tables(), ways, alphas, st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_images_do_not_influence_each_other(
    counts: Counts, way: tuple[str, str], alpha: float, order: list[int]
) -> None:
    """Each distinct row of counts is computed once; repeated and reordered rows must still get their own result."""
    table = counts[np.array(order) % len(counts)]
    together = certify_alike(table, *way, alpha)
    for i in range(len(table)):
        alone = certify_alike(table[i : i + 1], *way, alpha)
        assert together.radius[i] == pytest.approx(alone.radius[0], rel=1e-14)
        for field in ("prediction", "abstain", "p1_lower", "p2_upper"):
            assert getattr(together, field)[i] == getattr(alone, field)[0]


def test_equal_counts_of_unequal_draws_are_told_apart() -> None:
    certified = certify(
        [[90, 0]] * 3, certificate=ONE_CLASS, protocol="paper", noise=Gaussian(1.0), alpha=0.05, draws=[90, 120, 90]
    )
    assert certified.radius[0] == certified.radius[2] > certified.radius[1] > 0


@pytest.mark.parametrize(("certificate", "protocol"), EVERY_WAY)
def test_no_images_give_no_certificates(certificate: str, protocol: str) -> None:
    assert certify_alike(np.empty((0, 3), dtype=np.int64), certificate, protocol, alpha=0.05).radius.shape == (0,)


NAN, INF = float("nan"), float("inf")
SPLIT, LABEL = {"protocol": "split"}, {"protocol": "label"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimation": [[90, -1]]}, "estimation .*negative"),
        ({"estimation": [[90.0, 10.0]]}, "estimation .*integers"),
        ({"estimation": [[True, False]]}, "estimation .*integers"),
        ({"estimation": [[90]]}, "estimation .*two classes"),
        ({"estimation": [90, 10]}, r"estimation .*\(images, classes\)"),
        ({"estimation": [[0, 0]]}, "at least one draw"),
        ({"draws": 99}, "draws .*at least the votes"),
        ({"draws": [99]}, "draws .*at least the votes"),
        ({"draws": 100.0}, "draws .*integers"),
        ({"estimation": [[0, 0]], "draws": 0}, "at least one draw"),
        ({"draws": [100, 100]}, "draws"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.0}, "alpha"),
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": NAN}, "alpha"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": -1.0}, "sigma"),
        ({"sigma": NAN}, "sigma"),
        ({"sigma": INF}, "sigma"),
        (SPLIT, "selection"),
        (SPLIT | {"selection": [[1, 2, 3]]}, "selection .*shape"),
        (SPLIT | {"selection": [[1, 2], [1, 2]]}, "selection .*shape"),
        (SPLIT | {"selection": [[1, -2]]}, "selection .*negative"),
        (SPLIT | {"selection": [[1.0, 2.0]]}, "selection .*integers"),
        (LABEL, "labels"),
        (LABEL | {"labels": [2]}, "labels .*0 … 1"),
        (LABEL | {"labels": [-1]}, "labels .*0 … 1"),
        (LABEL | {"labels": [0, 1]}, "labels .*one entry per image"),
        (LABEL | {"labels": 0}, "labels .*one entry per image"),
        (LABEL | {"labels": [0.0]}, "labels .*integers"),
        ({"certificate": "reny"}, "certificate 'reny', did you mean 'renyi'"),
        ({"certificate": "neyman_pearson"}, "certificate .*did you mean 'neyman_pearson_"),
        ({"protocol": "papper"}, "protocol 'papper', did you mean 'paper'"),
        ({"protocol": "zzz"}, "protocol 'zzz'; valid: paper, paper_two, split, label"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_refuses_and_names(arguments: Mapping[str, object], message: str) -> None:
    valid: dict[str, Any] = {
        "estimation": [[90, 10]],
        "certificate": "renyi",
        "protocol": "paper",
        "sigma": 1.0,
        "alpha": 0.05,
    }
    assert certify(**valid).prediction[0] == 0
    with pytest.raises(ValueError, match=message):
        certify(**{**valid, **arguments})
