"""`ray up` for real: machines made of namespaces, SSH, rsync, S3; a worker and the head are lost during a job."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from tests.cluster import hosts
from tests.cluster.stn import ROOT, end, wait_for
from tests.object_store import BUCKET, ObjectStore, seaweedfs
from tests.workers.samples import encoded, noise_image
from workers import layout
from workers.s3 import S3Store
from workers.store import S3Options

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]

_SHARDS, _SHARD_SIZE = 24, 2

#: A module that is in the user's checkout and nowhere else; slow enough on the machines for a job to have a middle.
_NETWORK = """\
import os
import time
import torch
from torch import nn


class Pause(nn.Module):
    def forward(self, images):
        time.sleep(float(os.environ.get("PAUSE_S", 0)))
        return images


def make():
    torch.manual_seed(8)
    return nn.Sequential(Pause(), nn.Conv2d(3, 8, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))
"""


@dataclass(frozen=True)
class User:
    """A person with a checkout, a home folder and a cluster.yaml.

    Attributes:
        checkout: a copy of this one, with a change of their own.
        cluster: the cluster's file.
        environment: of what they run.
    """

    checkout: Path
    cluster: Path
    environment: Mapping[str, str]

    def run(self, *command: str | Path) -> str:
        """What a command prints; it has to succeed."""
        done = subprocess.run(
            [sys.executable, "-m", *map(str, command)],
            cwd=self.checkout,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}"
        return done.stdout

    def ray(self, *arguments: str | Path) -> str:
        """What `ray ARGUMENTS` prints."""
        return self.run("ray.scripts.scripts", *arguments)

    @contextlib.contextmanager
    def dashboard(self) -> Iterator[str]:
        """The cluster's address for jobs while `ray dashboard` forwards a port to it."""
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        command = [sys.executable, "-m", "ray.scripts.scripts", "dashboard", f"--port={port}", str(self.cluster)]
        forwarding = subprocess.Popen(
            command,
            cwd=self.checkout,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            wait_for(lambda: hosts.answers("127.0.0.1", port), "forwarded port", 30)
            yield f"http://127.0.0.1:{port}"
        finally:
            end(forwarding)

    def submit(self, spec: Path, run: str, *options: str) -> str:
        """Submit the job to the cluster: what `stn submit` prints."""
        with self.dashboard() as address:
            return self.run("orchestrator.cli", "submit", spec, "--run", run, "--address", address, *options)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Network]:
    if lacking := hosts.missing():
        pytest.skip(f"no machines to be made here, for want of {lacking}")
    with hosts.network(tmp_path_factory.mktemp("hosts"), ("head", "one", "two")) as made:
        yield made


