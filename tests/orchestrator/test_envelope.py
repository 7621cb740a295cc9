from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.numerals import percent
from orchestrator.reducing.reduction import reduce_run
from orchestrator.reducing.tables import Line, View
from orchestrator.reporting.envelope import Envelope, envelopes
from orchestrator.reporting.publishing import report_html
from orchestrator.reporting.reported import ReportedRun, load_run
from orchestrator.reporting.run_tables import best_table
from stn_core import truly_certified
from tests.orchestrator.runs import MadeRun, invented, plan_of

RADII = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
VIEW = View(("renyi",), ("paper",), 0.05, RADII, "clopper_pearson", 0.01)
LINE = Line("renyi", "paper")


def invented_run(sigma: float, *, failed: Sequence[int] = (), **sections: Any) -> MadeRun:
    """120 images' votes under ``sigma``: the less noise, the more of them are right."""
    return invented(plan_of(noise={"sigma": sigma}, **sections), seed=1, sure=0.9 - sigma, failed=failed)


def reported(
    run: MadeRun, folder: Path, name: str, view: View = VIEW, shards: Sequence[int] | None = None
) -> ReportedRun:
    store = run.write(folder / name, shards)
    reduce_run(store, run.plan, view)
    return load_run(store)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[ReportedRun]:
    """Three runs on the same images, each of them best somewhere or nowhere."""
    root = tmp_path_factory.mktemp("runs")
    return [reported(invented_run(sigma), root, f"sigma-{sigma}") for sigma in (0.1, 0.2, 0.5)]


def certified(run: ReportedRun, line: Line = LINE) -> dict[float, int]:
    rows = run.reduced.curves.to_pylist()
    return {
        row["radius"]: row["certified"]
        for row in rows
        if (row["certificate"], row["protocol"]) == (line.certificate, line.protocol)
    }


def only(found: Sequence[Envelope]) -> Envelope:
    assert len(found) == 1
    return found[0]


# --- Which run is best ---------------------------------------------------------------------------------------------


def test_at_each_radius_the_run_with_most_images_is_the_best(runs: list[ReportedRun]) -> None:
    best = only(envelopes(runs))
    assert (best.line, best.runs) == (LINE, ("sigma-0.1", "sigma-0.2", "sigma-0.5"))
    assert [point.radius for point in best.points] == list(RADII)
    for point in best.points:
        counts = {run.name: certified(run)[point.radius] for run in runs}
        assert point.certified_accuracy == max(counts.values()) / 120
        # The first of equals.
        assert point.run == next(name for name, count in counts.items() if count == max(counts.values()))
    assert len({point.run for point in best.points}) > 1


def test_of_equal_runs_the_first_is_named(tmp_path: Path) -> None:
    twins = [reported(invented_run(0.2), tmp_path, name) for name in ("one", "two")]
    assert {point.run for point in only(envelopes(twins)).points} == {"one"}
    assert {point.run for point in only(envelopes(twins[::-1])).points} == {"two"}


def test_only_radii_that_all_runs_report_are_compared(tmp_path: Path) -> None:
    views = [dataclasses.replace(VIEW, radii=radii) for radii in ((0.0, 0.1, 0.2), (0.1, 0.2, 0.4), (0.05, 0.1, 0.2))]
    three = [reported(invented_run(0.2), tmp_path, str(number), view) for number, view in enumerate(views)]
    best = only(envelopes(three))
    assert [point.radius for point in best.points] == [0.1, 0.2]
    for point in best.points:
        count = certified(three[0])[point.radius]
        truly = int(truly_certified(count, 120, alpha=0.05, beta=0.01 / (3 * 2)))
        assert (point.certified_accuracy, point.guaranteed_accuracy) == (count / 120, truly / 120)


# --- What is guaranteed of it --------------------------------------------------------------------------------------


