"""Handing a job to a Ray cluster that stays: its head runs the driver, on the submitter's own source files.

What travels is a folder with the spec, this project's source and the module of the user's network. Ray unpacks it on
every node and puts it before all that is installed there. Libraries do not travel: their versions are compared, by the
driver and by each worker. Nor do credentials: Ray shows a job's environment to whoever may see the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import importlib.util
import logging
import os
import re
import secrets
import shlex
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import orchestrator
import stn_core
import workers
from orchestrator import logs
from orchestrator.address import silent
from orchestrator.errors import SpecError, WorkersError
from orchestrator.spec import Spec
from stn_core.naming import one_line
from workers.settings import PLACES
from workers.versions import PINNED, pinned

#: What a job runs on the head.
Command = Literal["certify", "train", "attack"]

#: Seconds that a driver has to let commits under way land when its job is stopped; Ray's own patience is 3 s.
_STOP_S = 25

#: Seconds without output after which the connection is made anew: one that broke may be silent for ever.
_QUIET_S = 60.0

#: Seconds for which a lost connection is tried again, and between two tries.
_PATIENCE_S, _RETRY_S = 300.0, 2.0

#: Loggers of Ray that tell of every upload and connection.
_CHATTY = (
    *("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"),
    *("ray._private.runtime_env.packaging", "ray._private.runtime_env.working_dir"),
)


@dataclass(frozen=True)
class Job:
    """What is submitted.

    Attributes:
        command: which command the head runs.
        name: of the spec's file.
        spec: what it says, with options applied and files of numbers read: where the job runs, there are none.
        options: of the command, besides those that change the spec.
        makes: where what the job makes is kept: two jobs that agree here are at the same work.
        module: what the spec's network is imported from; empty where it needs no import.
    """

    command: Command
    name: str
    spec: Spec
    options: tuple[str, ...]
    makes: str
    module: str

    @property
    def entrypoint(self) -> str:
        """The command line that the head runs."""
        return shlex.join(["stn", self.command, self.name, *self.options])

    def new_id(self) -> str:
        """A name that no other job has, by which a person knows this one."""
        what = re.sub(r"[^A-Za-z0-9.-]+", "-", self.makes.rpartition("/")[2])
        when = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        return f"{self.command}-{what}-{when}-{secrets.token_hex(4)}"


def job_of(spec: Spec, command: Command, path: Path, options: Sequence[str]) -> Job:
    """A spec as a job.

    Raises:
        SpecError: the spec lacks what the command needs, or names a place that no cluster has.
    """
    if command == "train" and (spec.training is None or spec.model.checkpoint is None):
        missing = "training" if spec.training is None else "model.checkpoint"
        raise SpecError(f"{path}: {missing} is missing, and `stn train` needs it; see examples/demo.yaml")
    if command == "attack" and spec.attack is None:
        raise SpecError(f"{path}: attack is missing, and `stn attack` needs it; see examples/attack.yaml")
    for key, place in _places(spec, command).items():
        if not place.startswith(("s3://", "/", "~")):
            raise SpecError(
                f"{key} {place} is relative to this folder, which the cluster does not have: "
                "name s3://bucket/key, or the absolute path of what all its nodes share"
            )
    makes = str(spec.model.checkpoint) if command == "train" else spec.store.run
    module = spec.model.name.partition(":")[0] if ":" in spec.model.name else ""
    return Job(command, path.name, spec, tuple(options), makes.rstrip("/"), module)


def to_be_shared(spec: Spec, command: Command) -> list[str]:
    """Paths of a spec that are right only where all nodes of the cluster share them."""
    return [place for place in _places(spec, command).values() if not place.startswith("s3://")]


def _places(spec: Spec, command: Command) -> dict[str, str]:
    """Where a command reads and writes, by the spec's keys."""
    found: dict[str, Any] = {"model.checkpoint": spec.model.checkpoint}
    if command == "attack" and spec.attack is not None:
        for name, attack in spec.attack.attacks.items():
            if attack.source is not None:
                found[f"attack.attacks.{name}.source.checkpoint"] = attack.source.checkpoint
    if command != "train":
        found["store.run"] = spec.store.run
        found |= {f"dataset.{name}": getattr(spec.dataset, name, None) for name in sorted(PLACES)}
    elif spec.training is not None:
        for key in ("dataset", "validation"):
            section = getattr(spec.training, key)
            found |= {f"training.{key}.{name}": getattr(section, name, None) for name in sorted(PLACES)}
    return {key: str(place) for key, place in found.items() if place is not None and place != "imagenet"}


def pack(job: Job, here: Path, folder: Path) -> None:
    """Copy into ``folder`` what a job takes along: its spec, this project's source, the user's module in ``here``."""
    # JSON is YAML. What was not said stays unsaid: the cluster has defaults of its own, such as its environment's.
    (folder / job.name).write_text(job.spec.model_dump_json(exclude_unset=True, indent=2))
    sources = [Path(str(package.__file__)).parent for package in (stn_core, workers, orchestrator)]
    top = job.module.partition(".")[0]
    if top:
        # One that is not here is installed; what it imports besides itself has to be, too.
        sources += [path for path in (here / top, here / f"{top}.py") if path.exists() and top not in _OWN]
    for source in sources:
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(source, folder / source.name)


_OWN = ("stn_core", "workers", "orchestrator")


@dataclass(frozen=True)
class Submitted:
    """A job on a cluster.

    Attributes:
        job: its id.
        already: it was at work when asked for again.
    """

    job: str
    already: bool


