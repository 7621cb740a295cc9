"""The benchmark's populations, and its ways of following a rule."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from benchmarks import adaptive
from benchmarks.adaptive import ALPHA, DRAWS, POPULATIONS
from stn_core import intervals, sequences


@pytest.mark.parametrize(("sigma", "images"), [(0.25, 427), (0.5, 500), (1.0, 500)])
def test_a_population_has_the_images_of_its_log_and_their_radii(sigma: float, images: int) -> None:
    population = POPULATIONS[sigma]
    p = population.probabilities(10)
    assert len(p) == 10 * images
    # What as many votes as expected would print, at the logs' error.
    bound = intervals.lower_bound(np.rint(p * DRAWS), DRAWS, 0.01)
    radius = np.where(bound > 0.5, special.ndtri(bound), -1)
    for i in range(36):
        assert np.mean(radius > 0.1 * i + 1e-3) == pytest.approx(
            (sum(population.by_radius[i:]) + population.saturated) / images, abs=0.003
        )
    assert np.all((p > 0.05) & (p < 1))


def test_recorded_votes_are_taken_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sure images, hopeless ones, and some that fail at first: as by their first draws, not by any others."""
    monkeypatch.setattr(adaptive, "DRAWS", 3000)
    agrees = np.ones((30, 3000), dtype=bool)
    agrees[10:20] = False
    agrees[20:, :60] = False
    found = adaptive.compare_votes(agrees, [1.0])
    assert found.certified == pytest.approx(1 / 3)
    assert found.fixed == pytest.approx(2 / 3)
    assert found.share < 0.1


def test_the_plain_mixture_is_a_likelihood_ratio_averaged_over_all_probabilities() -> None:
    bound = adaptive.two_sided(np.array([0, 950, 1000]), np.array([1000, 1000, 1000]), ALPHA)
    q = (np.arange(400_000) + 0.5) / 400_000
    for k, tau in zip([950, 1000], bound[1:], strict=True):
        ratio = np.exp(k * np.log(q / tau) + (1000 - k) * np.log((1 - q) / (1 - tau)))
        assert ratio.mean() == pytest.approx(1 / ALPHA, rel=1e-3)
    assert bound[0] == 0
    assert np.all(bound[1:] < sequences.lower_bound([950, 1000], 1000, ALPHA))
