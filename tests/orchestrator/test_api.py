"""The Python API: the commands as functions, what they return, and what they say of bad arguments."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import yaml
from click.testing import CliRunner

import orchestrator
import stn_core
from orchestrator import api
from orchestrator.attacking.attack import attack_run
from orchestrator.cli import main
from orchestrator.counting.certification import certify_run
from orchestrator.errors import RunError, SpecError, StnError
from orchestrator.on_ray.cluster import Capacity, cluster
from tests.networks import tiny
from tests.orchestrator.inline import fit_inline, hire_failing, hire_inline, no_cluster
from tests.orchestrator.runs import MadeRun, digits_spec, mnist_spec
from workers.images import open_dataset
from workers.settings import Mnist
from workers.store import LocalStore, StoreError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text()

#: Commands that are no functions, since they are for people at a terminal.
NO_FUNCTIONS = {"init", "paper", "import-cohen", "schema", "gc", "doctor", "completion"}


@pytest.fixture
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is done in this process, without Ray."""
    monkeypatch.setattr(
        "orchestrator.counting.certification.certify_run", functools.partial(certify_run, hire=hire_inline)
    )
    monkeypatch.setattr("orchestrator.attacking.attack.attack_run", functools.partial(attack_run, hire=hire_inline))
    monkeypatch.setattr("orchestrator.training.train.fit", fit_inline)
    monkeypatch.setattr("orchestrator.training.train.cluster", no_cluster)


@pytest.fixture
def content(few_digits: Path, tmp_path: Path) -> dict[str, Any]:
    return mnist_spec(few_digits, store={"run": str(tmp_path / "run")})


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# --- Names ---------------------------------------------------------------------------------------------------------


