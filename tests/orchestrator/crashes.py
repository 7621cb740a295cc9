"""Certifying in a process of its own that kills itself at a named point of its way through the store.

A point lies before each operation that changes or lists something, and so after the one before; the last, after all.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.client

from orchestrator.counting.certification import certify_run
from orchestrator.spec import validate
from tests.orchestrator.inline import hire_inline
from workers.store import LocalStore, StoredObject

#: Forks from a process that has imported all this, and what certifying imports on its way, and has no threads.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, "boto3", "mlxtend.data", "pandas", "scipy.stats", "torchvision.datasets"])

#: The point after all operations.
END = "end"

EXIT_COMPLETE, EXIT_INCOMPLETE = 0, 3


@dataclass(frozen=True)
class Attempt:
    """What became of a certify run.

    Attributes:
        exitcode: EXIT_COMPLETE, EXIT_INCOMPLETE, or -9 where it was killed.
        points: names of the points that it passed, in order; the last is where it was killed.
    """

    exitcode: int
    points: list[str]


def attempt(
    spec: Mapping[str, Any], folder: Path, *, crash_at: int | None = None, environment: Mapping[str, str], retry: bool
) -> Attempt:
    """Certify in a process of its own, killed at the point of that number, if any."""
    log = folder / "points"
    log.unlink(missing_ok=True)
    process = _CONTEXT.Process(target=_certify, args=(dict(spec), log, crash_at, dict(environment), retry))
    process.start()
    process.join(60)
    assert process.exitcode is not None, "it hangs"
    exitcode = process.exitcode
    process.close()
    return Attempt(exitcode, log.read_text().splitlines())


def _certify(spec: dict[str, Any], log: Path, crash_at: int | None, environment: dict[str, str], retry: bool) -> None:
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    passed = 0

    def point(name: str) -> None:
        nonlocal passed
        with log.open("a") as file:
            file.write(f"{name}\n")
        if passed == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1

    run = str(spec["store"]["run"])
    _watch_s3(point) if run.startswith("s3://") else _watch_folder(Path(run), point)
    done = certify_run(validate(spec, "spec"), retry_failed=retry, hire=hire_inline)
    point(END)
    os._exit(EXIT_COMPLETE if done.complete else EXIT_INCOMPLETE)


def _named(key: str) -> str:
    """A key without what differs from one process to the next."""
    return re.sub(r"(\.tmp|\.probe|drivers)/.+", r"\1/*", key)


def _watch_folder(run: Path, point: Callable[[str], None]) -> None:
    """Points before every change of a name in the run's folder, and every listing."""

    def watch(name: str, path_of: Callable[..., str]) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            path = Path(path_of(*arguments))
            if run != path and run not in path.parents:
                return real(*arguments, **keywords)
            point(f"{name} {_named(path.relative_to(run).as_posix())}")
            return real(*arguments, **keywords)

        setattr(os, name, call)

    watch("link", lambda source, target: str(target))
    watch("replace", lambda source, target: str(target))
    watch("unlink", lambda path: str(path))
    real_list = LocalStore.list

    def listed(self: LocalStore, prefix: str) -> Iterator[StoredObject]:
        point(f"list {prefix}")
        return real_list(self, prefix)

    LocalStore.list = listed  # type: ignore[method-assign]


def _watch_s3(point: Callable[[str], None]) -> None:
    """Points before every request that writes, deletes or lists."""
    real = botocore.client.BaseClient._make_api_call

    def call(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        if operation not in ("HeadObject", "GetObject"):
            key = str(arguments.get("Key") or arguments.get("Prefix"))
            point(f"{operation} {_named(key.partition('/')[2])}")
        return real(self, operation, arguments)

    botocore.client.BaseClient._make_api_call = call
