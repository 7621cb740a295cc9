"""What the page says of a run's images, held against the tables and the votes by other means."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import shlex
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

from orchestrator.cli import main
from orchestrator.reducing.reduction import reduce_run
from orchestrator.reducing.tables import View
from orchestrator.reporting.literature import data_set, literature
from orchestrator.reporting.page.bars import draws_figure, radius_figure
from orchestrator.reporting.page.breakdown import few
from orchestrator.reporting.page.details import Details, class_tables, draws_text, load_details, section
from orchestrator.reporting.page.figures import Curves
from orchestrator.reporting.page.reproduce import recipe
from orchestrator.reporting.publishing import publish
from orchestrator.reporting.reported import load_run
from orchestrator.reporting.steps import Steps, thinned
from orchestrator.spec import validate
from tests.orchestrator.runs import MadeRun, invented, plan_of
from workers.store import LocalStore

VIEW = View(("renyi", "neyman_pearson_one_class"), ("paper", "split"), 0.05, (0.0, 0.1, 0.2), "clopper_pearson", 0.01)


def stn(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images with invented votes, some failed; of images that are nowhere."""
    plan = plan_of(sampling={"draws": 500, "selection_draws": 30, "seed": 3})
    root = tmp_path_factory.mktemp("runs") / "whole"
    reduce_run(invented(plan, failed=[3, 17, 60], sure=0.1).write(root), plan, VIEW)
    return root


@pytest.fixture(scope="module")
def details(folder: Path) -> Details:
    store = LocalStore(folder)
    return load_details(store, load_run(store), 0)


def rows(folder: Path, certificate: str = "renyi", protocol: str = "paper") -> list[dict[str, Any]]:
    found = pq.read_table(folder / "certificates.parquet").to_pylist()
    return [row for row in found if (row["certificate"], row["protocol"]) == (certificate, protocol)]


# --- By class, radius and draws ------------------------------------------------------------------------------------


def test_every_class_is_counted_as_in_the_tables(folder: Path, details: Details) -> None:
    found = details.breakdown
    assert found.images.sum() == 120
    assert found.majority.sum() == details.run.reduced.summary.majority_correct > 0
    for own in found.lines:
        expected = rows(folder, own.line.certificate, own.line.protocol)
        for label in range(10):
            mine = [row for row in expected if row["label"] == label]
            assert found.images[label] == len(mine)
            assert own.abstained[label] == sum(row["prediction"] is None and row["draws"] > 0 for row in mine)
            assert own.certified[label].tolist() == [
                sum(row["correct"] and row["radius"] >= radius for row in mine) for radius in found.radii
            ]
        answered = [row for row in expected if row["prediction"] is not None]
        assert own.right.sum() == sum(row["correct"] for row in answered)
        assert own.wrong.sum() == sum(not row["correct"] for row in answered)
        assert own.edges[-1] >= max(row["radius"] for row in answered)
    assert sum(own.wrong.sum() for own in found.lines) > 0
    assert (found.draws.tolist(), found.with_draws.tolist()) == ([500], [117])


def test_votes_that_came_after_the_tables_are_left_out(tmp_path: Path) -> None:
    plan = plan_of()
    run = invented(plan)
    store = run.write(tmp_path, [0])
    reduce_run(store, plan, VIEW)
    before = load_details(store, load_run(store), 0).breakdown
    run.commit(store, 1)
    after = load_details(store, load_run(store), 0).breakdown
    assert after.images.sum() == before.images.sum() == 50
    assert after.majority.tolist() == before.majority.tolist()


def test_of_many_classes_the_worst_and_the_best_are_shown(details: Details) -> None:
    many = 300
    breakdown = details.breakdown
    certified = np.repeat(np.arange(many)[:, None], len(breakdown.radii), axis=1)
    line = dataclasses.replace(breakdown.lines[0], certified=certified, abstained=np.zeros(many, np.int64))
    wide = dataclasses.replace(
        breakdown,
        images=np.full(many, 1000, np.int64),
        majority=np.zeros(many, np.int64),
        lines=(line,),
    )
    (table,) = class_tables(dataclasses.replace(details, breakdown=wide))
    assert table["hidden"] == 260
    assert [int(row[0]) for row in table["rows"]] == [*range(20), *range(280, 300)]


