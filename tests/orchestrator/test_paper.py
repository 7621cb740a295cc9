"""The paper's comparisons without Ray: which jobs, and that rows and curves are those of their runs."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from orchestrator.cli import main
from orchestrator.counting.certification import certify_run
from orchestrator.errors import SpecError
from orchestrator.numerals import percent
from orchestrator.paper.certified import TABLE_1, table1, table1_jobs
from orchestrator.reducing.runs import read_plan, read_votes
from orchestrator.spec import Spec, validate
from stn_core.certificates import CERTIFICATES
from stn_core.dual import margins
from stn_core.sison_glaz import sison_glaz
from tests.networks import tiny
from tests.orchestrator.inline import fit_inline, hire_inline, no_cluster
from tests.orchestrator.runs import mnist_spec
from workers import layout
from workers.images import open_dataset
from workers.store import open_store


@pytest.fixture
def content(few_digits: Path, tmp_path: Path) -> dict[str, Any]:
    """The table in small: few digits, few epochs."""
    return mnist_spec(
        few_digits,
        model={"name": "mnist", "checkpoint": str(tmp_path / "model.pt")},
        noise={"sigma": 1.5},
        sampling={"draws": 200, "seed": 1},
        confidence={"protocol": "label"},
        store={"run": str(tmp_path / "out")},
        training={
            "epochs": 2,
            "batch_size": 5,
            "precision": "float32",
            "dataset": {"kind": "mnist", "path": str(few_digits), "split": "train"},
        },
    )


@pytest.fixture(autouse=True)
def _inline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is done in this process, by a network that is quicker than the paper's and knows its digits no worse."""
    monkeypatch.chdir(tmp_path)
    networks = dict.fromkeys(("mnist", "mnist_shallow"), lambda classes: tiny())
    monkeypatch.setattr("stn_core.models.loading._OWN", networks)
    monkeypatch.setattr("orchestrator.training.train.fit", fit_inline)
    monkeypatch.setattr("orchestrator.training.train.cluster", no_cluster)
    monkeypatch.setattr(
        "orchestrator.counting.certification.certify_run", functools.partial(certify_run, hire=hire_inline)
    )


def spec(content: dict[str, Any], **sections: Any) -> Spec:
    return validate({**content, **sections}, "spec")


def stn(content: dict[str, Any], *arguments: str) -> Result:
    Path("job.yaml").write_text(yaml.safe_dump(content))
    return CliRunner().invoke(main, ["paper", arguments[0], "job.yaml", *arguments[1:]])


