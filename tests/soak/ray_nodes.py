"""A Ray cluster of several nodes on this machine: a head without CPUs, and nodes that actors live on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tests.cluster.stn import ROOT
from tests.soak.processes import Process, below, end, kill

_READY_S = 60.0
_END_S = 20.0
_OBJECT_STORE_BYTES = 80 * 2**20

#: Ports that nobody needs to know. Several nodes on a machine would quarrel over Ray's own choice.
_ANY_PORT = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "runtime-env-agent-port",
    "min-worker-port",
    "max-worker-port",
)


class RayNodes:
    """A cluster whose nodes are children of this process.

    Args:
        folder: for Ray's sockets and logs; its path must be short.
        nodes: nodes with one CPU each, besides the head.
        environment: of all processes.
        tell: told of every node that starts.
    """

    def __init__(self, folder: Path, nodes: int, environment: Mapping[str, str], tell: Callable[[str], None]) -> None:
        self._folder, self._environment, self._tell = folder, environment, tell
        # Every node has a loopback address of its own, as if it were a machine.
        self._head_host, *hosts = (f"127.0.0.{number}" for number in range(2, nodes + 3))
        self._port = _free_port(self._head_host)
        self._head: subprocess.Popen[bytes] | None = None
        self._nodes: dict[str, subprocess.Popen[bytes] | None] = dict.fromkeys(hosts)
        self._outputs: dict[int, Path] = {}
        self.address = f"{self._head_host}:{self._port}"

    def start(self) -> None:
        """Start the head and wait for it; start the nodes, which come up by themselves."""
        head = self._ray_start(
            self._head_host, "--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false"
        )
        self._head, said = head, self._outputs[head.pid]
        deadline = time.monotonic() + _READY_S
        # Its port answers before it knows what a node that joins asks for.
        while "Ray runtime started" not in said.read_text():
            if head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Ray's head does not start: {said.read_text()[-2000:]}")
            time.sleep(0.1)
        self.replace_lost()

    def replace_lost(self) -> None:
        """Start a node in the place of every one that is gone."""
        for host, node in self._nodes.items():
            if node is None or node.poll() is not None:
                if node is not None and node.returncode != -signal.SIGKILL:
                    self._tell(f"ray: node {host} ended by itself: {_last_line(self._outputs[node.pid])}")
                self._nodes[host] = self._ray_start(host, f"--address={self.address}", "--num-cpus=1")

    def raylets(self) -> list[Process]:
        """Of the nodes; the head's is not among them."""
        return _named("/raylet/raylet ", self._nodes.values())

    def lose(self, raylet: Process) -> None:
        """Its raylet was killed: a new node may take the place, whenever the rest of this one notices."""
        for node in self._nodes.values():
            if node is not None and node.pid == raylet.parent:
                node.kill()
                node.wait()

    def actors(self) -> list[Process]:
        """Counting actors, at work or idle."""
        return _named("ray::CountingActor", self._nodes.values())

    def head(self) -> list[Process]:
        """Ray's control process and the head's raylet."""
        return _named("/gcs_server ", [self._head]) + _named("/raylet/raylet ", [self._head])

    def children(self) -> list[int]:
        """Processes that this object waits for itself."""
        return [node.pid for node in (self._head, *self._nodes.values()) if node is not None]

    def kill(self) -> None:
        """SIGKILL to all that is left of the cluster."""
        for process in _named("", (self._head, *self._nodes.values())):
            kill(process)
        self._forget()

    def stop(self) -> None:
        """End the cluster as a person would."""
        mine = set(self.children())
        end([process for process in below(os.getpid()) if process.pid in mine], _END_S)
        self._forget()

    def _forget(self) -> None:
        for node in (self._head, *self._nodes.values()):
            if node is not None:
                node.kill()
                node.wait()
        self._head, self._nodes = None, dict.fromkeys(self._nodes)

    def _ray_start(self, host: str, *options: str) -> subprocess.Popen[bytes]:
        common = (
            *("--block", "--include-log-monitor=false", f"--object-store-memory={_OBJECT_STORE_BYTES}"),
            # Two nodes that start at once in one folder would take the same names for their sockets.
            f"--temp-dir={self._folder / host.rpartition('.')[2]}",
        )
        said = self._folder / f"start-{len(self._outputs):03d}.txt"
        with said.open("wb") as output:
            node = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={host}"),
                    *(*options, *common, *(f"--{port}=0" for port in _ANY_PORT)),
                ],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._outputs[node.pid] = said
        self._tell(f"ray: {'head' if '--head' in options else 'node'} {host} starts, pid {node.pid}")
        return node


def _named(command: str, roots: Iterable[subprocess.Popen[bytes] | None]) -> list[Process]:
    """Living processes below ``roots`` whose command line contains ``command``."""
    return [
        process
        for root in roots
        if root is not None and root.poll() is None
        for process in below(root.pid)
        if command in process.command
    ]


def _last_line(file: Path) -> str:
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "without a word"


def _free_port(host: str) -> int:
    with socket.socket() as one:
        one.bind((host, 0))
        port: int = one.getsockname()[1]
        return port