def test_draws_that_votes_chose_are_shown_one_by_one(details: Details) -> None:
    adaptive = dataclasses.replace(
        details.breakdown, draws=np.array([100, 400, 1600]), with_draws=np.array([60, 30, 10])
    )
    figure = draws_figure(details.run, adaptive)
    assert figure is not None
    assert figure["data"][0]["x"] == ["100", "400", "1600"]
    assert figure["data"][0]["y"] == [60, 30, 10]
    text = draws_text(dataclasses.replace(details, breakdown=adaptive))
    assert "100 to 1600 estimation draws" in text
    assert "340.0 on average, median 100, 34000 in all" in text
    assert draws_figure(details.run, details.breakdown) is None
    assert draws_text(details).startswith("117 images were counted with 500 estimation draws each, 58500 in all")


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (4, 4), (5, 4), (1000, 4)])
def test_a_few_radii_are_the_first_the_last_and_some_between(count: int, expected: int) -> None:
    radii = [0.1 * number for number in range(count)]
    found = few(radii)
    assert len(found) == len(set(found)) == expected
    assert (found[0], found[-1]) == (radii[0], radii[-1])


def test_failures_are_listed_and_the_rest_are_counted(tmp_path: Path) -> None:
    plan = plan_of()
    store = invented(plan, failed=range(30)).write(tmp_path)
    reduce_run(store, plan, VIEW)
    failures = section(load_details(store, load_run(store), 0))["failures"]
    assert failures["images"] == [(str(index), "undecodable") for index in range(20)]
    assert (failures["failed"], failures["more"]) == (30, 10)
    publish([store], store)
    assert "and 10 more" in (tmp_path / "report.html").read_text()


# --- Images --------------------------------------------------------------------------------------------------------


def test_images_are_those_with_the_largest_and_the_smallest_radius(folder: Path, details: Details) -> None:
    own = rows(folder)
    right = sorted((row["radius"] for row in own if row["correct"]), reverse=True)
    groups: dict[str, list[float]] = {}
    for one in details.specimens.images:
        groups.setdefault(one.choice.group, []).append(one.choice.radius)
        (row,) = [row for row in own if row["index"] == one.choice.index]
        assert (one.choice.prediction, one.choice.radius) == (row["prediction"], row["radius"])
        assert one.ballot.label == row["label"]
        assert one.clean is None
    assert groups["largest radius"] == right[:4]
    assert groups["smallest radius"] == sorted(right)[:4]
    others = sorted((row["radius"] for row in own if not row["correct"] and row["draws"]), reverse=True)
    assert groups["wrong or abstaining"] == others[:4]


def test_their_votes_are_those_counted(folder: Path, details: Details) -> None:
    votes = {row["index"]: row for row in pq.read_table(folder / "counts").to_pylist()}
    for one in details.specimens.images:
        counted = votes[one.choice.index]
        assert Counter(dict(one.ballot.votes)) == Counter({v["class"]: v["votes"] for v in counted["estimation"]})
        assert [count for _, count in one.ballot.votes] == sorted((c for _, c in one.ballot.votes), reverse=True)
        assert one.ballot.draws == counted["draws"]


@pytest.mark.parametrize("path", ["/nowhere/at/all", None])
def test_a_data_set_that_is_not_here_or_is_another_is_one_line(made: MadeRun, tmp_path: Path, path: str | None) -> None:
    plan = made.plan
    if path is None:
        plan = dataclasses.replace(plan, dataset_sha256="0" * 64)
    else:
        dataset = plan.spec.dataset.model_copy(update={"path": Path(path)})
        plan = dataclasses.replace(plan, spec=plan.spec.model_copy(update={"dataset": dataset}))
    store = MadeRun(plan, made.tables).write(tmp_path)
    reduce_run(store, plan, VIEW)
    found = load_details(store, load_run(store), 10**6).specimens
    assert found.absent.startswith("The run's data set is not here (")
    assert "\n" not in found.absent
    assert found.images
    assert all(one.clean is None and one.ballot.votes for one in found.images)


def test_images_have_a_budget_and_can_be_left_out(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path / "run")
    reduce_run(store, made.plan, VIEW)
    found = load_details(store, load_run(store), 2 * 784 * 3).specimens
    # Of each group the first.
    assert sum(one.clean is not None for one in found.images) == 3
    assert len({one.choice.group for one in found.images if one.clean is not None}) > 1
    done = stn("report", tmp_path / "run", "--no-images")
    assert done.exit_code == 0
    assert "Images are left out." in (tmp_path / "run" / "report.html").read_text()


