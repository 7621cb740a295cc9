"""Sweeps without Ray: which jobs there are, and that all of them are done, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from orchestrator.cli import main
from orchestrator.counting.certification import certify_run
from orchestrator.errors import SpecError
from orchestrator.spec import Spec, validate
from orchestrator.sweeping import points
from orchestrator.training.train import prepare, train_model
from tests.orchestrator.inline import fit_inline, hire_inline, no_cluster
from tests.orchestrator.runs import mnist_spec
from workers import layout
from workers.settings import GAMMAS
from workers.store import LocalStore


@pytest.fixture
def content(few_digits: Path, tmp_path: Path) -> dict[str, Any]:
    """A spec to train a tiny network for two epochs."""
    return mnist_spec(
        few_digits,
        model={"name": "tests.networks:tiny", "checkpoint": str(tmp_path / "models" / "tiny.pt")},
        certificates=["renyi"],
        store={"run": str(tmp_path / "sweep")},
        training={
            "method": "stn",
            "gamma": 2,
            "epochs": 2,
            "batch_size": 5,
            "precision": "float32",
            "dataset": {"kind": "mnist", "path": str(few_digits), "split": "train"},
            "validation": {"kind": "mnist", "path": str(few_digits), "split": "test"},
        },
    )


def spec(content: dict[str, Any], **sections: Any) -> Spec:
    return validate({**content, **sections}, "spec")


# --- Which jobs there are ------------------------------------------------------------------------------------------


def test_every_method_meets_every_sigma(content: dict[str, Any]) -> None:
    found = points(spec(content), [0.1, 0.25], ["stn", "gaussian"])
    assert [job.name for job in found] == [
        "stn-sigma-0.1",
        "stn-sigma-0.25",
        "gaussian-sigma-0.1",
        "gaussian-sigma-0.25",
    ]
    for job in found:
        assert job.spec.training is not None
        assert f"{job.spec.training.method}-sigma-{job.spec.noise.sigma}" == job.name  # type: ignore[union-attr]
        assert job.spec.store.run == f"{content['store']['run']}/{job.name}"
        assert Path(job.spec.model.checkpoint or "").name == f"tiny-{job.name}.pt"
    assert [job.spec.training.gamma for job in found if job.spec.training] == [2, 2, None, None]


def test_what_is_not_varied_stays(content: dict[str, Any]) -> None:
    (job,) = points(spec(content), [0.2])
    own = spec(content)
    assert job.name == "stn-sigma-0.2"
    assert job.spec.model_copy(update={"store": own.store, "model": own.model}) == own


def test_networks_that_sigma_does_not_change_are_trained_once(content: dict[str, Any]) -> None:
    training = {**content["training"], "gamma": None}
    attacked = {**training, "method": "madry", "attack": {"epsilon": 0.1}}
    for section, methods in ((training, ["clean"]), ({**training, "sigma": 0.5}, ["stn"]), (attacked, ["madry"])):
        found = points(spec(content, training=section), [0.1, 0.2], methods)  # type: ignore[arg-type]
        assert {Path(job.spec.model.checkpoint or "").name for job in found} == {f"tiny-{methods[0]}.pt"}
        assert len({job.spec.store.run for job in found}) == 2


def test_a_method_of_the_same_needs_keeps_them_and_others_get_their_own_defaults(content: dict[str, Any]) -> None:
    training = {**content["training"], "method": "trades", "attack": {"epsilon": 0.1}}
    found = points(spec(content, training=training), [0.1], ["trades", "alp", "madry", "stn", "clean"])
    sections = [job.spec.training for job in found]
    assert [section and section.gamma for section in sections] == [2, None, None, None, None]
    assert [section and section.attack is not None for section in sections] == [True, True, True, False, False]
    assert GAMMAS.keys() == {"stn", "trades", "alp", "consistency"}


def test_without_training_the_same_network_is_certified_under_each_noise(content: dict[str, Any]) -> None:
    found = points(spec(content, training=None, model={"name": "tests.networks:tiny"}), [0.1, 0.2])
    assert [job.name for job in found] == ["sigma-0.1", "sigma-0.2"]
    assert {job.spec.model for job in found} == {spec(content, model={"name": "tests.networks:tiny"}).model}


def test_places_in_object_storage_are_varied_alike(content: dict[str, Any]) -> None:
    model = {"name": "tests.networks:tiny", "checkpoint": "s3://bucket/some.where/tiny"}
    (job,) = points(spec(content, model=model), [0.1])
    assert job.spec.model.checkpoint == "s3://bucket/some.where/tiny-stn-sigma-0.1"


@pytest.mark.parametrize(
    ("sections", "sigmas", "methods", "says"),
    [
        (
            {"noise": {"kind": "laplace", "scale": 0.1}, "certificates": ["pixeldp_laplace"]},
            [0.1],
            [],
            "needs gaussian noise, the spec's is laplace",
        ),
        ({}, [0.1, 0.2, 0.1], [], "over sigma needs each once, and has 0.1 twice"),
        ({}, [0.1], ["stn", "stn"], "over method needs each once, and has stn twice"),
        ({"training": None}, [0.1], ["stn"], "needs the spec's training section"),
        ({"model": {"name": "tests.networks:tiny"}}, [0.1], [], "model.checkpoint is missing"),
        ({}, [-0.1], [], "noise.sigma: got -0.1"),
        ({}, [0.1], ["madry"], "method madry needs an attack"),
    ],
)
def test_what_cannot_be_varied_is_refused(
    content: dict[str, Any], sections: dict[str, Any], sigmas: list[float], methods: list[Any], says: str
) -> None:
    with pytest.raises(SpecError, match=says):
        points(spec(content, **sections), sigmas, methods)


def test_a_run_is_no_folder_for_a_sweep(done: list[str], tmp_path: Path) -> None:
    LocalStore(tmp_path / "sweep").create(layout.PLAN, b"{}")
    result = stn("--sigma", "0.1")
    assert (result.exit_code, done) == (2, [])
    assert "holds a run, and this keeps several below its folder" in result.stderr


# --- Doing them ----------------------------------------------------------------------------------------------------


@pytest.fixture
def done(content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every training and counting from here on, by name; the first fails at ``content``'s wish."""
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    kept: list[str] = []

    def fit(job: Any, **named: Any) -> bytes:
        kept.append(f"train {job.training.method} {job.noise.sigma}")
        return fit_inline(job, **named)

    def certify(job: Spec) -> Any:
        found = certify_run(job, hire=hire_inline)
        if not found.nothing_to_do:
            kept.append(f"certify {Path(job.store.run).name}")
        return found

    monkeypatch.setattr("orchestrator.training.train.fit", fit)
    monkeypatch.setattr("orchestrator.training.train.cluster", no_cluster)
    monkeypatch.setattr("orchestrator.counting.certification.certify_run", certify)
    return kept


