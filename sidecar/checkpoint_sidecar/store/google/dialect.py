"""Builds requests to Google Cloud Storage: reads use its XML API, all others its JSON API."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import ObjectInfo
from checkpoint_sidecar.store.google.identity import GoogleIdentity, key_of
from checkpoint_sidecar.store.http.connections import Answer
from checkpoint_sidecar.store.http.dialect import (
    Message,
    Page,
    StreamDialect,
    UnreadableAnswerError,
    escaped,
    in_utc,
    xml_error,
)

_GOOGLE = "https://storage.googleapis.com"
_DATA = {"Content-Type": "application/octet-stream"}


class GoogleDialect(StreamDialect):
    """See ``Dialect``. Google discards unfinished uploads after a week."""

    def __init__(self, settings: StoreSettings, values: Mapping[str, str]) -> None:
        super().__init__(values)
        key = None if settings.credentials.ambient else key_of(values)
        self._identity = GoogleIdentity(key)
        self.base = (settings.endpoint or (key.base_url if key else "") or _GOOGLE).rstrip("/")
        self._bucket = parse_url(settings.url).bucket
        self._objects = f"storage/v1/b/{self._bucket}/o"
        self._uploads = f"upload/storage/v1/b/{self._bucket}/o"

    @property
    def secrets(self) -> Mapping[str, str]:
        return {**self._values, **self._identity.secrets}

    def signed(self, message: Message, url: str) -> tuple[str, Mapping[str, str]]:
        """See ``Dialect``."""
        return url, {**message.headers, **self._identity.headers()}

    def put(self, key: str, body: Sequence[memoryview], crc32c: int, *, create: bool) -> Message:
        """See ``Dialect``."""
        query = {"uploadType": "media", "name": key} | ({"ifGenerationMatch": "0"} if create else {})
        return Message("POST", self._uploads, query, {**_DATA, "X-Goog-Hash": f"crc32c={_encoded(crc32c)}"}, body)

    def check_written(self, answer: Answer, crc32c: int) -> None:
        """See ``Dialect``."""
        if _document(answer).get("crc32c", "") != _encoded(crc32c):
            raise UnreadableAnswerError

    def get(self, key: str, start: int | None = None, length: int = 0) -> Message:
        """See ``Dialect``."""
        path = f"{self._bucket}/{escaped(key)}"
        if start is None:
            return Message("GET", path)
        success = (206,) if start else (206, 200)
        return Message("GET", path, headers={"Range": f"bytes={start}-{start + length - 1}"}, success=success)

    def head(self, key: str) -> Message:
        """See ``Dialect``."""
        return Message("HEAD", f"{self._bucket}/{escaped(key)}")

    def list(self, prefix: str, after: str, token: str) -> Message:
        """See ``Dialect``."""
        query = {"prefix": prefix, "fields": "kind,nextPageToken,items(name,size,updated)", "maxResults": "1000"}
        if after:
            query["startOffset"] = after
        if token:
            query["pageToken"] = token
        return Message("GET", self._objects, query)

    def listed(self, answer: Answer) -> Page:
        """See ``Dialect``."""
        page = _document(answer)
        if page.get("kind") != "storage#objects":
            raise UnreadableAnswerError
        try:
            objects = [
                ObjectInfo(str(item["name"]), int(item["size"]), _time(item["updated"]))
                for item in page.get("items", ())
            ]
            return Page(objects, str(page.get("nextPageToken", "")))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise UnreadableAnswerError from None

    def delete(self, keys: Sequence[str]) -> Message:
        """See ``Dialect``."""
        (key,) = keys
        return Message("DELETE", f"{self._objects}/{escaped(key, safe='')}", success=(200, 204))

    def copy(self, key: str, source: str) -> Message:
        """See ``Dialect``."""
        bucket, _, name = source.partition("/")
        original = f"storage/v1/b/{bucket}/o/{escaped(name, safe='')}"
        return Message("POST", f"{original}/rewriteTo/b/{self._bucket}/o/{escaped(key, safe='')}")

    def copied(self, answer: Answer) -> int | None:
        """See ``Dialect``."""
        result = _document(answer)
        if result.get("done") is not True:
            # Between storage classes or locations, a copy takes several requests; within one, it never does.
            return None
        return _decoded(str(result.get("resource", {}).get("crc32c", "")))

    def failure(self, message: Message, answer: Answer) -> tuple[str, str]:
        """See ``Dialect``."""
        # For an upload that has begun, 404 means that it has ended.
        if message.path in (self._objects, self._uploads) and "upload_id" not in message.query and answer.status == 404:
            return "NoSuchBucket", ""
        try:
            error = _document(answer)["error"]
            return "", str(error["message"])
        except (UnreadableAnswerError, KeyError, TypeError):
            return xml_error(answer.body)

    def begin_stream(self, key: str) -> Message:
        """Begin an upload whose parts arrive in order."""
        return Message("POST", self._uploads, {"uploadType": "resumable", "name": key})

    def stream_id(self, answer: Answer) -> str:
        """Return the id of the upload that was begun. The rest of the URL in the answer is not used."""
        found = parse_qs(urlsplit(answer.headers.get("location", "")).query).get("upload_id", ())
        if len(found) != 1:
            raise UnreadableAnswerError
        return found[0]

    def stream(self, key: str, stream_id: str, body: Sequence[memoryview], start: int, size: int) -> Message:
        """See ``StreamDialect``."""
        end = start + sum(view.nbytes for view in body)
        sent = f"{start}-{end - 1}" if end > start else "*"
        headers = {"Content-Range": f"bytes {sent}/{size}"}
        return Message("PUT", self._uploads, _stream(key, stream_id), headers, body, (200, 201, 308))

    def streamed(self, answer: Answer, size: int) -> int:
        """Return how many bytes are stored."""
        if answer.status != 308:
            return size
        stored = answer.headers.get("range", "")
        if not stored:
            return 0
        _, _, last = stored.partition("-")
        if not last.isdigit():
            raise UnreadableAnswerError
        return int(last) + 1

    def abort_stream(self, key: str, stream_id: str) -> Message:
        """See ``Dialect``."""
        return Message("DELETE", self._uploads, _stream(key, stream_id), success=(200, 204, 499))


def _stream(key: str, stream_id: str) -> dict[str, str]:
    return {"uploadType": "resumable", "name": key, "upload_id": stream_id}


def _document(answer: Answer) -> dict[str, Any]:
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        raise UnreadableAnswerError from None
    if not isinstance(found, dict):
        raise UnreadableAnswerError
    return found


def _decoded(checksum: str) -> int | None:
    try:
        return int.from_bytes(base64.b64decode(checksum, validate=True), "big") if checksum else None
    except ValueError:
        raise UnreadableAnswerError from None


def _encoded(crc32c: int) -> str:
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode()


def _time(text: str) -> dt.datetime:
    # Headers have whole seconds, and an object must have one time only.
    return in_utc(dt.datetime.fromisoformat(text)).replace(microsecond=0)