def guaranteed_by_hand(runs: Sequence[ReportedRun], line: Line, radius: float, beta: float, alpha: float) -> float:
    truly = [truly_certified(certified(run, line)[radius], 120, alpha=alpha, beta=beta) for run in runs]
    return max(int(count) for count in truly) / 120


def test_the_guarantee_pays_for_every_run_and_radius(runs: list[ReportedRun]) -> None:
    best = only(envelopes(runs))
    assert best.beta == 0.01
    lower = 0
    for point in best.points:
        assert point.guaranteed_accuracy == guaranteed_by_hand(runs, LINE, point.radius, 0.01 / (3 * 6), 0.05)
        assert point.guaranteed_accuracy <= point.certified_accuracy
        lower += point.guaranteed_accuracy < point.certified_accuracy
    assert lower > 0


def test_the_guarantee_pays_for_every_line_too(tmp_path: Path) -> None:
    several = dataclasses.replace(VIEW, certificates=("renyi", "pixeldp"), protocols=("paper", "split"))
    # The third run has one line more, which it shares with nobody.
    views = [several, several, dataclasses.replace(VIEW, certificates=("renyi", "neyman_pearson_one_class"))]
    three = [
        reported(invented_run(sigma), tmp_path, f"sigma-{sigma}", view)
        for sigma, view in zip((0.1, 0.2, 0.5), views, strict=True)
    ]
    found = {best.line: best for best in envelopes(three)}
    assert set(found) == set(several.lines)
    for line, best in found.items():
        compared = three if line == LINE else three[:2]
        assert best.runs == tuple(run.name for run in compared)
        for point in best.points:
            beta = 0.01 / (4 * len(compared) * len(RADII))
            assert point.guaranteed_accuracy == guaranteed_by_hand(compared, line, point.radius, beta, 0.05)


def test_the_least_beta_of_the_runs_is_kept(tmp_path: Path) -> None:
    betas = (0.2, 0.05, 0.1)
    three = [reported(invented_run(0.2), tmp_path, str(beta), dataclasses.replace(VIEW, beta=beta)) for beta in betas]
    best = only(envelopes(three))
    assert best.beta == 0.05
    for point in best.points:
        assert point.guaranteed_accuracy == guaranteed_by_hand(three, LINE, point.radius, 0.05 / 18, 0.05)


def test_what_is_no_guarantee_is_none_as_the_best_either(tmp_path: Path) -> None:
    view = dataclasses.replace(VIEW, protocols=("paper_two",))
    best = only(envelopes([reported(invented_run(sigma), tmp_path, str(sigma), view) for sigma in (0.1, 0.2)]))
    assert best.points
    assert {point.guaranteed_accuracy for point in best.points} == {None}


def test_exact_certificates_lose_nothing_to_selection(tmp_path: Path) -> None:
    two = []
    for draws in (102, 204):
        sampling = {"draws": draws, "seed": 1}
        noise = {"kind": "splitting", "scale": draws / 510}
        plan = plan_of(noise=noise, sampling=sampling, confidence={"protocol": "exact"})
        two.append(reported(invented(plan, seed=draws, sure=0.5), tmp_path, str(draws), View.of(plan.spec)))
    best = only(envelopes(two))
    assert best.line == Line("splitting", "exact")
    assert best.points[0].certified_accuracy > 0
    assert all(point.guaranteed_accuracy == point.certified_accuracy for point in best.points)


# --- What is not compared ------------------------------------------------------------------------------------------


def test_one_run_is_no_comparison(runs: list[ReportedRun]) -> None:
    assert envelopes([]) == envelopes(runs[:1]) == []


def test_incomplete_runs_are_left_out(runs: list[ReportedRun], tmp_path: Path) -> None:
    missing = reported(invented_run(0.3), tmp_path, "missing", shards=[0, 2])
    failed = reported(invented_run(0.3, failed=[5]), tmp_path, "failed")
    assert envelopes([runs[0], missing, failed]) == []
    assert envelopes([missing, *runs, failed]) == envelopes(runs)


