"""Keys to object storage are in nothing that a command prints, logs, raises or writes, whether it succeeds or fails."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
import yaml
from click.testing import CliRunner, Result

from orchestrator.cli import main
from tests.object_store import BUCKET, SECRET_KEY, ObjectStore
from tests.orchestrator.conftest import few_digits, made  # noqa: F401 - fixtures
from tests.orchestrator.runs import MadeRun, digits_spec, mnist_spec
from workers import layout
from workers.s3 import S3Store
from workers.store import Store, StoreError, open_store

#: Recognisable wherever they may turn up, and refused by every server.
OWN = {
    "AWS_ACCESS_KEY_ID": "AKIAnotthatofanyone0",
    "AWS_SECRET_ACCESS_KEY": "wJalr-a-secret-that-is-nobodys-and-long-enough",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEBY-a-token-that-is-nobodys/and+long==",
}
#: What a URL may hold before its host.
PASSWORD = "s3cr3t-of-some-gateway"
#: What signs a request, by whichever credentials.
SIGNED = ("AWS4-HMAC-SHA256", "Signature=", "X-Amz-Security-Token")


def hidden(*texts: str, secrets: tuple[str, ...] = (SECRET_KEY, PASSWORD, *OWN.values(), *SIGNED)) -> None:
    """Fails if a secret is in one of the texts, as it is or as a URL has it."""
    for text in texts:
        for secret in secrets:
            assert secret.lower() not in text.lower()
            assert quote(secret, safe="").lower() not in text.lower()


def stored(store: Store) -> list[str]:
    """All that a run's storage holds, and under which keys."""
    return [found.key + store.read(found.key).decode("latin-1") for found in store.list("")]


