"""Large objects in S3, for every adapter: parts and ranges between the caller's memory and a socket.

Requests without a body of ours go through botocore; those with one are signed by it and sent by ``http_connections``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from checkpoint_sidecar.core.errors import (
    CheckpointError,
    ObjectNotFoundError,
    RequestRefusedError,
    StoreError,
    TruncatedObjectError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.answers import explain_answer
from checkpoint_sidecar.store.base import UnfinishedUpload
from checkpoint_sidecar.store.calls import Calls, Fault, Patience
from checkpoint_sidecar.store.http_connections import (
    FAILURES,
    Answer,
    Cancellation,
    CancelledRequestError,
    Connections,
    NoConnectionError,
    Request,
)
from checkpoint_sidecar.store.pace import Pacer
from checkpoint_sidecar.store.parts import PartedUpload
from checkpoint_sidecar.store.s3_faults import BOTO_ERRORS, NO_CONNECTION, SILENT, explain_boto
from checkpoint_sidecar.store.s3_signing import S3Identity
from checkpoint_sidecar.store.settings import StoreSettings
from checkpoint_sidecar.store.shared import SharedClients

_CODE = re.compile(rb"<Code>(\w+)</Code>")
_OVERLOADED = frozenset({429, 503})


class _AnswerError(Exception):
    """The store answered, and not with what was asked for."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.status = answer.status
        self.code = match[1].decode() if (match := _CODE.search(answer.body)) else ""


class S3Bodies:
    """The large objects of one store.

    Args:
        settings: Where and who; the URL's scheme is ``s3``.
        patience: Counted, for parts and ranges, from the last one that succeeded: a store that has too much to do is
            given as much time as it needs, as long as it does something.
    """

    def __init__(self, settings: StoreSettings, patience: Patience) -> None:
        self._settings = settings
        self._patience = patience
        self._location = parse_url(settings.url)
        self._prefix = self._location.prefix
        self._pacer = Pacer(_is_overload)
        self._calls: Calls[_Clients] = Calls(
            settings,
            connect=functools.partial(_CLIENTS.get, settings, patience),
            errors=(*BOTO_ERRORS, *FAILURES, _AnswerError, CancelledRequestError),
            explain=_explain,
            patience=patience,
            last_success=lambda: self._pacer.last_success,
        )

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        """See ``Store``."""
        views = [view for buffer in buffers if (view := buffer.cast("B"))]
        length = sum(view.nbytes for view in views)
        if not length:
            return

        def request(clients: _Clients) -> Answer:
            return self._exchange(
                clients,
                Request(
                    "GET",
                    clients.identity.presigned("get_object", self._object(key)),
                    self._patience.answer_seconds,
                    {"Range": f"bytes={start}-{start + length - 1}"},
                ),
                into=views,
                # A server that ignores the range answers 200.
                fill_on=(206,) if start else (206, 200),
            )

        if not self._calls.run("read a range of", key, request).filled:
            raise TruncatedObjectError(
                "read a range of",
                f"{self._settings.url}/{key}",
                f"of {length} bytes at offset {start} not all exist",
            )

    def upload(self, key: str, size: int) -> S3Upload:
        """See ``Store``."""
        return S3Upload(self, key, size)

    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """See ``KeepsUnfinished``."""
        query = {"Bucket": self._location.bucket, "Prefix": self._prefix + prefix}
        while True:
            page: dict[str, Any] = self._calls.run(
                "list the unfinished uploads of", prefix, lambda c: c.requests.list_multipart_uploads(**query)
            )
            for item in page.get("Uploads", ()):
                key = item["Key"].removeprefix(self._prefix)
                yield UnfinishedUpload(key, item["UploadId"], item["Initiated"].astimezone(dt.UTC))
            if not page.get("IsTruncated"):
                return
            query.update(KeyMarker=page["NextKeyMarker"], UploadIdMarker=page["NextUploadIdMarker"])

    def discard(self, upload: UnfinishedUpload) -> None:
        """See ``KeepsUnfinished``."""
        with contextlib.suppress(ObjectNotFoundError):
            self._calls.run(
                "discard the unfinished upload of",
                upload.key,
                lambda c: c.requests.abort_multipart_upload(**self._object(upload.key), UploadId=upload.upload_id),
            )

    def _size_of(self, key: str) -> int | None:
        try:
            found = self._calls.run("look up", key, lambda c: c.requests.head_object(**self._object(key)))
        except ObjectNotFoundError:
            return None
        return int(found["ContentLength"])

    def _send(
        self,
        operation: str,
        key: str,
        method: str,
        parameters: Mapping[str, Any],
        views: Sequence[memoryview],
        cancellation: Cancellation,
    ) -> Answer:
        """A PUT, which may be repeated."""

        def request(clients: _Clients) -> Answer:
            url = clients.identity.presigned(method, {**self._object(key), **parameters})
            put = Request("PUT", url, self._patience.body_seconds, body=views)
            return self._exchange(clients, put, cancellation=cancellation)

        return self._calls.write(operation, key, request, cancelled=cancellation.cancelled)

    def _exchange(
        self,
        clients: _Clients,
        request: Request,
        *,
        into: Sequence[memoryview] = (),
        fill_on: tuple[int, ...] = (),
        cancellation: Cancellation | None = None,
    ) -> Answer:
        cancellation = cancellation or Cancellation()
        with self._pacer.permit(cancellation.cancelled.is_set):
            answer = clients.connections.exchange(request, into=into, fill_on=fill_on, cancellation=cancellation)
            if answer.status not in (fill_on or (200,)):
                raise _AnswerError(answer)
            return answer

    def _object(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._location.bucket, "Key": self._prefix + key}