@pytest.mark.parametrize(
    "dataset",
    [
        {"kind": "digits", "limit": 119},
        {"kind": "digits", "limit": 120, "every": 2},
        {"kind": "digits", "every": 2},
    ],
    ids=str,
)
def test_runs_on_other_images_are_left_out(runs: list[ReportedRun], tmp_path: Path, dataset: dict[str, Any]) -> None:
    other = reported(invented_run(0.3, dataset=dataset), tmp_path, "other")
    assert other.reduced.summary.complete
    assert envelopes([runs[0], other]) == []
    assert envelopes([*runs, other]) == envelopes(runs)


def test_runs_on_another_data_set_are_left_out(runs: list[ReportedRun], tmp_path: Path) -> None:
    made = invented_run(0.3)
    run = dataclasses.replace(made, plan=dataclasses.replace(made.plan, dataset_sha256="e" * 64))
    assert envelopes([runs[0], reported(run, tmp_path, "other")]) == []


def test_runs_at_another_alpha_are_left_out(runs: list[ReportedRun], tmp_path: Path) -> None:
    strict = [
        reported(invented_run(sigma), tmp_path, f"strict-{sigma}", dataclasses.replace(VIEW, alpha=0.001))
        for sigma in (0.1, 0.2)
    ]
    assert envelopes([runs[0], strict[0]]) == []
    mixed = envelopes([runs[0], strict[0], runs[1], strict[1]])
    assert [best.runs for best in mixed] == [("sigma-0.1", "sigma-0.2"), ("strict-0.1", "strict-0.2")]
    # Two figures are reported, so each pays half.
    point = mixed[1].points[0]
    assert point.guaranteed_accuracy == guaranteed_by_hand(strict, LINE, 0.0, 0.01 / (2 * 2 * 6), 0.001)


def test_lines_of_different_protocols_are_not_compared(runs: list[ReportedRun], tmp_path: Path) -> None:
    split = reported(invented_run(0.2), tmp_path, "split", dataclasses.replace(VIEW, protocols=("split",)))
    assert envelopes([runs[0], split]) == []


# --- On the page ---------------------------------------------------------------------------------------------------


def test_the_page_calls_it_selection_and_says_what_was_paid(runs: list[ReportedRun]) -> None:
    best = only(envelopes(runs))
    table = best_table(best)
    html = " ".join(report_html(runs, b"a figure").split())
    assert "Best of 3 runs at each radius: renyi, paper" in html
    assert "picked at each radius after seeing the figures (selection): no single network has this curve" in html
    assert "with probability 1 - 0.01 over the noise of all runs" in html
    assert len(table["rows"]) == len(RADII)
    for row, point in zip(table["rows"], best.points, strict=True):
        assert row[2] == point.run
        assert point.guaranteed_accuracy is not None
        assert row[1] == f"{percent(point.certified_accuracy)} ({percent(point.guaranteed_accuracy)})"
        assert "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" in html


def test_the_page_of_one_run_names_no_best(runs: list[ReportedRun]) -> None:
    assert not re.search("Best of|selection\\)", report_html(runs[:1], b"a figure"))


def test_what_is_no_guarantee_has_no_brackets(tmp_path: Path) -> None:
    view = dataclasses.replace(VIEW, protocols=("paper_two",))
    two = [reported(invented_run(sigma), tmp_path, str(sigma), view) for sigma in (0.1, 0.2)]
    assert not any("(" in cell for row in best_table(only(envelopes(two)))["rows"] for cell in row)


def test_the_probability_is_a_number_people_can_read(tmp_path: Path) -> None:
    view = dataclasses.replace(VIEW, beta=0.07)
    two = [reported(invented_run(sigma), tmp_path, str(sigma), view) for sigma in (0.1, 0.2)]
    assert "with probability 1 - 0.07 over the noise of all runs" in " ".join(report_html(two, b"").split())
