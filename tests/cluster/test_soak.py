"""The soak, in short: a few kills of each kind while every fifth call to object storage fails."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.cluster.stn import ROOT
from tests.soak.chaos import FAULTS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]


def test_what_is_killed_at_random_on_failing_storage_ends_as_undisturbed(tmp_path: Path) -> None:
    out = tmp_path / "soak"
    options = {"kills": 7, "pause": 2, "minutes": 5, "nodes": 2, "shards": 20, "outlasting": 0, "seed": 1, "out": out}
    soak = subprocess.Popen(
        [sys.executable, "-m", "tests.soak", *(f"--{name}={value}" for name, value in options.items())],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = soak.communicate(timeout=360)
    finally:
        soak.terminate()  # it then ends all that it has started
        soak.wait()
    assert soak.returncode == 0, said
    assert "7 of 7: 3 actor, 2 driver, 1 raylet, 1 head" in said
    assert (out / "log.txt").read_text() in said
    failed = Counter(line.split("s  ", 1)[1][:12].strip() for line in (out / "faults.txt").read_text().splitlines())
    assert failed.keys() == set(FAULTS)
    assert list(out.glob("drivers/run-00-start-*.txt"))
