"""Where a store cannot lead its client: a server of somebody's choice may answer with the address of another one."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.store.calls import Patience
from checkpoint_sidecar.store.obstore_store import ObstoreStore
from checkpoint_sidecar.store.settings import Credentials, StoreSettings
from localcluster.pki import Authority

HASTY = Patience(deadline_seconds=1.0, answer_seconds=5.0)
KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}


@contextlib.contextmanager
def server(status: int, location: str = "", *, tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[str]]]:
    """Answers everything with a status; gives its URL and the requests it got."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - names of http.server

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        if tls is not None:
            listening.socket = tls.wrap_socket(listening.socket, server_side=True)
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{listening.server_port}", seen
        finally:
            listening.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_request_over_tls_is_led_to_a_server_without_it(status: int, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("store", user="store", hosts=("127.0.0.1",))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair.certificate, pair.key)
    values = KEYS | {"ca.crt": authority.certificate.read_text()}
    with server(200) as (inner, knocks), server(status, f"{inner}/latest/meta-data", tls=tls) as (outer, asked):
        settings = StoreSettings("s3://bucket/run", outer, "us-east-1", credentials=Credentials.of(values))
        store = ObstoreStore(settings, patience=HASTY)
        for request in (
            lambda: store.get("key", max_bytes=100),
            lambda: store.stat("key"),
            lambda: list(store.list()),
            lambda: store.put("key", b"data"),
            lambda: store.put_if_absent("key", b"data"),
            lambda: store.delete(["key"]),
        ):
            with contextlib.suppress(CheckpointError):
                request()
        assert asked
        assert knocks == []
