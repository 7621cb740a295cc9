from __future__ import annotations

from collections import Counter

import pytest

from tests.fault_proxy import Request
from tests.soak.chaos import FAULTS, KILLS, Faults, differences, kills_in_order, unexpected


def test_kills_have_their_shares_in_an_order_that_follows_from_the_seed() -> None:
    assert Counter(kills_in_order(100, 0)) == {"actor": 40, "driver": 30, "raylet": 25, "head": 5}
    assert kills_in_order(100, 0) == kills_in_order(100, 0) != kills_in_order(100, 1)
    assert set(kills_in_order(4, 0)) == set(KILLS)
    assert len(kills_in_order(3, 0)) == 3


def test_a_fifth_of_the_calls_fails_evenly_over_the_kinds() -> None:
    told: list[str] = []
    faults = Faults(0.2, 0.5, seed=0, tell=told.append)
    chosen = Counter(faults.decide(Request(method, "/a", False)) for method in ("GET", "PUT") * 5000)
    assert chosen.total() == faults.calls == 10_000
    assert chosen.total() - chosen[None] == len(told) == pytest.approx(2000, rel=0.1)
    del chosen[None]
    assert set(chosen) == set(FAULTS)
    assert max(chosen.values()) - min(chosen.values()) <= 2
    assert sum(faults.hold_s() > 60 for _ in range(100)) == faults.outlasted == pytest.approx(50, abs=20)


def test_only_bodies_that_are_read_are_cut_short() -> None:
    faults = Faults(1, 0, seed=0, tell=lambda line: None)
    assert "truncated" not in {faults.decide(Request("PUT", "/a", True)) for _ in range(100)}


def test_every_difference_is_found() -> None:
    expected = {"counts/a": b"1", "counts/b": b"2", "curves": b"3"}
    assert differences(dict(expected), expected) == []
    found = {"counts/a": b"1", "counts/b": b"x", "counts/c": b"2"}
    assert differences(found, expected) == ["curves is missing", "counts/c should not be there", "counts/b differs"]


@pytest.mark.parametrize(
    ("code", "said", "wrong"),
    [
        (0, "run: s3://b/r", None),
        (-9, "", None),
        (3, "error: 3 workers in a row died", None),
        (2, "error: cannot read under s3://b/r: timed out", None),
        (2, "error: s3://b/r holds another run", "exit code 2: error: s3://b/r holds another run"),
        (1, "Killed", "exit code 1: Killed"),
        (-11, "", "exit code -11: "),
        (1, "internal error: KeyError: 1", "says 'internal error'"),
        (0, "Traceback (most recent call last):\nKeyError: 1\nrun: s3://b/r", "says 'Traceback'"),
    ],
)
def test_only_ends_that_a_user_answers_with_the_same_command_are_expected(
    code: int, said: str, wrong: str | None
) -> None:
    assert unexpected(code, said, killed=code == -9) == wrong


def test_a_driver_that_somebody_else_killed_is_not_expected() -> None:
    assert unexpected(-9, "", killed=False) == "exit code -9: "
