"""A proxy in front of an object store that misbehaves as told."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

#: What may go wrong with a request: refused before it reaches the server; its answer lost after it did; the answer's
#: body cut short; a condition not looked at, which is answered as if the object had been written.
Fault = Literal["503", "lost answer", "truncated", "ignored condition"]


@dataclass(frozen=True)
class Request:
    """A request that arrived.

    Attributes:
        method: GET, PUT, ...
        path: with the bucket, without the query.
        conditional: whether it carries If-None-Match.
    """

    method: str
    path: str
    conditional: bool


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        url: its endpoint.
        decide: called with each request; says what goes wrong, or None.
        seen: requests in order of arrival.
    """

    url: str
    decide: Callable[[Request], Fault | None] = lambda request: None
    seen: list[Request] = field(default_factory=list)


@contextlib.contextmanager
def fault_proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy before the server at ``upstream``, for the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self.command, urlsplit(self.path).path, "If-None-Match" in self.headers)
            proxy.seen.append(request)
            fault = proxy.decide(request)
            if fault == "503":
                self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=30)
            try:
                # The Host header that was signed goes along.
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            if fault == "lost answer":
                self.close_connection = True
                return
            if fault == "ignored condition" and answer.status == 412:
                self._answer(200, {"ETag": '"0"'}, b"")
                return
            kept = {
                name: value
                for name, value in answer.getheaders()
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server")
            }
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self._answer(answer.status, {**kept, "Content-Length": length or "0"}, content, cut=fault == "truncated")

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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
