from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from orchestrator.errors import RunError
from orchestrator.reduce import View, reduce_run
from orchestrator.report import (
    ReportedRun,
    curves_by_line,
    facts,
    figure_png,
    load_run,
    percent,
    radius_table,
    report_html,
)
from tests.orchestrator.runs import MadeRun
from workers import layout

VIEW = View(("renyi", "neyman_pearson_one_class"), ("paper", "split"), 0.05, (0.0, 0.05, 0.1))
HOSTILE = '<script>alert("1")</script>'


@pytest.fixture
def complete(made: MadeRun, tmp_path: Path) -> ReportedRun:
    store = made.write(tmp_path / "whole")
    reduce_run(store, made.plan, VIEW)
    return load_run(store)


@pytest.fixture
def partial(made: MadeRun, tmp_path: Path) -> ReportedRun:
    store = made.write(tmp_path / "half", [0, 2])
    reduce_run(store, made.plan, VIEW)
    return load_run(store)


# --- Percentages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [
        (0.69999, "69.9 %"),
        (0.29, "29.0 %"),
        (1.0, "100.0 %"),
        (0.0, "0.0 %"),
        (0.9999999, "99.9 %"),
        (0.0009999, "0.0 %"),
        (0.57, "57.0 %"),
        (0.001, "0.1 %"),
        (2 / 3, "66.6 %"),
    ],
)
def test_a_fraction_is_shown_in_percent_rounded_down(fraction: float, shown: str) -> None:
    assert percent(fraction) == shown


@st.composite
def fractions(draw: st.DrawFn) -> tuple[int, int]:
    whole = draw(st.integers(1, 10_000_000))
    return draw(st.integers(0, whole)), whole


@given(fractions())
@example((29, 100))
@example((9_999_999, 10_000_000))
def test_what_is_shown_is_at_most_the_truth_and_within_a_tenth_of_a_point(fraction: tuple[int, int]) -> None:
    part, whole = fraction
    shown = percent(part / whole)
    tenths = int(shown.removesuffix(" %").replace(".", ""))
    assert re.fullmatch(r"\d+\.\d %", shown)
    assert tenths * whole <= 1000 * part < (tenths + 1) * whole


# --- Loading -------------------------------------------------------------------------------------------------------


def test_a_run_is_called_by_its_folder(complete: ReportedRun, partial: ReportedRun) -> None:
    assert complete.title == "whole"
    assert partial.title == "half (INCOMPLETE: 8 missing of 20 images)"


def test_a_run_that_was_never_reduced_says_what_to_run(made: MadeRun, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="stn reduce"):
        load_run(made.write(tmp_path))


def test_a_complete_view_comes_before_a_partial_one(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path, [0])
    reduce_run(store, made.plan, VIEW)
    assert not load_run(store).reduced.summary.complete
    for shard in (1, 2):
        made.commit(store, shard)
    reduce_run(store, made.plan, VIEW)
    assert load_run(store).reduced.summary.complete


# --- Tables --------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_per_radius_and_a_column_per_line(complete: ReportedRun) -> None:
    table = radius_table(complete)
    assert table["columns"] == [
        "renyi, paper",
        "renyi, split",
        "neyman pearson one class, paper",
        "neyman pearson one class, split",
    ]
    assert [row[0] for row in table["rows"]] == ["0", "0.05", "0.1"]
    for column, ((certificate, protocol), curve) in enumerate(curves_by_line(complete.reduced.curves).items(), start=1):
        assert table["columns"][column - 1] == f"{certificate.replace('_', ' ')}, {protocol}"
        assert [row[column] for row in table["rows"]] == [percent(a) for a in curve["certified_accuracy"].to_pylist()]
    assert len({cell for row in table["rows"] for cell in row[1:]}) > 1


