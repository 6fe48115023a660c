"""Transfers large objects over HTTP for every cloud: parts and ranges between the caller's memory and a socket."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from checkpoint_sidecar.core.errors import (
    ObjectNotFoundError,
)
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import UnfinishedUpload
from checkpoint_sidecar.store.common.calls import Calls, Timeouts
from checkpoint_sidecar.store.common.ranges import truncated
from checkpoint_sidecar.store.common.rate_limit import AimdLimiter
from checkpoint_sidecar.store.http.client import ERRORS, HttpClient, WrongRangeError, connecting, explain
from checkpoint_sidecar.store.http.compose import ComposedUpload
from checkpoint_sidecar.store.http.connections import Answer, Cancellation
from checkpoint_sidecar.store.http.dialect import (
    MOST_PAGE_BYTES,
    AnswerError,
    Message,
    PartsDialect,
    UploadPage,
    described_by_headers,
)
from checkpoint_sidecar.store.http.upload import HttpUpload, PartsUpload, StreamedUpload

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/.*")
_OVERLOADED = frozenset({429, 503})


class HttpBodies:
    """The large objects of one store.

    Args:
        settings: Location and credentials.
        timeouts: Timeouts. For parts and ranges they count from the last success, so an overloaded store gets as much
            time as it needs while it makes progress.
    """

    def __init__(
        self, settings: StoreSettings, timeouts: Timeouts, on_page: Callable[[int], None] = lambda _: None
    ) -> None:
        self._on_page = on_page
        self.url = parse_url(settings.url).url
        self.prefix = parse_url(settings.url).prefix
        self.bucket = parse_url(settings.url).bucket
        self._streams = parse_url(settings.url).scheme == "gs"
        self.timeouts = timeouts
        self._rate_limiter = AimdLimiter(_is_overload)
        self.calls: Calls[HttpClient] = Calls(
            settings,
            connect=connecting(settings, timeouts),
            errors=ERRORS,
            explain=explain,
            timeouts=timeouts,
            last_success=lambda: self._rate_limiter.last_success,
        )

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        """See ``Store``."""
        views = [view for buffer in buffers if (view := buffer.cast("B"))]
        length = sum(view.nbytes for view in views)
        if not length:
            return

        def request(client: HttpClient) -> Answer:
            message = client.dialect.get(self.prefix + key, start, length)
            with self._rate_limiter.permit(lambda: False):
                answer = client.send(message, self.timeouts.answer_seconds, into=views)
                _check_range(answer, start, length)
                return answer

        if not self.calls.run("read a range of", key, request).filled:
            raise truncated(length, start, f"{self.url}/{key}")

    def reconnect(self) -> None:
        """See ``Reconnects``."""
        self.calls.with_client(HttpClient.reconnect)

    def upload(self, key: str, size: int) -> HttpUpload:
        """See ``Store``."""
        return StreamedUpload(self, key, size) if self._streams else PartsUpload(self, key, size)

    def compose(self, key: str, source: HttpBodies, part_sizes: Sequence[int]) -> ComposedUpload:
        """See ``ComposesObjects``."""
        return ComposedUpload(self, key, source, part_sizes)

    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """See ``KeepsUnfinished``."""
        query: dict[str, str] = {}
        while True:
            page = self.calls.run(
                "list the unfinished uploads of", prefix, functools.partial(self._page_of_uploads, prefix, query)
            )
            if page is None:
                return
            self._on_page(len(page.uploads))
            for upload in page.uploads:
                yield replace(upload, key=upload.key.removeprefix(self.prefix))
            if not page.query or page.query == query:
                return
            query = dict(page.query)

    def discard(self, upload: UnfinishedUpload) -> None:
        """See ``KeepsUnfinished``."""

        def request(client: HttpClient) -> None:
            if isinstance(client.dialect, PartsDialect):
                message = client.dialect.abort_upload(self.prefix + upload.key, upload.upload_id)
                if message is not None:
                    client.send(message, self.timeouts.answer_seconds)

        with contextlib.suppress(ObjectNotFoundError):
            self.calls.run("discard the unfinished upload of", upload.key, request)

    def size_of(self, key: str) -> int | None:
        """Return the size of an object in bytes, or None when it does not exist."""

        def request(client: HttpClient) -> int:
            answer = client.send(client.dialect.head(self.prefix + key), self.timeouts.answer_seconds)
            return described_by_headers(answer).size

        try:
            return self.calls.run("look up", key, request)
        except ObjectNotFoundError:
            return None

    def send(self, client: HttpClient, message: Message, cancellation: Cancellation) -> Answer:
        """Send a request with a large body once the rate limit permits it."""
        with self._rate_limiter.permit(cancellation.cancelled.is_set):
            return client.send(message, self.timeouts.body_seconds, cancellation=cancellation)

    def _page_of_uploads(self, prefix: str, query: dict[str, str], client: HttpClient) -> UploadPage | None:
        if not isinstance(client.dialect, PartsDialect):
            return None
        message = client.dialect.unfinished(self.prefix + prefix, query)
        if message is None:
            return None
        return client.dialect.listed_uploads(client.send(message, self.timeouts.answer_seconds, limit=MOST_PAGE_BYTES))


def _check_range(answer: Answer, start: int, length: int) -> None:
    """Raise an error if an answer has other or more bytes than requested. It says nothing about the object.

    Gateways and caches answer so.
    """
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    whole = answer.headers.get("content-length", "") if answer.status == 200 else ""
    if match is not None:
        first, end = int(match[1]), int(match[2]) + 1
    else:
        first, end = 0 if whole else start, int(whole) if whole.isdecimal() else 0
    if first != start or end > start + length:
        raise WrongRangeError(f"bytes {start} to {start + length}")


def _is_overload(error: BaseException) -> bool:
    """Return whether the error means overload. A silent store, or its link, counts as overloaded too."""
    return isinstance(error, TimeoutError) or (isinstance(error, AnswerError) and error.status in _OVERLOADED)