# --- How to make it again ------------------------------------------------------------------------------------------


def test_the_spec_on_the_page_is_the_runs(made: MadeRun, details: Details) -> None:
    for plan in (made.plan, details.run.plan):
        run = dataclasses.replace(details.run, plan=plan)
        found = recipe(run)
        assert validate(yaml.safe_load(found.spec), "page") == plan.asked
        assert "stn certify spec.yaml" in found.commands
        assert (plan.model_sha256 in dict(found.digests).values()) is True


def test_the_commands_on_the_page_make_its_tables(made: MadeRun, tmp_path: Path) -> None:
    root = tmp_path / "a run"
    spec = made.plan.spec.model_copy(update={"store": made.plan.spec.store.model_copy(update={"run": str(root)})})
    plan = dataclasses.replace(made.plan, spec=spec)
    store = MadeRun(plan, made.tables).write(root)
    reduce_run(store, plan, dataclasses.replace(VIEW, alpha=0.003, beta=0.02, interval="randomised"))
    before = pq.read_table(root / "curves.parquet")
    (command,) = [one for one in recipe(load_run(store)).commands if one.startswith("stn reduce")]
    reduce_run(store, plan, View.of(plan.spec))
    assert stn(*shlex.split(command)[1:]).exit_code == 0
    assert pq.read_table(root / "curves.parquet").equals(before, check_metadata=True)


# --- Published figures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "model", "shape", "classes", "found"),
    [
        ({"kind": "mnist", "path": "x"}, "mnist", (1, 28, 28), None, "MNIST"),
        ({"kind": "mnist", "path": "x", "split": "train"}, "mnist", (1, 28, 28), None, None),
        ({"kind": "digits"}, "mnist", (1, 28, 28), None, None),
        ({"kind": "cifar10", "path": "x"}, "resnet18", (3, 32, 32), ("airplane", "and", "others"), "CIFAR-10"),
        ({"kind": "cifar10", "path": "x", "split": "train"}, "cifar10", (3, 32, 32), None, None),
        ({"kind": "imagenet", "path": "x"}, "resnet50", (3, 224, 224), None, "ImageNet"),
        ({"kind": "imagenet", "path": "x", "split": "train"}, "resnet50", (3, 224, 224), None, None),
        ({"kind": "parquet", "path": "x"}, "cifar_resnet110", (3, 32, 32), None, "CIFAR-10"),
        ({"kind": "parquet", "path": "x"}, "resnet18", (3, 32, 32), None, None),
        ({"kind": "parquet", "path": "x"}, "cifar_resnet110", (3, 64, 64), None, None),
        ({"kind": "image_folder", "path": "x"}, "cifar_resnet110", (3, 32, 32), tuple("0123456789"), None),
        (
            {"kind": "image_folder", "path": "x"},
            "resnet18",
            (3, 32, 32),
            ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
            "CIFAR-10",
        ),
    ],
)
def test_published_figures_are_shown_where_the_data_set_is_known(
    dataset: dict[str, Any],
    model: str,
    shape: tuple[int, int, int],
    classes: tuple[str, ...] | None,
    found: str | None,
) -> None:
    plan = dataclasses.replace(
        plan_of(dataset=dataset, model={"name": model, "checkpoint": "x"}), image_shape=shape, num_classes=10
    )
    assert data_set(plan, classes) == found
    known = literature(plan, classes)
    assert {one.data for one in known} == ({found} if found else set())
    assert all(one.name.startswith("published: ") and f"n = {one.draws}" in one.name for one in known)


def test_published_figures_fall_with_the_radius() -> None:
    plan = dataclasses.replace(
        plan_of(dataset={"kind": "parquet", "path": "x"}, model={"name": "cifar10", "checkpoint": "x"}),
        image_shape=(3, 32, 32),
    )
    curves = literature(plan)
    assert len(curves) == 5
    for one in curves:
        assert len(one.radius) == len(one.accuracy)
        assert (np.diff(one.radius) > 0).all()
        assert (np.diff(one.accuracy) < 0).all()
    (half,) = [one for one in curves if one.sigma == 0.5]
    assert dict(zip(half.radius, half.accuracy, strict=True))[1.0] == 0.23


