"""An S3 server that costs nearly nothing, so that a benchmark measures the client.

Bodies of uploads are dropped inside the kernel (``MSG_TRUNC``) or received into files in memory; downloads leave by
``sendfile``. Dropped and sent bytes never pass through Python, and one process keeps up with any client on the same
machine. With TLS they must, which costs about as much as it costs the client. ``GET /-/counts`` answers with what was
asked for so far, and the CPU it cost here; ``DELETE /-/objects`` frees the memory of everything that is kept.

    python benchmarks/sink.py [CERTIFICATE KEY]    prints its URL and serves until its input ends
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from io import FileIO
from pathlib import Path

from sink_s3 import Answer, Body, Objects, Request

_ASIDE = "-"
"""No bucket, but what a benchmark says to the sink itself."""
_TAKEN_BYTES = 64 * 1024 * 1024
_SCRATCH_BYTES = 1024 * 1024

# What is dropped is never written there: none of it takes memory.
_NOWHERE = mmap.mmap(-1, _TAKEN_BYTES)


@dataclass
class Counts:
    """Since the start. Attributes:
    received, sent: Bytes of bodies.
    cpu_seconds: Of the sink.
    """

    requests: int = 0
    received: int = 0
    sent: int = 0
    cpu_seconds: float = 0.0

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(mine - its for mine, its in zip(astuple(self), astuple(other), strict=True)))


def counts_of(endpoint: str) -> Counts:
    """Ask a sink."""
    with urllib.request.urlopen(f"{endpoint}/{_ASIDE}/counts") as answer:
        return Counts(**json.load(answer))


def empty(endpoint: str) -> None:
    """Make a sink forget all objects: some gigabytes for each thing that was measured."""
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{_ASIDE}/objects", method="DELETE")).close()


@contextlib.contextmanager
def running(*certificate_and_key: Path) -> Iterator[str]:
    """A sink in a process of its own; yields its URL. With a certificate it speaks TLS."""
    command = [sys.executable, __file__, *map(str, certificate_and_key)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()


class Sink:
    """Serves one listener, with a thread for each connection."""

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        self._listener = listener
        self._tls = tls
        self._objects = Objects()
        self._counts = Counts()
        self._lock = threading.Lock()

    def serve(self) -> None:
        while True:
            accepted, _ = self._listener.accept()
            threading.Thread(target=self._converse, args=(accepted,), daemon=True).start()

    def _converse(self, accepted: socket.socket) -> None:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = self._tls.wrap_socket(accepted, server_side=True) if self._tls else accepted
        with connection, contextlib.suppress(ConnectionError, ssl.SSLError):
            received = b""
            while True:
                while b"\r\n\r\n" not in received:
                    more = connection.recv(65536)
                    if not more:
                        return
                    received += more
                head, _, received = received.partition(b"\r\n\r\n")
                request = Request.parse(head.decode("latin-1"))
                if request.headers.get("expect", "").lower() == "100-continue":
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                first, received = received[: request.body_bytes], received[request.body_bytes :]
                body = _keep(connection, first, request) if request.keeps else _drop(connection, first, request)
                answer = self._answer(request, body)
                _send(connection, answer, body_follows=request.method != "HEAD")

    def _answer(self, request: Request, body: Body) -> Answer:
        if request.bucket == _ASIDE:
            return self._forget() if request.method == "DELETE" else self._count()
        answer = self._objects.answer(request, body)
        with self._lock:
            self._counts.requests += 1
            self._counts.received += request.body_bytes
            self._counts.sent += answer.body_bytes if request.method == "GET" else 0
        return answer

    def _count(self) -> Answer:
        with self._lock:
            self._counts.cpu_seconds = time.process_time()
            return Answer(text=json.dumps(asdict(self._counts)).encode())

    def _forget(self) -> Answer:
        self._objects = Objects()
        return Answer(204)


def _drop(connection: socket.socket, first: bytes, request: Request) -> Body:
    remaining = request.body_bytes - len(first)
    encrypted = isinstance(connection, ssl.SSLSocket)
    scratch = bytearray(_SCRATCH_BYTES) if encrypted else _NOWHERE
    flags = 0 if encrypted else socket.MSG_TRUNC | socket.MSG_WAITALL
    while remaining:
        taken = connection.recv_into(scratch, min(remaining, len(scratch)), flags)
        if not taken:
            raise ConnectionError
        remaining -= taken
    return Body(request.body_bytes, None)


def _keep(connection: socket.socket, first: bytes, request: Request) -> Body:
    file = _memory()
    file.write(first)
    remaining = request.body_bytes - len(first)
    scratch = memoryview(bytearray(min(remaining, _SCRATCH_BYTES)))
    while remaining:
        taken = connection.recv_into(scratch, min(remaining, len(scratch)))
        if not taken:
            raise ConnectionError
        file.write(scratch[:taken])
        remaining -= taken
    if "aws-chunked" in request.headers.get("content-encoding", ""):
        return _unframed(file)
    return Body(request.body_bytes, file)


def _unframed(framed: FileIO) -> Body:
    """Without the chunks of ``aws-chunked``, in which some clients send checksums after the data."""
    framed.seek(0)
    data, at, plain = framed.read(), 0, _memory()
    while True:
        line_end = data.index(b"\r\n", at)
        size = int(data[at:line_end].partition(b";")[0], 16)
        if not size:
            return Body(plain.tell(), plain)
        plain.write(memoryview(data)[line_end + 2 : line_end + 2 + size])
        at = line_end + 2 + size + 2


def _memory() -> FileIO:
    return FileIO(os.memfd_create("body"), "w+b")


def _send(connection: socket.socket, answer: Answer, *, body_follows: bool) -> None:
    lines = [f"HTTP/1.1 {answer.status} -", f"Content-Length: {answer.body_bytes}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + answer.text)
    for body, start, stop in answer.slices if body_follows else ():
        assert body.file is not None, "a body that was dropped is asked for"
        at = start
        while at < stop and not isinstance(connection, ssl.SSLSocket):
            at += os.sendfile(connection.fileno(), body.file.fileno(), at, stop - at)
        while at < stop:
            piece = os.pread(body.file.fileno(), min(stop - at, _SCRATCH_BYTES), at)
            connection.sendall(piece)
            at += len(piece)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if sys.argv[1:] else None
    if tls:
        tls.load_cert_chain(*sys.argv[1:])
    threading.Thread(target=Sink(listener, tls).serve, daemon=True).start()
    print(f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