@pytest.fixture(scope="module")
def store(network: hosts.Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs"), network.here) as server:
        yield server


@pytest.fixture(scope="module")
def user(network: hosts.Network, store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    home = tmp_path_factory.mktemp("user")
    checkout = home / "checkout"
    kept = shutil.ignore_patterns(".git", ".venv", "runs", "build", ".*_cache", "__pycache__")
    shutil.copytree(ROOT, checkout, ignore=kept)
    (checkout / "stn_core" / "my_network.py").write_text(_NETWORK)
    others = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path and Path(path) != ROOT]
    network.set_login_environment(
        {
            **store.environment,
            "PYTHONPATH": ":".join([f"{hosts.HOME}/stn", *others]),
            "PAUSE_S": "0.5",
            # Memory is the whole machine's: what else runs there is no reason to end a worker.
            "RAY_memory_monitor_refresh_ms": "0",
        }
    )

    head, *workers = network.machines
    config = yaml.safe_load((ROOT / "deploy" / "local.yaml").read_text())
    config["cluster_name"] = f"stn-{os.getpid()}"
    config["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address for worker in workers]}
    config["auth"] |= {"ssh_user": "root", "ssh_private_key": str(network.key)}
    # Nothing to install from here: the machines see this Python's environment.
    config["setup_commands"] = [f"ln -sfn {sys.prefix} ~/stn-env", *config["setup_commands"][1:-1]]
    # One actor on each machine, however many cores it believes to have.
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        commands[-1] += " --num-cpus=1"
    cluster = home / "cluster.yaml"
    cluster.write_text(yaml.safe_dump(config))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONPATH": ":".join([str(checkout), *others]),
        "RAY_AUTH_MODE": "token",
    }
    yield User(checkout, cluster, {**inherited, **store.environment, **own})
    # Ray's SSH keeps its sockets here, whatever TMPDIR says, in a folder named after the cluster.
    named = hashlib.sha256(config["cluster_name"].encode()).hexdigest()[:10]
    for folder in Path("/tmp").glob(f"ray_ssh_*/{named}"):
        shutil.rmtree(folder)


def write_spec(folder: Path, bucket: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(
        json.dumps(
            {
                "dataset": {"kind": "image_folder", "path": f"{bucket}/images"},
                "model": {"name": "stn_core.my_network:make", "num_classes": 10},
                "noise": {"sigma": 0.1},
                "sampling": {"draws": 60, "selection_draws": 20, "seed": 3},
                "radii": [0.0, 0.1, 0.25],
                "store": {"run": f"{bucket}/undisturbed"},
                "resources": {"actors": 3, "shard_size": _SHARD_SIZE},
            }
        )
    )
    return path


def tables(run: str) -> dict[str, pd.DataFrame]:
    """A run's votes and tables, read as the README shows."""
    names = ("counts", layout.CERTIFICATES, layout.CURVES)
    return {name: pq.read_table(f"{run}/{name}").to_pandas() for name in names}


def test_a_job_outlives_a_machine_and_the_head(
    user: User, network: hosts.Network, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    options = S3Options(endpoint_url=store.url)
    bucket = f"s3://{BUCKET}"
    images = S3Store(f"{bucket}/images", options)
    for seed in range(_SHARDS * _SHARD_SIZE):
        images.create(f"{'abc'[seed % 3]}/{seed:03d}.png", encoded(noise_image(seed)))
    spec, run = write_spec(tmp_path, bucket), S3Store(f"{bucket}/disturbed", options)
    head, lost, _ = network.machines

    def counted() -> int:
        return len(list(run.list(layout.COUNTS)))

    def workers_up() -> bool:
        status = network.run(head, "source ~/stn-env/bin/activate && RAY_AUTH_MODE=token ray status")
        return "3 local.cluster.node" in status

    user.ray("get-auth-token", "--generate")
    user.ray("up", "--yes", "--no-config-cache", user.cluster)
    wait_for(workers_up, "workers", 120)
    user.submit(spec, f"{bucket}/disturbed")

    wait_for(lambda: counted() >= 3, "third shard", 180)
    network.kill(lost)
    before = counted()
    wait_for(lambda: counted() >= before + 6, "shard after a machine is lost", 180)
    network.kill(head)
    kept = {found.key: run.read(found.key) for found in run.list(layout.COUNTS)}
    assert len(kept) < _SHARDS, "something is left to be done"

    network.boot(head)
    network.boot(lost)
    user.ray("up", "--yes", "--no-config-cache", user.cluster)
    said = user.submit(spec, f"{bucket}/disturbed", "--follow")
    assert "certified accuracy" in said
    assert {key: run.read(key) for key in kept} == kept, "what was committed is kept as it was"

    user.run("orchestrator.cli", "certify", spec, "--set", "resources.actors=1")
    found, expected = tables(f"{bucket}/disturbed"), tables(f"{bucket}/undisturbed")
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table)
    assert len(expected["counts"]) == _SHARDS * _SHARD_SIZE
    assert (expected[layout.CERTIFICATES]["radius"] > 0).any()

    user.ray("down", "--yes", user.cluster)
    assert "/raylet" not in network.run(head, "ps ax")
