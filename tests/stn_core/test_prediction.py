from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import comb, prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stn_core.prediction import predict


@given(votes=st.lists(st.integers(0, 3000), min_size=2, max_size=6))
def test_it_is_the_two_sided_binomial_test_of_the_two_most_voted(votes: list[int]) -> None:
    found = predict(np.array([votes]))
    second, first = sorted(votes)[-2:]
    if first == 0:
        assert (found.winner[0], found.p_value[0]) == (-1, 1.0)
        return
    assert found.winner[0] == votes.index(first)
    expected = stats.binomtest(first, first + second, 0.5, alternative="two-sided").pvalue
    assert found.p_value[0] == pytest.approx(expected, rel=1e-9)


def outcomes(draws: int, classes: int) -> Iterator[tuple[int, ...]]:
    """All ways in which votes can fall."""
    if classes == 1:
        yield (draws,)
        return
    for first in range(draws + 1):
        for rest in outcomes(draws - first, classes - 1):
            yield (first, *rest)


def probability(votes: tuple[int, ...], of_classes: tuple[float, ...]) -> float:
    ways, left = 1, sum(votes)
    for count in votes:
        ways *= comb(left, count)
        left -= count
    return ways * prod(p**count for p, count in zip(of_classes, votes, strict=True))


@pytest.mark.parametrize(
    "of_classes",
    [
        (1 / 3, 1 / 3, 1 / 3),
        (0.5, 0.5, 0.0),
        (0.4, 0.4, 0.2),
        (0.45, 0.45, 0.1),
        (0.34, 0.33, 0.33),
        (0.45, 0.44, 0.11),
        (0.51, 0.49, 0.0),
        (0.3, 0.4, 0.3),
        (0.1, 0.449, 0.451),
        (0.02, 0.0, 0.98),
    ],
)
@pytest.mark.parametrize("draws", [1, 5, 12, 25])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.2, 0.5])
def test_a_wrong_class_is_answered_with_a_chance_of_at_most_alpha(
    of_classes: tuple[float, ...], draws: int, alpha: float
) -> None:
    """Summed over all that can happen."""
    every = list(outcomes(draws, 3))
    weights = np.array([probability(votes, of_classes) for votes in every])
    assert weights.sum() == pytest.approx(1)
    answers = predict(np.array(every)).answer(alpha)
    right = [place for place, p in enumerate(of_classes) if p == max(of_classes)]
    wrong = weights[(answers >= 0) & ~np.isin(answers, right)].sum()
    assert wrong <= alpha * (1 + 1e-12)
    # Two classes as likely as each other are told apart as rarely: either answer is wrong about the other.
    if len(right) == 2:
        for one in right:
            assert weights[answers == one].sum() <= alpha / 2 * (1 + 1e-12)


def test_it_is_no_more_careful_than_it_must_be() -> None:
    """Of two classes nearly as likely as each other, the chance of the wrong one is nearly half of alpha."""
    every = list(outcomes(400, 2))
    weights = np.array([probability(votes, (0.5000001, 0.4999999)) for votes in every])
    answers = predict(np.array(every)).answer(0.1)
    assert 0.04 < weights[answers == 1].sum() <= 0.05


def test_more_votes_are_surer_and_a_tie_never_answers() -> None:
    votes = np.array([[10, 10, 0], [11, 10, 0], [15, 10, 0], [30, 10, 9], [300, 10, 9]])
    found = predict(votes)
    assert found.p_value[0] == 1
    assert all(later < earlier or earlier == 1 for earlier, later in pairwise(found.p_value))
    assert found.answer(0.999)[0] == -1
    assert found.answer(0.001).tolist() == [-1, -1, -1, -1, 0]


def test_of_equal_counts_the_lowest_class_wins_and_without_votes_none() -> None:
    found = predict(np.array([[0, 4, 4], [0, 0, 0], [1, 0, 0]]))
    assert found.winner.tolist() == [1, -1, 0]
    assert found.p_value.tolist() == [1.0, 1.0, 1.0]
    assert found.answer(0.05).tolist() == [-1, -1, -1]


def test_where_all_draws_are_counted_only_ties_abstain() -> None:
    found = predict(np.array([[3, 2, 1], [0, 1, 0], [2, 2, 1], [0, 0, 0]]), enumerated=True)
    assert found.winner.tolist() == [0, 1, 0, -1]
    assert found.p_value.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert found.answer(0.05).tolist() == [0, 1, -1, -1]


def test_no_images_are_no_answers() -> None:
    assert predict(np.zeros((0, 3), dtype=np.int64)).answer(0.05).tolist() == []


@pytest.mark.parametrize("votes", [np.zeros(3, dtype=int), np.zeros((3, 1), dtype=int), np.array([[1, -1]])])
def test_what_are_no_counts_is_refused(votes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="votes must be counts"):
        predict(votes)
