"""Signs and sends requests for one bucket and identity, and checks the answers, for every cloud."""

from __future__ import annotations

import functools
import http.client
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from checkpoint_sidecar.core.errors import CutOffError, RequestRefusedError, StoreError
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.common.calls import ClientFault, Timeouts
from checkpoint_sidecar.store.common.shared import SharedClients
from checkpoint_sidecar.store.http.answers import explain_answer
from checkpoint_sidecar.store.http.certificates import trust
from checkpoint_sidecar.store.http.connections import (
    FAILURES,
    MOST_ANSWER_BYTES,
    Answer,
    Cancellation,
    CancelledRequestError,
    Connections,
    HttpRequest,
    NoConnectionError,
)
from checkpoint_sidecar.store.http.dialect import (
    AnswerError,
    Dialect,
    Message,
    UnreadableAnswerError,
    explanation_of,
    url_of,
)


class WrongRangeError(Exception):
    """Raised if an answer has another part of the object than the requested one, which the message names."""


ERRORS = (*FAILURES, AnswerError, UnreadableAnswerError, CancelledRequestError, WrongRangeError)
"""Exceptions of ``HttpClient.send``, for ``explain``."""

_NOT_IMPLEMENTED = frozenset({"NotImplemented"})


class HttpClient:
    """Sends requests for one bucket. Safe from several threads, not across fork."""

    def __init__(self, settings: StoreSettings, timeouts: Timeouts, values: Mapping[str, str]) -> None:
        self.dialect = _dialect(settings, values)
        self._checksums = True
        self._connections = Connections(
            lambda: trust(self.dialect.ca_file, settings.url), silence_seconds=timeouts.answer_seconds
        )

    @property
    def checksums(self) -> bool:
        """Whether the server implements checksum headers, as far as known."""
        return self._checksums

    def reconnect(self) -> None:
        """Use new connections from now on."""
        self._connections.renew()

    def send(
        self,
        message: Message,
        answer_seconds: float,
        *,
        into: Sequence[memoryview] = (),
        limit: int = MOST_ANSWER_BYTES,
        cancellation: Cancellation | None = None,
    ) -> Answer:
        """Send a request once. Checksum headers are left out where the server does not implement them.

        Args:
            into: Receives the body of a success of exactly this length.
            limit: See ``Connections.exchange``.

        Raises:
            AnswerError: The server refused the request or redirected it.
            OSError, HTTPException: See ``Connections.exchange``.
        """
        if not self._checksums:
            message = replace(message, checksum_headers={})
        try:
            return self._send(message, answer_seconds, into, limit, cancellation)
        except AnswerError as error:
            if not message.checksum_headers or error.code not in _NOT_IMPLEMENTED:
                raise
        # The server refused a header and did nothing.
        self._checksums = False
        return self._send(replace(message, checksum_headers={}), answer_seconds, into, limit, cancellation)

    def _send(
        self,
        message: Message,
        answer_seconds: float,
        into: Sequence[memoryview],
        limit: int,
        cancellation: Cancellation | None,
    ) -> Answer:
        url, headers = self.dialect.signed(message, url_of(self.dialect.base, message))
        request = HttpRequest(message.method, url, answer_seconds, headers, message.body)
        answer = self._connections.exchange(
            request, into=into, fill_on=message.success if into else (), limit=limit, cancellation=cancellation
        )
        # Google's 308 means that it expects more bytes, unless it has a location.
        if answer.status in message.success and (answer.status < 300 or "location" not in answer.headers):
            return answer
        code, explanation = self.dialect.failure(message, answer)
        raise AnswerError(
            answer.status,
            code,
            explanation_of(explanation, self.dialect.secrets),
            location=answer.headers.get("location", ""),
            asked=urlsplit(url).netloc,
            proxy=answer.proxy,
        )


def _dialect(settings: StoreSettings, values: Mapping[str, str]) -> Dialect:
    # Imported here: importing botocore takes longer than most commands run.
    match parse_url(settings.url).scheme:
        case "s3":
            from checkpoint_sidecar.store.s3.dialect import S3Dialect

            return S3Dialect(settings, values)
        case "gs":
            from checkpoint_sidecar.store.google.dialect import GoogleDialect

            return GoogleDialect(settings, values)
        case scheme:
            from checkpoint_sidecar.store.azure.dialect import AzureDialect

            assert scheme == "az", scheme
            return AzureDialect(settings, values)


CLIENTS: SharedClients[HttpClient] = SharedClients(HttpClient)


def connecting(settings: StoreSettings, timeouts: Timeouts) -> Callable[[Mapping[str, str]], HttpClient]:
    """Return a function that gets the shared client of a bucket for given credentials."""
    return functools.partial(CLIENTS.get, settings, timeouts)


CHECK_CONNECTION = "Check endpoint, proxy, DNS and certificates."
_NO_STORE = "Check that the endpoint is that of an object store."

SILENT = ClientFault(StoreError, "the store did not answer in time", sent=True)


def explain(error: Exception) -> ClientFault:
    """Return the meaning of one of ``ERRORS``."""
    match error:
        case AnswerError() if 300 <= error.status < 400:
            return _redirect(error)
        case AnswerError():
            return explain_answer(error.status, error.code, error.explanation, proxy=error.proxy)
        case UnreadableAnswerError(cause=cause) if cause:
            return ClientFault(RequestRefusedError, cause, _NO_STORE, sent=True)
        case UnreadableAnswerError():
            return ClientFault(StoreError, "the store's answer cannot be read", _NO_STORE, sent=True)
        case WrongRangeError():
            return ClientFault(
                CutOffError, f"the store did not answer with {error}, but with another part of the object", sent=True
            )
        case CancelledRequestError():
            return ClientFault(RequestRefusedError, "the upload was aborted")
        case NoConnectionError():
            return ClientFault(StoreError, f"no connection to {error}", CHECK_CONNECTION)
        case TimeoutError():
            return SILENT
        case http.client.IncompleteRead():
            return ClientFault(CutOffError, "the store broke off in the middle of its answer", sent=True)
        case _:
            return ClientFault(StoreError, f"the connection broke off ({type(error).__name__})", sent=True)


def _redirect(error: AnswerError) -> ClientFault:
    led = urlsplit(error.location)
    # Only the host: path and query may contain a signature.
    host = led.netloc.rpartition("@")[2] if led.scheme in ("http", "https") else ""
    to = explanation_of(host, {}) or "another place"
    why = ": ".join(filter(None, (error.code or str(error.status), error.explanation)))
    return ClientFault(
        RequestRefusedError,
        f"{error.asked} redirects to {to}, which is not followed ({why})",
        "Check that the endpoint is that of an object store, and set the region of the bucket.",
    )
