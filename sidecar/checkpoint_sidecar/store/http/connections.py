"""HTTP/1.1 to object stores: sends bodies from the caller's memory and receives into it, over reused connections.

Redirects are not followed: an answer with status 3xx is returned like any other. Python runs once per body, not once
per packet: a plain socket blocks in the kernel until all bytes are transferred, without the interpreter's lock, which
the training loop needs. Timeouts are therefore the kernel's and measure silence: a slow body may take any time, unless
it falls below ``SLOWEST_BYTES``. With TLS, Python handles every slice.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import select
import socket
import ssl
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from checkpoint_sidecar.store.http.proxies import Proxy, proxy_for

CONNECT_SECONDS = 5.0

IDLE_SECONDS = 45.0
"""How long an idle connection is kept for the next request."""

MOST_ANSWER_BYTES = 64 * 1024
"""Maximum bytes to read of an answer without data; the rest is dropped with its connection."""

SLOWEST_BYTES = 1024
"""Minimum bytes per second: an answer that is slower on average counts as timed out. A server that sends an occasional
byte is never silent, and would otherwise occupy its thread indefinitely."""

_MOST_HEAD_BYTES = 1024 * 1024
_MOST_OVERHEAD = 8
"""Maximum overhead of chunked encoding, as a multiple of the body's size."""

_READ_AT_ONCE = 1024 * 1024

_PORTS = {"http": 80, "https": 443}
_SLICE = 256 * 1024
_WAKING_BYTES = 1024 * 1024
"""The kernel wakes a thread that waits for a body once per this many bytes (``SO_RCVLOWAT``), not for every few
packets: waking up is two fifths of the cost of receiving over loopback."""

_READ_AHEAD = 8192
"""Bytes of a body that ``http.client`` may have read together with the headers."""

FAILURES = (OSError, http.client.HTTPException)


class NoConnectionError(OSError):
    """Raised if a connection cannot be opened, so the request was not sent. The message has host, port and cause."""


class CancelledRequestError(Exception):
    """Raised if ``Cancellation.cancel`` interrupted the request."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request to send.

    Attributes:
        url: The URL. It may be signed, so errors never contain it.
        body: Views in bytes.
        answer_seconds: Timeout of the answer once the body is sent. Part of the body may still be in transit then.
    """

    method: str
    url: str = field(repr=False)
    answer_seconds: float
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Sequence[memoryview] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer.

    Attributes:
        filled: Whether the body was received in the caller's memory.
        body: Otherwise the body, up to the limit.
        whole: Whether the answer was read completely, so that the connection can carry another request.
        proxy: The proxy that forwarded or gave the answer: ``host:port``, or empty.
    """

    status: int
    headers: Mapping[str, str]
    filled: bool
    body: bytes
    whole: bool
    proxy: str = ""


class _Incoming(io.RawIOBase):
    """The incoming bytes of an answer. Ends an answer that is too slow or endless.

    Args:
        most_bytes: Maximum bytes to read through this; bytes received in the caller's memory are only counted.
    """

    def __init__(self, raw: io.RawIOBase, seconds: float, most_bytes: int) -> None:
        self._raw = raw
        self._until = time.monotonic() + seconds
        self._room = most_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        received = self._raw.readinto(buffer)
        self._room -= received or 0
        if self._room < 0:
            raise http.client.HTTPException("an answer without an end")
        self.count(received or 0)
        return received

    def count(self, received: int) -> None:
        """Count received bytes."""
        self._until += received / SLOWEST_BYTES
        if time.monotonic() > self._until:
            raise TimeoutError("the answer trickles")

    def close(self) -> None:
        self._raw.close()
        super().close()


class Cancellation:
    """Interrupts running requests of other threads at once."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._lock = threading.Lock()
        self._links: set[_Link] = set()

    def cancel(self) -> None:
        with self._lock:
            self.cancelled.set()
            for link in self._links:
                link.cut()

    @contextlib.contextmanager
    def covering(self, link: _Link) -> Iterator[None]:
        with self._lock:
            self._links.add(link)
        try:
            if self.cancelled.is_set():
                raise CancelledRequestError
            yield
        except FAILURES:
            if self.cancelled.is_set():
                raise CancelledRequestError from None
            raise
        finally:
            with self._lock:
                self._links.discard(link)


