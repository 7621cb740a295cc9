"""The probability of a false certificate, by exact sums over every outcome of the votes.

An issued certificate is false where a bound it was computed from is: where the certified class's true probability lies
below ``p1_lower`` or, for certificates that bound the runner-up, another class's lies above ``p2_upper``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from stn_core import CERTIFICATES, PROTOCOLS, Certified, certify, lower_bound, upper_bound

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ONE_CLASS = "neyman_pearson_one_class"
SELECTION_DRAWS = 40


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


def is_false(certified: Certified, truth: Floats, certificate: str) -> NDArray[np.bool_]:
    certified_class = np.eye(len(truth), dtype=bool)[certified.prediction]
    false = certified_class @ truth < certified.p1_lower
    if CERTIFICATES[certificate].bounds == 2:
        false |= np.where(certified_class, 0, truth).max(axis=1) > certified.p2_upper
    return false & ~certified.abstain


def probabilities_of_selecting(truth: Floats) -> Floats:
    """The probability that each class gets most selection votes; ties to the lowest."""
    selection = outcomes(SELECTION_DRAWS, len(truth))
    return np.bincount(selection.argmax(axis=1), probabilities_of(selection, truth), len(truth)).astype(np.float64)


def false_probability(protocol: str, certificate: str, truths: list[Floats], draws: int, alpha: float) -> float:
    """The largest probability of a false certificate over all ``truths``, and over all labels where there is one."""
    votes = outcomes(draws, len(truths[0]))
    false = np.zeros((len(truths), len(truths[0]), len(votes)), dtype=bool)
    # Each class in turn is selected, and is the label.
    for chosen in range(len(truths[0])):
        labels = np.full(len(votes), chosen)
        selection = np.eye(len(truths[0]), dtype=np.int64)[labels]
        certified = certify(
            votes, selection, labels, certificate=certificate, protocol=protocol, noise=Gaussian(1.0), alpha=alpha
        )
        for i, truth in enumerate(truths):
            false[i, chosen] = is_false(certified, truth, certificate)
    worst = 0.0
    for truth, false_for in zip(truths, false, strict=True):
        by_chosen = false_for @ probabilities_of(votes, truth)
        if protocol == "split":
            by_chosen = by_chosen * probabilities_of_selecting(truth)
            worst = max(worst, float(by_chosen.sum()))
        else:
            worst = max(worst, float(by_chosen.max()))
    return worst


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


@pytest.mark.parametrize("certificate", CERTIFICATES)
@pytest.mark.parametrize("protocol", [name for name, protocol in PROTOCOLS.items() if protocol.rigorous])
@pytest.mark.parametrize(("draws", "alpha"), [(12, 0.2), (20, 0.05)])
def test_false_certificates_are_no_likelier_than_alpha(
    protocol: str, certificate: str, draws: int, alpha: float
) -> None:
    assert 0 < false_probability(protocol, certificate, truths_for(draws, alpha), draws, alpha) <= alpha


@pytest.mark.parametrize("protocol", ["split", "label"])
def test_one_class_certificates_spend_all_of_alpha(protocol: str) -> None:
    draws, alpha = 20, 0.05
    assert false_probability(protocol, ONE_CLASS, truths_for(draws, alpha), draws, alpha) > 0.95 * alpha


@pytest.mark.parametrize(
    ("protocol", "certificate"), [("split", ONE_CLASS), *(("label", certificate) for certificate in CERTIFICATES)]
)
def test_the_same_truths_would_catch_twice_the_alpha(protocol: str, certificate: str) -> None:
    draws, alpha = 20, 0.05
    assert false_probability(protocol, certificate, truths_for(draws, alpha), draws, 2 * alpha) > 1.1 * alpha


@pytest.mark.parametrize("certificate", CERTIFICATES)
@pytest.mark.parametrize("protocol", ["paper", "label"])
def test_invalid_votes_make_no_certificate_false(protocol: str, certificate: str) -> None:
    draws, alpha = 20, 0.05
    with_invalid = outcomes(draws, 3)
    votes = with_invalid[:, :2]
    labels = np.zeros(len(votes), dtype=np.int64)
    certified = certify(
        votes, labels=labels, certificate=certificate, protocol=protocol, noise=Gaussian(1.0), alpha=alpha, draws=draws
    )
    for truth in truths_for(draws, alpha):
        false = is_false(certified, truth[:2], certificate)
        assert probabilities_of(with_invalid, truth)[false].sum() <= alpha


def test_paper_two_is_no_guarantee() -> None:
    """Two classes, equally likely: either may come out on top, and each then has all of alpha to be wrong with."""
    draws, alpha = 30, 0.05
    truths = [np.array([0.5, 0.5])]
    assert not PROTOCOLS["paper_two"].rigorous
    assert false_probability("paper_two", ONE_CLASS, truths, draws, alpha) > 1.9 * alpha
    assert 0.8 * alpha < false_probability("paper", ONE_CLASS, truths, draws, alpha) <= alpha
