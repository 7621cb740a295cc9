"""What a submitted job takes along, and what is refused before anything is sent."""

from __future__ import annotations

import json
import logging
import re
import shlex
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from orchestrator.errors import SpecError, WorkersError
from orchestrator.on_ray import jobs as handing
from orchestrator.on_ray.jobs import Job, Jobs, job_of, pack, to_be_shared
from orchestrator.planning.resolve import code_sha256, resolve
from orchestrator.spec import load_spec, validate
from tests.orchestrator.runs import digits_spec
from workers.versions import PINNED, OtherVersions, check_pinned, pinned, versions

HERE = Path("job.yaml")
ROOT = Path(__file__).parents[2]


def spec(**sections: Any) -> Any:
    return validate(digits_spec(**{"store": {"run": "s3://bucket/run"}, **sections}), "job.yaml")


CERTIFY = Job("certify", "job.yaml", spec(), (), "s3://bucket/run", "")


# --- The job -------------------------------------------------------------------------------------------------------


def test_the_entrypoint_is_the_command_as_it_would_be_typed() -> None:
    job = job_of(spec(), "certify", Path("specs/my job.yaml"), ("--retry-failed",))
    assert shlex.split(job.entrypoint) == ["stn", "certify", "my job.yaml", "--retry-failed"]


def test_every_job_has_an_id_of_its_own_that_names_its_run() -> None:
    ids = {job_of(spec(store={"run": "s3://bucket/Größe 1/"}), "certify", HERE, ()).new_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"certify-Gr-e-1-\d{8}T\d{6}Z-[0-9a-f]{8}", one) for one in ids)


@pytest.mark.parametrize(
    ("command", "sections", "key"),
    [
        ("certify", {"store": {"run": "runs/a"}}, "store.run runs/a"),
        ("certify", {"dataset": {"kind": "mnist", "path": "data"}}, "dataset.path data"),
        ("certify", {"model": {"name": "mnist", "checkpoint": "w.pt"}}, "model.checkpoint w.pt"),
        (
            "train",
            {
                "model": {"name": "mnist", "checkpoint": "s3://bucket/w.pt"},
                "training": {"dataset": {"kind": "digits"}, "validation": {"kind": "image_folder", "path": "../held"}},
            },
            "training.validation.path ../held",
        ),
    ],
)
def test_a_place_of_this_folder_is_refused(command: Any, sections: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError, match=re.escape(f"{key} is relative to this folder")):
        job_of(spec(**sections), command, HERE, ())


def test_what_a_command_does_not_use_may_be_anywhere() -> None:
    trained = spec(
        store={"run": "runs/a"},
        model={"name": "mnist", "checkpoint": "~/w.pt"},
        training={"dataset": {"kind": "mnist", "path": "/data"}},
    )
    assert job_of(trained, "train", HERE, ()).makes == "~/w.pt"
    assert to_be_shared(trained, "train") == ["~/w.pt", "/data"]
    with pytest.raises(SpecError, match=r"store\.run runs/a is relative"):
        job_of(trained, "certify", HERE, ())


def test_training_needs_its_section() -> None:
    with pytest.raises(SpecError, match="training is missing"):
        job_of(spec(), "train", HERE, ())


# --- What travels --------------------------------------------------------------------------------------------------


