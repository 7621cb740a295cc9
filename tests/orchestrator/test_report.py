from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import escape
from matplotlib.figure import Figure
from PIL import Image

from orchestrator.errors import RunError
from orchestrator.numerals import percent, percent_up
from orchestrator.reducing.reduction import reduce_run
from orchestrator.reducing.tables import Line, View
from orchestrator.reporting.drawing import figure_png
from orchestrator.reporting.publishing import report_html
from orchestrator.reporting.reported import ReportedRun, load_run
from orchestrator.reporting.run_tables import facts, population_table, radius_table
from orchestrator.reporting.steps import Steps, line_name, load_steps
from stn_core import CERTIFICATES
from tests.orchestrator.runs import NOISES, MadeRun, invented, plan_of
from workers import layout
from workers.store import LocalStore

VIEW = View(("renyi", "neyman_pearson_one_class"), ("paper", "split"), 0.05, (0.0, 0.05, 0.1), "clopper_pearson", 0.01)
HOSTILE = '<script>alert("1")</script>'


Drawn = tuple[ReportedRun, Mapping[Line, Steps]]


def reported(run: MadeRun, root: Path, view: View = VIEW, shards: Sequence[int] | None = None) -> Drawn:
    """The run in a folder, reduced, loaded, and its exact curves."""
    store = run.write(root, shards)
    reduce_run(store, run.plan, view)
    loaded = load_run(store)
    return loaded, load_steps(store, loaded)


