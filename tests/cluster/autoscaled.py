"""A Ray cluster on this machine that grows and shrinks: a head without CPUs, and Ray's own autoscaler.

What ``ray.cluster_utils.AutoscalingCluster`` does, without the ``ray stop`` that it begins and ends with: every other
cluster on the machine would go.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.stn import ROOT, wait_for
from tests.soak.processes import below, kill

_HOST = "127.0.1.2"
_HEAD = "f" * 51 + "00000"
_OBJECT_STORE_BYTES = 80 * 2**20

#: Lists that the autoscaler insists on.
_EMPTY = (
    *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
)


@dataclass(frozen=True)
class Autoscaled:
    """A running cluster.

    Attributes:
        settings: by which a process finds it.
        head: its root process.
    """

    settings: dict[str, str]
    head: int

    def nodes(self) -> int:
        """Nodes that are up, besides the head."""
        return sum("/raylet/raylet " in process.command for process in below(self.head)) - 1


@contextlib.contextmanager
def autoscaled(folder: Path, *, most: int, cpus: int, idle_s: float) -> Iterator[Autoscaled]:
    """A cluster for the time of the block.

    Args:
        folder: for its sockets and logs; its path must be short.
        most: nodes that there can be, besides the head.
        cpus: of each.
        idle_s: seconds without work after which a node is taken away.
    """
    with socket.socket() as one:
        one.bind((_HOST, 0))
        address = f"{_HOST}:{one.getsockname()[1]}"
    worker = {"CPU": cpus, "object_store_memory": _OBJECT_STORE_BYTES}
    config = {
        "cluster_name": "test",
        "max_workers": most,
        "idle_timeout_minutes": idle_s / 60,
        "upscaling_speed": 100,
        "provider": {
            "type": "fake_multinode",
            "head_node_id": _HEAD,
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in _EMPTY},
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    provider = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    any_port = ("dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export", "runtime-env-agent")
    with (folder / "head.txt").open("wb") as output:
        head = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"),
                *(f"--node-ip-address={_HOST}", f"--port={address.rpartition(':')[2]}"),
                *("--include-dashboard=false", "--include-log-monitor=false", f"--temp-dir={folder}"),
                *(f"--object-store-memory={_OBJECT_STORE_BYTES}", f"--autoscaling-config={folder / 'config.json'}"),
                *(f"--{port}-port=0" for port in any_port),
                *("--min-worker-port=0", "--max-worker-port=0"),
            ],
            cwd=ROOT,
            env=inherited | settings | provider,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(lambda: "Ray runtime started" in (folder / "head.txt").read_text(), "head", 60)
        yield Autoscaled({**settings, "RAY_ADDRESS": address}, head.pid)
    finally:
        for process in below(head.pid):
            kill(process)
        head.kill()
        head.wait()