def test_the_facts_say_what_was_certified(partial: ReportedRun) -> None:
    found = dict(facts(partial))
    assert found["images"] == "20: 12 counted, 0 failed, 8 missing"
    assert found["noise"] == "gaussian, sigma = 0.2, seed 1"
    assert found["draws"] == "n = 64 for estimation, n0 = 16 for selection"
    assert found["confidence"].startswith("alpha = 0.05 per image; paper: ")
    assert partial.plan.model_sha256[:16] in found["model"]


def test_accuracy_of_the_majority_is_over_all_images(partial: ReportedRun) -> None:
    found = dict(facts(partial))["accuracy of the majority of votes"]
    assert found == percent(partial.reduced.summary.majority_correct / 20)
    assert partial.reduced.summary.majority_correct > 0


# --- The figure ----------------------------------------------------------------------------------------------------


def test_the_figure_is_a_png_with_something_on_it(complete: ReportedRun, partial: ReportedRun) -> None:
    figure = figure_png([complete, partial])
    assert figure.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = np.asarray(Image.open(io.BytesIO(figure)).convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert figure != figure_png([complete])


@pytest.mark.parametrize("name", ["sigma=0.5", "100%", "a$1_$b", r"$\frac$", "_private", "x" * 60, HOSTILE])
def test_any_name_of_a_run_can_be_drawn(complete: ReportedRun, name: str) -> None:
    figure = figure_png([dataclasses.replace(complete, name=name)] * 2)
    assert figure.startswith(b"\x89PNG")


# --- The page ------------------------------------------------------------------------------------------------------


def page(*runs: ReportedRun) -> str:
    return report_html(runs, b"a figure")


def test_a_runs_name_is_text_and_no_markup(complete: ReportedRun) -> None:
    html = page(dataclasses.replace(complete, name=HOSTILE))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_an_incomplete_run_says_so_in_title_heading_and_at_itself(complete: ReportedRun, partial: ReportedRun) -> None:
    html = page(complete, partial)
    assert re.search(r"<title>INCOMPLETE: ", html)
    assert re.search(r"<h1[^>]*>INCOMPLETE: ", html)
    assert "half (INCOMPLETE: 8 missing of 20 images)" in html
    assert "INCOMPLETE" not in page(complete)


def test_a_page_needs_nothing_outside_itself(complete: ReportedRun, partial: ReportedRun) -> None:
    html = report_html([complete, partial], figure_png([complete, partial]))
    assert not re.search(r"https?:|@import|url\(|<link|<script", html)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))
    assert html.count("src=") == 1


def test_the_figure_is_inside_the_page(complete: ReportedRun) -> None:
    found = re.search(r'src="data:image/png;base64,([^"]*)"', page(complete))
    assert found is not None
    assert base64.b64decode(found[1]) == b"a figure"


def test_every_figure_of_the_table_is_on_the_page(complete: ReportedRun) -> None:
    html = page(complete)
    for row in radius_table(complete)["rows"]:
        assert "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" in html
    for _, value in facts(complete):
        assert value.replace("'", "&#39;") in html


def test_two_runs_are_on_one_page(complete: ReportedRun, partial: ReportedRun) -> None:
    html = page(complete, partial)
    assert html.count("<h2") == 2
    assert html.index("whole") < html.index("half")


def test_a_run_of_failed_images_says_how_many(with_failures: MadeRun, tmp_path: Path) -> None:
    store = with_failures.write(tmp_path)
    reduce_run(store, with_failures.plan, VIEW)
    html = page(load_run(store))
    assert "8: 6 counted, 2 failed, 0 missing" in html


def test_a_report_does_not_depend_on_other_keys_in_the_run(
    complete: ReportedRun, made: MadeRun, tmp_path: Path
) -> None:
    store = made.write(tmp_path / "again")
    reduce_run(store, made.plan, VIEW)
    store.create("notes.txt", b"mine")
    store.create(layout.failed(1), b"{}")
    assert radius_table(load_run(store)) == radius_table(complete)
