from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stn_core.looks import Looks, latest
from stn_core.stopping import FixedDraws
from tests.workers.test_committed import rows
from workers.rounds import first_round, looks, next_round, total_draws


@dataclass(frozen=True)
class TenTimesTop:
    """Asks for ten times the candidate's votes until there are a hundred draws; five at first."""

    def more(self, looks: Looks) -> np.ndarray:
        seen = latest(looks, looks.trials)
        return np.where(seen == 0, 5, np.where(seen >= 100, 0, 10 * latest(looks, looks.top)))


def test_a_first_round_is_the_same_for_all() -> None:
    ask = first_round(range(3, 9, 2), TenTimesTop(), selection_draws=7)
    assert ask.indices.tolist() == [3, 5, 7]
    assert ask.draws.tolist() == [5, 5, 5]
    assert ask.first_draw.tolist() == [0, 0, 0]
    assert ask.selection_draws == 7


def test_a_later_round_is_of_images_whose_votes_ask_for_more_and_goes_on_where_they_end() -> None:
    first, second = rows(i3=5, i5=100, i7=6, i9="broken"), rows(i3=50, i7=60)
    ask = next_round(first, (second,), TenTimesTop(), "anytime_label", 10)
    assert ask is not None
    assert ask.indices.tolist() == [3, 7]
    assert ask.first_draw.tolist() == [55, 66]
    assert ask.draws.tolist() == [550, 660]
    assert ask.selection_draws == 0
    third = rows(i3=550, i7=660)
    assert next_round(first, (second, third), TenTimesTop(), "anytime_label", 10) is None
    assert total_draws(first, (second, third)).tolist() == [605, 100, 726, 0]


def test_a_fixed_number_is_filled_up() -> None:
    ask = next_round(rows(i0=5, i1=6, i2="broken"), (), FixedDraws(6), "anytime_label", 10)
    assert ask is not None
    assert (ask.indices.tolist(), ask.first_draw.tolist(), ask.draws.tolist()) == ([0], [5], [1])


def test_each_round_is_a_look_at_those_it_is_of() -> None:
    table = rows(i3=5, i5=8, i9="broken")
    votes = pa.array([[{"class": 0, "votes": 2}, {"class": 4, "votes": 3}]], table.schema.field("estimation").type)
    second = rows(i5=5).set_column(4, table.schema.field("estimation"), votes)
    seen = looks(table, (second,), "anytime_label", 10)
    assert seen.candidate.tolist() == [0, 0, 0]
    found = zip(*(one.tolist() for one in (seen.image, seen.top, seen.runner_up, seen.trials)), strict=True)
    assert list(found) == [(0, 5, 0, 5), (1, 8, 0, 8), (1, 10, 3, 13)]


def test_without_a_valid_selection_vote_there_is_no_candidate() -> None:
    assert looks(rows(i0=5), (), "anytime", 10).candidate.tolist() == [-1]
