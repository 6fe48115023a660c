"""No store leads its client to another server: a redirect is an error that names both, whatever was asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from checkpoint_sidecar.core.errors import DeletionRefusedError, RequestRefusedError, StoreError, UnknownOutcomeError
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.common.calls import Timeouts
from checkpoint_sidecar.store.opening import Driver, open_store
from doubles.proxies import QuietHandler, listening
from doubles.verbs import OF_UNFINISHED_UPLOADS, REQUESTS
from emulators.servers import service_account_key

HASTY = Timeouts(deadline_seconds=1.0, answer_seconds=5.0)
CREDENTIALS = {
    "s3": {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_SESSION_TOKEN": "session"},
    "gs": {"GOOGLE_APPLICATION_CREDENTIALS_JSON": service_account_key()},
    "az": {"AZURE_STORAGE_ACCOUNT_NAME": "tenant", "AZURE_STORAGE_SAS_TOKEN": "sv=2023-11-03&sig=signature"},
}
STORES: list[tuple[str, Driver]] = [("s3", "native"), ("s3", "fsspec"), ("gs", "native"), ("az", "native")]


@contextlib.contextmanager
def server(status: int, location: str = "") -> Iterator[tuple[str, list[str]]]:
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

    with listening(Handler) as url:
        yield url, seen


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(("scheme", "driver"), STORES, ids=lambda value: value)
def test_no_request_of_any_kind_follows_a_redirect(scheme: str, driver: Driver, status: int) -> None:
    with server(200) as (inner, knocks), server(status, f"{inner}/latest/meta-data?sig=secret") as (outer, asked):
        credentials = Credentials.of(CREDENTIALS[scheme])
        store = open_store(StoreSettings(f"{scheme}://bucket/run", outer, credentials=credentials), driver=driver)
        for name, request in (REQUESTS | (OF_UNFINISHED_UPLOADS if scheme == "s3" else {})).items():
            asked.clear()
            with pytest.raises((RequestRefusedError, DeletionRefusedError, UnknownOutcomeError)) as raised:
                request(store)
            assert asked, name
            assert knocks == [], name
            for host in (inner, outer):
                assert host.removeprefix("http://") in str(raised.value), name
            assert "which is not followed" in str(raised.value)
            assert "secret" not in str(raised.value)


@pytest.mark.parametrize(("scheme", "driver"), STORES, ids=lambda value: value)
def test_an_answer_that_describes_no_object_is_an_error_in_our_words(scheme: str, driver: Driver) -> None:
    with server(200) as (url, _):
        credentials = Credentials.of(CREDENTIALS[scheme])
        store = open_store(
            StoreSettings(f"{scheme}://bucket/run", url, credentials=credentials), driver=driver, timeouts=HASTY
        )
        with pytest.raises(StoreError, match="Check that the endpoint is that of an object store"):
            store.stat("key")
