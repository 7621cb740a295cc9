"""A proxy in front of an object store that misbehaves as told."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

#: What may go wrong with a request. Refused before it reaches the server. Held open without an answer, then dropped, or
#: reset: before it reaches the server, or, late, after. Its answer lost after it did; the answer's body cut short. A
#: condition not looked at, which is answered as if the object had been written.
Fault = Literal[
    "503", "timeout", "late timeout", "reset", "late reset", "lost answer", "truncated", "ignored condition"
]


@dataclass(frozen=True)
class Request:
    """A request that arrived.

    Attributes:
        method: GET, PUT, ...
        path: with the bucket, without the query.
        conditional: whether it carries If-None-Match.
        range: the bytes it asks for, as "bytes=0-99"; empty for all.
    """

    method: str
    path: str
    conditional: bool
    range: str = ""


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        url: its endpoint.
        decide: called with each request; says what goes wrong, or None.
        hold_s: says how long a request that times out is held, seconds.
        seen: requests in order of arrival.
    """

    url: str
    decide: Callable[[Request], Fault | None] = lambda request: None
    hold_s: Callable[[], float] = lambda: 3.0
    seen: list[Request] = field(default_factory=list)


@contextlib.contextmanager
def fault_proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy before the server at ``upstream``, for the block."""
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or every answer takes 40 ms

        def _forward(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if len(body) < length:  # whoever asked has died
                self.close_connection = True
                return
            conditional, part = "If-None-Match" in self.headers, self.headers.get("Range", "")
            request = Request(self.command, urlsplit(self.path).path, conditional, part)
            proxy.seen.append(request)
            fault = proxy.decide(request)
            if fault == "503":
                self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            if fault in ("timeout", "reset"):
                self._drop(fault)
                return
            connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=30)
            try:
                # The Host header that was signed goes along.
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            if fault in ("lost answer", "late timeout", "late reset"):
                self._drop(fault)
                return
            if fault == "ignored condition" and answer.status == 412:
                self._answer(200, {"ETag": '"0"'}, b"")
                return
            kept = {
                name: value
                for name, value in answer.getheaders()
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server")
            }
            size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self._answer(answer.status, {**kept, "Content-Length": size or "0"}, content, cut=fault == "truncated")

        def _drop(self, fault: Fault) -> None:
            self.close_connection = True
            if "timeout" in fault:
                closing.wait(proxy.hold_s())
            if "reset" in fault:
                # Closed here, before the server says a polite goodbye: without lingering, that is a RST.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.rfile.close()
                self.connection.close()

        def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _forward  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            # Clients get killed, and so does the server behind.
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
