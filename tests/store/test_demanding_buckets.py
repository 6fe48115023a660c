"""Buckets that demand something of each write, as S3 refuses it: Object Lock, encryption, requester payment.

moto keeps the objects; in front of it stands what moto leaves out.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import pytest
from crc32c import crc32c

from checkpoint_sidecar.conformance.probe import probe
from checkpoint_sidecar.core.errors import AccessDeniedError, StoreError
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.calls import Timeouts
from checkpoint_sidecar.store.common.parts import write_object
from checkpoint_sidecar.store.common.ranges import read_range
from checkpoint_sidecar.store.opening import Driver, open_store
from doubles.proxies import QuietHandler, listening
from support.s3servers import SMALLEST_PART, Server

pytestmark = pytest.mark.store

drivers = pytest.mark.parametrize("driver", ["native", "fsspec"])
Refusal = tuple[int, str, str]
KMS = {"server_side_encryption": "aws:kms", "kms_key_id": "alias/training"}


@dataclass
class Bucket:
    """Where it is, and the headers of the writes that it took."""

    endpoint: str = ""
    written: list[dict[str, str]] = field(default_factory=list)


def writes(method: str, path: str) -> bool:
    query = parse_qs(urlsplit(path).query, keep_blank_values=True)
    return (method == "PUT") or (method == "POST" and "uploads" in query)


def wants_checksums(headers: Mapping[str, str], path: str, body: bytes) -> Refusal | None:
    """As a bucket with Object Lock and a default retention."""
    if "uploads" in path:
        return None
    given = headers.get("x-amz-checksum-crc32c", "")
    if not given:
        message = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock"
        return 400, "InvalidRequest", message
    if base64.b64encode(crc32c(body).to_bytes(4, "big")).decode() != given:
        return 400, "BadDigest", "The CRC32C you specified did not match what we received."
    return None


def wants_encryption(headers: Mapping[str, str], path: str, _: bytes) -> Refusal | None:
    """As a bucket policy that denies PutObject without the company's key."""
    wanted = {
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": "alias/training",
    }
    if "partNumber" in path or wanted.items() <= headers.items():
        return None
    return 403, "AccessDenied", "User is not authorized to perform: s3:PutObject with an explicit deny"


@contextlib.contextmanager
def bucket(
    server: Server, refuses: Callable[[Mapping[str, str], str, bytes], Refusal | None], *, always: bool = False
) -> Iterator[Bucket]:
    """A bucket of the server that refuses writes, or, with ``always``, any request."""
    found = Bucket()

    class Handler(QuietHandler):
        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            if always or writes(self.command, self.path):
                if refusal := refuses(headers, self.path, body):
                    status, code, message = refusal
                    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
                    self.answer(status, {}, text.encode())
                    return
                found.written.append({"path": self.path} | headers)
            connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            data = response.read()
            connection.close()
            self.answer(response.status, dict(response.getheaders()), data)

        def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = next((v for n, v in headers.items() if n.lower() == "content-length"), str(len(body)))
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

    with listening(Handler) as found.endpoint:
        yield found


def use(store: Store) -> None:
    """Every way to write."""
    probe(store)
    data = bytes(SMALLEST_PART) + bytes(range(256))
    write_object(store, "object", data)
    write_object(store, "small", b"data")
    store.put("large", bytes(2 * 1024 * 1024))
    assert read_range(store, "object", 0, len(data)) == data


@drivers
def test_a_bucket_with_object_lock_takes_every_write(driver: Driver, moto: Server) -> None:
    with bucket(moto, wants_checksums) as locked:
        use(open_store(moto.settings(endpoint=locked.endpoint), driver=driver))
    assert any("partNumber" in headers["path"] for headers in locked.written)


@drivers
def test_a_bucket_whose_policy_demands_encryption_takes_every_write(driver: Driver, moto: Server) -> None:
    tags = (("team", "a b"), ("cost", "x=1"))
    with bucket(moto, wants_encryption) as encrypted:
        use(open_store(moto.settings(endpoint=encrypted.endpoint, tags=tags, **KMS), driver=driver))
    tagged = [headers for headers in encrypted.written if "partNumber" not in headers["path"]]
    assert {headers["x-amz-tagging"] for headers in tagged} == {"team=a+b&cost=x%3D1"}


@drivers
def test_what_the_policy_says_is_in_the_error(driver: Driver, moto: Server) -> None:
    with bucket(moto, wants_encryption) as encrypted:
        store = open_store(moto.settings(endpoint=encrypted.endpoint), driver=driver)
        writes: tuple[Callable[[], None], ...] = (
            lambda: store.put("key", b"data"),
            lambda: write_object(store, "key", bytes(SMALLEST_PART + 1)),
        )
        for write in writes:
            with pytest.raises(AccessDeniedError, match=r"AccessDenied: User is not authorized.*explicit deny"):
                write()
        assert store.stat("key") is None


@drivers
def test_a_requester_pays_bucket(driver: Driver, moto: Server) -> None:
    def wants_a_payer(headers: Mapping[str, str], _path: str, _body: bytes) -> Refusal | None:
        if headers.get("x-amz-request-payer") == "requester":
            return None
        return 403, "AccessDenied", "Requester pays"

    with bucket(moto, wants_a_payer, always=True) as paid:
        store = open_store(moto.settings(endpoint=paid.endpoint, requester_pays=True), driver=driver)
        use(store)
        store.delete(["object"])


@drivers
def test_bytes_that_arrive_damaged_are_refused_and_sent_again(driver: Driver, moto: Server) -> None:
    damaged = [1]

    def damages(headers: Mapping[str, str], path: str, body: bytes) -> Refusal | None:
        if damaged and body:
            damaged.clear()
            body = bytes([body[0] ^ 1]) + body[1:]
        return wants_checksums(headers, path, body)

    with bucket(moto, damages) as lossy:
        store = open_store(moto.settings(endpoint=lossy.endpoint), driver=driver)
        write_object(store, "object", b"data")
        assert store.get("object", max_bytes=10).data == b"data"


@pytest.mark.parametrize("code", ["NotImplemented"])
def test_a_server_that_implements_no_checksums_gets_none(code: str, moto: Server) -> None:
    asked: list[bool] = []

    def knows_no_checksums(headers: Mapping[str, str], _path: str, _body: bytes) -> Refusal | None:
        asked.append(any(name.startswith("x-amz-checksum-") for name in headers))
        return (501, code, "A header you provided implies functionality") if asked[-1] else None

    with bucket(moto, knows_no_checksums) as old:
        use(open_store(moto.settings(endpoint=old.endpoint), driver="native"))
    assert asked.count(True) <= 2, "one for each of the store's clients"


def test_a_create_that_is_refused_for_its_checksum_says_so(moto: Server) -> None:
    def never(headers: Mapping[str, str], path: str, body: bytes) -> Refusal | None:
        return 400, "BadDigest", "The CRC32C you specified did not match what we received."

    with bucket(moto, never) as broken:
        store = open_store(moto.settings(endpoint=broken.endpoint), driver="native", timeouts=Timeouts(0.2, 5))
        with pytest.raises(StoreError, match="BadDigest: The CRC32C"):
            store.put_if_absent("key", b"data")
