"""A Ray cluster that stays: a head with its dashboard, which is where jobs are submitted and metrics are collected."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orchestrator.on_ray.cluster  # noqa: F401 - sets a token
from tests.cluster.stn import ROOT

_READY_S = 90.0

#: Ports that nobody needs to know. Clusters on one machine would quarrel over Ray's own choice.
_ANY_PORT = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "min-worker-port",
    "max-worker-port",
)


@dataclass(frozen=True)
class Head:
    """A head that is up.

    Attributes:
        jobs: the address for `stn submit`.
        metrics: the page that Prometheus reads.
        settings: what a command needs to be let in.
    """

    jobs: str
    metrics: str
    settings: Mapping[str, str]


@contextlib.contextmanager
def ray_head(cpus: int) -> Iterator[Head]:
    """A head with so many CPUs, in a process group and a folder of its own, which knows nothing of this source tree."""
    # This process's own, so that it is let in: Ray reads it once. Importing orchestrator.on_ray.cluster sets it.
    token = {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    port, dashboard, metrics = _free_ports(3)
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    known = [path for path in outside.get("PYTHONPATH", "").split(os.pathsep) if Path(path) != ROOT]
    # `stn` is found as on a machine where it is installed.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # The path of a socket is at most 107 characters long.
    with tempfile.TemporaryDirectory(prefix="stn-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        said = Path(folder, "said.txt")
        with said.open("wb") as output:
            head = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                    *("--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={cpus}"),
                    *("--include-dashboard=true", f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}"),
                    *(f"--object-store-memory={80 * 2**20}", f"--temp-dir={folder}/ray", "--include-log-monitor=false"),
                    *(f"--{name}=0" for name in _ANY_PORT),
                ],
                cwd=folder,
                env={
                    **outside,
                    **token,
                    "PATH": path,
                    "PYTHONPATH": os.pathsep.join(known),
                    "RAY_USAGE_STATS_ENABLED": "0",
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            jobs = f"http://127.0.0.1:{dashboard}"
            _wait_until_up(head, f"{jobs}/api/version", token["RAY_AUTH_TOKEN"], said)
            yield Head(jobs, f"http://127.0.0.1:{metrics}/metrics", token)
        finally:
            _end(head)


def _wait_until_up(head: subprocess.Popen[bytes], url: str, token: str, said: Path) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + _READY_S
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
            return
        if head.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Ray's head does not start: {said.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


def _end(head: subprocess.Popen[bytes]) -> None:
    head.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
