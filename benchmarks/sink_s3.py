"""What the sink stores, and its answers: the S3 requests that clients make for checkpoints.

Every bucket exists. Signatures are not checked. Of large bodies in the bucket ``DROPPING`` only the size is known.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from io import FileIO
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from crc32c import crc32c

DROPPING = "dropping"
"""The bucket that keeps no large body."""

KEEPING = "keeping"
"""A bucket like every other one: it keeps everything, in memory."""

SMALL_BYTES = 8 * 1024 * 1024
"""Logs, manifests and metadata are smaller, and are read back."""

SMALL_PART_BYTES = 1024 * 1024
"""The same for the parts of an upload: some clients upload everything in parts, of 8 MiB."""

_SOURCE = "x-amz-copy-source"
_LISTED = (
    "<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{modified:%Y-%m-%dT%H:%M:%S.000Z}</LastModified>"
    '<ETag>"0"</ETag></Contents>'
)


@dataclass(frozen=True)
class Request:
    """The head of a request; the path is bucket and key."""

    method: str
    bucket: str
    key: str
    query: Mapping[str, Sequence[str]]
    headers: Mapping[str, str]

    @classmethod
    def parse(cls, head: str) -> Request:
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        parts = urlsplit(target)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        return cls(method, bucket, key, parse_qs(parts.query, keep_blank_values=True), headers)

    @property
    def body_bytes(self) -> int:
        return int(self.headers.get("content-length", "0"))

    @property
    def keeps(self) -> bool:
        limit = SMALL_PART_BYTES if "uploadId" in self.query else SMALL_BYTES
        return self.bucket != DROPPING or self.body_bytes <= limit


@dataclass(frozen=True)
class Body:
    """Some bytes: a file in memory, freed with its last reference, or only their number."""

    size: int
    file: FileIO | None


@dataclass(frozen=True)
class Stored:
    """An object."""

    bodies: tuple[Body, ...]
    modified: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def size(self) -> int:
        return sum(body.size for body in self.bodies)


@dataclass(frozen=True)
class Answer:
    """Attributes:
    text: All of the body, unless it is ``slices``.
    slices: Bodies, each with the first byte and the byte after the last.
    size: Of the body that a GET would have, in the answer to a HEAD.
    """

    status: int = 200
    text: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    slices: tuple[tuple[Body, int, int], ...] = ()
    size: int | None = None

    @property
    def body_bytes(self) -> int:
        if self.size is not None:
            return self.size
        return len(self.text) + sum(stop - start for _, start, stop in self.slices)


Verb = Callable[[Request, Body], Answer]


class Objects:
    """All buckets. Thread-safe."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str], Stored] = {}
        self._uploads: dict[str, dict[int, Body]] = {}
        self._numbers: Iterator[int] = itertools.count(1)
        self._lock = threading.Lock()

    def answer(self, request: Request, body: Body) -> Answer:
        for method, applies, verb in self._verbs():
            if method == request.method and applies(request):
                with self._lock:
                    return verb(request, body)
        return Answer(501, xml("Error", "<Code>NotImplemented</Code>"))

    def _verbs(self) -> tuple[tuple[str, Callable[[Request], bool], Verb], ...]:
        """The first that applies answers."""
        return (
            ("POST", lambda request: "uploads" in request.query, self._begin),
            ("POST", lambda request: "uploadId" in request.query, self._complete),
            ("POST", lambda request: "delete" in request.query, self._delete_listed),
            ("PUT", lambda request: "uploadId" in request.query and _SOURCE in request.headers, self._copy_part),
            ("PUT", lambda request: "uploadId" in request.query, self._add_part),
            ("PUT", lambda request: _SOURCE in request.headers, self._copy),
            ("PUT", lambda request: bool(request.key), self._put),
            ("DELETE", lambda request: "uploadId" in request.query, self._abort),
            ("DELETE", lambda request: bool(request.key), self._delete),
            ("GET", lambda request: bool(request.key), self._get),
            ("HEAD", lambda request: bool(request.key), self._get),
            ("GET", lambda request: not request.key, self._list),
            ("HEAD", lambda request: not request.key, lambda *_: Answer()),
        )

    def _begin(self, *_: Any) -> Answer:
        upload = str(next(self._numbers))
        self._uploads[upload] = {}
        return Answer(text=xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>"))

    def _add_part(self, request: Request, body: Body) -> Answer:
        parts = self._uploads.get(request.query["uploadId"][0])
        if parts is None:
            return Answer(404, xml("Error", "<Code>NoSuchUpload</Code>"))
        parts[int(request.query["partNumber"][0])] = body
        return Answer(headers={"ETag": '"part"'})

    def _copy_part(self, request: Request, _: Body) -> Answer:
        """Count the bytes of a range; they are not kept, so it is for objects that are never read."""
        start, end = _range(request.headers[f"{_SOURCE}-range"], 1 << 62)
        self._add_part(request, Body(end - start, None))
        return Answer(text=xml("CopyPartResult", '<ETag>"part"</ETag>'))

    def _complete(self, request: Request, _: Body) -> Answer:
        parts = self._uploads.pop(request.query["uploadId"][0], None)
        if parts is None:
            return Answer(404, xml("Error", "<Code>NoSuchUpload</Code>"))
        self._objects[request.bucket, request.key] = Stored(tuple(parts[number] for number in sorted(parts)))
        return Answer(text=xml("CompleteMultipartUploadResult", '<ETag>"whole"</ETag>'))

    def _abort(self, request: Request, _: Body) -> Answer:
        self._uploads.pop(request.query["uploadId"][0], None)
        return Answer(204)

    def _put(self, request: Request, body: Body) -> Answer:
        if request.headers.get("if-none-match") == "*" and (request.bucket, request.key) in self._objects:
            return Answer(412, xml("Error", "<Code>PreconditionFailed</Code>"))
        self._objects[request.bucket, request.key] = Stored((body,))
        return Answer(headers={"ETag": '"whole"'})

    def _copy(self, request: Request, _: Body) -> Answer:
        source = unquote(request.headers[_SOURCE]).lstrip("/").split("/", 1)
        self._objects[request.bucket, request.key] = copied = self._objects[source[0], source[1]]
        checksum = _checksum(copied)
        known = "" if checksum is None else f"<ChecksumCRC32C>{checksum}</ChecksumCRC32C>"
        return Answer(text=xml("CopyObjectResult", f'<ETag>"whole"</ETag>{known}'))

    def _delete(self, request: Request, _: Body) -> Answer:
        self._objects.pop((request.bucket, request.key), None)
        return Answer(204)

    def _delete_listed(self, request: Request, body: Body) -> Answer:
        assert body.file is not None
        body.file.seek(0)
        keys = re.findall("<Key>(.*?)</Key>", body.file.read().decode())
        for key in keys:
            self._objects.pop((request.bucket, unescape(key, {"&quot;": '"', "&apos;": "'"})), None)
        return Answer(text=xml("DeleteResult", "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)))

    def _list(self, request: Request, _: Body) -> Answer:
        prefix, after = (request.query.get(name, [""])[0] for name in ("prefix", "start-after"))
        found = sorted(
            (key, stored)
            for (bucket, key), stored in self._objects.items()
            if bucket == request.bucket and key.startswith(prefix) and key > after
        )
        listed = "".join(
            _LISTED.format(key=escape(key), size=stored.size, modified=stored.modified) for key, stored in found
        )
        return Answer(text=xml("ListBucketResult", f"<IsTruncated>false</IsTruncated>{listed}"))

    def _get(self, request: Request, _: Body) -> Answer:
        stored = self._objects.get((request.bucket, request.key))
        if stored is None:
            return Answer(404, b"" if request.method == "HEAD" else xml("Error", "<Code>NoSuchKey</Code>"))
        modified = format_datetime(stored.modified, usegmt=True)
        status, headers = 200, {"Last-Modified": modified, "ETag": '"whole"', "Accept-Ranges": "bytes"}
        start, stop = _range(request.headers.get("range", ""), stored.size)
        if "range" in request.headers:
            if start >= stored.size:
                return Answer(416, xml("Error", "<Code>InvalidRange</Code>"))
            status, headers["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{stored.size}"
        if request.method == "HEAD":
            return Answer(status, headers=headers, size=stop - start)
        return Answer(status, headers=headers, slices=tuple(_sliced(stored.bodies, start, stop)))


def _checksum(stored: Stored) -> str | None:
    """The CRC32C of an object as S3 writes it, if its bytes were kept."""
    found = 0
    for body in stored.bodies:
        if body.file is None:
            return None
        position = 0
        while data := os.pread(body.file.fileno(), SMALL_BYTES, position):
            found = crc32c(data, found)
            position += len(data)
    return base64.b64encode(found.to_bytes(4, "big")).decode()


def _sliced(bodies: Sequence[Body], start: int, stop: int) -> Iterator[tuple[Body, int, int]]:
    position = 0
    for body in bodies:
        first, last = max(start - position, 0), min(stop - position, body.size)
        if first < last:
            yield body, first, last
        position += body.size


def _range(header: str, size: int) -> tuple[int, int]:
    """The first byte and the byte after the last."""
    if found := re.fullmatch(r"bytes=(\d+)-(\d*)", header):
        return int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
    if found := re.fullmatch(r"bytes=-(\d+)", header):
        return max(size - int(found[1]), 0), size
    return 0, size


def xml(name: str, inside: str) -> bytes:
    """A document of one element; ``inside`` is escaped already."""
    return f'<?xml version="1.0"?><{name}>{inside}</{name}>'.encode()