def test_table_1_has_both_methods_at_both_numbers_of_draws(content: dict[str, Any]) -> None:
    jobs = table1_jobs(spec(content))
    assert [job.name for job in jobs] == [
        "stn-sigma-1.5-n-100",
        "stn-sigma-1.5-n-200",
        "gaussian-sigma-1.5-n-100",
        "gaussian-sigma-1.5-n-200",
    ]
    assert len({job.spec.model.checkpoint for job in jobs}) == 2
    assert all(job.spec.radii == (0.0, 1.58) for job in jobs)
    assert len(table1_jobs(spec(content, sampling={"draws": 100}))) == 2


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"model": {"name": "tests.networks:tiny"}}, "about the paper's networks, mnist and cifar10, not 'tests.netw"),
        ({"noise": {"kind": "laplace", "scale": 1}}, "about gaussian noise, not laplace"),
    ],
)
def test_table_1_is_about_nothing_else(content: dict[str, Any], sections: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        table1_jobs(spec(content, **sections))


def test_the_papers_own_figures_are_shown_as_printed() -> None:
    shown = {
        name: [(percent(row.certified), percent(row.natural)) for row in table.rows] for name, table in TABLE_1.items()
    }
    # Li et al. 2019, Table 1.
    assert shown == {
        "mnist": [("43.5 %", "88.2 %"), ("74.6 %", "81.4 %"), ("69.0 %", "98.9 %")],
        "cifar10": [("53.0 %", "61.2 %"), ("58.7 %", "68.8 %"), ("65.6 %", "80.5 %")],
    }
    assert all(row.source != "ours" and row.guaranteed is None for table in TABLE_1.values() for row in table.rows)
    assert [table.radius * unit for table, unit in zip(TABLE_1.values(), (1, 255), strict=True)] == [1.58, 36]


def test_table_1_is_read_off_the_runs(content: dict[str, Any], tmp_path: Path) -> None:
    result = stn(content, "table1")
    assert result.exit_code == 0, result.output
    assert "69.0 %" in result.stdout
    assert "UNSOUND" in result.stdout
    rows = csv.read_csv(tmp_path / "out" / "table1.csv").to_pylist()
    assert [row["source"] == "ours" for row in rows] == [False] * 3 + [True] * 14
    by_name = {(row["name"], row["certificate"], row["draws"]): row for row in rows if row["source"] == "ours"}
    assert len(by_name) == 14
    for method, name in (("stn", "STN"), ("gaussian", "without stability training")):
        for draws in (100, 200):
            store = open_store(str(tmp_path / "out" / f"{method}-sigma-1.5-n-{draws}"))
            plan = read_plan(store)
            (votes,) = read_votes(store, plan, range(plan.shards))
            natural = float((votes.estimation.argmax(axis=1) == votes.labels).mean())
            for certificate in ("renyi", "neyman_pearson_two_class", "pixeldp"):
                row = by_name[name, f"{certificate}, label", draws]
                assert row["natural"] == pytest.approx(natural)
                assert row["guaranteed"] <= row["certified"] <= natural
            if draws == 100:
                lower, upper = sison_glaz(votes.estimation, 0.05)
                certified = 0
                for image, label in enumerate(votes.labels):
                    p1 = lower[image, label]
                    p2 = min(1 - p1, np.delete(upper[image], label).max())
                    if votes.estimation[image].argmax() == label and p1 > p2:
                        radius = CERTIFICATES["renyi"].radius(np.array([p1]), np.array([p2]), 1.5)
                        certified += bool(radius[0] >= 1.58)
                (unsound,) = [row for key, row in by_name.items() if key[0] == name and "UNSOUND" in key[1]]
                assert unsound["certified"] == pytest.approx(certified / 20)
                assert unsound["guaranteed"] is None
                assert unsound["certified"] >= by_name[name, "renyi, label", 100]["certified"]

    again = stn(content, "table1", "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["rows"][0]["name"] == "linear program, single"


def test_the_linear_program_is_trained_and_certifies_the_same_images(content: dict[str, Any], tmp_path: Path) -> None:
    content = {**content, "sampling": {"draws": 100}, "training": {**content["training"], "epochs": 4}}
    result = stn(content, "table1", "--linear-program", "3")
    assert result.exit_code == 0, result.output
    table = pq.read_table(tmp_path / "out" / "linear_program.parquet").to_pandas()
    networks = sorted(set(table.network))
    assert networks[:2] == [1, 2]
    rows = {
        row["name"]: row for row in csv.read_csv(tmp_path / "out" / "table1.csv").to_pylist() if row["source"] == "ours"
    }
    single, cascade = rows["linear program, single"], rows[f"linear program, cascade of {len(networks)}"]

    # Image by image, as Wong et al. count.
    images = open_dataset(spec(content).dataset)
    certified = natural = 0
    for index in range(20):
        of_image = table[table["index"] == index]
        assert set(of_image.label) == {int(images.labels[index])}
        sure = of_image[of_image.margin > 0]
        answer = (sure if len(sure) else of_image.iloc[-1:]).iloc[0]
        natural += answer.predicted == answer.label
        certified += bool(len(sure)) and answer.predicted == answer.label
    assert (cascade["certified"], cascade["natural"]) == (certified / 20, natural / 20)
    first = table[table.network == 1]
    right = first.predicted == first.label
    assert (single["certified"], single["natural"]) == ((right & (first.margin > 0)).mean(), right.mean())
    assert single["guaranteed"] == single["certified"]
    assert cascade["guaranteed"] is None
    assert single["certified"] > 0

    # Of each network, the margins are its own; the second has learned of the images that the first did not certify.
    training = open_dataset(spec(content).training.dataset)  # type: ignore[union-attr]
    state = torch.load(tmp_path / "model-linear-program-1.pt", weights_only=True)
    network = tiny().double()
    network.load_state_dict(state["state_dict"])
    for dataset, found in ((images, first.margin.to_numpy()), (training, None)):
        pixels = torch.from_numpy(np.stack([dataset.read(index) for index in range(len(dataset))])).double() / 255
        answers = network(pixels).argmax(1)
        bounds = margins(network, pixels, answers, 1.58).detach().numpy()
        bounds[np.arange(len(bounds)), answers] = np.inf
        if found is not None:
            np.testing.assert_allclose(bounds.min(1)[:20], found)
    hard = np.flatnonzero(bounds.min(1) <= 0)
    settings = torch.load(tmp_path / "model-linear-program-2.pt", weights_only=True)["training"]
    assert settings["only_sha256"] == hashlib.sha256(hard.astype("<i8").tobytes()).hexdigest()

    assert stn(content, "table1", "--linear-program", "3", "--json").exit_code == 0  # trains nothing again


def test_rows_beyond_the_paper_are_of_the_same_images(content: dict[str, Any], tmp_path: Path) -> None:
    content = {**content, "sampling": {"draws": 100}}
    other = {
        **content,
        "model": {**content["model"], "checkpoint": str(tmp_path / "other.pt")},
        "noise": {"sigma": 2.0},
        "sampling": {"draws": 300},
        "dataset": {"kind": "digits"},
        "certificates": ["neyman_pearson_one_class"],
        "training": {**content["training"], "method": "consistency", "draws": 3},
    }
    Path("other.yaml").write_text(yaml.safe_dump(other))
    result = stn(content, "table1", "--beyond", "other.yaml")
    assert result.exit_code == 0, result.output
    *_, row = csv.read_csv(tmp_path / "out" / "table1.csv").to_pylist()
    assert (row["name"], row["source"], row["draws"]) == (
        "mnist by consistency, sigma = 2",
        "ours, beyond the paper",
        300,
    )
    assert row["certificate"] == "neyman_pearson_one_class, label"
    store = open_store(str(tmp_path / "out" / "beyond-other"))
    plan = read_plan(store)
    assert plan.spec.dataset == read_plan(open_store(str(tmp_path / "out" / "stn-sigma-1.5-n-100"))).spec.dataset
    assert plan.spec.radii == (0.0, 1.58)


def test_what_lies_beyond_is_looked_at_before_anything_is_trained(content: dict[str, Any], tmp_path: Path) -> None:
    def told(**sections: Any) -> str:
        Path("other.yaml").write_text(yaml.safe_dump({**content, **sections}))
        result = stn({**content, "sampling": {"draws": 100}}, "table1", "--beyond", "other.yaml")
        assert (result.exit_code, list(tmp_path.glob("*.pt"))) == (2, [])
        return result.stderr

    stn_checkpoint = {"name": "mnist", "checkpoint": str(tmp_path / "model-stn-sigma-1.5.pt")}
    assert "two networks would be trained into" in told(model=stn_checkpoint, noise={"sigma": 2})
    assert f"no checkpoint at model.checkpoint {tmp_path}/nowhere.pt" in told(
        model={"name": "mnist", "checkpoint": "nowhere.pt"}, training=None
    )
    assert "about gaussian noise, not laplace" in told(
        noise={"kind": "laplace", "scale": 1}, certificates=["renyi_laplace"]
    )
    nowhere = {**content["training"], "dataset": {"kind": "mnist", "path": "nowhere"}}
    assert "training: no MNIST at dataset.path" in told(
        model={"name": "mnist", "checkpoint": "other.pt"}, training=nowhere
    )


def test_rows_of_an_incomplete_run_say_so(content: dict[str, Any], tmp_path: Path) -> None:
    assert stn({**content, "sampling": {"draws": 100}}, "table1").exit_code == 0
    places = [tmp_path / "out" / f"{method}-sigma-1.5-n-100" for method in ("stn", "gaussian")]
    (places[0] / layout.counts(1)).unlink()
    assert CliRunner().invoke(main, ["reduce", str(places[0])]).exit_code == 3
    names = [row.name for row in table1([open_store(str(place)) for place in places]) if row.source == "ours"]
    assert names == 4 * ["STN (INCOMPLETE)"] + 4 * ["without stability training"]


def test_figure_1_shows_every_sigma_by_both_methods(content: dict[str, Any], tmp_path: Path) -> None:
    result = stn({**content, "sampling": {"draws": 20}}, "figure1", "--sigma", "0.2,0.4")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "figure1.png").read_bytes().startswith(b"\x89PNG")
    html = (tmp_path / "out" / "report.html").read_text()
    for name in ("stn-sigma-0.2", "stn-sigma-0.4", "gaussian-sigma-0.2", "gaussian-sigma-0.4"):
        assert f"<h2>{name}</h2>" in html
    assert "Best of 4 runs at each radius: pixeldp, label" in html
    assert "(selection)" in html
