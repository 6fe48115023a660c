"""Where a store cannot lead its client: a server of somebody's choice may answer with the address of another one."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint_sidecar.core.errors import CheckpointError, RequestRefusedError
from checkpoint_sidecar.store.calls import Patience
from checkpoint_sidecar.store.fsspec_store import FsspecStore
from checkpoint_sidecar.store.obstore_store import ObstoreStore
from checkpoint_sidecar.store.settings import Credentials, StoreSettings
from doubles.proxies import QuietHandler, listening
from localcluster.pki import Authority

HASTY = Patience(deadline_seconds=1.0, answer_seconds=5.0)
KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}


@contextlib.contextmanager
def server(status: int, location: str = "", *, tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[str]]]:
    """Answers everything with a status; gives its URL and the requests it got."""
    seen: list[str] = []

    class Handler(QuietHandler):
        def handle_request(self) -> None:
            seen.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with listening(Handler, tls) as url:
        yield url, seen


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


def test_a_redirect_to_what_is_no_object_store_is_an_error_in_our_words() -> None:
    """aiohttp follows redirects; who needs them not to be followed opens obstore."""
    with server(200) as (elsewhere, _), server(302, elsewhere) as (url, _):
        store = FsspecStore(
            StoreSettings("s3://bucket/run", url, "us-east-1", credentials=Credentials.of(KEYS)), patience=HASTY
        )
        with pytest.raises(RequestRefusedError, match="Check that the endpoint is that of an object store"):
            store.stat("key")
