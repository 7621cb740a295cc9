"""JSON log lines: every line is an object that names its run; events have their shard, worker and attempt."""

from __future__ import annotations

import json
import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from orchestrator import logs
from orchestrator.cli import main
from orchestrator.counting.dispatch import Died, Started
from orchestrator.counting.policy import Facts
from orchestrator.counting.telling import described
from tests.orchestrator.inline import hire_failing
from tests.orchestrator.runs import digits_spec


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logging as in a process that begins, and as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    handler = signal.getsignal(signal.SIGTERM)
    levels = [(logger, logger.level) for logger in (logging.root, *map(logging.getLogger, ("orchestrator", "ray")))]
    with warnings.catch_warnings():
        yield
        logging.captureWarnings(False)
    signal.signal(signal.SIGTERM, handler)
    for logger, level in levels:
        logger.setLevel(level)


def stn(*arguments: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.root, "handlers", [])  # the test runner's
        return CliRunner().invoke(main, arguments)


def lines(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "host", "run", "event", "message"} <= line.keys() for line in found)
    return found


@pytest.mark.usefixtures("fresh")
def test_a_shard_that_fails_is_logged_with_each_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = str(tmp_path / "run")
    spec = digits_spec(store={"run": run}, resources={"shard_size": 8})
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec))
    monkeypatch.setattr(
        "orchestrator.counting.certification.certify_run.__kwdefaults__", {"retry_failed": False, "hire": hire_failing}
    )
    result = stn("--log-format", "json", "certify", "job.yaml")
    assert result.exit_code == 3, result.output
    found = lines(result.stderr)
    assert {line["run"] for line in found} == {run}
    failed = [line for line in found if line["event"] == "failed"]
    assert [(line["shard"], line["attempt"], line["worker"]) for line in failed] == [(1, 1, 0), (1, 2, 0), (1, 3, 0)]
    assert {line["reason"] for line in failed} == {"a disk on fire"}
    (given_up,) = (line for line in found if line["event"] == "given_up")
    assert (given_up["shard"], given_up["attempt"]) == (1, 3)
    counted = [line for line in found if line["event"] == "counted"]
    assert [(line["shard"], line["attempt"]) for line in counted] == [(0, 1), (2, 1)]
    progress = [line for line in found if line["event"] == "progress" and line["doing"] == "counting"]
    assert (progress[-1]["done"], progress[-1]["total"]) == (12, 20)
    assert found[-1]["message"].startswith("incomplete: of 20 images")


@pytest.mark.usefixtures("fresh")
def test_errors_and_warnings_are_lines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT, "json")
    result = stn("certify", "nowhere.yaml")
    assert result.exit_code == 2
    (line,) = lines(result.stderr)
    assert (line["level"], line["run"]) == ("error", None)
    assert line["message"] == "error: cannot read spec nowhere.yaml: No such file or directory"


def test_a_death_is_told_with_the_shard_it_cost() -> None:
    facts = Facts.of(range(4))
    facts.queues[7] = [2, 3]
    facts.attempts[2] = 1
    assert described(Died(7, "killed"), facts) == {
        "event": "died", "worker": 7, "reason": "killed", "node_lost": False, "shard": 2, "attempt": 2
    }  # fmt: skip
    assert "shard" not in described(Died(8, "while it started"), facts)
    assert described(Started(8), facts) == {"event": "started", "worker": 8}
