"""The ceilings: the same bytes through bare sockets, without an HTTP library, signatures or a format."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from crc32c import crc32c

from llama import State, buffers

_PART_BYTES = 32 * 1024 * 1024
RANGE_BYTES = 16 * 1024 * 1024
_WAKING_BYTES = 1024 * 1024

Buffers = Sequence[memoryview]
Transfer = Callable[[socket.socket, str, Buffers], None]


@dataclass(frozen=True)
class BareSockets:
    """Parts and ranges of the sizes that the engine uses, over so many connections.

    What is loaded was saved in the same run, by the same number of ranks.

    Attributes:
        checksums: Whether the CRC32C of each part is computed as well, from memory: before the part is sent, or after
            it was received. A client that checks what it transfers cannot cost less.
    """

    endpoint: str
    rank: int
    connections: int
    checksums: bool = False

    def save(self, state: State, url: str) -> None:
        self._each(self._put, enumerate(parts(buffers(state), _PART_BYTES)), url)

    def save_for_loading(self, state: State, url: str) -> None:
        self._each(self._put, enumerate(parts(buffers(state), RANGE_BYTES)), url)

    def load(self, state: State, url: str) -> None:
        self._each(self._get, enumerate(parts(buffers(state), RANGE_BYTES)), url)

    def _each(self, transfer: Transfer, numbered: Iterable[tuple[int, Buffers]], url: str) -> None:
        path = f"/{url.removeprefix('s3://')}/{self.rank}"
        waiting = iter(list(numbered))

        def work() -> None:
            with self._connected() as connection:
                for number, part in waiting:
                    transfer(connection, f"{path}-{number}", part)

        with ThreadPoolExecutor(self.connections) as pool:
            for done in [pool.submit(work) for _ in range(self.connections)]:
                done.result()

    def _connected(self) -> socket.socket:
        address = urlsplit(self.endpoint)
        connection = socket.create_connection((address.hostname, address.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if address.scheme == "http":
            return connection
        context = ssl.create_default_context()
        return context.wrap_socket(connection, server_hostname=address.hostname)

    def _put(self, connection: socket.socket, path: str, part: Buffers) -> None:
        self._check(part)
        size = sum(map(len, part))
        connection.sendall(f"PUT {path} HTTP/1.1\r\nHost: sink\r\nContent-Length: {size}\r\n\r\n".encode())
        for buffer in part:
            connection.sendall(buffer)
        _read_head(connection)

    def _get(self, connection: socket.socket, path: str, part: Buffers) -> None:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: sink\r\n\r\n".encode())
        first = _read_head(connection)
        encrypted = isinstance(connection, ssl.SSLSocket)
        coming = sum(map(len, part)) - len(first)
        for buffer in part:
            at = min(len(first), len(buffer))
            buffer[:at] = first[:at]
            first = first[at:]
            while at < len(buffer):
                taken = connection.recv_into(buffer[at:]) if encrypted else _receive(connection, buffer[at:], coming)
                at += taken
                coming -= taken
        self._check(part)

    def _check(self, part: Buffers) -> None:
        checksum = 0
        for buffer in part if self.checksums else ():
            checksum = crc32c(buffer, checksum)


def _receive(connection: socket.socket, buffer: memoryview, coming: int) -> int:
    """Woken once for a megabyte, as the engine is, unless less than that is to come."""
    seldom = coming > _WAKING_BYTES
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _WAKING_BYTES if seldom else 1)
    room = min(len(buffer), coming - _WAKING_BYTES) if seldom else len(buffer)
    return connection.recv_into(buffer, room, socket.MSG_WAITALL)


def _read_head(connection: socket.socket) -> bytes:
    """Reads a successful answer's head, and returns what came with it of the body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(4096)
    head, _, first = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return first


def parts(buffers: Iterable[memoryview], size: int) -> Iterator[Buffers]:
    """All buffers, cut and joined into parts of one size; the last may be shorter."""
    part: list[memoryview] = []
    room = size
    for whole in buffers:
        buffer = whole
        while len(buffer):
            part.append(buffer[:room])
            buffer = buffer[room:]
            room -= len(part[-1])
            if not room:
                yield part
                part, room = [], size
    if part:
        yield part