def stn(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["sweep", "job.yaml", *arguments])


def test_a_sweep_trains_certifies_and_shows_all_and_again_does_nothing(done: list[str], tmp_path: Path) -> None:
    first = stn("--sigma", "0.1,0.3", "--method", "stn,gaussian")
    assert first.exit_code == 0, first.output
    assert done == [
        f"{what} {method}{between}{sigma}"
        for method in ("stn", "gaussian")
        for sigma in (0.1, 0.3)
        for what, between in (("train", " "), ("certify", "-sigma-"))
    ]
    folder = tmp_path / "sweep"
    html = (folder / "report.html").read_text()
    for name in ("stn-sigma-0.1", "stn-sigma-0.3", "gaussian-sigma-0.1", "gaussian-sigma-0.3"):
        assert f"<h2>{name}</h2>" in html
        assert (folder / name / "curves.parquet").is_file()
        assert name in first.stdout
    assert "picked at each radius after seeing the figures (selection)" in html
    assert "best (selection)" in first.stdout
    assert html.count('alt="loss and accuracy by epoch"') == 4
    assert "Trained for 2 epochs" in html
    assert "on held-out ones" in html

    done.clear()
    again = stn("--sigma", "0.1,0.3", "--method", "stn,gaussian", "--json")
    assert (again.exit_code, done) == (0, [])
    content = json.loads(again.stdout)
    assert content["complete"]
    assert content["curves"].keys() == {path.parent.name for path in folder.glob("*/plan.json")}


def test_an_interrupted_sweep_goes_on_with_what_is_missing(
    done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.training import train as training

    real = training.fit

    def interrupted(job: Any, **named: Any) -> bytes:
        if job.noise.sigma == 0.3:
            raise KeyboardInterrupt
        return real(job, **named)

    monkeypatch.setattr("orchestrator.training.train.fit", interrupted)
    first = stn("--sigma", "0.1,0.3")
    assert first.exit_code == 130
    assert not (tmp_path / "sweep" / "report.html").exists()
    assert done == ["train stn 0.1", "certify stn-sigma-0.1"]

    done.clear()
    monkeypatch.setattr("orchestrator.training.train.fit", real)
    assert stn("--sigma", "0.1,0.3").exit_code == 0
    assert done == ["train stn 0.3", "certify stn-sigma-0.3"]


@pytest.mark.parametrize("method", ["clean", "madry", "trades"])
def test_networks_that_sigma_does_not_change_are_trained_once_and_certified_under_each(
    content: dict[str, Any], done: list[str], tmp_path: Path, method: str
) -> None:
    attack = {"attack": {"epsilon": 0.1, "steps": 2}} if method != "clean" else {}
    training = {**content["training"], "method": method, "gamma": None, "epochs": 1, **attack}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**content, "training": training}))
    result = stn("--sigma", "0.1,0.3")
    assert result.exit_code == 0, result.output
    assert done == [f"train {method} 0.1", f"certify {method}-sigma-0.1", f"certify {method}-sigma-0.3"]


def test_the_figures_of_training_are_kept_with_the_run(
    content: dict[str, Any], done: list[str], tmp_path: Path
) -> None:
    assert stn("--sigma", "0.1").exit_code == 0
    kept = pq.read_table(tmp_path / "sweep" / "stn-sigma-0.1" / layout.TRAINING).to_pylist()
    assert [row["epoch"] for row in kept] == [1, 2]
    assert all(0 <= row["validation_noisy"] <= 1 for row in kept)
    assert kept == pq.read_table(tmp_path / "models" / "tiny-stn-sigma-0.1.epochs.parquet").to_pylist()


def test_a_network_whose_training_is_unknown_has_a_report_without_it(
    content: dict[str, Any], done: list[str], tmp_path: Path
) -> None:
    (job,) = points(spec(content), [0.1])
    train_model(prepare(job.spec), observe=lambda epoch: None, warn=lambda line: None)
    state = torch.load(tmp_path / "models" / "tiny-stn-sigma-0.1.pt", weights_only=True)["state_dict"]
    torch.save(state, tmp_path / "models" / "tiny-stn-sigma-0.1.pt")
    certify_run(job.spec, hire=hire_inline)
    assert not (tmp_path / "sweep" / "stn-sigma-0.1" / layout.TRAINING).exists()
    assert CliRunner().invoke(main, ["report", str(tmp_path / "sweep" / "stn-sigma-0.1")]).exit_code == 0
    html = (tmp_path / "sweep" / "stn-sigma-0.1" / "report.html").read_text()
    assert "Trained for" not in html
