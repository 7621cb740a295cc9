"""From counts to certificates: published figures, abstention, symmetries, and input that must be refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from stn_core import (
    CERTIFICATES,
    PROTOCOLS,
    Certified,
    DiscreteGaussian,
    Gaussian,
    Laplace,
    Splitting,
    Uniform,
    certify,
    lower_bound,
    upper_bound,
)
from stn_core.noise import Noise

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

ONE_CLASS = "neyman_pearson_one_class"
TWO_CLASS = "neyman_pearson_two_class"
NOISE: dict[str, Callable[[float], Noise]] = {"gaussian": Gaussian, "laplace": Laplace, "uniform": Uniform}

#: Every certificate with every protocol that its noise allows.
SAMPLED_WAYS = [
    (name, protocol)
    for name, certificate in CERTIFICATES.items()
    if certificate.noise in NOISE
    for protocol in PROTOCOLS
    if protocol != "exact"
]
EVERY_WAY = [*SAMPLED_WAYS, ("splitting", "exact")]

#: Numbers of draws declared for protocol "stages"; at any other it abstains.
STAGES = (1, 2, 3, 5, 10, 100, 1000)

#: Values in an image.
DIMENSION = 3 * 32 * 32


def draws_of(counts: Counts) -> int:
    """The least number of draws under which all of these counts are possible; lost votes make up the rest."""
    return max(2, int(counts.sum(axis=1).max(initial=0)))


def certify_alike(
    counts: ArrayLike,
    certificate: str,
    protocol: str,
    alpha: float,
    scale: float = 1.0,
    *,
    draws: ArrayLike | None = None,
    uniform: ArrayLike | None = None,
) -> Certified:
    """Certify under any protocol: the selection votes fall like the others, and the label is the most voted class.

    The scale of splitting noise follows from its number of draws. Sequential protocols have no variates.
    """
    votes = np.asarray(counts)
    if PROTOCOLS[protocol].sequential:
        uniform = None
    if protocol == "exact":
        draws = draws_of(votes) if draws is None else draws
        noise: Noise = Splitting(int(np.max(draws)) / 510)
    else:
        noise = NOISE[CERTIFICATES[certificate].noise](scale)
    return certify(
        votes,
        votes,
        votes.argmax(axis=1),
        certificate=certificate,
        protocol=protocol,
        noise=noise,
        alpha=alpha,
        draws=draws,
        dimension=DIMENSION,
        uniform=uniform,
        stages=STAGES,
    )


@pytest.mark.parametrize("protocol", ["split", "label"])
@pytest.mark.parametrize(
    ("counts", "one_class", "two_class"),
    [
        # Cohen, Rosenfeld & Kolter 2019: with n = 100,000 and alpha = 0.001 no radius beyond 3.8 sigma can be
        # certified. In full: Phi^-1(alpha^(1/n)) = 3.8115.
        ([100_000, 0, 0, 0, 0], 3.8115, None),
        # Worked out from their Theorem 1 and Clopper-Pearson bounds at 0.001, or 0.0005 where there are two.
        ([60_000, 10_000, 10_000, 10_000, 10_000], 0.241, 0.752),
        ([60_000, 10_000] + [5_000] * 6, 0.241, 0.752),
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


def test_laplace_and_uniform_anchors() -> None:
    """Unanimous votes at the same n and alpha, where p1 >= alpha^(1/n) = 0.99993092.

    Laplace: -log(2 (1 - p1)) scales (Teng, Lee & Yuan 2020). Uniform: 2 p1 - 1 scales (Yang et al. 2020).
    """
    votes = [[100_000, 0, 0]]
    laplace = certify_alike(votes, "neyman_pearson_laplace_one_class", "split", alpha=0.001)
    assert laplace.radius[0] == pytest.approx(8.8871, abs=5e-4)
    uniform = certify_alike(votes, "neyman_pearson_uniform_one_class", "split", alpha=0.001)
    assert uniform.radius[0] == pytest.approx(0.99986185, abs=1e-8)


def test_splitting_anchor() -> None:
    """All offsets but one agree: lambda (p1 - p2) in L1 (Levine & Feizi 2021), lambda here being 1/2."""
    certified = certify([[254, 1]], certificate="splitting", protocol="exact", noise=Splitting(0.5), alpha=0.05)
    assert certified.radius[0] == pytest.approx(0.5 * 253 / 255, rel=1e-14)


def test_renyi_anchors_at_the_papers_sample_size() -> None:
    """A hundred unanimous votes at 95 %, as in Li, Chen, Wang & Carin 2019, section 4: the largest radius there is."""
    p1_lower = lower_bound([100], 100, 0.05)
    one_hypothesis = CERTIFICATES["renyi"].unit_radius(p1_lower, 1 - p1_lower)
    assert one_hypothesis[0] == pytest.approx(1.535, abs=5e-4)
    two_hypotheses = certify_alike([[0, 100, 0]], "renyi", "paper_two", alpha=0.05)
    assert two_hypotheses.radius[0] == pytest.approx(1.458, abs=5e-4)


@pytest.mark.parametrize(("certificate", "protocol"), SAMPLED_WAYS)
def test_abstains_where_votes_do_not_separate(certificate: str, protocol: str) -> None:
    counts = [[50, 49, 1], [50, 50, 0], [34, 33, 33], [40, 40, 20], [1, 0, 0], [0, 1, 1]]
    for uniform in (None, np.full(len(counts), 0.9)):
        certified = certify_alike(counts, certificate, protocol, alpha=0.05, uniform=uniform)
        assert certified.abstain.all()
        assert np.all(certified.prediction == -1)
        assert not certified.radius.any()


@pytest.mark.parametrize(("certificate", "protocol"), EVERY_WAY)
def test_certifies_where_votes_separate_clearly(certificate: str, protocol: str) -> None:
    certified = certify_alike([[5, 90, 5]], certificate, protocol, alpha=0.05)
    assert not certified.abstain[0]
    assert certified.prediction[0] == 1
    assert certified.radius[0] > (0.1 if CERTIFICATES[certificate].norm != "linf" else 0.1 / np.sqrt(DIMENSION))


@pytest.mark.parametrize("certificate", [name for name in CERTIFICATES if name != "splitting"])
def test_split_and_label_certify_their_own_class_only(certificate: str) -> None:
    votes, other = [[5, 90, 5]], [[9, 1, 0]]
    noise = NOISE[CERTIFICATES[certificate].noise](1.0)
    kwargs: dict[str, Any] = {"certificate": certificate, "noise": noise, "alpha": 0.05, "dimension": DIMENSION}
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


def test_gaussian_certificates_hold_for_gaussian_noise_on_the_grid() -> None:
    votes = [[5, 90, 5]]
    for certificate in ("renyi", TWO_CLASS, ONE_CLASS, "pixeldp"):
        real, grid = (
            certify(votes, certificate=certificate, protocol="paper", noise=noise, alpha=0.05)
            for noise in (Gaussian(0.25), DiscreteGaussian(0.25))
        )
        assert grid.radius == real.radius > 0


@st.composite
def count_tables(draw: st.DrawFn) -> Counts:
    """Votes of 1 to 5 images for 2 to 6 classes, each image with a vote; some close, some one-sided, some repeated."""
    classes = draw(st.integers(2, 6))
    count = st.one_of(st.integers(0, 3), st.integers(0, 200), st.integers(0, 100_000))
    row = st.lists(count, min_size=classes, max_size=classes).filter(any)
    return np.array(draw(st.lists(row, min_size=1, max_size=5)), dtype=np.int64)


ways = st.sampled_from(EVERY_WAY)
alphas = st.sampled_from([0.5, 0.05, 1e-3, 1e-9])
variates = st.one_of(st.floats(0, 1, exclude_min=True), st.sampled_from([1e-300, 1.0]))
#: Variates of as many images as a table may have, or None for Clopper-Pearson.
uniforms = st.one_of(st.none(), st.lists(variates, min_size=5, max_size=5))
#: Those whose bounds stay away from 1, where the outward slack, which grows with the draws, is all there is to see.
ordinary_uniforms = st.one_of(st.none(), st.lists(st.floats(0.01, 1), min_size=5, max_size=5))


def first(uniform: list[float] | None, images: int) -> list[float] | None:
    return None if uniform is None else uniform[:images]


@settings(max_examples=120)
@given(count_tables(), ways, alphas, uniforms)
def test_fields_agree_with_each_other(
    counts: Counts, way: tuple[str, str], alpha: float, uniform: list[float] | None
) -> None:
    certified = certify_alike(counts, *way, alpha, uniform=first(uniform, len(counts)))
    assert np.all(certified.radius >= 0)  # and so not NaN
    assert np.all(np.isfinite(certified.radius))
    assert np.all((certified.p1_lower >= 0) & (certified.p1_lower < 1))
    assert np.all((certified.p2_upper > 0) & (certified.p2_upper <= 1 - certified.p1_lower))
    np.testing.assert_array_equal(certified.abstain, ~(certified.p1_lower > certified.p2_upper))
    np.testing.assert_array_equal(certified.prediction, np.where(certified.abstain, -1, counts.argmax(axis=1)))
    assert not certified.radius[certified.abstain].any()


@settings(max_examples=80)
@given(count_tables(), st.sampled_from(SAMPLED_WAYS), alphas, uniforms, st.floats(1e-3, 1e3))
def test_radius_is_linear_in_the_scale(
    counts: Counts, way: tuple[str, str], alpha: float, uniform: list[float] | None, scale: float
) -> None:
    """That of splitting noise belongs to its number of draws: test_confidence.py."""
    uniform = first(uniform, len(counts))
    unit = certify_alike(counts, *way, alpha, uniform=uniform).radius
    scaled = certify_alike(counts, *way, alpha, scale, uniform=uniform).radius
    np.testing.assert_allclose(scaled, scale * unit, rtol=8 * np.finfo(float).eps)


@settings(max_examples=120)
@given(count_tables(), ways, alphas, st.floats(1e-3, 1e3))
def test_radius_is_scale_times_the_unit_radius_rounded_down(
    counts: Counts, way: tuple[str, str], alpha: float, scale: float
) -> None:
    """In rational numbers; squared for L-infinity, whose divisor, the root of the dimension, is none."""
    certified = certify_alike(counts[:1], *way, alpha, scale)
    if certified.abstain:
        return
    certificate = CERTIFICATES[way[0]]
    if way[1] == "exact":
        scale = draws_of(counts[:1]) / 510
    exact = Fraction(scale) * Fraction(certificate.unit_radius(certified.p1_lower, certified.p2_upper)[0])
    radius = Fraction(certified.radius[0])
    if certificate.norm == "linf":
        assert exact**2 * Fraction(1 - 3e-15) <= radius**2 * DIMENSION <= exact**2
    else:
        assert exact * Fraction(1 - 1e-15) <= radius <= exact


L2 = [name for name, certificate in CERTIFICATES.items() if certificate.norm == "l2"]


def test_every_l2_certificate_has_its_l_infinity_twin_and_no_other_certificate_has() -> None:
    assert {name for name, certificate in CERTIFICATES.items() if certificate.norm == "linf"} == {
        f"{name}_linf" for name in L2
    }


@pytest.mark.parametrize("dimension", [1, 2, 784, 3 * 224 * 224, 10**9])
@pytest.mark.parametrize("certificate", L2)
def test_l_infinity_radius_is_the_l2_radius_by_the_root_of_the_dimension(certificate: str, dimension: int) -> None:
    votes = np.array([[60 + i, 40 - i, 0] for i in range(41)])
    kwargs: dict[str, Any] = {"protocol": "paper", "noise": Gaussian(0.25), "alpha": 0.05}
    l2 = certify(votes, certificate=certificate, **kwargs)
    linf = certify(votes, certificate=f"{certificate}_linf", dimension=dimension, **kwargs)
    np.testing.assert_array_equal(linf.prediction, l2.prediction)
    assert l2.radius.any()
    for small, large in zip(linf.radius, l2.radius, strict=True):
        # The L2 radius is itself one step below scale x unit radius, which is what is divided.
        exact = Fraction(np.nextafter(large, np.inf)) if large else Fraction(0)
        assert exact**2 * Fraction(1 - 4e-15) <= Fraction(small) ** 2 * dimension <= exact**2
        assert small <= large


@settings(max_examples=80)
@given(count_tables(), ways, alphas, uniforms, st.randoms(use_true_random=False))
def test_renaming_classes_renames_predictions_only(
    counts: Counts, way: tuple[str, str], alpha: float, uniform: list[float] | None, random: Random
) -> None:
    new_name = np.array(random.sample(range(counts.shape[1]), counts.shape[1]))
    renamed = np.empty_like(counts)
    renamed[:, new_name] = counts
    before, after = (
        certify_alike(table, *way, alpha, uniform=first(uniform, len(counts))) for table in (counts, renamed)
    )
    np.testing.assert_array_equal(after.radius, before.radius)
    np.testing.assert_array_equal(after.abstain, before.abstain)
    np.testing.assert_array_equal(after.p2_upper, before.p2_upper)
    np.testing.assert_array_equal(after.prediction, np.where(before.abstain, -1, new_name[before.prediction]))


@settings(max_examples=80)
@given(count_tables(), ways, alphas, ordinary_uniforms, st.integers(1, 1000))
def test_more_votes_for_the_top_never_lower_the_radius(
    counts: Counts, way: tuple[str, str], alpha: float, uniform: list[float] | None, more: int
) -> None:
    """More draws, that is; splitting noise has more of them at a larger scale only."""
    richer = counts.copy()
    richer[np.arange(len(counts)), counts.argmax(axis=1)] += more
    after, before = (
        certify_alike(table, *way, alpha, uniform=first(uniform, len(counts))).radius for table in (richer, counts)
    )
    assert np.all(after >= before)


@settings(max_examples=120)
@given(count_tables(), ways, alphas, ordinary_uniforms, st.integers(0, 5), st.integers(1, 1000))
def test_moving_votes_to_the_top_never_lowers_the_radius(
    counts: Counts, way: tuple[str, str], alpha: float, uniform: list[float] | None, giver: int, most: int
) -> None:
    """Of another class, or, where that is the top itself, of the lost votes."""
    rows, top = np.arange(len(counts)), counts.argmax(axis=1)
    draws = draws_of(counts) + 1000
    giving = np.full(len(counts), giver % counts.shape[1])
    richer = counts.copy()
    moved = np.minimum(most, counts[rows, giving])
    richer[rows, giving] -= moved
    richer[rows, top] += np.where(giving == top, most + moved, moved)
    after, before = (
        certify_alike(table, *way, alpha, draws=draws, uniform=first(uniform, len(counts)))
        for table in (richer, counts)
    )
    assert np.all(after.radius >= before.radius)
    assert np.all(before.abstain | ~after.abstain)


@settings(max_examples=80)
@given(count_tables(), st.sampled_from(SAMPLED_WAYS), alphas, uniforms, st.integers(1, 1000))
def test_more_invalid_votes_never_raise_the_radius(
    counts: Counts, way: tuple[str, str], alpha: float, uniform: list[float] | None, more: int
) -> None:
    total = counts.sum(axis=1)
    after, before = (
        certify_alike(counts, *way, alpha, draws=draws, uniform=first(uniform, len(counts))).radius
        for draws in (total + more, total)
    )
    assert np.all(after <= before)


#: How many votes of an image were lost: none, some, or so many that draws are too many to be packed into one integer.
lost = st.one_of(st.integers(0, 3), st.sampled_from([2**20 - 1, 2**20, 2**20 + 1, 2**23]))


@settings(max_examples=80)
@given(
    count_tables(),
    st.sampled_from(SAMPLED_WAYS),
    alphas,
    uniforms,
    st.lists(st.tuples(st.integers(0, 4), lost), min_size=1, max_size=12),
)
def test_images_do_not_influence_each_other(
    counts: Counts, way: tuple[str, str], alpha: float, uniform: list[float] | None, order: list[tuple[int, int]]
) -> None:
    """Alike images are computed once; repeated and reordered, of alike votes and unlike draws, each gets its own."""
    rows = np.array([row for row, _ in order]) % len(counts)
    table, draws = counts[rows], counts[rows].sum(axis=1) + np.array([more for _, more in order])
    chosen = None if uniform is None else np.array(uniform)[np.array([row for row, _ in order])]
    together = certify_alike(table, *way, alpha, draws=draws, uniform=chosen)
    for i in range(len(table)):
        alone = certify_alike(
            table[i : i + 1], *way, alpha, draws=draws[i : i + 1], uniform=None if chosen is None else chosen[i : i + 1]
        )
        assert together.radius[i] == pytest.approx(alone.radius[0], rel=1e-14)
        for field in ("prediction", "abstain", "p1_lower", "p2_upper"):
            assert getattr(together, field)[i] == getattr(alone, field)[0]


@settings(max_examples=50)
@given(count_tables(), st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_images_do_not_influence_each_other_where_votes_are_exact(counts: Counts, order: list[int]) -> None:
    table, draws = counts[np.array(order) % len(counts)], draws_of(counts)
    together = certify_alike(table, "splitting", "exact", 0.05, draws=draws)
    for i in range(len(table)):
        alone = certify_alike(table[i : i + 1], "splitting", "exact", 0.05, draws=draws)
        for field in ("prediction", "abstain", "radius", "p1_lower", "p2_upper"):
            assert getattr(together, field)[i] == getattr(alone, field)[0]


@settings(max_examples=80)
@given(count_tables(), alphas, uniforms, st.lists(lost, min_size=5, max_size=5))
def test_every_image_has_the_bounds_of_its_own_counts(
    counts: Counts, alpha: float, uniform: list[float] | None, more: list[int]
) -> None:
    """Against the bounds themselves, image by image, so that no mix-up could be the same together and alone."""
    draws = counts.sum(axis=1) + np.array(more[: len(counts)])
    certified = certify_alike(counts, TWO_CLASS, "label", alpha, draws=draws, uniform=first(uniform, len(counts)))
    for i, row in enumerate(counts):
        second, top = np.sort(row)[-2:]
        u = None if uniform is None else uniform[i]
        p1_lower, p2_upper = lower_bound(top, draws[i], alpha / 2, u), upper_bound(second, draws[i], alpha / 2, u)
        assert certified.p1_lower[i] == p1_lower
        assert certified.p2_upper[i] == min(1 - p1_lower, p2_upper)


@pytest.mark.parametrize("factor", [1, 2**14, 2**16])
def test_equal_counts_of_unequal_draws_are_told_apart(factor: int) -> None:
    certified = certify(
        [[90, 0], [90, 0], [90, 0], [90 * factor, 0]],
        certificate=ONE_CLASS,
        protocol="paper",
        noise=Gaussian(1.0),
        alpha=0.05,
        draws=[90, 120, 90, 90 * factor],
    )
    assert certified.radius[0] == certified.radius[2] > certified.radius[1] > 0
    assert certified.radius[3] >= certified.radius[0]


@pytest.mark.parametrize(("certificate", "protocol"), EVERY_WAY)
def test_no_images_give_no_certificates(certificate: str, protocol: str) -> None:
    none = np.empty((0, 3), dtype=np.int64)
    assert certify_alike(none, certificate, protocol, alpha=0.05).radius.shape == (0,)
    assert certify_alike(none, certificate, protocol, alpha=0.05, uniform=[]).radius.shape == (0,)


NAN, INF = float("nan"), float("inf")
SPLIT, LABEL, LINF = {"protocol": "split"}, {"protocol": "label"}, {"certificate": "renyi_linf"}
LAPLACE = ("renyi_laplace", "neyman_pearson_laplace_two_class", "neyman_pearson_laplace_one_class", "pixeldp_laplace")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimation": [[90, -1]]}, "estimation .*negative"),
        ({"estimation": [[90.0, 10.0]]}, "estimation .*integers"),
        ({"estimation": [[NAN, 10.0]]}, "estimation .*integers"),
        ({"estimation": [[True, False]]}, "estimation .*integers"),
        ({"estimation": [["90", "10"]]}, "estimation .*integers"),
        ({"estimation": [[90]]}, "estimation .*two classes"),
        ({"estimation": [90, 10]}, r"estimation .*\(images, classes\)"),
        ({"estimation": np.array([[2**63, 1]], dtype=np.uint64)}, r"estimation must be below 2\*\*63"),
        ({"estimation": [[0, 0]]}, "at least one draw"),
        ({"draws": 99}, "draws .*at least the votes"),
        ({"draws": [99]}, "draws .*at least the votes"),
        ({"draws": -1}, "draws .*at least the votes"),
        ({"draws": 100.0}, "draws .*integers"),
        ({"draws": NAN}, "draws .*integers"),
        ({"estimation": [[0, 0]], "draws": 0}, "at least one draw"),
        ({"draws": [100, 100]}, r"draws .*\(1,\), got shape \(2,\)"),
        ({"draws": [[100]]}, r"draws .*\(1,\), got shape \(1, 1\)"),
        *(({"alpha": alpha}, r"alpha must lie inside \(0, 1\), got") for alpha in (0.0, 1.0, -0.1, 1.1, NAN, INF)),
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
        ({"certificate": "neyman_pearson_one_class_inf"}, "did you mean 'neyman_pearson_one_class_linf'"),
        ({"protocol": "papper"}, "protocol 'papper', did you mean 'paper'"),
        ({"protocol": "zzz"}, "protocol 'zzz'; valid: paper, paper_two, split, label, exact"),
        ({"noise": Laplace(1.0)}, f"'renyi' holds for gaussian noise.* is laplace; for that: {', '.join(LAPLACE)}$"),
        ({"noise": Uniform(1.0)}, "holds for gaussian noise.* is uniform; for that: .*uniform_two_class"),
        ({"noise": Splitting(0.1)}, "holds for gaussian noise.* is splitting; for that: splitting$"),
        ({"certificate": "renyi_laplace"}, "'renyi_laplace' holds for laplace noise.* is gaussian; for that: renyi, "),
        ({"certificate": "splitting"}, "'splitting' holds for splitting noise.* is gaussian; for that: renyi, "),
        (LINF | {"noise": Laplace(1.0)}, "'renyi_linf' holds for gaussian noise.* is laplace"),
        (LINF, "'renyi_linf' needs dimension, the number of values in an image, got None"),
        (LINF | {"dimension": 0}, "needs dimension.* got 0"),
        (LINF | {"dimension": -3}, "needs dimension.* got -3"),
        (LINF | {"estimation": [[50, 50]]}, "needs dimension"),
        ({"uniform": [0.5, 0.5]}, r"uniform must have one entry per image, \(1,\), got shape \(2,\)"),
        ({"uniform": [[0.5]]}, r"uniform must have one entry per image, \(1,\), got shape \(1, 1\)"),
        ({"uniform": 0.5}, r"uniform must have one entry per image, \(1,\), got shape \(\)"),
        ({"uniform": []}, r"uniform must have one entry per image, \(1,\), got shape \(0,\)"),
        *(({"uniform": [u]}, r"uniform must lie in \(0, 1\]") for u in (0.0, -0.5, 1 + 2**-52, NAN, INF)),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_refuses_and_names(arguments: Mapping[str, object], message: str) -> None:
    valid: dict[str, Any] = {
        "estimation": [[90, 10]],
        "certificate": "renyi",
        "protocol": "paper",
        "noise": Gaussian(1.0),
        "alpha": 0.05,
    }
    assert certify(**valid).prediction[0] == 0
    with pytest.raises(ValueError, match=message) as refusal:
        certify(**{**valid, **arguments})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF, -INF])
@pytest.mark.parametrize(
    ("noise", "named"),
    [(Gaussian, "sigma"), (DiscreteGaussian, "sigma"), (Laplace, "scale"), (Uniform, "scale"), (Splitting, "scale")],
)
def test_noise_refuses_a_scale_that_is_none(noise: Callable[[float], Noise], named: str, value: float) -> None:
    """So that no certificate is ever asked about one."""
    with pytest.raises(ValueError, match=f"^{named} must be a positive finite number, got {value!r}$"):
        noise(value)
