"""Large objects over HTTP, for every cloud: parts and ranges between the caller's memory and a socket."""

from __future__ import annotations

import contextlib
import functools
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from crc32c import crc32c as checksum_of

from checkpoint_sidecar.core.errors import (
    CheckpointError,
    ObjectNotFoundError,
    StoreError,
    TruncatedObjectError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.base import UnfinishedUpload
from checkpoint_sidecar.store.calls import Calls, Patience
from checkpoint_sidecar.store.dialect import MOST_PAGE_BYTES, AnswerError, Message, StoredPart, UploadPage
from checkpoint_sidecar.store.http_client import ERRORS, HttpClient, connecting, explain
from checkpoint_sidecar.store.http_connections import Answer, Cancellation
from checkpoint_sidecar.store.pace import Pacer
from checkpoint_sidecar.store.parts import PartedUpload
from checkpoint_sidecar.store.settings import StoreSettings

_OVERLOADED = frozenset({429, 503})


class HttpBodies:
    """The large objects of one store.

    Args:
        settings: Where and who.
        patience: Counted, for parts and ranges, from the last one that succeeded: a store that has too much to do is
            given as much time as it needs, as long as it does something.
    """

    def __init__(
        self, settings: StoreSettings, patience: Patience, on_page: Callable[[int], None] = lambda _: None
    ) -> None:
        self._on_page = on_page
        self.url = parse_url(settings.url).url
        self.prefix = parse_url(settings.url).prefix
        self.patience = patience
        self._pacer = Pacer(_is_overload)
        self.calls: Calls[HttpClient] = Calls(
            settings,
            connect=connecting(settings, patience),
            errors=ERRORS,
            explain=explain,
            patience=patience,
            last_success=lambda: self._pacer.last_success,
        )

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        """See ``Store``."""
        views = [view for buffer in buffers if (view := buffer.cast("B"))]
        length = sum(view.nbytes for view in views)
        if not length:
            return

        def request(client: HttpClient) -> Answer:
            message = client.dialect.get(self.prefix + key, start, length)
            with self._pacer.permit(lambda: False):
                return client.send(message, self.patience.answer_seconds, into=views)

        if not self.calls.run("read a range of", key, request).filled:
            raise TruncatedObjectError(
                "read a range of",
                f"{self.url}/{key}",
                f"only part of the {length} bytes at offset {start} exists",
            )

    def reconnect(self) -> None:
        """See ``Reconnects``."""
        self.calls.with_client(HttpClient.reconnect)

    def upload(self, key: str, size: int) -> HttpUpload:
        """See ``Store``."""
        return HttpUpload(self, key, size)

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
            message = client.dialect.abort_upload(self.prefix + upload.key, upload.upload_id)
            if message is not None:
                client.send(message, self.patience.answer_seconds)

        with contextlib.suppress(ObjectNotFoundError):
            self.calls.run("discard the unfinished upload of", upload.key, request)

    def size_of(self, key: str) -> int | None:
        """How many bytes an object has; None where there is none."""

        def request(client: HttpClient) -> int:
            answer = client.send(client.dialect.head(self.prefix + key), self.patience.answer_seconds)
            return client.dialect.described(answer).size

        try:
            return self.calls.run("look up", key, request)
        except ObjectNotFoundError:
            return None

    def send(self, client: HttpClient, message: Message, cancellation: Cancellation) -> Answer:
        """Send a request with a large body, when it is its turn."""
        with self._pacer.permit(cancellation.cancelled.is_set):
            return client.send(message, self.patience.body_seconds, cancellation=cancellation)

    def _page_of_uploads(self, prefix: str, query: dict[str, str], client: HttpClient) -> UploadPage | None:
        message = client.dialect.unfinished(self.prefix + prefix, query)
        if message is None:
            return None
        return client.dialect.listed_uploads(client.send(message, self.patience.answer_seconds, limit=MOST_PAGE_BYTES))


class HttpUpload(PartedUpload):
    """An object in parts; one of a single part is written in one request."""

    def __init__(self, bodies: HttpBodies, key: str, size: int) -> None:
        super().__init__(f"{bodies.url}/{key}", size)
        self._bodies = bodies
        self._calls = bodies.calls
        self._key = key
        self._path = bodies.prefix + key
        self._only_part: tuple[Sequence[memoryview], int] = (), 0
        self._beginning = threading.Lock()
        self._upload_id = ""
        self._checksums: dict[int, int] = {}
        self._stored: dict[int, StoredPart] = {}
        self._cancellation = Cancellation()

    def expect(self, index: int, crc32c: int) -> None:
        """See ``VerifiesParts``."""
        self._checksums[index] = crc32c

    def _write(self, index: int, views: Sequence[memoryview]) -> None:
        checksum = self._checksums.pop(index, None)
        if checksum is None:
            checksum = _checksum(views)
        if self._parts == 1:
            self._only_part = views, checksum
            return
        with self._beginning:
            if not self._upload_id:
                self._upload_id = self._begin()

        def request(client: HttpClient) -> StoredPart:
            message = client.dialect.part(self._path, self._upload_id, index, views, checksum)
            answer = self._bodies.send(client, message, self._cancellation)
            return StoredPart(client.dialect.tag(answer), checksum if client.checksums else None)

        try:
            self._stored[index] = self._calls.write(
                f"upload part {index + 1} of", self._key, request, cancelled=self._cancellation.cancelled
            )
        except StoreError:
            if self._cancellation.cancelled.is_set():
                raise self._aborted() from None
            raise

    def _begin(self) -> str:
        def request(client: HttpClient) -> str:
            message = client.dialect.begin_upload(self._path)
            if message is None:
                return secrets.token_hex(16)
            return client.dialect.upload_id(client.send(message, self._bodies.patience.answer_seconds))

        return self._calls.write("start the upload of", self._key, request, cancelled=self._cancellation.cancelled)

    def _publish(self) -> None:
        if not self._upload_id:
            views, checksum = self._only_part

            def put(client: HttpClient) -> object:
                message = client.dialect.put(self._path, views, checksum, create=False)
                return self._bodies.send(client, message, self._cancellation)

            self._calls.write("write", self._key, put, cancelled=self._cancellation.cancelled)
            return
        parts = [self._stored[index] for index in range(self._parts)]

        def complete(client: HttpClient) -> None:
            message = client.dialect.complete_upload(self._path, self._upload_id, parts)
            # Servers may take long to put the parts of an object together.
            client.dialect.check_completed(client.send(message, self._bodies.patience.body_seconds))

        try:
            self._calls.write("complete the upload of", self._key, complete)
        except (ObjectNotFoundError, UnknownOutcomeError):
            # Perhaps there is no such upload any more because an earlier try, whose reply was lost, completed it.
            if self._bodies.size_of(self._key) != self._size:
                raise

    def _interrupt(self) -> None:
        self._cancellation.cancel()

    def _discard(self) -> None:
        if not self._upload_id:
            return

        def request(client: HttpClient) -> None:
            message = client.dialect.abort_upload(self._path, self._upload_id)
            if message is not None:
                client.send(message, self._bodies.patience.answer_seconds)

        # Best effort: buckets should expire incomplete uploads anyway, for writers that were killed.
        with contextlib.suppress(CheckpointError):
            self._calls.write("abort the upload of", self._key, request)


def _checksum(views: Sequence[memoryview]) -> int:
    checksum = 0
    for view in views:
        checksum = checksum_of(view, checksum)
    return checksum


def _is_overload(error: BaseException) -> bool:
    """A store that falls silent has too much to do as well, or its link has."""
    return isinstance(error, TimeoutError) or (isinstance(error, AnswerError) and error.status in _OVERLOADED)
