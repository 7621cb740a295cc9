"""The Python API on real Ray: the example as it is printed, one process that calls often, and one that has a Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.stn import ROOT, run
from tests.workers.samples import encoded, noise_image, write_parquet

pytestmark = pytest.mark.cluster


def python(code: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """A script, in a folder that is not this checkout's, as somebody has it who has installed this."""
    arguments = ["-c", code] if isinstance(code, str) else [str(code)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def objects(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*.parquet") if ".tmp" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_example_runs_as_it_is_printed_and_the_command_makes_the_same_bytes(tmp_path: Path) -> None:
    example = ROOT / "examples/own_network.py"
    shown = python(example, tmp_path).stdout
    assert "Certification(run=" in shown
    assert "complete=True, images=100, counted=100" in shown
    assert "neyman_pearson_one_class" in shown
    done = run("certify", tmp_path / "runs/own/spec.yaml", "--run", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    own = objects(tmp_path / "runs/own/run")
    assert len(own) > 5
    assert objects(tmp_path / "again") == own


CALLS = """
import json
from orchestrator import certify, train
spec = json.loads(open("spec.json").read())
again = {**spec, "store": {"run": "again"}}
print(certify(spec).complete, train(spec).epoch.epoch, certify(again).complete, certify(again).nothing_to_do)
"""

OWN_RAY = (
    """
import ray
ray.init(num_cpus=3, include_dashboard=False)
@ray.remote(num_cpus=0)
class Kept:
    def value(self): return 42
kept = Kept.remote()
"""
    + CALLS.replace("print(", "print(ray.get(kept.value.remote()), ray.available_resources()['CPU'], ")
    + """
import time
for _ in range(100):
    if ray.available_resources().get("CPU") == 3.0:
        break
    time.sleep(0.1)
print(ray.is_initialized(), ray.get(kept.value.remote()), ray.available_resources()["CPU"])
"""
)


@pytest.mark.parametrize(
    ("code", "says"),
    [(CALLS, "True 1 True True\n"), (OWN_RAY, "42 3.0 True 1 True True\nTrue 42 3.0\n")],
    ids=["one after another", "in a process that has Ray"],
)
def test_calls_follow_each_other_in_one_process(code: str, says: str, tmp_path: Path) -> None:
    images = [encoded(noise_image(seed, size=28, channels=1)) for seed in range(20)]
    write_parquet(tmp_path / "x.parquet", images, [seed % 10 for seed in range(20)])
    data = '{"kind": "parquet", "path": "x.parquet", "mode": "gray"}'
    (tmp_path / "spec.json").write_text(
        f'{{"dataset": {data}, "model": {{"name": "mnist_small", "checkpoint": "model.pt"}}, "noise": {{"sigma": 0.2}}, '
        '"sampling": {"draws": 20}, "radii": [0.0, 0.1], "store": {"run": "run"}, "training": '
        f'{{"dataset": {data}, "method": "gaussian", "epochs": 1, "batch_size": 10}}}}'
    )
    make = "import torch; from stn_core.models import build_network as b; torch.save(b('mnist_small', 10).state_dict(), 'x')"
    python(make, tmp_path)
    (tmp_path / "trained.pt").unlink(missing_ok=True)
    assert (
        python(
            code.replace("certify(spec)", "certify({**spec, 'model': {'name': 'mnist_small', 'checkpoint': 'x'}})", 1),
            tmp_path,
        ).stdout
        == says
    )
