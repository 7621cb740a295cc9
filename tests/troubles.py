"""A folder in which all is well, and what may go wrong there: the material of ``tests.test_bad_input``."""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import shutil
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from tests.object_store import BUCKET, ObjectStore
from tests.orchestrator.runs import MadeRun
from workers import layout
from workers.s3 import S3Store
from workers.store import Store


@dataclass(frozen=True)
class World:
    """A folder of a test's own.

    Attributes:
        here: the folder, which is the working directory. It holds job.yaml, the run of that spec in run/ (counted and
            reduced), the same without its second shard and not reduced in half/, and the data set in mnist/.
        made: the run's votes.
        setenv: sets a variable for the time of the test.
        server: starts an object store, or names the one that runs.
    """

    here: Path
    made: MadeRun
    setenv: Callable[[str, str], None]
    server: Callable[[], ObjectStore]

    @cached_property
    def remote(self) -> Store:
        """A copy of the run in object storage, to which the environment leads from now on."""
        leads_to(self.server().url)(self)
        store = S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}/run")
        for name, content in contents(self.here / "run").items():
            if content is not None:
                store.replace(name, content)
        return store


def contents(root: Path) -> dict[str, bytes | None]:
    """Every file below a folder, and None for every folder."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in root.rglob("*")
    }


# --- Before the command runs ---------------------------------------------------------------------------------------

Trouble = Callable[[World], object]


def nothing(world: World) -> None:
    """All is well."""


def has(name: str, content: bytes | str = b"") -> Trouble:
    """A file with that content."""

    def spoil(world: World) -> None:
        path = world.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def has_folder(name: str) -> Trouble:
    return lambda world: (world.here / name).mkdir(parents=True)


def copied(folder: str, name: str) -> Trouble:
    """The same folder under another name too."""

    def spoil(world: World) -> None:
        shutil.copytree(world.here / folder, world.here / name)

    return spoil


def planned(name: str) -> Trouble:
    """A run that is planned, and nothing more."""

    def spoil(world: World) -> None:
        world.made.write(world.here / name, [])

    return spoil


def lacks(name: str) -> Trouble:
    return lambda world: (world.here / name).unlink()


def truncated(name: str) -> Trouble:
    """The second half of a file is lost."""

    def spoil(world: World) -> None:
        path = world.here / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def plan_says(**values: Any) -> Trouble:
    """The run's plan with other values, each named by its keys with double underscores between them."""

    def spoil(world: World) -> None:
        path = world.here / "run" / layout.PLAN
        plan = json.loads(path.read_bytes())
        for keys, value in values.items():
            *sections, key = keys.split("__")
            section = plan
            for name in sections:
                section = section[name]
            section[key] = value
        path.write_text(json.dumps(plan))

    return spoil


def table_says(name: str, **values: Any) -> Trouble:
    """A table with other values in its metadata."""

    def spoil(world: World) -> None:
        table = pq.read_table(world.here / name)
        metadata = {**json.loads(pq.read_metadata(world.here / name).metadata[b"stn"]), **values}
        pq.write_table(table.replace_schema_metadata({b"stn": json.dumps(metadata).encode()}), world.here / name)

    return spoil


def rows_say(name: str, **values: Any) -> Trouble:
    """A table with another value in every row of a column, its metadata as they were."""

    def spoil(world: World) -> None:
        table, metadata = pq.read_table(world.here / name), pq.read_metadata(world.here / name).metadata
        for column, value in values.items():
            table = _with(table, column, value)
        pq.write_table(table.replace_schema_metadata({b"stn": metadata[b"stn"]}), world.here / name)

    return spoil


def votes_say(shard: int, **values: Any) -> Trouble:
    """Votes of a shard with another value in every row of a column, and the checksum that goes with them."""

    def spoil(world: World) -> None:
        table = world.made.tables[shard]
        for column, value in values.items():
            table = _with(table, column, value)
        (world.here / "run" / layout.counts(shard)).write_bytes(world.made.encoded(shard, table))

    return spoil


def _with(table: pa.Table, column: str, value: Any) -> pa.Table:
    number = table.schema.get_field_index(column)
    field = table.schema.field(number)
    return table.set_column(number, field, pa.array([value] * len(table), field.type))