@pytest.fixture(autouse=True)
def _process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own, what commands do to their process undone, and an unreachable server given up at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("STN_TRACEBACK", "1")
    monkeypatch.setattr("workers.s3._ATTEMPTS", 1)
    monkeypatch.setattr("workers.s3._READ_ATTEMPTS", 1)
    handler = signal.getsignal(signal.SIGTERM)
    loggers = [logging.getLogger(name) for name in ("boto3", "botocore", "s3transfer", "urllib3")]
    levels = [logger.level for logger in loggers]
    yield
    signal.signal(signal.SIGTERM, handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def server(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """A real server, to which the environment leads."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return object_store


@pytest.fixture
def run(server: ObjectStore, made: MadeRun) -> str:  # noqa: F811
    """A counted run in object storage, not yet reduced."""
    store = S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}/run")
    store.create(layout.PLAN, made.plan.to_json())
    for shard in range(made.plan.shards):
        store.create(layout.counts(shard), made.encoded(shard))
    return store.uri


@pytest.fixture
def spec(few_digits: Path, tmp_path: Path, run: str) -> Path:  # noqa: F811
    """The spec of ``run``."""
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(mnist_spec(few_digits, store={"run": run})))
    return path


def stn(caplog: pytest.LogCaptureFixture, *arguments: object) -> tuple[Result, list[str]]:
    """`stn -v …`, and every text it leaves behind: printed, logged, raised."""
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    result = CliRunner().invoke(main, ["-v", *(str(argument) for argument in arguments)])
    raised = [] if result.exc_info is None else traceback.format_exception(*result.exc_info)
    return result, [result.stdout, result.stderr, caplog.text, *raised]


#: Commands on a run in object storage, {run}, and its spec, {spec}.
COMMANDS = (
    "certify {spec}",
    "certify {spec} --set confidence.alpha=0.01",
    "status {run}",
    "reduce {run}",
    "report {run}",
    "verify {run}",
    "gc {run} --yes --older-than 0",
    "doctor {spec}",
    "status {run} --json",
)


def test_no_command_shows_or_stores_a_key(
    run: str, spec: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for line in COMMANDS:
        result, texts = stn(caplog, *line.format(run=run, spec=spec).split())
        assert result.exit_code == 0, (line, result.output)
        hidden(*texts)
    kept = stored(open_store(run))
    assert any("<html" in text for text in kept)
    hidden(*kept, *(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()))


@pytest.mark.parametrize("line", ["certify {spec}", "status {run}", "reduce {run}", "report {run}", "gc {run}"])
def test_credentials_that_are_refused_are_not_shown(
    run: str, spec: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)
    result, texts = stn(caplog, *line.format(run=run, spec=spec).split())
    assert result.exit_code == 2
    assert "check the AWS credentials" in result.stderr
    hidden(*texts)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "127.0.0.1:1"),
        ("AWS_ENDPOINT_URL", f"http://user:{PASSWORD}@127.0.0.1:1", "must be http://host"),
        ("AWS_ENDPOINT_URL", f"user:{PASSWORD}@127.0.0.1:1", "Invalid endpoint"),
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:1/?Signature={PASSWORD}", "s3://"),
        ("AWS_PROFILE", "nobody", "nobody"),
    ],
)
def test_settings_that_lead_nowhere_are_named_without_what_is_secret_in_them(
    run: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    for command in ("status", "gc"):
        result, texts = stn(caplog, command, run)
        assert result.exit_code == 2
        assert says in result.stderr
        assert len(result.stderr.splitlines()) == 1
        hidden(*texts)


@pytest.mark.parametrize(
    "change",
    [
        f"store.endpoint_url=http://user:{PASSWORD}@host",
        f"store.endpoint_url=http://{PASSWORD}@host",
        f"store.endpoint_url=http://host/?X-Amz-Signature={PASSWORD}",
        f"store.endpoint_url=https://{PASSWORD}:x@host:9000/path",
        f"store.endpoint_url=ftp://user:{PASSWORD}@host",
        f"store.run=s3://user:{PASSWORD}@bucket/run",
        f"store.run=https://user:{PASSWORD}@host/run",
        f"dataset.path=s3://user:{PASSWORD}@bucket/images",
        f"dataset.path=https://user:{PASSWORD}@host/images",
        f"model.checkpoint=s3://user:{PASSWORD}@bucket/model.pt",
    ],
)
def test_a_password_in_the_spec_is_refused_and_not_repeated(
    spec: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    for command in ("plan", "certify", "doctor"):
        result, texts = stn(caplog, command, spec, "--set", change)
        assert result.exit_code == 2
        section = change.partition("=")[0]
        assert any(section in line for line in result.output.splitlines())
        hidden(*texts)


def test_a_password_in_place_of_the_run_is_refused_and_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    for command in ("status", "reduce", "report", "gc"):
        result, texts = stn(caplog, command, f"s3://user:{PASSWORD}@bucket/run")
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        hidden(*texts)


# --- A wrong server, which sends back all that it was sent ---------------------------------------------------------


@contextlib.contextmanager
def echoing(status: int, code: str) -> Iterator[tuple[str, list[str]]]:
    """A server that answers every request with an error whose message repeats what was secret in it: its endpoint, and
    the signatures that it saw."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            token, signed = (self.headers[name] for name in ("X-Amz-Security-Token", "Authorization"))
            seen.append(re.findall(r"Signature=(\w+)", signed)[0])
            said = escape(f"Signature={seen[-1]} {token} X-Amz-Security-Token={quote(token, safe='')} {signed}")
            content = f"<Error><Code>{code}</Code><Message>{said}</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_DELETE = do_POST = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    seen: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code"), [(400, "InvalidRequest"), (403, "SignatureDoesNotMatch"), (400, "ExpiredToken"), (409, "Odd")]
)
def test_what_a_wrong_server_sends_back_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, object_store: ObjectStore, status: int, code: str
) -> None:
    with echoing(status, code) as (url, signatures):
        for name, value in {**object_store.environment, **OWN, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        store = S3Store(f"s3://{BUCKET}/run")
        for act in (lambda: store.read("a"), lambda: store.create("a", b""), lambda: [*store.list("")]):
            with pytest.raises(StoreError) as refused:
                act()
            assert "\n" not in str(refused.value)
            raised = "".join(traceback.format_exception(refused.value))
            hidden(str(refused.value), raised, secrets=(*OWN.values(), *signatures))
        result, texts = stn(caplog, "status", store.uri)
        assert result.exit_code == 2
        hidden(*texts, secrets=(*OWN.values(), *signatures))
        assert len(signatures) >= 4


# --- In the log ----------------------------------------------------------------------------------------------------


def test_without_our_limit_the_log_would_hold_signatures_and_tokens(
    server: ObjectStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(StoreError):
        S3Store(f"s3://{BUCKET}/run").read("a")
    assert OWN["AWS_SESSION_TOKEN"] in caplog.text
    assert "Signature=" in caplog.text


# --- A process of its own, on a real cluster -----------------------------------------------------------------------


@pytest.mark.cluster
def test_a_whole_job_leaves_no_key_in_outputs_logs_or_objects(server: ObjectStore, tmp_path: Path) -> None:
    uri = f"s3://{BUCKET}/{uuid.uuid4().hex}/run"
    job = digits_spec(store={"run": uri}, dataset={"kind": "digits", "limit": 8}, resources={"actors": 1})
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = uuid.uuid4().hex * 2
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "orchestrator.cli", "-v", "--log-format", "json", "certify", "job.yaml", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"] is True
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all("run" in line for line in lines)
    assert any(line["logger"] == "botocore.credentials" and "Found credentials" in line["message"] for line in lines)
    kept = stored(open_store(uri))
    assert len(kept) == 4
    hidden(done.stdout, done.stderr, *kept, secrets=(SECRET_KEY, token, *SIGNED))
