from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.progress import meter, time_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (42, "42 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.9, "1 h 00 min"),
        (7620, "2 h 07 min"),
        (86_400, "1 d 0 h"),
        (3 * 86_400 + 4 * 3600 + 1800, "3 d 4 h"),
        (float("nan"), "unknown"),
    ],
)
def test_a_duration_is_shown_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


@given(st.floats(0, 1e12))
def test_every_duration_can_be_shown(seconds: float) -> None:
    assert time_text(seconds).split()[1] in {"s", "min", "h", "d"}


def test_away_from_a_terminal_progress_is_plain_lines_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with meter("counting", 10, "images") as progress:
        progress.advance(4)
        progress.note("shard 3 failed")
        progress.advance(6)
    out, err = capsys.readouterr()
    assert out == ""
    first, note, last = err.splitlines()
    assert (first, note) == ("counting: 10 images", "shard 3 failed")
    assert last.startswith("counting: 10/10 images, ")


def test_work_that_did_not_advance_adds_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with meter("counting", 10, "images"):
        pass
    assert capsys.readouterr().err == "counting: 10 images\n"
