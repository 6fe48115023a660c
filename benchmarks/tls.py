"""What TLS costs, and whether another way to speak it costs less: bodies of 32 MiB over one connection, by turns.

    PYTHONPATH=tests:tools .venv/bin/python benchmarks/tls.py [--rounds 10] [--only send]

Prints CPU seconds of this process per GB, without checksums. *ours* is the library's own connection; the others are
what it could do instead. obstore takes part if it is installed (`uv sync --group bench`).
"""

from __future__ import annotations

import os
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table

import sink
from checkpoint_sidecar.store.http.connections import Connections, HttpRequest
from localcluster.pki import Authority
from sink_s3 import DROPPING, KEEPING

if TYPE_CHECKING:
    from obstore.store import S3Store

_BODY_BYTES = 32 * 1024 * 1024
_BODIES = 8
_KIB = 1024
_MIB = 1024 * _KIB
_AHEAD = 64 * _KIB
_SECONDS = 60.0

Transfer = Callable[[], None]
"""Moves one body."""


@dataclass(frozen=True)
class Peer:
    """A sink, the certificate that it is trusted by, and memory to send from and to receive into."""

    endpoint: str
    authority: Path
    body: memoryview
    room: memoryview

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))

    def connected(self) -> socket.socket:
        address = urlsplit(self.endpoint)
        connection = socket.create_connection((address.hostname, address.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def encrypted(self) -> ssl.SSLSocket:
        encrypted = self.context.wrap_socket(self.connected(), server_hostname=urlsplit(self.endpoint).hostname)
        # As in the library, which must notice a server that is silent.
        encrypted.settimeout(_SECONDS)
        return encrypted


_PUT = f"PUT /{DROPPING}/body HTTP/1.1\r\nHost: sink\r\nContent-Length: {_BODY_BYTES}\r\n\r\n".encode()
_GET = f"GET /{KEEPING}/body HTTP/1.1\r\nHost: sink\r\n\r\n".encode()


def main(
    rounds: Annotated[int, typer.Option(help="After one that warms up.")] = 10,
    only: Annotated[str, typer.Option(help="Only ways with this in their names.")] = "",
) -> None:
    """Measure every way and print one table."""
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder))
        pair = authority.issue("sink", user="sink", hosts=("127.0.0.1",))
        with sink.running(pair.certificate, pair.key) as endpoint:
            peer = Peer(endpoint, authority.certificate, memoryview(os.urandom(_BODY_BYTES)), _memory())
            _keep(peer)
            ways = {name: transfer for name, transfer in _ways(peer) if only in name}
            costs = _by_turns(ways, rounds, peer)
    table = Table("way", "CPU s/GB", "best", "GB/s", title=f"{ssl.OPENSSL_VERSION}, {rounds} rounds, medians")
    for name, found in costs.items():
        cpu, seconds = zip(*found, strict=True)
        table.add_row(name, f"{statistics.median(cpu):.2f}", f"{min(cpu):.2f}", f"{1 / statistics.median(seconds):.2f}")
    Console().print(table)


def _ways(peer: Peer) -> Iterator[tuple[str, Transfer]]:
    yield "send: ours", _ours_put(peer)
    for size in (16 * _KIB, 256 * _KIB, _MIB, 4 * _MIB):
        yield f"send: Python's ssl, {size // _KIB:,} KiB a call", _put(peer, size)
    yield "send: encrypted in memory, 1 MiB a call", _put_from_memory(peer, _MIB)
    if find_spec("obstore"):
        yield "send: obstore", _obstore_put(peer)
    yield "receive: ours", _ours_get(peer)
    yield "receive: Python's ssl", _get(peer, wake_at=0)
    yield "receive: Python's ssl, woken once per MiB", _get(peer, wake_at=_MIB)
    yield "receive: decrypted in memory, 128 KiB a call", _get_from_memory(peer, 128 * _KIB)
    if find_spec("obstore"):
        yield "receive: obstore", _obstore_get(peer)


def _by_turns(ways: dict[str, Transfer], rounds: int, peer: Peer) -> dict[str, list[tuple[float, float]]]:
    """CPU seconds and seconds per GB, of each round of each way."""
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(1 + rounds):
        for name, transfer in ways.items():
            began, cpu_began = time.perf_counter(), time.process_time()
            for _ in range(_BODIES):
                transfer()
            if turn:
                gigabytes = _BODIES * _BODY_BYTES / 1e9
                cpu = (time.process_time() - cpu_began) / gigabytes
                costs[name].append((cpu, (time.perf_counter() - began) / gigabytes))
            elif name.startswith("receive"):
                assert peer.room == peer.body, f"{name} received something else"
                peer.room[:] = _memory()
    return costs


def _memory() -> memoryview:
    return memoryview(bytearray(_BODY_BYTES))


def _keep(peer: Peer) -> None:
    connection = peer.encrypted()
    connection.sendall(_PUT.replace(DROPPING.encode(), KEEPING.encode()))
    connection.sendall(peer.body)
    _read_head(connection.recv)