def votes_of(shard: int, *, lie_as: int) -> Trouble:
    """The votes of another shard in place of its own."""
    return lambda world: (world.here / "run" / layout.counts(lie_as)).write_bytes(world.made.encoded(shard))


def saved(name: str, content: Callable[[], Any]) -> Trouble:
    """A checkpoint of that."""

    def spoil(world: World) -> None:
        (world.here / name).parent.mkdir(exist_ok=True)
        torch.save(content(), world.here / name)

    return spoil


def program(name: str, network: Callable[[], nn.Module], shape: tuple[int, ...], any_number: bool = True) -> Trouble:
    """An exported program, for any number of images or for one number of them."""

    def spoil(world: World) -> None:
        shapes = ({0: torch.export.Dim("batch")},) if any_number else None
        with warnings.catch_warnings(action="ignore"):  # PyTorch's, of its own code
            exported = torch.export.export(network().eval(), (torch.rand(shape),), dynamic_shapes=shapes)
            torch.export.save(exported, world.here / name)

    return spoil


def parquet(name: str, **columns: pa.Array) -> Trouble:
    return lambda world: pq.write_table(pa.table(columns), world.here / name)


def in_object_storage(world: World) -> None:
    """The environment leads to a server on which the run is well."""
    assert world.remote


def leads_to(url: str, **others: str) -> Trouble:
    """The environment leads to that server; and its variables have these values."""

    def spoil(world: World) -> None:
        for name, value in {**ObjectStore(url).environment, **others}.items():
            world.setenv(name, value)

    return spoil


def environment(**variables: str) -> Trouble:
    def spoil(world: World) -> None:
        for name, value in variables.items():
            world.setenv(name, value)

    return spoil


def both(first: Trouble, second: Trouble) -> Trouble:
    """One after the other."""
    return lambda world: (first(world), second(world))


# --- While the command runs ----------------------------------------------------------------------------------------

During = Callable[[World], AbstractContextManager[object]]


def at_no_time(world: World) -> AbstractContextManager[None]:
    """All stays as it is."""
    return contextlib.nullcontext()


def disk_full_at(size: int) -> During:
    """No file can grow beyond so many bytes, which is refused as a full disk refuses it."""

    @contextlib.contextmanager
    def during(_: World) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return during


def permissions(name: str, bits: int) -> During:
    """A file or folder has these permissions."""

    @contextlib.contextmanager
    def during(world: World) -> Iterator[None]:
        path = world.here / name
        before = path.stat().st_mode
        path.chmod(bits)
        try:
            with _bound_by_permissions():
                yield
        finally:
            path.chmod(before)

    return during


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


#: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: to write and read whatever permissions say.
_OVERRIDING = 0b110


@contextlib.contextmanager
def _bound_by_permissions() -> Iterator[None]:
    """This thread lays down root's right to pass over permissions, so that they bind whoever runs the tests."""
    libc = ctypes.CDLL(None)
    header, own = _Header(0x20080522, 0), (_Capabilities * 2)()  # the interface's version 3, for this thread
    assert libc.capget(ctypes.byref(header), own) == 0
    effective = own[0].effective
    try:
        own[0].effective = effective & ~_OVERRIDING
        assert libc.capset(ctypes.byref(header), own) == 0
        yield
    finally:
        own[0].effective = effective
        assert libc.capset(ctypes.byref(header), own) == 0


def server_answers(status: int, content: str, kind: str = "application/xml") -> During:
    """The environment leads to a server that answers every request so."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content.encode())))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content.encode())

        do_GET = do_HEAD = do_PUT = do_DELETE = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    @contextlib.contextmanager
    def during(world: World) -> Iterator[None]:
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            try:
                leads_to(f"http://127.0.0.1:{server.server_address[1]}")(world)
                yield
            finally:
                server.shutdown()
                thread.join()

    return during


def refused(code: str, status: int) -> During:
    """An S3 server that answers every request with that error."""
    return server_answers(status, f"<Error><Code>{code}</Code><Message>No.</Message></Error>")
