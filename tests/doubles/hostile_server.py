"""A small S3 server that keeps objects in memory, and misbehaves as the bucket's name says: what a hostile tenant runs.

How a request is answered depends on the bucket's name, so that one server has all kinds of hostility. Every request is
remembered with its headers: they must never show the operator's identity.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from checkpoint_sidecar.core import layout

SLOW_SECONDS = 8.0

REMEMBERED_BYTES = 1 << 20
"""Bytes of a request's body that are remembered."""


@dataclass(frozen=True)
class Zeros:
    """So many zero bytes, which take no memory until they are sent."""

    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        return bytes(len(range(*part.indices(self.size))))


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    bucket: str
    key: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    line: str

    @property
    def lists(self) -> bool:
        return self.method == "GET" and not self.key and "uploads" not in self.query


@dataclass(frozen=True)
class Answer:
    """A status, headers and a body, which may be sent forever."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class HostileServer:
    """Where it listens, what it holds, and what it was asked."""

    endpoint: str = ""
    elsewhere: str = ""
    objects: dict[str, dict[str, tuple[bytes | Zeros, float]]] = field(default_factory=dict)
    uploads: dict[str, dict[str, int]] = field(default_factory=dict)
    """Sizes of the parts of unfinished uploads. Their bytes are forgotten."""
    requests: list[Request] = field(default_factory=list)
    digests: list[str] = field(default_factory=lambda: [""])

    def put(self, bucket: str, key: str, data: bytes | Zeros) -> None:
        self.objects.setdefault(bucket, {})[key] = (data, time.time())

    def asked(self, bucket: str) -> int:
        return sum(1 for request in self.requests if request.bucket == bucket)

    # The behavior of an ordinary server

    def plain(self, request: Request) -> Answer:
        held = self.objects.setdefault(request.bucket, {})
        if request.lists:
            return self.listed(request, sorted(held))
        if request.method == "POST" and "delete" in request.query:
            keys = [part.partition("</Key>")[0] for part in request.body.decode().split("<Key>")[1:]]
            for key in keys:
                held.pop(key, None)
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            body = f"<DeleteResult>{deleted}</DeleteResult>".encode()
            return Answer(body=body, headers={"content-type": "application/xml"})
        if "uploads" in request.query or "uploadId" in request.query:
            return self.uploaded(request)
        if request.method == "PUT":
            if request.headers.get("if-none-match") == "*" and request.key in held:
                return error(412, "PreconditionFailed")
            self.put(request.bucket, request.key, request.body)
            return Answer(headers={"etag": etag(request.body)})
        if request.method == "DELETE":
            held.pop(request.key, None)
            return Answer(204)
        if request.key not in held:
            return error(404, "NoSuchKey")
        data, modified = held[request.key]
        headers = {"etag": etag(data), "last-modified": email.utils.formatdate(modified, usegmt=True)}
        wanted = request.headers.get("range", "")
        if wanted and request.method == "GET":
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last), len(data) - 1) if last else len(data) - 1
            headers["content-range"] = f"bytes {first}-{end}/{len(data)}"
            return Answer(206, data[int(first) : end + 1], headers)
        return Answer(200, data if isinstance(data, bytes) else data[:], headers)

    def uploaded(self, request: Request) -> Answer:
        """The requests of an upload in parts."""
        if request.method == "POST" and "uploads" in request.query:
            identifier = f"upload-{len(self.uploads)}"
            self.uploads[identifier] = {}
            body = f"<InitiateMultipartUploadResult><UploadId>{identifier}</UploadId></InitiateMultipartUploadResult>"
        elif request.method == "GET" and "uploads" in request.query:
            body = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
        elif request.method == "PUT":
            self.uploads[request.query["uploadId"][0]][request.query["partNumber"][0]] = len(request.body)
            return Answer(headers={"etag": f'"{len(request.body)}"'})
        else:
            parts = self.uploads.pop(request.query["uploadId"][0])
            if request.method == "DELETE":
                return Answer(204)
            self.put(request.bucket, request.key, Zeros(sum(parts.values())))
            body = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        return Answer(body=body.encode(), headers={"content-type": "application/xml"})

    def listed(self, request: Request, keys: list[str], *, more: bool = False) -> Answer:
        prefix = request.query.get("prefix", [""])[0]
        after = request.query.get("start-after", request.query.get("continuation-token", [""]))[0]
        found = [key for key in keys if key.startswith(prefix) and key > after] if not more else keys
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>x</ETag><Size>{len(self.objects[request.bucket].get(key, (b'', 0))[0])}</Size></Contents>"
            for key in found
        )
        token = f"<NextContinuationToken>{escape(keys[-1])}</NextContinuationToken>" if more else ""
        truncated = "true" if more else "false"
        body = f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{token}{entries}</ListBucketResult>"
        return Answer(body=body.encode(), headers={"content-type": "application/xml"})

    # What a hostile tenant does

    def endless_listing(self, request: Request) -> Answer:
        if not request.lists:
            return self.plain(request)
        self.objects.setdefault(request.bucket, {})
        prefix = request.query.get("prefix", [""])[0]
        number = len(self.requests)
        return self.listed(request, [f"{prefix}{number:09}-{each:04}" for each in range(1000)], more=True)

    def endless_log(self, request: Request) -> Answer:
        name = request.key.partition("/")[2]
        number = layout.log_number(name)
        if number is None or request.method not in ("GET", "HEAD"):
            return self.plain(request)
        while len(self.digests) <= number:
            self.digests.append(hashlib.sha256(entry(len(self.digests), self.digests[-1])).hexdigest())
        data = entry(number, self.digests[number - 1])
        return Answer(200, data, {"etag": etag(data), "last-modified": email.utils.formatdate(usegmt=True)})

    def lies_about_keys(self, request: Request) -> Answer:
        """Every key of the log is taken, and there is nothing under it."""
        if f"/{layout.LOG_FOLDER}" in f"/{request.key}":
            return error(412, "PreconditionFailed") if request.method == "PUT" else error(404, "NoSuchKey")
        return self.plain(request)

    def unconditional(self, request: Request) -> Answer:
        request.headers.pop("if-none-match", None)
        return self.plain(request)

    def redirecting(self, request: Request) -> Answer:
        where = f"{self.elsewhere}/{request.bucket}/{request.key}"
        return Answer(307, headers={"location": where})

    def garbage(self, request: Request) -> Answer:
        if request.method in ("GET", "HEAD") and layout.LOG_FOLDER in request.key:
            data = b"[" * 200_000 + b"\xff\xfe"
            return Answer(200, data, {"etag": etag(data), "last-modified": email.utils.formatdate(usegmt=True)})
        return self.plain(request)


def entry(number: int, previous: str) -> bytes:
    """Return a log entry of an unknown kind; the first one claims the run for an unknown owner."""
    owner = {"cluster": "nobody", "namespace": "nobody", "name": "nobody"}
    envelope = {
        "format": "1.0",
        "number": number,
        "id": f"{number:032x}",
        "previous": previous,
        "time": "2026-01-01T00:00:00.000+00:00",
        "writer": "hostile",
        "critical": False,
        "kind": "RunClaimed" if number == 1 else "Noise",
        "body": {"owner": owner, "url": "s3://endless-log/run"} if number == 1 else {"noise": "x" * 100_000},
    }
    return json.dumps(envelope).encode()


def etag(data: bytes | Zeros) -> str:
    if isinstance(data, bytes) and len(data) < 1 << 20:
        return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
    return f'"{len(data)}"'


def error(status: int, code: str) -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code></Error>".encode(), {"content-type": "application/xml"})


@contextlib.contextmanager
def hostile_server() -> Iterator[HostileServer]:
    """Listen on loopback, in a thread of its own."""
    server = HostileServer()
    started = threading.Event()
    loop = asyncio.new_event_loop()
    ending = asyncio.Event()

    async def serve() -> None:
        listening = await asyncio.start_server(
            lambda r, w: _connection(server, r, w), "127.0.0.1", 0, backlog=1024, limit=4 << 20
        )
        server.endpoint = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        started.set()
        await ending.wait()
        listening.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(10)


async def _connection(server: HostileServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        while (request := await _request(reader)) is not None:
            server.requests.append(replace(request, body=request.body[:REMEMBERED_BYTES]))
            await _answer(server, request, writer)
    writer.close()


async def _request(reader: asyncio.StreamReader) -> Request | None:
    line = (await reader.readline()).decode("latin-1").strip()
    if not line:
        return None
    headers = {}
    while header := (await reader.readline()).decode("latin-1").strip():
        name, _, value = header.partition(":")
        headers[name.strip().lower()] = value.strip()
    method, target, _ = line.split(" ", 2)
    parts = urlsplit(target)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    return Request(method, bucket, key, parse_qs(parts.query, keep_blank_values=True), headers, body, line)


async def _answer(server: HostileServer, request: Request, writer: asyncio.StreamWriter) -> None:
    behavior = request.bucket.rstrip("0123456789").rstrip("-")
    if behavior == "silent":
        await asyncio.sleep(3600)
    if behavior == "slow":
        await asyncio.sleep(SLOW_SECONDS)
    if behavior == "dripping" and request.method == "GET":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\nETag: \"x\"\r\n"
                     b"Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n")  # fmt: skip
        while True:
            writer.write(b"<")
            await writer.drain()
            await asyncio.sleep(0.5)
    behaviors: dict[str, Callable[[Request], Answer]] = {
        "endless-listing": server.endless_listing,
        "endless-log": server.endless_log,
        "lying": server.lies_about_keys,
        "unconditional": server.unconditional,
        "redirecting": server.redirecting,
        "garbage": server.garbage,
    }
    answer = behaviors.get(behavior, server.plain)(request)
    head = [f"HTTP/1.1 {answer.status} X", f"Content-Length: {len(answer.body)}"]
    head += [f"{name}: {value}" for name, value in answer.headers.items()]
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n")
    if request.method != "HEAD":
        writer.write(answer.body)
    await writer.drain()