class Jobs:
    """The jobs of a cluster.

    Args:
        address: of its head's dashboard, http://HEAD:8265.

    Raises:
        SpecError: the address is of another kind, or Ray's client for jobs is not installed.
        WorkersError: there is no such cluster, or it lets nobody in.
    """

    def __init__(self, address: str) -> None:
        url = urlsplit(address)
        try:
            known = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:  # no port
            known = False
        if not known:
            raise SpecError(f"--address {address}: jobs are submitted to the head's dashboard, http://HEAD:8265")
        if url.username is not None or url.password is not None:
            raise SpecError("--address holds a user or a password: leave it out, Ray has its token from RAY_AUTH_TOKEN")
        if importlib.util.find_spec("aiohttp") is None:
            raise SpecError("`stn submit` needs Ray's client for jobs: pip install 'stn[cluster]'")
        self.address = address.rstrip("/")
        self._port = f"{url.hostname}:{url.port or (443 if url.scheme == 'https' else 80)}"
        # Ray lets its environment win over what it is told, and RAY_ADDRESS may name the cluster's other port.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        from ray.job_submission import JobSubmissionClient

        if not logging.getLogger().isEnabledFor(logging.DEBUG):
            for name in _CHATTY:
                logging.getLogger(name).setLevel(logging.ERROR)
        with self._told():
            self._client: Any = JobSubmissionClient(self.address)

    def submit(self, job: Job, *, pin: bool) -> Submitted:
        """Start a job, unless one is at the same work.

        Args:
            job: what to start.
            pin: refuse to run with other versions of libraries than this process has.
        """
        kind = {"stn_command": job.command, "stn_makes": job.makes}
        with self._told():
            for other in self._client.list_jobs():
                same = kind.items() <= (other.metadata or {}).items()
                if same and other.submission_id and not other.status.is_terminal():
                    return Submitted(other.submission_id, already=True)
            settings = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S), **({PINNED: pinned()} if pin else {})}
            if logs.as_json():
                settings[logs.FORMAT] = "json"
            with tempfile.TemporaryDirectory() as folder:
                pack(job, Path.cwd(), Path(folder))
                environment = {"working_dir": folder, "env_vars": settings}
                return Submitted(
                    self._client.submit_job(
                        entrypoint=job.entrypoint,
                        runtime_env=environment,
                        metadata=kind,
                        submission_id=job.new_id(),
                    ),
                    already=False,
                )

    def follow(self, job: str, write: Callable[[str], object], warn: Callable[[str], object]) -> int | None:
        """Copy a job's output until the job ends.

        Args:
            job: its id.
            write: takes the output, piece by piece.
            warn: told, in a line, when the connection is lost and there again.

        Returns:
            Its driver's exit code; None if the job was stopped.

        Raises:
            WorkersError: the connection is lost, and the job may go on; or it ended without its driver.
        """
        from aiohttp import ClientError

        seen, heard, lost = 0, time.monotonic(), False
        while True:
            try:
                if why := silent(self._port):
                    raise ConnectionError(why)
                self._client.get_job_info(job)  # says if there is no such job, which the output does not
                if lost:
                    warn(f"{self.address} answers again")
                heard, lost = time.monotonic(), False
                for chunk in _chunks(self._client, job, seen):
                    write(chunk)
                    seen, heard = seen + len(chunk), time.monotonic()
                details = self._client.get_job_info(job)
            except (OSError, RuntimeError, ClientError) as error:  # of requests, Ray and aiohttp
                if f"{job} does not exist" in str(error):
                    raise WorkersError(
                        f"{self.address} knows no job {job}: its head was started anew; "
                        "the same command submits it again and resumes"
                    ) from None
                if time.monotonic() - heard > _PATIENCE_S:
                    raise WorkersError(
                        f"nothing heard from {self.address} for {_PATIENCE_S / 60:.0f} min ({_reason(error)}): "
                        f"job {job} may go on; the same command follows it, or submits it again if the head was lost"
                    ) from None
                if not lost:
                    warn(f"no connection to {self.address} ({_reason(error)}): trying for {_PATIENCE_S / 60:.0f} min")
                lost = True
                time.sleep(_RETRY_S)
                continue
            if details.status.is_terminal():
                return _exit_code(job, details)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        if why := silent(self._port):
            raise WorkersError(f"no Ray cluster at {self.address} (--address): {why}")
        try:
            yield
        except Exception as error:  # requests and Ray each raise their own
            raise WorkersError(f"{self.address} (--address) takes no job: {_reason(error)}") from error


def _exit_code(job: str, details: Any) -> int | None:
    code: int | None = details.driver_exit_code
    if code is not None:
        return code if code >= 0 else 128 - code  # killed by a signal, as a shell has it
    if details.status == "STOPPED":
        return None
    raise WorkersError(
        f"job {job} ended without its driver's exit code ({_last_line(details.message or '')}): "
        "the same command submits it again and resumes"
    )


def _chunks(client: Any, job: str, seen: int) -> Iterator[str]:
    """A job's output after the first ``seen`` characters, until it ends or nothing comes for long."""
    with asyncio.Runner() as runner, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of aiohttp, at how Ray opens the connection
        chunks = client.tail_job_logs(job)
        while True:
            try:
                chunk = runner.run(asyncio.wait_for(anext(chunks), _QUIET_S))
            except (StopAsyncIteration, TimeoutError):
                return
            if len(chunk) > seen:
                yield chunk[seen:]
            seen = max(0, seen - len(chunk))


def _reason(error: Exception) -> str:
    return _last_line(str(error)) or one_line(error)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
