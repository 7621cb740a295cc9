"""The Python API on real Ray: the example as it is printed, one process that calls often, and one that has a Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stn_core.models import build_network
from tests.cluster.stn import ROOT, run
from tests.workers.samples import encoded, noise_image, write_parquet

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


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
        timeout=580,
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


#: What a script or notebook says, with a spec in spec.json that certifies one network and trains another.
CALLS = """
import json
from orchestrator import certify, load_spec, train
spec = load_spec(json.loads(open("spec.json").read()))
another = load_spec(spec, ["model.checkpoint=trained.pt"], run="another")
print(certify(spec).complete, train(another).epoch.epoch, certify(another).complete, certify(another).nothing_to_do)
"""

#: Before and after the same calls: all of what a Ray has that is somebody else's.
OWN_RAY = f"""
import ray, time
ray.init(num_cpus=3, include_dashboard=False)
class Kept:
    def value(self): return 42
kept = ray.remote(num_cpus=0)(Kept).remote()
{CALLS}
for _ in range(200):  # processes end a little later
    if ray.available_resources()["CPU"] == 3:
        break
    time.sleep(0.1)
print(ray.get(kept.value.remote()), ray.available_resources()["CPU"])
"""


@pytest.mark.parametrize(
    ("code", "says"),
    [(CALLS, "True 1 True True\n"), (OWN_RAY, "True 1 True True\n42 3.0\n")],
    ids=["one after another", "in a process that has Ray"],
)
def test_calls_follow_each_other_in_one_process(code: str, says: str, tmp_path: Path) -> None:
    images = [encoded(noise_image(seed, channels=1)) for seed in range(20)]
    data = {"kind": "parquet", "path": "x.parquet", "mode": "gray"}
    write_parquet(tmp_path / "x.parquet", images, [seed % 10 for seed in range(20)])
    torch.save(build_network("mnist_small", 10).state_dict(), tmp_path / "given.pt")
    spec = {
        "dataset": data,
        "model": {"name": "mnist_small", "checkpoint": "given.pt"},
        "noise": {"sigma": 0.2},
        "sampling": {"draws": 20},
        "radii": [0.0, 0.1],
        "training": {"dataset": data, "method": "gaussian", "epochs": 1, "batch_size": 10},
        "store": {"run": "run"},
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    assert python(code, tmp_path).stdout == says