@pytest.fixture(scope="module")
def complete_drawn(made: MadeRun, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return reported(made, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def partial_drawn(made: MadeRun, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return reported(made, tmp_path_factory.mktemp("runs") / "half", shards=[0, 2])


@pytest.fixture
def complete(complete_drawn: Drawn) -> ReportedRun:
    return complete_drawn[0]


@pytest.fixture
def partial(partial_drawn: Drawn) -> ReportedRun:
    return partial_drawn[0]


@pytest.fixture(scope="module")
def sampled(of_a_part: MadeRun, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """120 of 500 images, under protocols that guarantee something and nothing, in two norms."""
    view = dataclasses.replace(VIEW, certificates=("renyi", "renyi_linf"), protocols=("paper", "paper_two"))
    return reported(of_a_part, tmp_path_factory.mktemp("runs") / "sampled", view)


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


@given(fractions())
@example((29, 100))
@example((1, 10_000_000))
def test_the_upper_end_is_at_least_the_truth_and_within_a_tenth_of_a_point(fraction: tuple[int, int]) -> None:
    part, whole = fraction
    shown = percent_up(part / whole)
    tenths = int(shown.removesuffix(" %").replace(".", ""))
    assert re.fullmatch(r"\d+\.\d %", shown)
    assert (tenths - 1) * whole < 1000 * part <= tenths * whole


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
    assert [row[0] for row in table["rows"]] == ["0", "0.05", "0.1", "abstain"]
    *at_radii, abstain = table["rows"]
    for column, (line, curve) in enumerate(complete.lines.items(), start=1):
        assert table["columns"][column - 1] == f"{line.certificate.replace('_', ' ')}, {line.protocol}"
        rows = curve.to_pylist()
        assert len(rows) == 3
        assert [row[column] for row in at_radii] == [
            f"{percent(row['certified_accuracy'])} ({percent(row['guaranteed_accuracy'])})" for row in rows
        ]
        assert {abstain[column]} == {str(row["abstained"]) for row in rows}
    assert len({cell for row in at_radii for cell in row[1:]}) > 1
    assert len(set(abstain[1:])) > 1


def test_figures_without_a_guarantee_have_no_brackets_and_say_so(sampled: Drawn) -> None:
    table = radius_table(sampled[0])
    assert table["columns"] == [
        "renyi [L2], paper",
        "renyi [L2], paper_two (not a guarantee)",
        "renyi linf [L-infinity], paper",
        "renyi linf [L-infinity], paper_two (not a guarantee)",
    ]
    for row in table["rows"][:-1]:
        for name, cell in zip(table["columns"], row[1:], strict=True):
            pattern = r"\d+\.\d %" if "not a guarantee" in name else r"\d+\.\d % \(\d+\.\d %\)"
            assert re.fullmatch(pattern, cell)


def test_a_line_is_called_by_protocol_and_norm_where_there_are_several(complete: ReportedRun, sampled: Drawn) -> None:
    def name(run: ReportedRun, line: Line, **view: Any) -> str:
        changed = dataclasses.replace(run.reduced, view=dataclasses.replace(run.reduced.view, **view))
        return line_name(dataclasses.replace(run, reduced=changed), line)

    assert name(complete, Line("renyi", "paper"), protocols=("paper",)) == "renyi"
    assert name(complete, Line("renyi", "split")) == "renyi, split"
    assert name(sampled[0], Line("renyi", "paper"), protocols=("paper",)) == "renyi [L2]"
    assert name(sampled[0], Line("renyi_linf", "paper"), protocols=("paper",)) == "renyi linf [L-infinity]"


def test_a_part_of_a_data_set_has_a_table_of_the_whole(sampled: Drawn) -> None:
    run = sampled[0]
    table = population_table(run)
    assert table is not None
    assert (table["images"], table["whole"]) == (120, 500)
    assert table["columns"] == radius_table(run)["columns"]
    assert [row[0] for row in table["rows"]] == ["0", "0.05", "0.1"]
    for column, (line, curve) in enumerate(run.lines.items(), start=1):
        for cells, row in zip(table["rows"], curve.to_pylist(), strict=True):
            expected = f"{percent(row['population_lower'])} to {percent_up(row['population_upper'])}"
            if line.guaranteed:
                expected += f" ({percent(row['population_guaranteed'])})"
            assert cells[column] == expected
    html = page(run)
    assert "These 120 images are part of a data set of 500." in html
    for row in table["rows"]:
        assert "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" in html


def test_a_whole_data_set_has_no_table_of_a_population(with_failures: MadeRun, tmp_path: Path) -> None:
    run, _ = reported(with_failures, tmp_path)
    assert population_table(run) is None
    assert "part of a data set" not in page(run)


def test_the_facts_say_what_was_certified(partial: ReportedRun) -> None:
    found = dict(facts(partial))
    assert found["images"] == "20: 12 counted, 0 failed, 8 missing"
    assert found["data set"].startswith("mnist, sha-256 ")
    assert found["noise"] == "gaussian, sigma = 0.2, sampler = plain, seed 1"
    assert found["draws"] == "n = 64 for estimation, n0 = 16 for selection"
    assert found["draws without a vote (NaN), with a tie"] == "0, 0"
    assert found["confidence"].startswith("alpha = 0.05 per image; paper: ")
    assert found["intervals"] == "clopper-pearson"
    assert "truly certified, at least, with probability 1 - 0.01 over all noise" in found["in brackets"]
    assert CERTIFICATES["renyi"].source in found["certificates"]
    assert partial.plan.model_sha256[:16] in found["model"]


@pytest.mark.parametrize(
    ("name", "noise"),
    [
        ("plain", "gaussian, sigma = 0.2, sampler = plain, seed 1"),
        ("sound", "gaussian, sigma = 0.2, sampler = sound, seed 1"),
        ("laplace", "laplace, scale = 0.15, seed 1"),
        ("uniform", "uniform, scale = 0.4, seed 1"),
        ("splitting", "splitting, scale = 0.4, seed 1"),
    ],
)
def test_the_facts_name_the_noise_with_all_its_parameters(
    by_noise: dict[str, MadeRun], tmp_path: Path, name: str, noise: str
) -> None:
    assert set(by_noise) == set(NOISES)
    run, steps = reported(by_noise[name], tmp_path, View.of(by_noise[name].plan.spec))
    found = dict(facts(run))
    assert found["noise"] == noise
    for certificate in run.reduced.view.certificates:
        assert f"{certificate}: {CERTIFICATES[certificate].source}" in found["certificates"]
    assert set(steps) == set(run.reduced.view.lines)
    assert found["noise"] in page(run)


def test_the_facts_say_which_part_of_the_data_set(tmp_path: Path) -> None:
    plan = plan_of(dataset={"kind": "digits", "every": 3})
    run, _ = reported(invented(plan, sure=0.3), tmp_path, VIEW)
    assert dict(facts(run))["data set"].startswith("digits, 1 image in 3, sha-256 ")


def test_the_facts_name_interval_ties_and_beta(of_a_part: MadeRun, tmp_path: Path) -> None:
    run, _ = reported(of_a_part, tmp_path, dataclasses.replace(VIEW, interval="randomised", beta=0.2))
    found = dict(facts(run))
    assert found["intervals"] == "randomised"
    assert "with probability 1 - 0.2 over all noise" in found["in brackets"]
    summary = run.reduced.summary
    assert summary.ties > 0
    assert found["draws without a vote (NaN), with a tie"] == f"{summary.invalid_votes}, {summary.ties}"


@pytest.mark.parametrize("beta", [1e-7, 1e-12])
def test_a_small_beta_is_not_called_certainty(made: MadeRun, tmp_path: Path, beta: float) -> None:
    run, _ = reported(made, tmp_path, dataclasses.replace(VIEW, beta=beta))
    assert "with probability 1 over" not in dict(facts(run))["in brackets"]


def test_accuracy_of_the_majority_is_over_all_images(partial: ReportedRun) -> None:
    found = dict(facts(partial))["accuracy of the majority of votes"]
    assert found == percent(partial.reduced.summary.majority_correct / 20)
    assert partial.reduced.summary.majority_correct > 0


# --- The figure ----------------------------------------------------------------------------------------------------


def size(figure: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(figure)).size


def test_the_figure_is_a_png_with_something_on_it(complete_drawn: Drawn, partial_drawn: Drawn) -> None:
    figure = figure_png([complete_drawn, partial_drawn])
    assert figure.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = np.asarray(Image.open(io.BytesIO(figure)).convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert figure != figure_png([complete_drawn])


def test_each_norm_has_a_panel_of_its_own(
    complete_drawn: Drawn,
    partial_drawn: Drawn,
    sampled: Drawn,
    by_noise: dict[str, MadeRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    laplace = reported(by_noise["laplace"], tmp_path, View.of(by_noise["laplace"].plan.spec))
    kept: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        kept.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    width, height = size(figure_png([complete_drawn, partial_drawn]))
    assert size(figure_png([sampled])) == (width, 2 * height)
    assert size(figure_png([complete_drawn, laplace])) == (width, 2 * height)
    assert size(figure_png([complete_drawn, laplace, sampled])) == (width, 3 * height)
    panels = [[panel.get_xlabel() for panel in figure.axes] for figure in kept]
    l1, l2, linf = (f"radius ({norm}, pixels in [0, 1])" for norm in ("L1", "L2", "L-infinity"))
    assert panels == [[l2], [l2, linf], [l2, l1], [l2, l1, linf]]
    lines = [len(panel.get_lines()) for panel in kept[-1].axes]
    assert lines == [4 + 2, 4, 2]
    # A step holds from the radius before up to its own: the other way round it would show too much.
    first = kept[-1].axes[0].get_lines()[0]
    steps = complete_drawn[1][Line("renyi", "paper")]
    assert first.get_drawstyle() == "steps-pre"
    assert (first.get_xdata().tolist(), first.get_ydata().tolist()) == (steps.radius.tolist(), steps.accuracy.tolist())


@pytest.mark.parametrize("name", ["sigma=0.5", "100%", "a$1_$b", r"$\frac$", "_private", "x" * 60, HOSTILE])
def test_any_name_of_a_run_can_be_drawn(complete_drawn: Drawn, name: str) -> None:
    run, steps = complete_drawn
    figure = figure_png([(dataclasses.replace(run, name=name), steps)] * 2)
    assert figure.startswith(b"\x89PNG")


# --- The curve that is drawn ---------------------------------------------------------------------------------------


def drawn_at(steps: Steps, radius: float) -> float:
    """What the figure shows at a radius: the value of the step that ends at or after it."""
    number = int(np.searchsorted(steps.radius, radius, side="left"))
    return float(steps.accuracy[number]) if number < len(steps.radius) else 0.0


def exact_at(store: LocalStore, line: Line, radius: float, images: int) -> float:
    rows = pq.read_table(Path(store.uri) / "certificates.parquet").to_pandas()
    own = rows[(rows["certificate"] == line.certificate) & (rows["protocol"] == line.protocol)]
    return float((own["correct"] & (own["radius"] >= radius)).sum() / images)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, ReportedRun]:
    """A run of 400 images with some hundred different radii."""
    plan = plan_of(dataset={"kind": "digits", "limit": 400}, sampling={"draws": 3000, "selection_draws": 30, "seed": 3})
    run = invented(plan, failed=[3], seed=5)
    store = run.write(tmp_path_factory.mktemp("runs") / "many")
    reduce_run(store, plan, dataclasses.replace(VIEW, protocols=("paper", "label")))
    return store, load_run(store)


def test_the_steps_are_the_exact_curve(many: tuple[LocalStore, ReportedRun]) -> None:
    store, run = many
    for line, steps in load_steps(store, run).items():
        assert len(steps.radius) > 200
        assert steps.radius[0] == 0
        assert (np.diff(steps.radius)[:-1] > 0).all()
        assert (np.diff(steps.accuracy) <= 0).all()
        assert steps.accuracy[-1] == 0
        for radius in [*steps.radius[::17].tolist(), 1e-6, 0.01, 0.123, float(steps.radius[-1]), 5.0]:
            assert drawn_at(steps, radius) == exact_at(store, line, radius, 400)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 50, 100])
def test_a_thinned_curve_never_shows_more_than_the_exact_one(
    many: tuple[LocalStore, ReportedRun], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    store, run = many
    exact = load_steps(store, run)
    monkeypatch.setattr("orchestrator.reporting.steps._MOST_STEPS", most)
    for line, thinned in load_steps(store, run).items():
        assert len(thinned.radius) <= most + 2 < len(exact[line].radius)
        ends = exact[line].radius
        for radius in np.concatenate([ends, (ends[1:] + ends[:-1]) / 2, [0.0, 9.0]]).tolist():
            assert drawn_at(thinned, radius) <= drawn_at(exact[line], radius)
        for radius in thinned.radius.tolist():
            assert drawn_at(thinned, radius) == drawn_at(exact[line], radius)
        assert (thinned.radius[0], thinned.radius[-1]) == (0, ends[-1])


def test_a_run_that_certifies_nothing_has_a_flat_curve(made: MadeRun, tmp_path: Path) -> None:
    _, steps = reported(made, tmp_path, dataclasses.replace(VIEW, alpha=1e-60))
    for curve in steps.values():
        assert (curve.radius.tolist(), curve.accuracy.tolist()) == ([0, 0], [0, 0])


def test_the_steps_of_a_partial_run_count_all_images(partial_drawn: Drawn) -> None:
    run, steps = partial_drawn
    for line, curve in run.lines.items():
        for radius, accuracy in zip(
            *(curve[name].to_pylist() for name in ("radius", "certified_accuracy")), strict=True
        ):
            assert drawn_at(steps[line], radius) == accuracy


# --- The page ------------------------------------------------------------------------------------------------------


def page(*runs: ReportedRun) -> str:
    return report_html(runs, b"a figure")


def test_a_runs_name_is_text_and_no_markup(complete: ReportedRun) -> None:
    html = page(dataclasses.replace(complete, name=HOSTILE))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_name_is_no_markup_where_runs_are_compared_either(complete: ReportedRun) -> None:
    html = page(*(dataclasses.replace(complete, name=f"{HOSTILE} {number}") for number in range(2)))
    assert "Best of 2 runs" in html
    assert "<script" not in html


def test_whatever_a_plan_and_a_failed_image_say_is_text_and_no_markup(with_failures: MadeRun, tmp_path: Path) -> None:
    spec = with_failures.plan.spec
    model = spec.model.model_copy(update={"name": HOSTILE})
    plan = dataclasses.replace(
        with_failures.plan,
        spec=spec.model_copy(update={"model": model}),
        dataset_sha256=HOSTILE,
        model_sha256=HOSTILE,
        versions={HOSTILE: HOSTILE},
    )
    tables = [
        table.set_column(
            table.schema.get_field_index("error"),
            table.schema.field("error"),
            pa.array([None if reason is None else HOSTILE for reason in table["error"].to_pylist()], pa.string()),
        )
        for table in with_failures.tables
    ]
    run, _ = reported(MadeRun(plan, tables), tmp_path / "hostile")
    assert run.reduced.summary.failed == 2
    html = page(run)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 4


def test_an_incomplete_run_says_so_in_title_heading_and_at_itself(complete: ReportedRun, partial: ReportedRun) -> None:
    html = page(complete, partial)
    assert re.search(r"<title>INCOMPLETE: ", html)
    assert re.search(r"<h1[^>]*>INCOMPLETE: ", html)
    assert "half (INCOMPLETE: 8 missing of 20 images)" in html
    assert "INCOMPLETE" not in page(complete)


def test_a_page_needs_nothing_outside_itself(complete_drawn: Drawn, partial_drawn: Drawn) -> None:
    drawn = [complete_drawn, partial_drawn]
    html = report_html([run for run, _ in drawn], figure_png(drawn))
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
        assert escape(value) in html


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