def test_importing_it_imports_nothing_slow_and_the_first_name_does() -> None:
    code = (
        "import sys, orchestrator\n"
        "slow = {'ray', 'torch', 'numpy', 'pyarrow', 'pydantic', 'matplotlib'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
        "assert set(orchestrator.__all__) <= set(dir(orchestrator))\n"
        "from orchestrator import SpecError\n"
        "assert not slow & set(sys.modules)\n"
        "from orchestrator import certify, load_spec, reduce, status\n"
        "assert not {'ray', 'matplotlib'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_type_checker_sees_the_names_that_there_are() -> None:
    tree = ast.parse(Path(orchestrator.__file__).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {}
    for node in checked.body:
        assert isinstance(node, ast.ImportFrom)
        seen |= {alias.name: node.module for alias in node.names}
    assert sorted(seen) == orchestrator.__all__
    for name, module in seen.items():
        assert getattr(orchestrator, name) is getattr(sys.modules[str(module)], name)


def test_no_name_is_a_modules_which_would_take_its_place_once_imported() -> None:
    modules = {module.name for module in pkgutil.iter_modules(orchestrator.__path__)}
    assert not modules & set(orchestrator.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'certfy'"):
        getattr(orchestrator, "certfy")  # noqa: B009


def test_every_command_is_a_function_or_for_people_at_a_terminal() -> None:
    assert set(main.commands) - NO_FUNCTIONS <= set(orchestrator.__all__)
    assert not NO_FUNCTIONS & set(orchestrator.__all__)


@pytest.mark.parametrize("name", [name for name in orchestrator.__all__ if name[0].islower()])
def test_every_function_says_what_it_takes_and_raises(name: str) -> None:
    function = getattr(orchestrator, name)
    told = inspect.getdoc(function) or ""
    assert "Raises:" in told
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"\b{argument}\b", told), argument


@pytest.mark.parametrize(("package", "names"), [("orchestrator", orchestrator.__all__), ("stn_core", stn_core.__all__)])
def test_the_page_lists_every_name_and_no_other(package: str, names: list[str]) -> None:
    table = PAGE.split(f"| `from {package} import` |")[1].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    listed = [name for cell in cells for name in re.findall(r"`(\w+)", cell)]
    assert sorted(listed) == sorted(names)


@pytest.mark.usefixtures("_inline")
def test_the_pages_examples_run(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    digits = open_dataset(Mnist(kind="mnist", path=few_digits))
    images = [(torch.from_numpy(digits.read(number)), int(digits.labels[number])) for number in range(20)]
    own, more, alone = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in own.splitlines() if line.strip()]) <= 10
    exec(compile(own, "docs/python.md", "exec"), {"network": tiny(), "images": images})
    assert "neyman_pearson_one_class" in capsys.readouterr().out
    names: dict[str, Any] = {}
    exec(compile(more, "docs/python.md", "exec"), names)
    assert (names["more"].sampling.draws, names["more"].store.run) == (2000, "mine/run-2000")
    batch = torch.stack([image for image, _ in images[:3]]) / 255
    exec(compile(alone, "docs/python.md", "exec"), {"network": tiny(), "batch": batch})
    assert capsys.readouterr().out.count("[") == 4


@pytest.mark.usefixtures("_inline")
def test_the_readmes_examples_run(
    content: dict[str, Any],
    few_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    digits = open_dataset(Mnist(kind="mnist", path=few_digits))
    images = [(torch.from_numpy(digits.read(number)), int(digits.labels[number])) for number in range(20)]
    own, question = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile(own, "README.md", "exec"), {"network": tiny(), "images": images})
    assert "certified_accuracy" in capsys.readouterr().out
    orchestrator.certify({**content, "store": {"run": "runs/demo"}})
    capsys.readouterr()
    names: dict[str, Any] = {}
    exec(compile(question, "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("label\n")
    assert len(names["votes"]) == len(names["renyi"]) == 20


# --- The functions -------------------------------------------------------------------------------------------------


def test_a_spec_is_taken_as_itself_as_a_file_and_as_data(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(content))
    before = json.dumps(content)
    spec = orchestrator.load_spec(path)
    assert orchestrator.load_spec(str(path)) == orchestrator.load_spec(content) == spec
    assert orchestrator.load_spec(spec) is spec
    changes = ["noise.sigma=0.5", "sampling.draws=10"]
    changed = [orchestrator.load_spec(source, changes, limit=3) for source in (path, content, spec)]
    assert changed[0] == changed[1] == changed[2]
    assert (changed[0].noise.sigma, changed[0].store.run) == (0.5, f"{tmp_path}/run-limit-3")  # type: ignore[union-attr]
    assert orchestrator.load_spec(spec, run="x: y", limit=3).store.run == "x: y"
    assert json.dumps(content) == before
    assert spec.store.run == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("source", "overrides", "says"),
    [
        ({"dataset": {"kind": "digits"}}, [], "spec: model is missing (and 4 more)"),
        (digits_spec(noise={"sgma": 1}), [], "spec: unknown key noise.sgma, did you mean 'sigma'?"),
        (digits_spec(), ["noise.sigma"], "--set noise.sigma: expected section.key=value"),
        ("missing.yaml", [], "cannot read spec missing.yaml: No such file or directory"),
    ],
    ids=["missing", "unknown", "override", "no file"],
)
def test_a_bad_spec_is_one_line(source: Any, overrides: list[str], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        orchestrator.load_spec(source, overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, StnError)


@pytest.mark.usefixtures("_inline")
def test_certify_does_what_the_command_does_byte_by_byte_and_again_nothing(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    result = orchestrator.certify(content)
    assert (result.complete, result.counted, result.nothing_to_do) == (True, 3, False)
    assert result.run == str(tmp_path / "run")
    assert repr(result).startswith(f"Certification(run='{tmp_path}/run', complete=True, images=20, counted=20, ")
    before = files(tmp_path / "run")
    again = orchestrator.certify(content)
    assert (again.nothing_to_do, again.curves, again.certificates) == (True, result.curves, result.certificates)
    assert files(tmp_path / "run") == before

    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    done = CliRunner().invoke(main, ["certify", str(tmp_path / "job.yaml"), "--run", str(tmp_path / "other")])
    assert done.exit_code == 0
    other = files(tmp_path / "other")
    assert {name for name in before if before[name] != other[name]} == {"plan.json"}  # says where the run is
    assert before.keys() == other.keys()


def test_an_incomplete_run_says_so_and_is_no_error(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        "orchestrator.counting.certification.certify_run", functools.partial(certify_run, hire=hire_failing)
    )
    result = orchestrator.certify({**content, "resources": {"shard_size": 8, "max_attempts": 1}})
    assert (result.complete, result.given_up) == (False, {1: "a disk on fire"})
    assert len(result.certificates) == 12 * 4
    assert orchestrator.results(tmp_path / "run").certificates.equals(result.certificates)
    assert orchestrator.status(tmp_path / "run").shards_given_up == {1: "a disk on fire"}


def test_reduce_takes_another_view_and_results_the_last(made: MadeRun, tmp_path: Path) -> None:
    made.write(tmp_path)
    with pytest.raises(RunError, match="has no certificates yet: run `stn reduce` first"):
        orchestrator.results(tmp_path)
    found = orchestrator.reduce(
        tmp_path, certificates=["renyi"], protocols=["split", "paper"], radii=np.array([0, 0.1])
    )
    assert found.curves["radius"].to_pylist() == [0, 0.1, 0, 0.1]
    assert set(found.certificates["protocol"].to_pylist()) == {"split", "paper"}
    assert len(found.certificates) == 40
    last = orchestrator.results(str(tmp_path))
    assert (last.curves, last.summary) == (found.curves, found.summary)
    assert orchestrator.reduce(tmp_path).curves["radius"].to_pylist()[:5] == [0.0, 0.05, 0.1, 0.2, 0.4]
    # The tables are of another reduce by now.
    with pytest.raises(RunError, match="two reduces"):
        _ = found.certificates


def test_tables_group_in_pandas_as_text_does(made: MadeRun, tmp_path: Path) -> None:
    made.write(tmp_path)
    table = orchestrator.reduce(tmp_path, certificates=["renyi"]).certificates.to_pandas()
    assert list(table.groupby("certificate")["radius"].count().items()) == [("renyi", 20)]


def test_reports_and_comparisons_are_written_where_they_are_asked_for(made: MadeRun, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("one", "two")]
    for run in runs:
        made.write(run)
        orchestrator.reduce(run)
    report = orchestrator.report(*runs, out=tmp_path / "report", images=False)
    assert report.written == tuple(f"{tmp_path}/report/{name}" for name in ("curves.png", "report.html"))
    assert all(Path(path).stat().st_size for path in report.written)
    assert (report.complete, report.holds, [run.name for run in report.runs]) == (True, True, ["one", "two"])
    found = orchestrator.compare(*runs, certificates=["renyi"], radii=[0.0, 0.1], out=tmp_path / "compared")
    assert set(files(tmp_path / "compared")) == {"compare.png", "compare.csv"}
    assert found.table["run"].to_pylist() == ["one", "two"] * 2
    assert found.table["difference"].to_pylist() == [None, 0.0] * 2
    assert repr(found) == "Comparison(runs=('one', 'two'), images=20, complete=True, lines=['renyi (paper)'])"


def test_verify_checks_and_counts_again(made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    made.write(tmp_path)
    orchestrator.reduce(tmp_path)
    found = orchestrator.verify(tmp_path, recount=2, seed=3)
    assert (found.right, found.complete, found.findings) == (True, True, ())
    assert found.recounted is not None
    assert len(found.recounted.images) == 2
    key = next(name for name in files(tmp_path) if name.startswith("counts/"))
    (tmp_path / key).write_bytes(b"nothing")
    assert not orchestrator.verify(tmp_path).right


def test_plan_tells_what_the_command_does(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("orchestrator.planning.estimate.run_probes", lambda probe, processes: (2.0, 0.25))
    found = orchestrator.plan(content)
    assert (found.images, found.shards, found.forward_passes) == (20, 3, 1600)
    assert found.estimated_seconds == pytest.approx(
        found.estimated_start_seconds + found.estimated_counting_seconds + found.estimated_reduce_seconds, abs=0.2
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_inline")
def test_train_sweep_and_attack_go_on_where_they_stopped(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"kind": "mnist", "path": str(few_digits)}
    pgd = {"kind": "pgd", "norm": "l2", "sizes": [0.1], "steps": 1, "draws": 2}
    content = mnist_spec(
        few_digits,
        dataset={**data, "limit": 4},
        model={"name": "mnist_small", "checkpoint": "model.pt"},
        sampling={"draws": 8, "seed": 1},
        store={"run": "run"},
        training={"dataset": data, "method": "gaussian", "epochs": 1, "batch_size": 10},
        attack={"draws": 8, "alpha": 0.01, "attacks": {"pgd": pgd}},
    )
    trained = orchestrator.train(content)
    assert (trained.checkpoint, trained.epoch and trained.epoch.epoch) == (tmp_path / "model.pt", 1)
    assert orchestrator.train(content).epoch is None

    told: list[str] = []
    names = ["gaussian-sigma-0.1", "gaussian-sigma-0.2"]
    swept = orchestrator.sweep({**content, "store": {"run": "sweep"}}, [0.1, 0.2], tell=told.append)
    assert (swept.complete, [run.name for run in swept.runs]) == (True, names)
    assert told == [f"{number} of 2: {name}" for number, name in enumerate(names, 1)]
    assert all(Path(path).exists() for path in swept.written)

    attacked = orchestrator.attack(content)
    assert (attacked.complete, attacked.done, attacked.holds, attacked.sandwiches) == (True, 1, True, None)
    orchestrator.certify(content)
    again = orchestrator.attack(content)
    assert (again.done, again.curves) == (0, attacked.curves)
    assert again.sandwiches is not None
    assert "pyarrow" not in repr(again)


# --- What they refuse ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda run: api.status(run / "none"), RunError, "no run at "),
        (lambda run: api.results("gs://bucket/run"), StoreError, "gs:// is not supported"),
        (lambda run: api.reduce(run, radii=[0.2, 0.1]), SpecError, "radii must be finite, not negative, and increase"),
        (lambda run: api.reduce(run, radii=[]), SpecError, "radii must be finite, not negative, and increase"),
        (lambda run: api.reduce(run, radii=[float("nan")]), SpecError, "radii must be finite"),
        (lambda run: api.reduce(run, certificates=["reny"]), SpecError, "did you mean 'renyi'"),
        (lambda run: api.reduce(run, alpha=2.0), SpecError, "alpha"),
        (lambda run: api.report(), SpecError, "a report needs a run"),
        (lambda run: api.compare(run), SpecError, "one run is no comparison"),
        (lambda run: api.compare(run, run, level=0.0), SpecError, "level must lie inside (0, 1), got 0"),
        (lambda run: api.verify(run, recount=0), SpecError, "recount must be a number of images, at least 1, got 0"),
        (lambda run: api.verify(run, seed=1), SpecError, "seed chooses the images to recount"),
        (lambda run: api.train(digits_spec()), SpecError, "training is missing"),
        (lambda run: api.attack(digits_spec()), SpecError, "attack is missing"),
        (lambda run: api.sweep(digits_spec(), [0.1, 0.1]), SpecError, "has 0.1 twice"),
        (lambda run: api.submit(digits_spec(), "HEAD:8265"), SpecError, "relative to this folder"),
        (lambda run: api.submit(digits_spec(store={"run": "/x"}), "HEAD:8265"), SpecError, "http://HEAD:8265"),
        (
            lambda run: api.submit(digits_spec(), "http://h", command="train", retry_failed=True),
            SpecError,
            "`stn train` has no --retry-failed",
        ),
    ],
)
def test_bad_arguments_are_one_line(
    call: Any, error: type[Exception], says: str, made: MadeRun, tmp_path: Path
) -> None:
    made.write(tmp_path)
    orchestrator.reduce(tmp_path)
    before = files(tmp_path)
    with pytest.raises(error) as caught:
        call(tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


# --- Ray -----------------------------------------------------------------------------------------------------------


def test_a_ray_that_is_there_already_is_used_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 1.0}}
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [node, {**node, "Alive": False}])
    for name in ("init", "shutdown"):
        monkeypatch.setattr(ray, name, lambda *_, **__: pytest.fail("somebody else's"))
    with cluster(8) as capacity:
        assert capacity == Capacity(((3, 1),), may_grow=True)
    with pytest.raises(KeyboardInterrupt), cluster(8):
        raise KeyboardInterrupt


@pytest.mark.usefixtures("_inline")
def test_a_function_may_be_interrupted_and_called_again(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    real = LocalStore.create

    def create(store: LocalStore, key: str, content: bytes) -> bool:
        if "shard-000001" in key:
            raise KeyboardInterrupt
        return real(store, key, content)

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "create", create)
        with pytest.raises(KeyboardInterrupt):
            orchestrator.certify(content)
    assert orchestrator.status(tmp_path / "run").shards_committed == 1
    result = orchestrator.certify(content)
    assert (result.complete, result.counted) == (True, 2)