def _ours(peer: Peer) -> Connections:
    return Connections(lambda: peer.context, silence_seconds=_SECONDS, proxied=False)


def _ours_put(peer: Peer) -> Transfer:
    connections = _ours(peer)
    request = HttpRequest("PUT", f"{peer.endpoint}/{DROPPING}/body", _SECONDS, body=[peer.body])
    return lambda: _expect(connections.exchange(request).status == 200)


def _ours_get(peer: Peer) -> Transfer:
    connections = _ours(peer)
    request = HttpRequest("GET", f"{peer.endpoint}/{KEEPING}/body", _SECONDS)
    return lambda: _expect(connections.exchange(request, into=[peer.room], fill_on=(200,)).filled)


def _expect(condition: bool) -> None:
    assert condition


def _put(peer: Peer, size: int) -> Transfer:
    connection = peer.encrypted()

    def transfer() -> None:
        connection.sendall(_PUT)
        rest = peer.body
        while rest:
            rest = rest[connection.send(rest[:size]) :]
        _read_head(connection.recv)

    return transfer


def _get(peer: Peer, *, wake_at: int) -> Transfer:
    """Args:
    wake_at: Bytes for which the kernel wakes this thread (``SO_RCVLOWAT``), until as many are left; 0 for any.
    """
    connection = peer.encrypted()

    def wake(count: int) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def transfer() -> None:
        connection.sendall(_GET)
        first = _read_head(connection.recv)
        peer.room[: len(first)] = first
        rest = peer.room[len(first) :]
        if wake_at:
            wake(wake_at)
        while rest:
            if wake_at and len(rest) <= wake_at + _AHEAD:
                wake(1)
            rest = rest[connection.recv_into(rest) :]

    return transfer


class _InMemory:
    """TLS between memory and memory, so that the socket is a plain one: fewer system calls, but bytes copied twice."""

    def __init__(self, peer: Peer) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.socket = peer.connected()
        self.tls = peer.context.wrap_bio(self.incoming, self.outgoing, server_hostname=urlsplit(peer.endpoint).hostname)
        self._received(self.tls.do_handshake)
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.outgoing.read())

    def send(self, data: memoryview | bytes) -> int:
        taken = self.tls.write(data)  # type: ignore[arg-type]
        self.flush()
        return taken

    def recv(self, count: int) -> bytes:
        return self._received(lambda: self.tls.read(count))

    def _received(self, call: Callable[[], bytes | None]) -> bytes:
        while True:
            try:
                return call() or b""
            except ssl.SSLWantReadError:
                self.flush()
                self.incoming.write(self.socket.recv(65536))


def _put_from_memory(peer: Peer, size: int) -> Transfer:
    connection = _InMemory(peer)

    def transfer() -> None:
        connection.send(_PUT)
        rest = peer.body
        while rest:
            rest = rest[connection.send(rest[:size]) :]
        _read_head(connection.recv)

    return transfer


def _get_from_memory(peer: Peer, size: int) -> Transfer:
    connection, buffer = _InMemory(peer), memoryview(bytearray(size))

    def transfer() -> None:
        connection.send(_GET)
        first = _read_head(connection.recv)
        peer.room[: len(first)] = first
        rest = peer.room[len(first) :]
        while rest:
            try:
                rest = rest[connection.tls.read(len(rest), rest) :]  # type: ignore[call-overload]
            except ssl.SSLWantReadError:
                flags = socket.MSG_WAITALL if len(rest) > size + _AHEAD else 0
                connection.incoming.write(buffer[: connection.socket.recv_into(buffer, size, flags)])

    return transfer


def _obstore_put(peer: Peer) -> Transfer:
    import obstore

    store = _obstore(peer, DROPPING)
    return lambda: _expect(bool(obstore.put(store, "body", peer.body, use_multipart=False)))


def _obstore_get(peer: Peer) -> Transfer:
    """obstore returns memory of its own, which is copied to where ours is received."""
    import obstore

    store = _obstore(peer, KEEPING)

    def transfer() -> None:
        peer.room[:] = memoryview(obstore.get(store, "body").bytes())

    return transfer


def _obstore(peer: Peer, bucket: str) -> S3Store:
    from obstore.store import S3Store

    os.environ["SSL_CERT_FILE"] = str(peer.authority)
    return S3Store(
        bucket,
        endpoint=peer.endpoint,
        region="us-east-1",
        access_key_id="benchmark",
        secret_access_key="benchmark",
        virtual_hosted_style_request=False,
        # As ours: TLS protects the body, and its SHA-256 would cost more than TLS does.
        unsigned_payload=True,
    )


def _read_head(receive: Callable[[int], bytes]) -> bytes:
    """Reads a successful answer's head, and returns what came with it of the body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += receive(4096)
    head, _, first = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return first


if __name__ == "__main__":
    typer.run(main)
