"""Answers of S3 that are a success by their status and an error by what they say: nothing is decided from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    CutOffError,
    DeletionRefusedError,
    RequestRefusedError,
    StoreError,
    TruncatedObjectError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.calls import Timeouts
from checkpoint_sidecar.store.common.parts import write_object
from checkpoint_sidecar.store.common.ranges import read_range
from checkpoint_sidecar.store.opening import Driver, open_store
from doubles.proxies import QuietHandler, listening
from support.s3servers import SMALLEST_PART

HASTY = Timeouts(deadline_seconds=0.5, answer_seconds=5.0)
KEYS = Credentials.of({"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-key"})
drivers = pytest.mark.parametrize("driver", ["native", "fsspec"])

XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
FIRST_PAGE = f"""<ListBucketResult {XMLNS}><Name>bucket</Name><KeyCount>1</KeyCount><IsTruncated>true</IsTruncated>
<NextContinuationToken>more</NextContinuationToken><Contents><Key>run/one</Key><Size>1</Size>
<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>"""
SLOW_DOWN = "<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


@contextmanager
def answering(driver: Driver, answers: dict[str, str], content_range: str = "") -> Iterator[Store]:
    """A store that answers 200 with the text whose key is in method and path; the longest such key counts."""

    class Handler(QuietHandler):
        def handle_request(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = f"{self.command} {self.path}"
            body = answers[max((key for key in answers if key in asked), key=len)].encode()
            self.send_response(206 if content_range else 200)
            if content_range:
                self.send_header("Content-Range", content_range)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"tag"')
            self.end_headers()
            self.wfile.write(body)

    with listening(Handler) as url:
        yield open_store(StoreSettings("s3://bucket/run", url, credentials=KEYS), driver=driver, timeouts=HASTY)


@drivers
@pytest.mark.parametrize(
    "second",
    [
        SLOW_DOWN,
        "",
        "<html>Service is being restarted</html>",
        FIRST_PAGE[:-30],
        FIRST_PAGE.replace("<NextContinuationToken>more</NextContinuationToken>", ""),
        "<ListBucketResult></ListBucketResult>",
        '<!DOCTYPE x [<!ENTITY a "b">]><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>',
    ],
    ids=["an error", "empty", "a web page", "cut", "more without a token", "no end", "a document type"],
)
def test_a_page_that_is_no_listing_never_ends_a_listing(driver: Driver, second: str) -> None:
    if driver == "fsspec" and "DOCTYPE" in second:
        pytest.skip("botocore reads it")
    with answering(driver, {"GET": FIRST_PAGE, "continuation-token": second}) as store, pytest.raises(StoreError):
        list(store.list())


@pytest.mark.parametrize("driver", ["native"])
def test_a_page_that_comes_again_and_again_is_no_listing(driver: Driver) -> None:
    with answering(driver, {"GET": FIRST_PAGE}) as store, pytest.raises(StoreError, match="repeats a page"):
        list(store.list())


def deleted(*errors: tuple[str, str, str]) -> str:
    told = "".join(
        f"<Error><Key>{key}</Key><Code>{code}</Code><Message>{message}</Message></Error>"
        for key, code, message in errors
    )
    return f"<DeleteResult {XMLNS}>{told}</DeleteResult>"


@drivers
def test_keys_that_s3_refuses_to_delete_are_named_with_its_own_explanation(driver: Driver) -> None:
    denied = deleted(
        ("run/first", "AccessDenied", "Access Denied because object protected by object lock. an-id"),
        ("run/second", "AccessDenied", "Access Denied"),
    )
    with answering(driver, {"POST": denied}) as store, pytest.raises(DeletionRefusedError) as raised:
        store.delete(["first", "second", "third"])

    assert raised.value.operation == "delete"
    assert "s3://bucket/run/first and 1 others" in str(raised.value)
    assert "AccessDenied: Access Denied because object protected by object lock" in str(raised.value)
    assert "an-id" not in str(raised.value)


@drivers
def test_keys_that_could_not_be_deleted_now_may_be_tried_again(driver: Driver) -> None:
    busy = deleted(("run/first", "InternalError", "We encountered an internal error. Please try again."))
    with answering(driver, {"POST": busy}) as store, pytest.raises(StoreError) as raised:
        store.delete(["first"])
    assert raised.value.retryable


@pytest.mark.parametrize("answer", [SLOW_DOWN, "", "<html/>"], ids=["an error", "empty", "a web page"])
@drivers
def test_a_deletion_that_is_not_confirmed_is_none(driver: Driver, answer: str) -> None:
    with answering(driver, {"POST": answer}) as store, pytest.raises(StoreError):
        store.delete(["first"])


@pytest.mark.parametrize("answer", [SLOW_DOWN, "", "<html/>"], ids=["an error", "empty", "a web page"])
@drivers
def test_a_completion_that_is_not_confirmed_is_none(driver: Driver, answer: str) -> None:
    begun = f"<InitiateMultipartUploadResult {XMLNS}><UploadId>id</UploadId></InitiateMultipartUploadResult>"
    answers = {"POST /bucket/run/key?uploads": begun, "POST /bucket/run/key?uploadId": answer, "PUT": "", "HEAD": ""}
    with (
        answering(driver, answers | {"DELETE": ""}) as store,
        pytest.raises((UnknownOutcomeError, RequestRefusedError)),
    ):
        write_object(store, "key", bytes(SMALLEST_PART + 1))


@drivers
def test_what_the_store_says_is_in_the_error_without_the_signature_in_it(driver: Driver) -> None:
    said = "Request has expired AWS4-HMAC-SHA256 Credential=an-id/20260101/x, Signature=abcdef0123456789 a-key"
    refused = f"<Error><Code>AccessDenied</Code><Message>{said}</Message></Error>"

    class Handler(QuietHandler):
        def handle_request(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(403)
            self.send_header("Content-Length", str(len(refused)))
            self.end_headers()
            self.wfile.write(refused.encode())

    with listening(Handler) as url:
        store = open_store(StoreSettings("s3://bucket/run", url, credentials=KEYS), driver=driver)
        with pytest.raises(AccessDeniedError, match="the store answered AccessDenied: Request has expired") as raised:
            store.put("key", b"data")
    for secret in ("an-id", "abcdef0123456789", "a-key"):
        assert secret not in str(raised.value)


@pytest.mark.parametrize(
    ("start", "content_range", "body", "error"),
    [
        (4, "bytes 0-3/100", "0123", CutOffError),
        (4, "bytes 4-11/100", "45678901", CutOffError),
        (0, "", "0123456789", CutOffError),
        (4, "bytes 4-4/5", "4", TruncatedObjectError),
    ],
    ids=["of the beginning", "of more", "of the whole object", "of less"],
)
def test_only_an_answer_that_is_too_short_is_evidence_against_an_object(
    start: int, content_range: str, body: str, error: type[StoreError]
) -> None:
    """Caches that do not look at the range give another part, and servers that know no ranges the whole object."""
    with answering("native", {"GET": body}, content_range) as store, pytest.raises(error):
        read_range(store, "key", start, 4)
