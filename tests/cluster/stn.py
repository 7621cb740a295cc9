"""Running `stn` as a user does: a process of its own, on a real embedded Ray cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import yaml

ROOT = Path(__file__).parents[2]


def write_spec(folder: Path, name: str, **sections: object) -> Path:
    """A small spec over held-out digits and a tiny network; ``sections`` replace whole sections."""
    spec: dict[str, object] = {
        "dataset": {"kind": "digits", "limit": 96},
        "model": {"name": "tests.networks:tiny"},
        "noise": {"sigma": 0.5},
        "sampling": {"draws": 60, "selection_draws": 20, "seed": 3},
        "radii": [0.0, 0.1, 0.25],
        "store": {"run": str(folder / name)},
        "resources": {"actors": 2, "shard_size": 8},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**spec, **sections}))
    return path


def start(*arguments: str | Path, **settings: str) -> subprocess.Popen[str]:
    """`stn ARGUMENTS` in the background, in a process group of its own; Ray knows of no settings but ``settings``."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that were themselves started in the background would hand on that interrupts are ignored.
        preexec_fn=_heed_interrupts,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | settings,
    )


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """`stn ARGUMENTS` to its end."""
    process = start(*arguments, **settings)
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def end(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the process, if it still runs, and to all it started in its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with process:  # closes its pipes
        process.wait()


def shards(run_folder: Path) -> list[Path]:
    """The committed shards' files."""
    return sorted(run_folder.glob("counts/round=0/*.parquet"))


def counts(run_folder: Path) -> pa.Table:
    """All votes of a run, by index, without provenance."""
    table = ds.dataset(run_folder / "counts", format="parquet").to_table().sort_by("index")
    return table.replace_schema_metadata(None)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
    """Return once ``condition`` holds; fail after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.05)


def descendants(process: subprocess.Popen[str], name: str) -> list[int]:
    """Processes started below ``process`` whose command line contains ``name``: never anybody else's."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                commands[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it ended meanwhile
                continue

    def below(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == process.pid:
                return True
        return False

    return [pid for pid, command in commands.items() if name in command and below(pid)]
