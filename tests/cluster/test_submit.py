"""Jobs handed to a cluster that stays: followed, stopped and resumed, refused; and each ends as its driver did."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from orchestrator.cli import main
from orchestrator.counting.certification import certify_run
from orchestrator.on_ray.jobs import Jobs, job_of
from orchestrator.spec import load_spec
from tests.cluster.head import Head, ray_head
from tests.cluster.stn import counts, shards, wait_for, write_spec
from tests.orchestrator.inline import hire_inline

pytestmark = pytest.mark.cluster

#: A user's network, in a folder that no node has. In a worker it insists on what it is to find there.
NETWORK = """
import os
import time
from pathlib import Path

import torch
from torch import nn

import workers

def slow():
    if "ray::" in Path("/proc/self/cmdline").read_text():
        assert Path(workers.__file__).parents[1] == Path(__file__).parent, "counts with other source than was submitted"
        assert os.environ["STN_PINNED_VERSIONS"] and os.environ["MALLOC_MMAP_MAX_"] == "0"
    torch.manual_seed(7)
    return nn.Sequential(Pause(), nn.Conv2d(1, 8, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))

def tiny_rgb():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 10, bias=False)).apply(zero)

def zero(module):
    for parameter in module.parameters():
        nn.init.zeros_(parameter)

class Pause(nn.Module):
    def forward(self, images):
        if "ray::" in Path("/proc/self/cmdline").read_text():
            time.sleep(0.1)
        return images
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head(cpus=2) as found:
        yield found


@pytest.fixture
def here(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the user's own, with a network in it, which is the current one."""
    (tmp_path / "mine.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.jobs)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)
    sys.modules.pop("mine", None)


class Wire:
    """A port that leads to another, until it is cut."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._ends: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection there is; new ones are let through."""
        ends, self._ends = self._ends, []
        for one in ends:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._server.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._to))
                self._ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(2**16):
                target.sendall(content)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        source.close()


