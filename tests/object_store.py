"""A real S3 server: SeaweedFS, in a process of its own, on loopback unless told otherwise."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ACCESS_KEY, SECRET_KEY = "stn-tests", "not-to-be-seen-anywhere"
BUCKET = "stn-tests"

_READY_S = 60


@dataclass(frozen=True)
class ObjectStore:
    """A running server.

    Attributes:
        url: its endpoint.
        environment: variables under which every AWS tool finds it.
    """

    url: str

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            # Nothing of the person's who runs the tests.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


@contextlib.contextmanager
def seaweedfs(folder: Path, host: str = "127.0.0.1") -> Iterator[ObjectStore]:
    """Start a server at the address ``host`` that keeps its data in ``folder``; end it afterwards."""
    data, config = folder / "data", folder / "s3.json"
    data.mkdir(parents=True)
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    config.write_text(
        json.dumps({"identities": [{"name": "stn", "credentials": credentials, "actions": ["Admin", "Read", "Write"]}]})
    )
    services = ("master", "volume", "filer", "s3")
    names = [name for service in services for name in (f"-{service}.port", f"-{service}.port.grpc")]
    ports = dict(zip(names, _free_ports(host, len(names)), strict=True))
    command = [
        shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed",
        "server",
        f"-dir={data}",
        f"-ip={host}",
        f"-ip.bind={host}",
        "-filer",
        "-s3",
        f"-s3.config={config}",
        *(f"{name}={port}" for name, port in ports.items()),
        "-volume.preStopSeconds=0",
        "-volume.max=50",
        "-master.telemetry=false",
        "-master.electionTimeout=1s",
        "-master.volumeSizeLimitMB=256",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    server = ObjectStore(f"http://{host}:{ports['-s3.port']}")
    log = folder / "log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            _wait_until_ready(server, process, log)
            yield server
        finally:
            process.kill()


def _wait_until_ready(server: ObjectStore, process: subprocess.Popen[bytes], log: Path) -> None:
    # The port answers before data is readable.
    client = boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5),
    )
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"1")
            client.get_object(Bucket=BUCKET, Key="ready")["Body"].read()
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS is not ready: {error}\n{log.read_text()[-2000:]}") from error
            time.sleep(0.2)
        finally:
            client.close()


def _free_ports(host: str, count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((host, 0))
        return [one.getsockname()[1] for one in sockets]
