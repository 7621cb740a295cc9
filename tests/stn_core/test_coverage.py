"""The probability of a false certificate, by exact sums over every outcome of the votes.

An issued certificate is false where a bound it was computed from is: where the certified class's true probability lies
below ``p1_lower`` or, for certificates that bound the runner-up, another class's lies above ``p2_upper``. Certificates
with equally many bounds issue the same bounds, which is tested first, so the sums are made for one of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from stn_core import (
    CERTIFICATES,
    PROTOCOLS,
    Certified,
    Gaussian,
    Laplace,
    Splitting,
    Uniform,
    certify,
    lower_bound,
    upper_bound,
)

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NOISE = {"gaussian": Gaussian(1.0), "laplace": Laplace(1.0), "uniform": Uniform(1.0)}
SAMPLED = [name for name, certificate in CERTIFICATES.items() if certificate.noise in NOISE]

ONE_CLASS, TWO_CLASS = "neyman_pearson_one_class", "neyman_pearson_two_class"
REPRESENTATIVES = [ONE_CLASS, TWO_CLASS]

#: Under "exact" nothing is left to chance: test_confidence.py holds those bounds against rational numbers.
#: Sequential protocols err at many looks together: test_sequences.py sums over those.
RIGOROUS = [
    name
    for name, protocol in PROTOCOLS.items()
    if protocol.rigorous and protocol.shares is not None and not protocol.sequential
]

SELECTION_DRAWS = 40


@cache
def outcomes(draws: int, classes: int) -> Ints:
    """Every way in which ``draws`` votes can fall on ``classes`` classes."""

    def rows(left: int, columns: int) -> Iterator[tuple[int, ...]]:
        if columns == 1:
            yield (left,)
            return
        for first in range(left + 1):
            yield from ((first, *rest) for rest in rows(left - first, columns - 1))

    return np.array(list(rows(draws, classes)))


def probabilities_of(votes: Ints, truth: Floats) -> Floats:
    probabilities: Floats = stats.multinomial.pmf(votes, votes[0].sum(), truth)
    assert probabilities.sum() == pytest.approx(1)
    return probabilities


def certified_for(chosen: int, protocol: str, certificate: str, votes: Ints, alpha: float, **more: Any) -> Certified:
    """Certify where every image's selection votes went to the class ``chosen``, and that is the label."""
    labels = np.full(len(votes), chosen)
    return certify(
        votes,
        np.eye(votes.shape[1], dtype=np.int64)[labels],
        labels,
        certificate=certificate,
        protocol=protocol,
        noise=NOISE[CERTIFICATES[certificate].noise],
        alpha=alpha,
        dimension=12,
        **more,
    )


def is_false(certified: Certified, truth: Floats, certificate: str) -> Bools:
    certified_class = np.eye(len(truth), dtype=bool)[certified.prediction]
    false = certified_class @ truth < certified.p1_lower
    if CERTIFICATES[certificate].bounds == 2:
        false |= np.where(certified_class, 0, truth).max(axis=1) > certified.p2_upper
    return false & ~certified.abstain


def probabilities_of_selecting(truth: Floats) -> Floats:
    """The probability that each class gets most selection votes; ties to the lowest."""
    selection = outcomes(SELECTION_DRAWS, len(truth))
    return np.bincount(selection.argmax(axis=1), probabilities_of(selection, truth), len(truth)).astype(np.float64)


def false_probabilities(
    protocol: str, certificate: str, truths: list[Floats], draws: int, alpha: float, *, variates: Floats | None = None
) -> Floats:
    """The probability of a false certificate at each of ``truths``, the largest over all labels where there is one.

    With ``variates``, the mean over these.
    """
    votes, repeats = outcomes(draws, len(truths[0])), 1 if variates is None else len(variates)
    uniform = None if variates is None else np.repeat(variates, len(votes))
    # Each class in turn is selected, and is the label.
    certified = [
        certified_for(chosen, protocol, certificate, np.tile(votes, (repeats, 1)), alpha, uniform=uniform)
        for chosen in range(len(truths[0]))
    ]
    result = []
    for truth in truths:
        probabilities = probabilities_of(votes, truth)
        by_chosen = np.array(
            [is_false(each, truth, certificate).reshape(repeats, -1).mean(axis=0) @ probabilities for each in certified]
        )
        if protocol == "split":
            result.append((by_chosen * probabilities_of_selecting(truth)).sum())
        else:
            result.append(by_chosen.max())
    return np.array(result)