class S3Upload(PartedUpload):
    """A multipart upload; an object of one part is written in one request."""

    def __init__(self, bodies: S3Bodies, key: str, size: int) -> None:
        super().__init__(f"{bodies._settings.url}/{key}", size)
        self._bodies = bodies
        self._calls = bodies._calls
        self._key = key
        self._object = bodies._object(key)
        self._only_part: Sequence[memoryview] = ()
        self._beginning = threading.Lock()
        self._upload_id = ""
        self._etags: dict[int, str] = {}
        self._cancellation = Cancellation()

    def _write(self, index: int, views: Sequence[memoryview]) -> None:
        if self._parts == 1:
            self._only_part = views
            return
        with self._beginning:
            if not self._upload_id:
                self._upload_id = self._begin()
        parameters = {"UploadId": self._upload_id, "PartNumber": index + 1}
        operation = f"upload part {index + 1} of"
        try:
            answer = self._bodies._send(operation, self._key, "upload_part", parameters, views, self._cancellation)
        except StoreError:
            if self._cancellation.cancelled.is_set():
                raise self._aborted() from None
            raise
        self._etags[index] = answer.headers["etag"]

    def _begin(self) -> str:
        started = self._calls.write(
            "start the upload of",
            self._key,
            lambda c: c.requests.create_multipart_upload(**self._object),
            cancelled=self._cancellation.cancelled,
        )
        return str(started["UploadId"])

    def _publish(self) -> None:
        if not self._upload_id:
            self._bodies._send("write", self._key, "put_object", {}, self._only_part, self._cancellation)
            return
        parts = [{"PartNumber": index + 1, "ETag": self._etags[index]} for index in range(self._parts)]
        try:
            self._calls.write(
                "complete the upload of",
                self._key,
                lambda c: c.patient.complete_multipart_upload(
                    **self._object, UploadId=self._upload_id, MultipartUpload={"Parts": parts}
                ),
            )
        except (ObjectNotFoundError, UnknownOutcomeError):
            # Perhaps there is no such upload any more because an earlier try, whose reply was lost, completed it.
            if self._bodies._size_of(self._key) != self._size:
                raise

    def _interrupt(self) -> None:
        self._cancellation.cancel()

    def _discard(self) -> None:
        if self._upload_id:
            # Best effort: buckets should expire incomplete uploads anyway, for writers that were killed.
            with contextlib.suppress(CheckpointError):
                self._calls.write(
                    "abort the upload of",
                    self._key,
                    lambda c: c.requests.abort_multipart_upload(**self._object, UploadId=self._upload_id),
                )


class _Clients:
    """What one identity sends through.

    Attributes:
        requests: For requests that are answered soon.
    """

    def __init__(self, settings: StoreSettings, patience: Patience, values: Mapping[str, str]) -> None:
        self.identity = S3Identity(settings, values)
        self.connections = Connections(self.identity.trust, silence_seconds=patience.answer_seconds)
        self.requests = self.identity.client(answer_seconds=patience.answer_seconds)
        self._patience = patience

    @functools.cached_property
    def patient(self) -> Any:
        """Servers may take long to put the parts of an object together."""
        return self.identity.client(answer_seconds=self._patience.body_seconds)


_CLIENTS = SharedClients(_Clients)


def _is_overload(error: BaseException) -> bool:
    """A store that falls silent has too much to do as well, or its link has."""
    return isinstance(error, TimeoutError) or (isinstance(error, _AnswerError) and error.status in _OVERLOADED)


def _explain(error: Exception) -> Fault:
    match error:
        case _AnswerError():
            return explain_answer(error.status, error.code)
        case CancelledRequestError():
            return Fault(RequestRefusedError, "the upload was aborted")
        case NoConnectionError():
            return NO_CONNECTION
        case TimeoutError():
            return SILENT
        case _:
            return explain_boto(error)
