"""A proxy in front of a real S3 server that does as told what networks and stores do to requests and replies."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Effect = Literal["lose the request", "lose the reply", "cut the reply", "drop the condition"]


@dataclass
class Fault:
    """What befalls the next ``times`` requests of a method whose path and query contain a text.

    Attributes:
        effect: One of the effects, or the answer to give without asking the server: a status and an error code.
    """

    method: str
    containing: str
    effect: Effect | tuple[int, str]
    times: int = 1


@dataclass
class FaultyServer:
    """Where the proxy listens, what it shall do, and which requests it has seen."""

    behind: str
    endpoint: str = ""
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, method: str, path: str) -> Effect | tuple[int, str] | None:
        with self.lock:
            self.seen.append((method, path))
            for fault in self.faults:
                if fault.times and fault.method == method and fault.containing in path:
                    fault.times -= 1
                    return fault.effect
            return None

    def count(self, method: str, containing: str = "") -> int:
        with self.lock:
            return sum(1 for seen, path in self.seen if seen == method and containing in path)


@contextlib.contextmanager
def faulty_server(behind: str, *, tls: ssl.SSLContext | None = None) -> Iterator[FaultyServer]:
    """Listen on loopback and forward to the server at ``behind``."""
    control = FaultyServer(behind)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(control))
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    control.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield control
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(control: FaultyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            # A client that gives up closes its connection while it is being answered.
            with contextlib.suppress(ConnectionError):
                super().handle()

        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            effect = control.note(self.command, self.path)
            if effect == "lose the request":
                self.close_connection = True
                return
            if isinstance(effect, tuple):
                status, code = effect
                key_id = self.headers.get("Authorization", "")
                answer = f"<Error><Code>{code}</Code><Message>{key_id}</Message></Error>".encode()
                self.reply(status, {"Content-Type": "application/xml"}, answer)
                return
            status, headers, answer = self.forward(body, drop_condition=effect == "drop the condition")
            if effect == "lose the reply":
                self.close_connection = True
                return
            self.reply(status, headers, answer, cut=effect == "cut the reply")

        def forward(self, body: bytes, *, drop_condition: bool) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(urlsplit(control.behind).netloc, timeout=60)
            headers: dict[str, Any] = dict(self.headers.items())
            if drop_condition:
                headers = {name: value for name, value in headers.items() if name.lower() != "if-none-match"}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            data = response.read()
            connection.close()
            return response.status, dict(response.getheaders()), data

        def reply(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            if cut:
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            elif self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    methods: dict[str, Callable[..., None]] = {
        f"do_{method}": Handler.handle_request for method in ("GET", "HEAD", "PUT", "POST", "DELETE")
    }
    return type("Handler", (Handler,), methods)
