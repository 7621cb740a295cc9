"""The authors' intervals: as defined, and as unsound as said."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from stn_core.intervals import lower_bound
from stn_core.sison_glaz import _within, sison_glaz


@pytest.mark.parametrize("counts", [(3, 2), (4, 1, 1), (2, 2, 2), (5, 0, 1)])
@pytest.mark.parametrize("c", [1, 2, 3])
def test_the_probability_is_the_sum_over_all_outcomes(counts: tuple[int, ...], c: int) -> None:
    n = sum(counts)
    total = 0.0
    for outcome in itertools.product(range(n + 1), repeat=len(counts)):
        if sum(outcome) == n and all(abs(x - count) <= c for x, count in zip(outcome, counts, strict=True)):
            ways = math.factorial(n) / math.prod(map(math.factorial, outcome))
            total += ways * math.prod((count / n) ** x for x, count in zip(outcome, counts, strict=True))
    assert _within(np.array([count for count in counts if count]), c) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(
    ("counts", "lower", "upper"),
    [
        # statsmodels 0.14, multinomial_proportions_confint(counts, 0.05, method="sison-glaz"): the same c; upper ends
        # differ, since it takes the Edgeworth expansion of the probability.
        ([90, 10, 0, 0], [0.85, 0.05, 0, 0], [0.95606894, 0.15606894, 0.05606894, 0.05606894]),
        ([60, 20, 10, 5, 5], [0.51, 0.11, 0.01, 0, 0], [0.69651234, 0.29651234, 0.19651234, 0.14651234, 0.14651234]),
        ([23, 12, 44], [0.18987342, 0.05063291, 0.45569620], [0.41067030, 0.27142979, 0.67649308]),
    ],
)
def test_published_intervals(counts: list[int], lower: list[float], upper: list[float]) -> None:
    found = sison_glaz([counts], 0.05)
    np.testing.assert_allclose(found[0][0], lower, atol=1e-7)
    np.testing.assert_allclose(found[1][0], upper, atol=0.01)


def test_of_no_images_there_are_no_intervals() -> None:
    assert [ends.shape for ends in sison_glaz(np.zeros((0, 10), dtype=np.int64), 0.05)] == [(0, 10), (0, 10)]


def test_all_votes_for_one_class_are_taken_for_certainty() -> None:
    lower, _ = sison_glaz([[100, 0, 0], [0, 2000, 0]], 0.05)
    assert (lower.max(axis=1) == 1.0).all()


def test_images_do_not_depend_on_each_other_or_on_the_order_of_classes() -> None:
    together = sison_glaz([[90, 10, 0], [5, 95, 0], [0, 10, 90]], 0.05)
    for row, counts in enumerate([[90, 10, 0], [5, 95, 0], [0, 10, 90]]):
        for both, alone in zip(together, sison_glaz([counts], 0.05), strict=True):
            np.testing.assert_array_equal(both[row], alone[0])
    np.testing.assert_array_equal(together[0][0], together[0][2][::-1])


def test_their_coverage_falls_far_below_what_they_claim_and_that_of_exact_bounds_does_not() -> None:
    """Exact binomial sums for two classes, n = 100, 95 %: how often the larger class's lower end is too high."""
    votes = np.arange(101)
    claimed, _ = sison_glaz(np.stack([votes, 100 - votes], axis=1), 0.05)
    exact = lower_bound(votes, 100, 0.05 / 20)
    missed, missed_by_exact = (
        {p: float(stats.binom.pmf(votes, 100, p)[ends > p].sum()) for p in (0.97, 0.98, 0.99, 0.995)}
        for ends in (claimed[:, 0], exact)
    )
    # At 0.98: 100 of 100 gives 1.0, 99 gives 0.98 at least; that happens with probability 0.98^100 = 0.13 and more.
    assert all(chance > 0.13 for p, chance in missed.items() if p > 0.97)
    assert missed[0.995] > 0.6
    assert all(chance <= 0.0025 for chance in missed_by_exact.values())