def test_published_figures_are_on_the_figure_once(details: Details) -> None:
    plan = plan_of(dataset={"kind": "mnist", "path": "x"}, model={"name": "mnist", "checkpoint": "x"})
    curves = Curves(2)
    for number in range(2):
        curves.add_run(number, details.run, details.steps)
    for _ in range(2):
        curves.add_literature(2, literature(plan))
    (figure,) = curves.figures()
    shown = [trace for trace in figure["data"] if trace["meta"]["legend"].startswith("published")]
    assert [(trace["x"], trace["y"]) for trace in shown] == [([1.58], [0.69])]
    assert "published" in shown[0]["meta"]["group"]


# --- The figures' data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 7, 50, 10_000])
def test_a_thinned_curve_keeps_its_ends_and_never_shows_more(most: int) -> None:
    radius = np.linspace(0, 1, 101)
    exact = Steps(np.append(radius, 1.0), np.append(1 - radius / 2, 0.0))
    found = thinned(exact, most)
    assert len(found.radius) <= most + 2 or most > 101
    assert (found.radius[0], found.radius[-1], found.accuracy[-1]) == (0, 1, 0)
    for x in np.linspace(0.001, 1, 200).tolist():
        shown = found.accuracy[np.searchsorted(found.radius, x)]
        assert shown <= exact.accuracy[np.searchsorted(exact.radius, x)] + 1e-15


def test_many_curves_together_stay_small(details: Details) -> None:
    radius = np.linspace(0, 1, 4000)
    steps = {line: Steps(np.append(radius, 1.0), np.append(1 - radius, 0.0)) for line in details.steps}
    curves = Curves(40)
    for number in range(10):
        curves.add_run(number, details.run, steps)
    assert len(json.dumps(curves.figures())) < 2_000_000


def test_figures_are_json_without_numbers_that_are_none(details: Details) -> None:
    curves = Curves(1)
    curves.add_run(0, details.run, details.steps)
    json.dumps([*curves.figures(), radius_figure(details.run, details.breakdown)], allow_nan=False)


# --- The file ------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """What a browser would make of a page: its elements, and what they would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.code: list[str] = []
        self.policy: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append(dict(attrs))
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"]
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.cdata_elem:
            self.code = [*self.code[: len(self.scripts) - 1], "".join(self.code[len(self.scripts) - 1 :]) + data]


@pytest.mark.parametrize("name", ["plain", "<script>alert(1)<script>", "<!-- <script>"])
def test_the_page_has_three_scripts_and_fetches_nothing(folder: Path, tmp_path: Path, name: str) -> None:
    copy = LocalStore(tmp_path / name)
    for stored in LocalStore(folder).list(""):
        copy.create(stored.key, LocalStore(folder).read(stored.key))
    publish([copy], LocalStore(tmp_path / "out"), most_bytes=0)
    text = (tmp_path / "out" / "report.html").read_text()
    page = Elements()
    page.feed(text)
    assert page.scripts == [{"type": "application/json", "id": "figures"}, {}, {}]
    assert page.handlers == []
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert len(text) < 6_000_000
    digests = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in page.code[1:]]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    rules = ("default-src 'none'", "form-action 'none'", f"script-src {allowed}", "style-src 'unsafe-inline'")
    assert page.policy == "; ".join((*rules, "img-src data: blob:"))


# --- Bad input -----------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_run_an_empty_run_and_a_newer_one_are_one_line_each(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    invented(plan_of()).write(tmp_path / "empty", [])
    newer = invented(plan_of()).write(tmp_path / "newer")
    plan = json.loads(newer.read("plan.json"))
    newer.replace("plan.json", json.dumps({**plan, "schema_version": 99}).encode())
    for name, says in (
        ("none", "no run at"),
        ("empty", "has no certificates yet: run `stn reduce` first"),
        ("newer", "was written by a newer version (schema 99): update this installation"),
    ):
        for arguments in ((tmp_path / name,), (folder, tmp_path / name, "--out", tmp_path / "out")):
            done = stn("report", *arguments)
            assert done.exit_code == 2
            assert says in done.stderr
            assert done.stderr.count("\n") == 1
            assert done.stdout == ""
    assert not (tmp_path / "out").exists()
