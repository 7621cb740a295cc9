"""Certified accuracy by radius, against counting one image at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stn_core import certified_correct

radii = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 10), st.just(float("inf")))


@given(st.lists(st.tuples(radii, st.booleans())), st.lists(radii))
def test_counts_the_correct_images_whose_radius_reaches_each_point(
    images: list[tuple[float, bool]], points: list[float]
) -> None:
    counted = certified_correct([radius for radius, _ in images], [correct for _, correct in images], points)
    assert counted.dtype == np.int64
    assert counted.tolist() == [sum(correct and radius >= point for radius, correct in images) for point in points]


def test_a_radius_reaches_itself_and_not_the_next_number() -> None:
    assert certified_correct([0.5, 0.5], [True, True], [0.5, np.nextafter(0.5, 1)]).tolist() == [2, 0]


def test_abstaining_images_count_at_no_radius() -> None:
    assert certified_correct([0.0, 0.0, 1.0], [False, True, True], [0.0, 0.1]).tolist() == [2, 1]