def test_the_source_and_the_users_module_travel_and_nothing_else(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for name in ("mine/net.py", "mine/data/words.txt", "mine/__pycache__/net.pyc", "mine/.git/x", "other.py", "runs/x"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("content")
    there.mkdir()
    pack(Job("certify", "job.yaml", spec(), (), "s3://bucket/run", "mine.net"), here, there)
    assert sorted(path.name for path in there.iterdir()) == ["job.yaml", "mine", "orchestrator", "stn_core", "workers"]
    files = sorted(path.relative_to(there / "mine").as_posix() for path in (there / "mine").rglob("*"))
    assert files == ["data", "data/words.txt", "net.py"]
    packages = [there / name for name in ("orchestrator", "stn_core", "workers")]
    source = {path.relative_to(there) for package in packages for path in package.rglob("*") if path.is_file()}
    root = Path(handing.__file__).parents[2]
    shipped = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    others = {file.relative_to(root) for name in shipped for glob in shipped[name] for file in (root / name).glob(glob)}
    assert {path for path in source if path.suffix != ".py"} == others
    assert all((there / path).read_bytes() == (root / path).read_bytes() for path in source)
    assert len(code_sha256()) == 64
    assert sum(path.suffix == ".py" for path in source) == sum(
        1 for package in packages for _ in (root / package.name).rglob("*.py")
    )


@pytest.mark.parametrize("module", ["alone", "installed.elsewhere", "stn_core.models", ""])
def test_a_module_of_one_file_travels_and_an_installed_one_does_not(tmp_path: Path, module: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "alone.py").write_text("content")
    pack(Job("certify", "job.yaml", spec(), (), "s3://bucket/run", module), here, there)
    travelled = {path.name for path in there.iterdir()} - {"orchestrator", "stn_core", "workers", "job.yaml"}
    assert travelled == ({"alone.py"} if module == "alone" else set())


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_spec_travels_as_it_was_read_here_and_says_no_more(tmp_path: Path, path: Path) -> None:
    (tmp_path / "numbers.txt").write_text("3\n1\n")
    changes = [f"dataset.indices={tmp_path}/numbers.txt", "store.run=s3://bucket/run"]
    loaded = load_spec(path, changes)
    pack(Job("certify", "job.yaml", loaded, (), "s3://bucket/run", ""), tmp_path, tmp_path)
    assert load_spec(tmp_path / "job.yaml") == loaded
    assert loaded.dataset.indices == (1, 3)
    said = json.loads((tmp_path / "job.yaml").read_text())
    assert said.keys() == yaml.safe_load(path.read_text()).keys()
    assert "endpoint_url" not in said["store"]


# --- Versions ------------------------------------------------------------------------------------------------------


def test_the_same_versions_are_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    check_pinned()
    monkeypatch.setenv(PINNED, pinned())
    check_pinned()


def test_other_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {**json.loads(pinned()), "torch": "1.0", "python": "3.9"}
    monkeypatch.setenv(PINNED, json.dumps(asked))
    own = versions()
    with pytest.raises(OtherVersions) as refused:
        check_pinned()
    assert f"python {own['python'].rpartition('.')[0]} and not 3.9" in str(refused.value)
    assert f"torch {own['torch'].partition('+')[0]} and not 1.0" in str(refused.value)
    assert "numpy" not in str(refused.value)
    with pytest.raises(SpecError, match=r"torch .* and not 1\.0"):
        resolve(spec())


# --- Following -----------------------------------------------------------------------------------------------------


class _Version(BaseHTTPRequestHandler):
    """Says that it is a cluster of this version of Ray, and knows no job."""

    def do_GET(self) -> None:
        known = self.path == "/api/version"
        content = json.dumps({"ray_version": ray.__version__}) if known else "Job x does not exist"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # to be undone
    monkeypatch.setattr(handing, "_RETRY_S", 0.01)
    levels = [(logger, logger.level) for logger in map(logging.getLogger, handing._CHATTY)]
    with HTTPServer(("127.0.0.1", 0), _Version) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    for logger, level in levels:
        logger.setLevel(level)


def test_a_head_that_is_gone_is_given_up_in_one_line(dashboard: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(f"http://127.0.0.1:{dashboard.server_address[1]}")
    dashboard.shutdown()
    dashboard.socket.close()
    monkeypatch.setattr(handing, "_PATIENCE_S", 0.05)
    with pytest.raises(WorkersError, match="job x may go on; the same command follows it, or submits"):
        jobs.follow("x", print, print)


def test_a_head_that_was_started_anew_is_told_from_it(dashboard: HTTPServer) -> None:
    jobs = Jobs(f"http://127.0.0.1:{dashboard.server_address[1]}/")
    with pytest.raises(WorkersError, match="its head was started anew; the same command submits it again and resumes"):
        jobs.follow("x", print, print)
