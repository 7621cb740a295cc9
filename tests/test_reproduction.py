"""docs/reproduction.md: its tables of what intervals allow are recomputed, its code is run."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from stn_core.certificates import CERTIFICATES
from stn_core.intervals import lower_bound, upper_bound
from stn_core.sison_glaz import sison_glaz

PAGE = (Path(__file__).parents[1] / "docs" / "reproduction.md").read_text()


def radius(certificate: str, votes: int, error: float, bounds: int) -> float:
    """The largest radius at sigma 1 that so many votes for one class allow."""
    p1 = float(lower_bound(votes, votes, error))
    p2 = min(1 - p1, float(upper_bound(0, votes, error))) if bounds == 2 else 1 - p1
    return float(CERTIFICATES[certificate].unit_radius(np.array([p1]), np.array([p2]))[0])


def down(value: float, digits: int) -> float:
    return math.floor(value * 10**digits) / 10**digits


def test_the_largest_radii_are_those_of_the_table() -> None:
    rows = re.findall(r"^\| ([\d ]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert [row[0] for row in rows] == ["100", "500", "1 000", "2 000", "10 000", "100 000"]
    for name, *printed in rows:
        votes = int(name.replace(" ", ""))
        expected = [
            radius("renyi", votes, 0.05, 1),
            radius("renyi", votes, 0.05 / 2, 2),
            radius("renyi", votes, 0.05 / 20, 2),
            radius("neyman_pearson_two_class", votes, 0.05 / 2, 2),
        ]
        assert [float(value) for value in printed] == [down(value, 3) for value in expected]


def test_the_authors_intervals_miss_as_often_as_the_table_says() -> None:
    (truths,) = re.findall(r"^\| true probability of the class \| (.*) \|$", PAGE, re.MULTILINE)
    (misses,) = re.findall(r"^\| the interval's lower end is too high \| (.*) \|$", PAGE, re.MULTILINE)
    votes = np.arange(101)
    lower, _ = sison_glaz(np.stack([votes, 100 - votes], axis=1), 0.05)
    for p, printed in zip(map(float, truths.split(" | ")), misses.split(" | "), strict=True):
        chance = float(stats.binom.pmf(votes, 100, p)[lower[:, 0] > p].sum())
        assert printed == f"{down(100 * chance, 1)} %"


def test_its_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block, "docs/reproduction.md", "exec"), {})
    assert capsys.readouterr().out.startswith("[1.535")