def truths_for(draws: int, alpha: float) -> list[Floats]:
    """True probabilities of three classes at which bounds are most likely to be wrong.

    Clopper-Pearson's error jumps up to (almost) what it is allowed where the truth crosses the bound of a count, so the
    first class is put just beyond such bounds with the rest shared in several ways, near-ties among them; and for
    certificates with two bounds, the second class at the same time.
    """
    counts = np.arange(draws)
    truths = [np.array(p) for p in ([1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0], [0.5, 0.49, 0.01], [0.4, 0.39, 0.21])]
    for error in (2 * alpha, alpha, alpha / 2, alpha / 3, alpha / 6):
        for p in _just_below_lower(counts[draws // 3 :], draws, error):
            truths += [np.array([p, (1 - p) * share, (1 - p) * (1 - share)]) for share in (0.02, 0.3, 0.5)]
    for p1 in _just_below_lower(counts[draws // 3 :], draws, alpha / 2):
        for p2 in upper_bound(counts, draws, alpha / 2) * (1 + 1e-9):
            if p1 + p2 <= 1:
                truths.append(np.array([p1, p2, 1 - p1 - p2]))
    return truths


def _just_below_lower(counts: Ints, draws: int, error: float) -> Floats:
    return lower_bound(counts + 1, draws, error) * (1 - 1e-9)


@pytest.mark.parametrize("certificate", SAMPLED)
@pytest.mark.parametrize("protocol", RIGOROUS)
@pytest.mark.parametrize("randomised", [False, True])
def test_certificates_with_equally_many_bounds_have_the_same_bounds(
    protocol: str, certificate: str, randomised: bool
) -> None:
    """For every outcome of 12 votes: what is summed below for one certificate holds for all."""
    votes = outcomes(12, 3)
    uniform = np.random.default_rng(0).uniform(1e-3, 1, len(votes)) if randomised else None
    representative = REPRESENTATIVES[CERTIFICATES[certificate].bounds - 1]
    for chosen in range(3):
        expected, actual = (
            certified_for(chosen, protocol, name, votes, 0.05, uniform=uniform)
            for name in (representative, certificate)
        )
        for field in ("prediction", "abstain", "p1_lower", "p2_upper"):
            np.testing.assert_array_equal(getattr(actual, field), getattr(expected, field))


def test_every_rigorous_protocol_is_summed_here() -> None:
    assert RIGOROUS == ["paper", "split", "label"]


@pytest.mark.parametrize("certificate", REPRESENTATIVES)
@pytest.mark.parametrize("protocol", RIGOROUS)
@pytest.mark.parametrize(("draws", "alpha"), [(12, 0.2), (20, 0.05)])
def test_false_certificates_are_no_likelier_than_alpha(
    protocol: str, certificate: str, draws: int, alpha: float
) -> None:
    assert 0 < false_probabilities(protocol, certificate, truths_for(draws, alpha), draws, alpha).max() <= alpha


@pytest.mark.parametrize("protocol", ["split", "label"])
def test_one_class_certificates_spend_all_of_alpha(protocol: str) -> None:
    draws, alpha = 20, 0.05
    assert false_probabilities(protocol, ONE_CLASS, truths_for(draws, alpha), draws, alpha).max() > 0.95 * alpha


@pytest.mark.parametrize(
    ("protocol", "certificate"), [("split", ONE_CLASS), ("label", ONE_CLASS), ("label", TWO_CLASS)]
)
def test_the_same_truths_would_catch_twice_the_alpha(protocol: str, certificate: str) -> None:
    draws, alpha = 20, 0.05
    assert false_probabilities(protocol, certificate, truths_for(draws, alpha), draws, 2 * alpha).max() > 1.1 * alpha


@pytest.mark.parametrize("certificate", REPRESENTATIVES)
@pytest.mark.parametrize("protocol", ["paper", "label"])
@pytest.mark.parametrize("randomised", [False, True])
def test_invalid_votes_make_no_certificate_false(protocol: str, certificate: str, randomised: bool) -> None:
    """Two classes vote and a third stands for lost votes. Randomised: the mean over 16 variates, a bound from below."""
    draws, alpha = 20, 0.05
    with_invalid = outcomes(draws, 3)
    votes = with_invalid[:, :2]
    steps = STEPS[1::2] if randomised else [None]
    certified = [
        certified_for(
            0, protocol, certificate, votes, alpha, draws=draws, uniform=None if u is None else np.full(len(votes), u)
        )
        for u in steps
    ]
    for truth in truths_for(draws, alpha):
        false = np.mean([is_false(each, truth[:2], certificate) for each in certified], axis=0)
        assert probabilities_of(with_invalid, truth) @ false <= alpha


def test_paper_two_is_no_guarantee() -> None:
    """Two classes, equally likely: either may come out on top, and each then has all of alpha to be wrong with."""
    draws, alpha = 30, 0.05
    truths = [np.array([0.5, 0.5])]
    assert not PROTOCOLS["paper_two"].rigorous
    assert false_probabilities("paper_two", ONE_CLASS, truths, draws, alpha).max() > 1.9 * alpha
    assert 0.8 * alpha < false_probabilities("paper", ONE_CLASS, truths, draws, alpha).max() <= alpha


# Randomised intervals: the same sums, and an integral over the variate.

#: Upper ends of 32 equal parts of (0, 1]. Bounds widen as the variate grows, so the variates that make an outcome false
#: are those below some number, and their share exceeds that of the ends among them by less than 1/32: the probability
#: of a false certificate exceeds the mean over the ends by less than 1/32.
STEPS = np.arange(1, 33) / 32

#: The lower ends, the least variate there is for 0: the mean over these is no less than the probability.
LOWER_STEPS = np.concatenate([[2.0**-53], STEPS[:-1]])


@pytest.mark.parametrize("certificate", REPRESENTATIVES)
@pytest.mark.parametrize("protocol", RIGOROUS)
@pytest.mark.parametrize(("draws", "alpha"), [(12, 0.2), (20, 0.05)])
def test_randomised_false_certificates_are_no_likelier_than_alpha(
    protocol: str, certificate: str, draws: int, alpha: float
) -> None:
    """The probability lies between the two means, so that twice the alpha could not hide in the grid."""
    truths = truths_for(draws, alpha)[:: 2 if draws == 12 else 7]
    below = false_probabilities(protocol, certificate, truths, draws, alpha, variates=STEPS)
    above = false_probabilities(protocol, certificate, truths, draws, alpha, variates=LOWER_STEPS)
    assert 0 < below.max() <= alpha
    assert np.all((below <= above) & (above <= below + 1 / 32))
    assert above.max() <= 1.15 * alpha


@pytest.mark.parametrize(
    ("protocol", "certificate"), [("split", ONE_CLASS), ("label", ONE_CLASS), ("label", TWO_CLASS)]
)
def test_randomised_sums_would_catch_twice_the_alpha(protocol: str, certificate: str) -> None:
    draws, alpha = 20, 0.05
    truths = truths_for(draws, alpha)[::3]
    false = false_probabilities(protocol, certificate, truths, draws, 2 * alpha, variates=STEPS)
    assert false.max() > 1.1 * alpha


def test_randomised_one_class_certificates_spend_alpha_at_every_truth() -> None:
    """Two classes, protocol "label": the label's bound alone decides, and wherever it errs the image is certified.

    At most the variates below alpha / (1 - alpha) of one count are given away. Twice or half the alpha would fail at
    every single one of these truths; the plain bound spends far less at most of them.
    """
    draws, alpha = 20, 0.05
    truths = [np.array([p, 1 - p]) for p in np.linspace(0.5, (1 - alpha) ** (1 / draws), 50, endpoint=False)]
    variates = np.arange(1, 1025) / 1024
    below = false_probabilities("label", ONE_CLASS, truths, draws, alpha, variates=variates)
    largest = np.array([probabilities_of(outcomes(draws, 2), truth).max() for truth in truths])
    assert np.all(below <= alpha)
    assert np.all(below >= alpha - largest * (alpha / (1 - alpha) + 1 / 1024))
    assert np.mean(below > 0.99 * alpha) > 0.8
    plain = false_probabilities("label", ONE_CLASS, truths, draws, alpha)
    assert np.mean(plain < 0.9 * alpha) > 0.8


def test_exact_certificates_are_never_false() -> None:
    """Every way 20 offsets can vote, in rational numbers: the votes' shares are the truth, and all draws there are."""
    votes = outcomes(20, 3)
    certified = certify(votes, certificate="splitting", protocol="exact", noise=Splitting(20 / 510), alpha=0.05)
    top, second = np.sort(votes, axis=1)[:, ::-1][:, :2].T
    for i in range(len(votes)):
        assert Fraction(certified.p1_lower[i]) <= Fraction(int(top[i]), 20)
        assert Fraction(certified.p2_upper[i]) >= Fraction(int(second[i]), 20)
    np.testing.assert_array_equal(certified.abstain, top == second)
    np.testing.assert_array_equal(certified.prediction, np.where(top == second, -1, votes.argmax(axis=1)))
