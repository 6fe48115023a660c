"""Writes large objects over HTTP: parts in any order if the store supports that, else one after the other."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from crc32c import crc32c as checksum_of

from checkpoint_sidecar.core.errors import CheckpointError, ObjectNotFoundError, StoreError, UnknownOutcomeError
from checkpoint_sidecar.store.common.parts import PartedUpload, wide_part_bytes_for
from checkpoint_sidecar.store.http.client import HttpClient
from checkpoint_sidecar.store.http.connections import Cancellation
from checkpoint_sidecar.store.http.dialect import PartsDialect, StoredPart, StreamDialect, UnreadableAnswerError

if TYPE_CHECKING:
    from checkpoint_sidecar.store.http.bodies import HttpBodies


class HttpUpload(PartedUpload):
    """An object of several parts, or of one part, which is written in a single request."""

    def __init__(self, bodies: HttpBodies, key: str, size: int) -> None:
        super().__init__(f"{bodies.url}/{key}", size)
        self._bodies = bodies
        self._calls = bodies.calls
        self._key = key
        self._path = bodies.prefix + key
        self._only_part: Sequence[memoryview] = ()
        self._checksums: dict[int, int] = {}
        self._beginning = threading.Lock()
        self._upload_id = ""
        self._cancellation = Cancellation()

    def expect(self, index: int, crc32c: int) -> None:
        """See ``VerifiesParts``."""
        self._checksums[index] = crc32c

    def _write(self, index: int, views: Sequence[memoryview]) -> None:
        if self._parts == 1:
            self._only_part = views
            return
        self._begun()
        try:
            self._write_part(index, views)
        except StoreError:
            if self._cancellation.cancelled.is_set():
                raise self._aborted() from None
            raise

    def _begun(self) -> None:
        with self._beginning:
            if not self._upload_id:
                self._upload_id = self._calls.write(
                    "start the upload of", self._key, self._begin, cancelled=self._cancellation.cancelled
                )

    def _publish(self) -> None:
        if not self._upload_id:
            self._calls.write("write", self._key, self._put, cancelled=self._cancellation.cancelled)
            return
        try:
            self._complete()
        except (ObjectNotFoundError, UnknownOutcomeError):
            # An earlier attempt whose reply was lost may have completed the upload.
            if self._bodies.size_of(self._key) != self._size:
                raise

    def _interrupt(self) -> None:
        self._cancellation.cancel()
        with self._changed:
            self._changed.notify_all()

    def _discard(self) -> None:
        if self._upload_id:
            # Best effort: buckets should expire incomplete uploads anyway, for writers that were killed.
            with contextlib.suppress(CheckpointError):
                self._calls.write("abort the upload of", self._key, self._abort)

    def _put(self, client: HttpClient) -> None:
        views = self._only_part
        checksum = self._checksum(0, views)
        message = client.dialect.put(self._path, views, checksum, create=False)
        client.dialect.check_written(self._bodies.send(client, message, self._cancellation), checksum)

    def _checksum(self, index: int, views: Sequence[memoryview]) -> int:
        if index not in self._checksums:
            self._checksums[index] = _crc32c(views, 0)
        return self._checksums[index]

    def _begin(self, client: HttpClient) -> str:
        raise NotImplementedError

    def _write_part(self, index: int, views: Sequence[memoryview]) -> None:
        raise NotImplementedError

    def _complete(self) -> None:
        raise NotImplementedError

    def _abort(self, client: HttpClient) -> None:
        raise NotImplementedError


class PartsUpload(HttpUpload):
    """Writes several parts at a time."""

    def __init__(self, bodies: HttpBodies, key: str, size: int) -> None:
        super().__init__(bodies, key, size)
        self._stored: dict[int, StoredPart] = {}

    def widen_parts(self) -> None:
        """See ``WidensParts``."""
        self._cut_into(wide_part_bytes_for(self._size))

    def _begin(self, client: HttpClient) -> str:
        dialect = _parts(client)
        message = dialect.begin_upload(self._path)
        if message is None:
            return secrets.token_hex(16)
        return dialect.upload_id(client.send(message, self._bodies.timeouts.answer_seconds))

    def _write_part(self, index: int, views: Sequence[memoryview]) -> None:
        checksum = self._checksum(index, views)

        def request(client: HttpClient) -> StoredPart:
            dialect = _parts(client)
            message = dialect.part(self._path, self._upload_id, index, views, checksum)
            answer = self._bodies.send(client, message, self._cancellation)
            return StoredPart(dialect.tag(answer), checksum if client.checksums else None)

        self._stored[index] = self._calls.write(
            f"upload part {index + 1} of", self._key, request, cancelled=self._cancellation.cancelled
        )

    def _complete(self) -> None:
        parts = [self._stored[index] for index in range(self._parts)]

        def request(client: HttpClient) -> None:
            dialect = _parts(client)
            message = dialect.complete_upload(self._path, self._upload_id, parts)
            # Servers may take long to assemble the parts of an object.
            dialect.check_completed(client.send(message, self._bodies.timeouts.body_seconds))

        self._calls.write("complete the upload of", self._key, request)

    def _abort(self, client: HttpClient) -> None:
        message = _parts(client).abort_upload(self._path, self._upload_id)
        if message is not None:
            client.send(message, self._bodies.timeouts.answer_seconds)


class StreamedUpload(HttpUpload):
    """Writes one part at a time, in order. ``complete`` sends the last one, which publishes the object."""

    def __init__(self, bodies: HttpBodies, key: str, size: int) -> None:
        super().__init__(bodies, key, size)
        self._next = 0
        self._last_part: Sequence[memoryview] = ()
        self._sum = 0

    def _begin(self, client: HttpClient) -> str:
        dialect = _stream(client)
        return dialect.stream_id(client.send(dialect.begin_stream(self._path), self._bodies.timeouts.answer_seconds))

    def _write_part(self, index: int, views: Sequence[memoryview]) -> None:
        if index == self._parts - 1:
            self._last_part = views
            return
        with self._changed:
            self._changed.wait_for(lambda: index == self._next or not self._open)
            if not self._open:
                raise self._aborted()
        self._stream(index, views)
        with self._changed:
            self._next += 1
            self._changed.notify_all()

    def _complete(self) -> None:
        self._stream(self._parts - 1, self._last_part)

    def _stream(self, index: int, views: Sequence[memoryview]) -> None:
        start = index * self._part_bytes
        end = start + sum(view.nbytes for view in views)
        checksum = _crc32c(views, self._sum)
        stored: int | None = start

        def request(client: HttpClient) -> None:
            nonlocal stored
            dialect = _stream(client)
            while True:
                # After a failure, ask first how many bytes were stored.
                body = [] if stored is None else _after(views, stored - start)
                message = dialect.stream(self._path, self._upload_id, body, stored or 0, self._size)
                stored = None
                answer = self._bodies.send(client, message, self._cancellation)
                stored = dialect.streamed(answer, self._size)
                if not start <= stored <= end:
                    raise UnreadableAnswerError("the store has lost a part of the upload, or has more than was sent")
                if stored == end:
                    if end == self._size:
                        dialect.check_written(answer, checksum)
                    return

        operation = f"upload part {index + 1} of"
        self._calls.write(operation, self._key, request, cancelled=self._cancellation.cancelled)
        self._sum = checksum

    def _abort(self, client: HttpClient) -> None:
        client.send(_stream(client).abort_stream(self._path, self._upload_id), self._bodies.timeouts.answer_seconds)


def _parts(client: HttpClient) -> PartsDialect:
    assert isinstance(client.dialect, PartsDialect)
    return client.dialect


def _stream(client: HttpClient) -> StreamDialect:
    assert isinstance(client.dialect, StreamDialect)
    return client.dialect


def _crc32c(views: Sequence[memoryview], checksum: int) -> int:
    for view in views:
        checksum = checksum_of(view, checksum)
    return checksum


def _after(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return the views without their first bytes."""
    rest = []
    for view in views:
        if count < view.nbytes:
            rest.append(view[count:])
        count = max(0, count - view.nbytes)
    return rest