def submit(*arguments: object) -> Result:
    """`stn submit ARGUMENTS`."""
    result = CliRunner().invoke(main, ["submit", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result


@contextlib.contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """While the block is at work, something else is done."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(act)
        yield
        done.result()


def test_stopped_and_submitted_again_it_resumes_to_the_same_tables(head: Head, here: Path) -> None:
    run = here / "run"
    one = {"actors": 1, "shard_size": 8}
    spec = write_spec(here, "run", model={"name": "mine:slow", "num_classes": 10}, resources=one)
    begun = submit(spec)
    assert begun.exit_code == 0, begun.stderr
    job = begun.stdout.removesuffix("\n")
    assert re.fullmatch(r"certify-run-\S+", job)
    assert begun.stderr == f"all nodes of the cluster must share {run}\n"

    def stop() -> None:
        wait_for(lambda: len(shards(run)) >= 2, "two shards", 200)
        call(head, f"/api/jobs/{job}/stop", method="POST")

    # Asked for again while it is at work, it is followed; and stopped, as `ray job stop` does.
    with meanwhile(stop):
        again = submit(spec, "--follow")
    assert again.exit_code == 130, again.output
    assert f"at work on {run} already, so nothing is submitted; to stop it: ray job stop {job}" in again.stderr
    assert "stopping; commits under way land first" in again.stdout
    before = shards(run)
    assert 2 <= len(before) < 12

    # Submitted anew it resumes; a connection that breaks costs no line, and doubles none.
    wire = Wire(urlsplit(head.jobs).port or 0)

    def cut() -> None:
        wait_for(lambda: len(shards(run)) > len(before), "another shard", 200)
        wire.cut()

    with meanwhile(cut):
        resumed = submit(spec, "--follow", "--address", f"http://127.0.0.1:{wire.port}")
    wire.close()
    assert resumed.exit_code == 0, resumed.output
    assert resumed.stdout.count("Running entrypoint for job") == resumed.stdout.count("certified accuracy, run") == 1
    assert len(re.findall(r"^counting: \d+ images$", resumed.stdout, re.MULTILINE)) == 1

    alone = here / "alone"
    assert certify_run(load_spec(spec, [f"store.run={alone}"]), hire=hire_inline).complete
    assert counts(run).equals(counts(alone))
    for name in ("certificates.parquet", "curves.parquet"):
        assert (run / name).read_bytes() == (alone / name).read_bytes()


def test_each_job_ends_as_its_driver_did(head: Head, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in ("a", "b"):
        (here / "images" / label).mkdir(parents=True)
        Image.new("RGB", (28, 28), (60, 10, 200)).save(here / "images" / label / "0.png")
    (here / "images" / "a" / "1.png").write_bytes(b"not an image")
    other = here / "site" / "pillow-0.1.dist-info" / "METADATA"
    other.parent.mkdir(parents=True)
    other.write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 0.1\n")
    model, one = {"name": "mine:tiny_rgb", "num_classes": 10}, {"actors": 1}

    def begin(name: str, **sections: Any) -> str:
        spec = write_spec(here, name, **{"model": model, "resources": one, **sections})
        return jobs.submit(job_of(load_spec(spec), "certify", spec, []), pin=True).job

    jobs = Jobs(head.jobs)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nobody-is-to-see-this")
    begun = [
        begin("broken", dataset={"kind": "image_folder", "path": str(here / "images")}),
        begin("nowhere", dataset={"kind": "image_folder", "path": str(here / "none")}),
    ]
    with monkeypatch.context() as patched:
        # Of one library, this process seems to have another version than the cluster.
        patched.syspath_prepend(other.parents[1])
        begun.append(begin("unlike"))
    said: list[list[str]] = [[] for _ in begun]
    codes = [jobs.follow(job, lines.append, lines.append) for job, lines in zip(begun, said, strict=True)]
    broken, nowhere, unlike = ("".join(lines) for lines in said)
    assert codes == [3, 2, 2], said
    assert "of 3 images 2 counted, 1 failed, 0 missing" in broken
    assert f"error: dataset.path {here / 'none'} is no folder" in nowhere
    assert f"has pillow {version('pillow')} and not 0.1, with which the job was submitted" in unlike
    assert not (here / "unlike").exists()
    # Whoever may see the cluster sees a job's environment.
    known_of_jobs = call(head, "/api/jobs/").decode()
    assert "STN_PINNED_VERSIONS" in known_of_jobs
    assert "nobody-is-to-see-this" not in known_of_jobs

    # What Prometheus would read, once the nodes' agents have heard of it.
    expected = {"stn_votes_total": 160, "stn_images_certified_total": 2, "stn_images_failed_total": 1}
    wait_for(lambda: expected.items() <= metrics(head, str(here / "broken")).items(), f"metrics {expected}")
    assert metrics(head, str(here / "broken")) == {**expected, "stn_shards_counted_total": 1}
    assert metrics(head, str(here / "unlike")) == {}


def metrics(head: Head, run: str) -> dict[str, float]:
    """What the head's metrics say of a run by now, gauges left out: they end with their process."""
    with urllib.request.urlopen(head.metrics, timeout=30) as page:
        lines = page.read().decode().splitlines()
    own = [line for line in lines if line.startswith("ray_stn_") and f'run="{run}"' in line and "_total{" in line]
    return {line.partition("{")[0].removeprefix("ray_"): float(line.rpartition(" ")[2]) for line in own}


def call(head: Head, path: str, method: str = "GET") -> bytes:
    """What the head's dashboard answers."""
    headers = {"Authorization": f"Bearer {head.settings['RAY_AUTH_TOKEN']}"}
    with urllib.request.urlopen(urllib.request.Request(head.jobs + path, headers=headers, method=method)) as answer:
        content: bytes = answer.read()
    return content
