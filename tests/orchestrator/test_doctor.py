"""`stn doctor`: each line is ok or says what to do, a failure hides nothing else, and nothing is left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from orchestrator.cli import main
from orchestrator.errors import WorkersError
from orchestrator.on_ray import cluster
from orchestrator.on_ray.cluster import Answer
from orchestrator.planning.resolve import code_sha256
from orchestrator.reducing.reduction import reduce_run
from orchestrator.reducing.tables import View
from orchestrator.upkeep import doctor
from orchestrator.upkeep.doctor import (
    Finding,
    judge_age,
    judge_hardware,
    judge_space,
    judge_versions,
    most_bytes,
    this_machine,
)
from orchestrator.upkeep.machine import Machine
from tests.fault_proxy import fault_proxy
from tests.networks import tiny, tiny_rgb
from tests.object_store import BUCKET, ObjectStore
from tests.orchestrator.runs import MadeRun, mnist_spec, parquet_spec
from tests.workers.samples import encoded, noise_image, write_parquet
from workers.store import open_store

GIB = 2**30
VERSIONS = {"python": "3.11.7", "stn": "0.1.0", "ray": "2.60.0", "torch": "2.15.0", "numpy": "2.4.6"}
HERE = Machine("here", VERSIONS, "a" * 64, 4, 8 * GIB, (), "")


@pytest.fixture(autouse=True)
def _process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in a folder of its own, without a cluster, and what commands do to their process undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("RAY_ADDRESS", "as it was, afterwards")
    monkeypatch.delenv("RAY_ADDRESS")
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def stn_doctor(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *(str(argument) for argument in arguments)])


def lines(result: Result) -> tuple[list[str], list[str]]:
    """What is ok, and what to fix; the exit code must say the same."""
    assert result.stderr == ""
    printed = result.stdout.splitlines()
    well = [line.removeprefix("ok  ") for line in printed if line.startswith("ok  ")]
    to_fix = [line.removeprefix("FIX ") for line in printed if line.startswith("FIX ")]
    assert len(well) + len(to_fix) == len(printed)
    assert result.exit_code == (2 if to_fix else 0)
    return well, to_fix


def topics(said: list[str]) -> list[str]:
    return [line.split(":")[0] for line in said]


@pytest.fixture
def job(few_digits: Path, tmp_path: Path) -> Path:
    """The spec of the run ``made``, with its weights in a file."""
    torch.save(tiny().state_dict(), tmp_path / "model.pt")
    model = {"name": "tests.networks:tiny", "checkpoint": str(tmp_path / "model.pt")}
    return written(tmp_path, mnist_spec(few_digits, model=model, store={"run": str(tmp_path / "runs" / "run")}))


def written(folder: Path, spec: dict[str, Any]) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


# --- This machine --------------------------------------------------------------------------------------------------


def test_without_a_spec_it_looks_at_this_machine_alone() -> None:
    well, to_fix = lines(stn_doctor())
    assert to_fix == []
    assert topics(well)[:2] == ["versions", "this machine"]
    assert f"torch {torch.__version__.partition('+')[0]}" in well[0]
    assert f"{os.cpu_count()} CPUs, " in well[1]


def test_a_machine_is_described_as_it_is() -> None:
    here = this_machine()
    assert here.versions.keys() >= {"python", "stn", "ray", "torch"}
    assert None not in here.versions.values()
    assert here.code_sha256 == code_sha256()
    assert here.cpus == os.cpu_count()
    assert here.memory > GIB
    assert len(here.gpus) == torch.cuda.device_count()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> dict[str, str]:
        raise PackageNotFoundError("no-such-package")

    monkeypatch.setattr(doctor, "versions", missing)
    _, to_fix = lines(stn_doctor())
    assert to_fix == ["versions: no-such-package is not installed here: install stn with its dependencies"]


def test_gpus_that_only_the_driver_sees_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: Great (UUID: x)'\necho 'GPU 1: Great (UUID: y)'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    _, to_fix = lines(stn_doctor())
    assert len(to_fix) == 1
    assert to_fix[0].startswith("this machine: GPU: the driver lists 2 and PyTorch sees none of them: mend the driver")


def test_gpus_are_told_with_their_memory() -> None:
    machine = dataclasses.replace(HERE, gpus=(("H200", 140 * GIB, 139 * GIB), ("H200", 140 * GIB, GIB // 2)))
    _, first, second = judge_hardware("node a", machine)
    assert first == Finding("node a: GPU 0, H200, 140.0 GiB of memory, 139.0 GiB free")
    assert not second.ok
    assert str(second) == ("FIX node a: GPU 1, H200, 140.0 GiB of memory, 512.0 MiB free: end what holds its memory")


# --- A cluster -----------------------------------------------------------------------------------------------------


def test_nodes_like_this_machine_are_well() -> None:
    assert judge_versions("node a", HERE, dataclasses.replace(HERE, name="a", cpus=64)) == Finding(
        "node a: the same versions as here"
    )


@pytest.mark.parametrize("package", ["python", "stn", "ray", "torch"])
@pytest.mark.parametrize("own", ["0.0.1", None])
def test_nodes_with_other_versions_must_be_mended(package: str, own: str | None) -> None:
    found = judge_versions("node a", HERE, dataclasses.replace(HERE, versions={**VERSIONS, package: own}))
    assert not found.ok
    assert f"{package} {own or 'missing'} there, {VERSIONS[package]} here" in found.advice


def test_other_versions_of_less_are_told() -> None:
    found = judge_versions("node a", HERE, dataclasses.replace(HERE, versions={**VERSIONS, "numpy": "2.0"}))
    assert found == Finding("node a: numpy 2.0 there, 2.4.6 here")


@pytest.mark.parametrize(("code", "says"), [(None, "cannot import stn"), ("b" * 64, "other source files of stn")])
def test_nodes_with_other_code_must_be_mended(code: str | None, says: str) -> None:
    assert says in judge_versions("node a", HERE, dataclasses.replace(HERE, code_sha256=code)).advice


def test_a_cluster_that_cannot_be_reached_hides_nothing_else(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_: int) -> Any:
        raise WorkersError("no Ray cluster at nowhere:1")

    monkeypatch.setattr(cluster, "cluster", unreachable)
    well, to_fix = lines(stn_doctor(job, "--address", "auto"))
    assert to_fix == ["cluster: no Ray cluster at nowhere:1"]
    assert "run" in topics(well)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "[::1]:{port}", "ray://127.0.0.1:{port}", "127.0.0.1:99999"])
def test_where_nothing_listens_nobody_waits_for_ray(job: Path, address: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        place = address.format(port=unused.getsockname()[1])
        well, to_fix = lines(stn_doctor(job, "--address", place))
    assert len(to_fix) == 1
    assert to_fix[0].startswith(f"cluster at {place}: ")
    assert to_fix[0].endswith("start Ray there, or correct --address or $RAY_ADDRESS")
    assert "run" in topics(well)


@contextlib.contextmanager
def _connected(_: int) -> Iterator[None]:
    yield


def test_a_node_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Answer("a (10.0.0.1)", dataclasses.asdict(this_machine())), Answer("b (10.0.0.2)", None, "it is gone")]
    monkeypatch.setattr(cluster, "cluster", _connected)
    monkeypatch.setattr(cluster, "ask_nodes", lambda *_: answers)
    well, to_fix = lines(stn_doctor("--address", "auto"))
    assert to_fix == ["node b (10.0.0.2): does not answer: it is gone"]
    assert "cluster at auto: 2 nodes" in well
    assert "node a (10.0.0.1): the same versions as here" in well


_TWO_NODES = """
import sys
from ray.cluster_utils import Cluster
memory = {"object_store_memory": 100 * 2**20}
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory})
nodes.add_node(num_cpus=1, env_vars={"PYTHONPATH": sys.argv[1]}, **memory)
print(nodes.address, flush=True)
sys.stdin.readline()
nodes.shutdown()
"""


@pytest.mark.cluster
def test_every_node_of_a_cluster_is_asked_even_one_whose_project_is_broken(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "stn-9.9.9.dist-info").mkdir(parents=True)
    (other / "stn-9.9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: stn\nVersion: 9.9.9\n")
    (other / "orchestrator.py").write_text("raise ImportError('broken')")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    run: dict[str, Any] = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", _TWO_NODES, str(other)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, **run) as nodes:
        try:
            assert nodes.stdout is not None
            address = nodes.stdout.readline().strip()
            doctor = [sys.executable, "-c", "from orchestrator.cli import main; main()", "doctor", "--json"]
            asked = subprocess.run([*doctor, "--address", address], stderr=subprocess.PIPE, timeout=120, **run)
        finally:
            nodes.communicate("\n", timeout=60)
    assert asked.returncode == 2, asked.stderr
    found = json.loads(asked.stdout)["findings"]
    assert f"cluster at {address}: 2 nodes" in [one["what"] for one in found]
    (broken,) = (one for one in found if not one["ok"])
    assert "stn 9.9.9 there" in broken["advice"]
    (like_this_one,) = (one for one in found if one["what"].endswith(": the same versions as here"))
    assert like_this_one["what"].startswith("node ")


# --- What a spec names ---------------------------------------------------------------------------------------------


def test_a_job_in_order_is_well_in_every_line_and_leaves_nothing(job: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    well, to_fix = lines(stn_doctor(job))
    assert to_fix == []
    run = tmp_path / "runs" / "run"
    assert "data set: 20 of 25 images, 10 classes; the first and the last can be read" in well
    assert any(line.startswith(f"weights: {tmp_path / 'model.pt'}, sha-256 ") for line in well)
    assert "model: tests.networks:tiny takes images of 1 x 28 x 28 and tells 10 classes apart" in well
    assert f"store: a probe at {run} was written, read and removed" in well
    assert any(line.startswith("space: ") and line.endswith("MiB") for line in well)
    assert well[-1] == f"run: none yet at {run}"
    assert sorted(tmp_path.rglob("*")) == before


def test_findings_in_json(job: Path) -> None:
    result = stn_doctor(job, "--set", "dataset.path=nowhere", "--json")
    assert (result.exit_code, result.stderr) == (2, "")
    said = json.loads(result.stdout)
    assert said["ok"] is False
    assert [one["what"] for one in said["findings"] if not one["ok"]] == ["data set"]
    assert all(one["ok"] == (one["advice"] == "") for one in said["findings"])


def test_options_without_a_spec_are_bad_usage() -> None:
    assert "--run and --set go with a SPEC" in stn_doctor("--run", "x").stderr
    assert stn_doctor("--set", "noise.sigma=1").exit_code == 2


#: Options, and the lines to fix; every other line must still be there.
FAULTS: list[tuple[list[str], list[str]]] = [
    (["dataset.path=nowhere"], ["data set: .*nowhere"]),
    (["dataset.path=~nobody-has-this-name/x"], ["data set: .*nobody-has-this-name"]),
    (["model.checkpoint=nowhere.pt"], ["weights: .*nowhere.pt.*name another file"]),
    (["model.checkpoint=job.yaml"], ["weights: .*job.yaml is no readable checkpoint"]),
    (["model.checkpoint=other.pt"], ["weights: .*other.pt holds the weights of another network"]),
    (
        ["model.name=mnist", "model.checkpoint=other.pt"],
        ["model: .*other.pt holds the weights of another"],
    ),
    (["model.checkpoint=~nobody-has-this-name/x"], ["weights: .*nobody-has-this-name"]),
    (["model.name=mnist", "model.checkpoint=null"], ["weights: model.checkpoint is missing"]),
    (["model.name=tests.networks:tiny_rgb", "model.checkpoint=null"], [r"model: .*\(1, 28, 28\)"]),
    (["model.name=tests.networks:tyni", "model.checkpoint=null"], ["model: .*tests.networks:tyni"]),
    (["dataset.path=nowhere", "model.checkpoint=nowhere.pt"], ["data set: .*nowhere", "weights: .*nowhere.pt"]),
    (["dataset.path=nowhere", "model.checkpoint=job.yaml"], ["data set: .*nowhere", "weights: .*job.yaml"]),
    (["model.checkpoint=null", "model.weights=DEFAULT"], ["weights: model.weights are those of a torchvision"]),
    (["model.name=exported", "model.checkpoint=other.pt"], ["weights: .*other.pt is no readable file of torch.export"]),
    (["store.run=job.yaml"], ["store: cannot write under .*job.yaml"]),
    (["store.run=model.pt/below"], ["store: cannot write under .*model.pt/below"]),
    (["resources.gpus_per_actor=9"], ["resources.gpus_per_actor: asks for 9 GPUs"]),
]


@pytest.mark.parametrize(("changes", "expected"), FAULTS, ids=[" ".join(changes) for changes, _ in FAULTS])
def test_each_fault_is_a_line_that_says_what_to_change_and_hides_no_other(
    job: Path, tmp_path: Path, changes: list[str], expected: list[str]
) -> None:
    torch.save(tiny_rgb().state_dict(), tmp_path / "other.pt")
    before = sorted(tmp_path.rglob("*"))
    well, to_fix = lines(stn_doctor(job, *(part for change in changes for part in ("--set", change))))
    assert len(to_fix) == len(expected)
    assert all(re.match(pattern, line) for pattern, line in zip(expected, to_fix, strict=True)), to_fix
    assert {"data set", "store", "run"} <= {*topics(well), *topics(to_fix)}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("change", ["noise.sigma=-1", "nois.sigma=1", "store.endpoint_url=http://u:s3cr3t@host"])
def test_a_wrong_spec_is_the_last_line(job: Path, change: str) -> None:
    well, to_fix = lines(stn_doctor(job, "--set", change))
    assert topics(to_fix) == ["spec"]
    assert topics(well)[0] == "versions"
    assert "s3cr3t" not in to_fix[0]


@pytest.mark.parametrize("broken", [0, 4])
def test_the_first_and_the_last_image_are_read(tmp_path: Path, broken: int) -> None:
    images = [encoded(noise_image(seed)) for seed in range(5)]
    images[broken] = b"no image at all"
    path = write_parquet(tmp_path / "x.parquet", images, list(range(5)))
    model = {"name": "tests.networks:tiny_rgb", "num_classes": 10}
    well, to_fix = lines(stn_doctor(written(tmp_path, parquet_spec(path, model=model))))
    assert len(to_fix) == 1
    assert to_fix[0].startswith(f"data set: image {broken}: cannot be decoded")
    assert "model" in topics(well)


# --- The run that is there -----------------------------------------------------------------------------------------


def examined(made: MadeRun, folder: Path, *options: str, **changes: Any) -> tuple[list[str], list[str]]:
    """What is said of the run in ``folder``, where the spec is that of ``made``."""
    spec = made.plan.spec.model_dump(mode="json")
    path = written(folder.parent, {**spec, "store": {"run": str(folder)}, **changes})
    return lines(stn_doctor(path, *options))


def test_a_run_that_the_spec_goes_on_with_is_told_and_not_touched(made: MadeRun, tmp_path: Path) -> None:
    store = made.write(tmp_path / "run", [0, 2])
    reduce_run(store, made.plan, View.of(made.plan.spec))
    before = {stored: store.read(stored.key) for stored in store.list("")}
    well, to_fix = examined(made, tmp_path / "run")
    assert to_fix == []
    assert well[-2:] == [
        "run: 2 of 3 shards counted, and the spec goes on with it",
        "run: begun with the same versions as here",
    ]
    assert {stored: store.read(stored.key) for stored in store.list("")} == before


def test_a_run_of_another_spec_is_refused(made: MadeRun, tmp_path: Path) -> None:
    made.write(tmp_path / "run")
    _, to_fix = examined(made, tmp_path / "run", "--set", "noise.sigma=0.3")
    assert len(to_fix) == 1
    assert "holds another run (noise.sigma: the run has 0.2, asked 0.3)" in to_fix[0]


def test_a_damaged_plan_is_named(made: MadeRun, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.json").write_bytes(b"junk")
    _, to_fix = examined(made, tmp_path / "run")
    assert len(to_fix) == 1
    assert "plan.json is damaged" in to_fix[0]


def test_a_run_is_told_also_where_the_data_cannot_be_read(made: MadeRun, tmp_path: Path) -> None:
    made.write(tmp_path / "run")
    well, to_fix = examined(made, tmp_path / "run", "--set", "dataset.path=nowhere")
    assert topics(to_fix) == ["data set"]
    assert well[-1] == "run: 3 of 3 shards counted"


def test_a_run_begun_by_other_versions_is_no_fault(made: MadeRun) -> None:
    plan = made.plan
    older = dataclasses.replace(plan, versions={**plan.versions, "torch": "1.0"}, code_sha256="f" * 64)
    assert judge_age(older, plan) == Finding(
        f"run: torch 1.0 then, {plan.versions['torch']} now; other source files of stn; its votes stay valid, only "
        "near-ties may fall otherwise"
    )


def test_room_is_asked_for_as_much_as_a_run_may_take(made: MadeRun, of_a_part: MadeRun, tmp_path: Path) -> None:
    for run in (made, of_a_part):
        store = run.write(tmp_path / uuid.uuid4().hex)
        reduce_run(store, run.plan, View.of(run.plan.spec))
        need = most_bytes(run.plan)
        assert sum(stored.size for stored in store.list("")) < need
        assert judge_space("x", need, run.plan).ok
        assert "make room" in judge_space("x", need - 1, run.plan).advice
    assert judge_space("x", 0, None).ok


# --- In object storage ---------------------------------------------------------------------------------------------


@pytest.fixture
def in_bucket(job: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Examines the job, its run in a place of its own in object storage; takes further options."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    uri = f"s3://{BUCKET}/{uuid.uuid4().hex}/run"

    def examine(*options: str) -> Result:
        result = stn_doctor(job, "--run", uri, *options)
        assert [*open_store(uri).list("")] == []
        return result

    return examine


def test_a_job_in_object_storage_is_well_and_leaves_nothing(in_bucket: Callable[..., Result]) -> None:
    well, to_fix = lines(in_bucket())
    assert to_fix == []
    assert "store: of two who write the same object, only one is told that it did" in well
    assert topics(well)[-1] == "run"
    assert "space" not in topics(well)


def test_a_server_that_ignores_conditions_is_a_fault_without_a_single_writer(
    in_bucket: Callable[..., Result], object_store: ObjectStore
) -> None:
    with fault_proxy(object_store.url) as proxy:
        proxy.decide = lambda request: "ignored condition" if request.conditional else None
        endpoint = ("--set", f"store.endpoint_url={proxy.url}")
        _, to_fix = lines(in_bucket(*endpoint))
        assert topics(to_fix) == ["store"]
        assert "ignores If-None-Match" in to_fix[0]
        well, to_fix = lines(in_bucket(*endpoint, "--set", "store.single_writer=true"))
        assert to_fix == []
        assert "store: single_writer is set, so nobody else may write to this run" in well


def test_credentials_that_are_refused_are_named_and_hide_nothing_else(
    job: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    well, to_fix = lines(stn_doctor(job, "--run", f"s3://{BUCKET}/run"))
    assert topics(to_fix) == ["store", "run"]
    assert all("check the AWS credentials" in line for line in to_fix)
    assert "model" in topics(well)


def test_a_place_that_is_none_is_named(job: Path) -> None:
    well, to_fix = lines(stn_doctor(job, "--run", "ftp://host/run"))
    assert topics(to_fix) == ["store"]
    assert "model" in topics(well)
