"""What proxies that misbehave on purpose have in common: they listen on loopback, and remember what they were asked."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Seen:
    """Requests that came: method, and path with query."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: list[tuple[str, str]] = field(default_factory=list)

    def count(self, method: str, containing: str = "") -> int:
        with self.lock:
            return sum(1 for seen, path in self.seen if seen == method and containing in path)


class QuietHandler(BaseHTTPRequestHandler):
    """Every request is one for ``handle_request``."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        # A client that gives up closes its connection while it is being answered.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def handle_request(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.handle_request()

    do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815 - names of http.server

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def listening(handler: type[QuietHandler], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve on loopback; yields the URL. Requests under way at the end are left to themselves."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