class Connections:
    """Connections to any servers, one per concurrent request. Safe from several threads, not across fork.

    Args:
        trust: Creates the TLS context, at the first ``https`` URL.
        silence_seconds: How long a server may neither take nor send any bytes of a body.
        proxied: Whether the environment's proxies are used.
    """

    def __init__(self, trust: Callable[[], ssl.SSLContext], *, silence_seconds: float, proxied: bool = True) -> None:
        self._proxied = proxied
        self._trust = trust
        self._silence_seconds = silence_seconds
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[_Link]] = defaultdict(list)
        self._generation = 0

    def renew(self) -> None:
        """Use new connections for later requests."""
        with self._lock:
            self._generation += 1
            idle = [link for links in self._idle.values() for link in links]
            self._idle.clear()
        for link in idle:
            link.close()

    def exchange(
        self,
        request: HttpRequest,
        *,
        into: Sequence[memoryview] = (),
        fill_on: Container[int] = (),
        limit: int = MOST_ANSWER_BYTES,
        cancellation: Cancellation | None = None,
    ) -> Answer:
        """Send a request and receive its answer.

        Args:
            into: Receives the body if the status is one of ``fill_on`` and the body has exactly this length.
            limit: Maximum bytes to read of any other success; a body announced as larger is not read.

        Raises:
            NoConnectionError: The connection could not be opened; nothing was sent.
            TimeoutError: The server was silent for too long.
            OSError, HTTPException: The connection broke.
            CancelledRequestError: See ``Cancellation``.
        """
        url = urlsplit(request.url)
        generation = self._generation
        link = self._take(url)
        try:
            with (cancellation or Cancellation()).covering(link):
                answer = link.exchange(request, into, fill_on, limit)
        except BaseException:
            link.close()
            raise
        if link.reusable:
            self._keep(url, link, generation)
        else:
            link.close()
        return answer

    def _keep(self, url: SplitResult, link: _Link, generation: int) -> None:
        """Keep a connection for the next request, and close those that have been idle for too long."""
        link.idle_since = time.monotonic()
        old = [link]
        with self._lock:
            if generation == self._generation:
                idle = self._idle[url.scheme, url.netloc]
                idle.append(link)
                # The latest is reused first, so the oldest are at the beginning.
                old = [each for each in idle if each.idle_since < link.idle_since - IDLE_SECONDS]
                del idle[: len(old)]
        for each in old:
            each.close()

    def _take(self, url: SplitResult) -> _Link:
        while True:
            with self._lock:
                idle = self._idle[url.scheme, url.netloc]
                link = idle.pop() if idle else None
            if link is None:
                return self._connect(url)
            if not link.dropped and time.monotonic() - link.idle_since < IDLE_SECONDS:
                return link
            link.close()

    def _connect(self, url: SplitResult) -> _Link:
        host, port = url.hostname or "", url.port or _PORTS[url.scheme]
        proxy = proxy_for(url.scheme, host, port) if self._proxied else None
        at, at_port = (proxy.host, proxy.port) if proxy else (host, port)
        connection: http.client.HTTPConnection
        if url.scheme == "https":
            connection = http.client.HTTPSConnection(at, at_port, timeout=CONNECT_SECONDS, context=self._tls())
            if proxy:
                connection.set_tunnel(host, port, dict(proxy.authorization))
        else:
            connection = http.client.HTTPConnection(at, at_port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
        except (*FAILURES, UnicodeError) as error:
            connection.close()
            raise NoConnectionError(_no_connection(host, port, proxy, error)) from None
        return _Link(connection, self._silence_seconds, proxy, forwarded=proxy is not None and url.scheme == "http")

    def _tls(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                self._context = self._trust()
            return self._context


class _Link:
    """One connection; one request at a time.

    Args:
        proxy: The connection's proxy, if any.
        forwarded: Whether the proxy reads the requests, and so needs whole URLs and its own authorization.

    Attributes:
        idle_since: Time of its last return, by the monotonic clock.
    """

    def __init__(
        self, connection: http.client.HTTPConnection, silence_seconds: float, proxy: Proxy | None, *, forwarded: bool
    ) -> None:
        self._connection = connection
        self._socket: socket.socket = connection.sock
        self._silence_seconds = silence_seconds
        self._forwarded = forwarded
        self._headers = proxy.authorization if proxy and forwarded else {}
        self._proxy = str(proxy) if proxy and forwarded else ""
        self.idle_since = time.monotonic()
        self._plain = not isinstance(self._socket, ssl.SSLSocket)
        self._waking_bytes = 1
        self.reusable = True
        if self._plain:
            limit = struct.pack("ll", int(silence_seconds), int(silence_seconds % 1 * 1_000_000))
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                self._socket.setsockopt(socket.SOL_SOCKET, option, limit)

    @property
    def dropped(self) -> bool:
        """Return whether the server has closed the connection, or sent bytes without a request."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        self._connection.close()

    def cut(self) -> None:
        """Make the running request fail. Called by other threads."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def exchange(self, request: HttpRequest, into: Sequence[memoryview], fill_on: Container[int], limit: int) -> Answer:
        self.reusable = False
        self._socket.settimeout(self._silence_seconds)
        try:
            self._send(request)
        except (BrokenPipeError, ConnectionResetError):
            # Overloaded servers refuse a body before they have read it, and close the connection.
            with contextlib.suppress(*FAILURES):
                return self._receive(request, (), (), MOST_ANSWER_BYTES)
            raise
        answer = self._receive(request, into, fill_on, limit)
        self.reusable = answer.whole
        return answer

    def _send(self, request: HttpRequest) -> None:
        url = urlsplit(request.url)
        target = request.url if self._forwarded else f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        self._connection.putrequest(request.method, target)
        for name, value in {**self._headers, **request.headers}.items():
            self._connection.putheader(name, value)
        if request.body or request.method in ("PUT", "POST"):
            self._connection.putheader("Content-Length", str(sum(view.nbytes for view in request.body)))
        self._connection.endheaders()
        self._block()
        for view in request.body:
            self._send_all(view)

    def _send_all(self, view: memoryview) -> None:
        while view:
            # With TLS the timeout would cover the whole body; a plain socket sends what it can until then.
            sent = _in_kernel(self._socket.send, view if self._plain else view[:_SLICE])
            view = view[sent:]

    def _receive(self, request: HttpRequest, into: Sequence[memoryview], fill_on: Container[int], limit: int) -> Answer:
        self._socket.settimeout(request.answer_seconds)
        size = sum(view.nbytes for view in into)
        most = _MOST_HEAD_BYTES + _MOST_OVERHEAD * max(limit, size, MOST_ANSWER_BYTES)
        incoming: _Incoming | None = None

        def metered(*arguments: Any, **options: Any) -> http.client.HTTPResponse:
            nonlocal incoming
            response = http.client.HTTPResponse(*arguments, **options)
            incoming = _Incoming(response.fp.detach(), 2 * request.answer_seconds, most)
            response.fp = io.BufferedReader(incoming)
            return response

        self._connection.response_class = metered  # type: ignore[assignment]
        response = self._connection.getresponse()
        assert incoming is not None
        headers = {name.lower(): value for name, value in response.getheaders()}
        body, filled = b"", False
        if response.status not in fill_on:
            body = _read(response, limit if response.status < 300 else MOST_ANSWER_BYTES)
        elif response.length == size:
            self._fill(response, into, incoming)
            filled = True
        elif response.length is None:
            filled = _fill_in_chunks(response, into)
        whole = (filled or response.isclosed()) and not response.will_close
        response.close()
        return Answer(response.status, headers, filled, body, whole, self._proxy)

    def _fill(self, response: http.client.HTTPResponse, into: Sequence[memoryview], incoming: _Incoming) -> None:
        """Fill memory: first from the response's buffer, which one small read empties, then from the socket."""
        ahead = memoryview(response.read1(_READ_AHEAD))
        self._block()
        coming = sum(view.nbytes for view in into) - ahead.nbytes
        for view in into:
            taken = ahead[: view.nbytes]
            view[: taken.nbytes] = taken
            ahead = ahead[taken.nbytes :]
            rest = view[taken.nbytes :]
            if bulk := rest[: max(coming - _WAKING_BYTES, 0)]:
                self._wake_at(_WAKING_BYTES)
                self._receive_all(bulk, incoming)
            if bulk.nbytes < rest.nbytes:
                # The last bytes may never reach that number.
                self._wake_at(1)
                self._receive_all(rest[bulk.nbytes :], incoming)
            coming -= rest.nbytes

    def _wake_at(self, count: int) -> None:
        if self._plain and count != self._waking_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._waking_bytes = count

    def _receive_all(self, view: memoryview, incoming: _Incoming) -> None:
        while view:
            if self._plain:
                received = _in_kernel(self._socket.recv_into, view, view.nbytes, socket.MSG_WAITALL)
            else:
                received = self._socket.recv_into(view)
            if not received:
                raise http.client.IncompleteRead(b"", view.nbytes)
            incoming.count(received)
            view = view[received:]

    def _block(self) -> None:
        """Let the kernel wait, with its own timeout, if the socket is plain."""
        self._socket.settimeout(None if self._plain else self._silence_seconds)


def _in_kernel(call: Callable[..., int], *arguments: object) -> int:
    try:
        return call(*arguments)
    except BlockingIOError:
        raise TimeoutError("no data sent or received within the timeout") from None


def _fill_in_chunks(response: http.client.HTTPResponse, into: Sequence[memoryview]) -> bool:
    """Receive a body of unknown length. Returns whether it had exactly the wanted length."""
    for view in into:
        position = 0
        while position < view.nbytes:
            received = response.readinto(view[position:])
            if not received:
                return False
            position += received
    return not response.read(1)


def _read(response: http.client.HTTPResponse, limit: int) -> bytes:
    """Return the body or its first ``limit`` bytes; nothing of a success that is announced as longer."""
    if response.status < 300 and response.length is not None and response.length > limit:
        return b""
    pieces, room = [], limit
    while room and (piece := response.read(min(room, _READ_AT_ONCE))):
        pieces.append(piece)
        room -= len(piece)
    if room and response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(pieces)


def _no_connection(host: str, port: int, proxy: Proxy | None, error: Exception) -> str:
    match error:
        case socket.gaierror():
            cause = "the name cannot be resolved"
        case ssl.SSLCertVerificationError():
            cause = f"its certificate is not trusted: {error.verify_message}"
        case TimeoutError():
            cause = f"no answer in {CONNECT_SECONDS:.0f} s"
        case OSError(strerror=str(cause)) if cause:
            pass
        case _:
            # The message of a proxy's refusal has its status.
            cause = str(error) if proxy and isinstance(error, OSError) else type(error).__name__
    through = f" through the proxy {proxy}" if proxy else ""
    return f"{host}:{port}{through} ({cause})"
