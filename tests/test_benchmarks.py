"""The benchmarks' table, of which nothing is timed here."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmark
from benchmarks.measure import Row, single

ROOT = Path(__file__).parents[1]


def test_the_pages_table_is_that_of_the_results() -> None:
    text = benchmark.PAGE.read_text()
    assert text == benchmark.with_table(text, benchmark.markdown(json.loads(benchmark.RESULTS.read_text())))


def test_the_readmes_ratios_are_those_of_the_results() -> None:
    text = (ROOT / "README.md").read_text().partition("\n## Speed\n")[2].partition("\n---\n")[0]
    rows = [row for part in json.loads(benchmark.RESULTS.read_text()).values() for row in part["rows"]]
    told = re.findall(r"\d+\.\d+", text)
    assert len(told) == 5
    assert set(told) <= {f"{row['ratio']:.3g}" for row in rows}


@pytest.mark.parametrize(
    ("goal", "ratio", "met"),
    [
        ("", 1.0, None),
        ("≥ 0.97", 0.97, True),
        ("≥ 0.97", 0.96, False),
        ("≤ 1.05", 1.05, True),
        ("≤ 1.05", 1.06, False),
        ("0.8 - 1.2", 1.2, True),
        ("0.8 - 1.2", 0.79, False),
        ("0.8 - 1.2", 1.21, False),
    ],
)
def test_a_goal_is_met_or_not(goal: str, ratio: float, met: bool | None) -> None:
    assert single("what", "against", ratio, "", goal).met is met


@pytest.mark.parametrize("goal", ["fast", "= 3", "≥", "≥ 1 2"])
def test_a_goal_that_says_nothing_is_an_error(goal: str) -> None:
    with pytest.raises(ValueError, match="no goal"):
        _ = single("what", "against", 1.0, "", goal).met


def test_every_goal_kept_can_be_told() -> None:
    for part in json.loads(benchmark.RESULTS.read_text()).values():
        for row in part["rows"]:
            assert (Row(**row).met is None) == (row["goal"] == "")


@pytest.mark.parametrize("name", benchmark.known_parts())
def test_every_part_can_be_run_as_the_others_are(name: str) -> None:
    assert not inspect.signature(importlib.import_module(f"benchmarks.{name}").rows).parameters


def test_a_part_measured_again_leaves_the_others_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results" / "latest.json")
    benchmark.keep("first", [single("a", "b", 1.5, "c", "≥ 1")], 3.0)
    first = json.loads(benchmark.RESULTS.read_text())["first"]
    assert first["rows"][0] == {"name": "a", "against": "b", "ratio": 1.5, "lowest": 1.5, "highest": 1.5} | {
        "detail": "c",
        "goal": "≥ 1",
    }
    assert {"measured", "seconds", "commit", "machine", "versions"} < first.keys()
    benchmark.keep("second", [single("d", "e", 0.5, "f", "≥ 1")], 3.0)
    benchmark.keep("second", [single("g", "e", 0.25, "f", "≥ 1")], 3.0)
    parts = json.loads(benchmark.RESULTS.read_text())
    assert parts["first"] == first
    assert [row["name"] for row in parts["second"]["rows"]] == ["g"]
    lines = benchmark.markdown(parts).splitlines()
    assert "| a | b | 1.5 ✓ | ≥ 1 | c |" in lines
    assert "| g | e | 0.25 ✗ | ≥ 1 | f |" in lines


def test_the_table_goes_between_its_marks_and_nothing_else_changes() -> None:
    text = f"before\n{benchmark.BEGIN}\nold\n{benchmark.END}\nafter\n"
    once = benchmark.with_table(text, "| new |")
    assert once == f"before\n{benchmark.BEGIN}\n\n| new |\n\n{benchmark.END}\nafter\n"
    assert benchmark.with_table(once, "| new |") == once
    with pytest.raises(ValueError, match="substring"):
        benchmark.with_table("no marks", "| new |")
