"""Kill -9 of driver, actor and Ray itself, and Ctrl-C: the same command then finishes, with the same tables."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.stn import counts, descendants, end, run, shards, start, wait_for, write_spec

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that all the disturbed ones must equal."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run("certify", write_spec(folder, "run", model={"name": "tests.networks:slow"}))
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def half_way(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A run with at least three of its twelve shards committed, and the process at work on it."""
    process = start("certify", write_spec(tmp_path, "run", model={"name": "tests.networks:slow"}))
    try:
        wait_for(lambda: len(shards(tmp_path / "run")) >= 3 or process.poll() is not None, "three shards")
        yield tmp_path / "run", process
    finally:
        end(process)


def finish_and_compare(folder: Path, undisturbed: Path) -> None:
    """The same command again completes the run, recomputes nothing, and its tables are those of ``undisturbed``."""
    committed = {path: path.stat().st_mtime_ns for path in shards(folder)}
    assert 3 <= len(committed) < 12, "the run was not interrupted in the middle"
    done = run("certify", folder.parent / "run.yaml")
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in committed} == committed
    assert_same(folder, undisturbed)


def assert_same(folder: Path, undisturbed: Path) -> None:
    assert len(shards(folder)) == 12
    assert counts(folder).equals(counts(undisturbed))
    for name in ("certificates.parquet", "curves.parquet"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()


def test_driver_killed(half_way: tuple[Path, subprocess.Popen[str]], undisturbed: Path) -> None:
    folder, process = half_way
    started = [*descendants(process, "raylet"), *descendants(process, "gcs_server")]
    assert started
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # Ray's own processes notice, and do not stay behind.
    wait_for(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in started), "end of Ray", 60)
    finish_and_compare(folder, undisturbed)


def test_actor_killed(half_way: tuple[Path, subprocess.Popen[str]], undisturbed: Path) -> None:
    folder, process = half_way
    victims = descendants(process, "ray::CountingActor")
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "died and is replaced" in err
    assert_same(folder, undisturbed)


def test_ray_killed(half_way: tuple[Path, subprocess.Popen[str]], undisturbed: Path) -> None:
    folder, process = half_way
    for pid in [*descendants(process, "/raylet --"), *descendants(process, "ray::CountingActor")]:
        os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    assert "Ray died on this machine" in err
    assert "Traceback" not in err
    finish_and_compare(folder, undisturbed)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(half_way: tuple[Path, subprocess.Popen[str]], undisturbed: Path, sent: signal.Signals) -> None:
    folder, process = half_way
    # As a terminal's Ctrl-C does, to all of the group; a SIGTERM is for the process alone.
    (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping; commits under way land first" in err
    assert err.splitlines()[-1] == "interrupted; what was committed is kept, and the same command continues from there"
    assert "Traceback" not in err
    finish_and_compare(folder, undisturbed)


def stuck(folder: Path, monkeypatch: pytest.MonkeyPatch, **resources: object) -> str:
    """Certify with a worker that hangs at its first shard; what the driver says of it, once all is counted."""
    monkeypatch.setenv("STN_TESTS_STUCK", str(folder / "stuck"))
    settings = {"actors": 2, "shard_size": 8, **resources}
    done = run("certify", write_spec(folder, "run", model={"name": "tests.networks:stuck_once"}, resources=settings))
    assert done.returncode == 0, done.stderr
    assert (folder / "stuck").exists()
    assert len(shards(folder / "run")) == 12
    return done.stderr


def test_a_straggler_is_run_again_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "stalled" not in stuck(tmp_path, monkeypatch)


def test_a_stalled_shard_is_named_and_its_worker_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = stuck(tmp_path, monkeypatch, actors=1, stall_s=5)
    assert "shard 0 has stalled, 5 s on worker 0, which is replaced" in said


def test_workers_killed_for_their_memory_do_not_start_for_ever(tmp_path: Path) -> None:
    # Whatever memory is in use is too much, and Ray kills for it.
    starved = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    done = run("certify", write_spec(tmp_path, "run"), **starved)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 3 workers in a row died while starting; the last: Ray killed it, since its machine")


def test_two_drivers_at_once(tmp_path: Path, undisturbed: Path) -> None:
    spec = write_spec(tmp_path, "run", model={"name": "tests.networks:slow"})
    drivers = [start("certify", spec), start("certify", spec)]
    try:
        said = [process.communicate(timeout=200)[1] for process in drivers]
    finally:
        for process in drivers:
            end(process)
    assert [process.returncode for process in drivers] == [0, 0], said
    told = [f"another driver is at work on this run: process {process.pid} on" for process in drivers]
    assert told[0] in said[1] or told[1] in said[0], said
    assert_same(tmp_path / "run", undisturbed)
    assert not (tmp_path / "run" / "drivers").exists() or not any((tmp_path / "run" / "drivers").iterdir())
