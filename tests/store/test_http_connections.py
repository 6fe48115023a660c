"""HTTP for large bodies, against servers that are a few lines of sockets: what an S3 server never does, they do."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest

from checkpoint_sidecar.store.http.connections import (
    FAILURES,
    MOST_ANSWER_BYTES,
    Answer,
    Connections,
    HttpRequest,
    NoConnectionError,
)
from localcluster.pki import Authority

SILENCE_SECONDS = 0.5
MIB = 1024 * 1024

Serve = Callable[[socket.socket], None]


@contextmanager
def server(serve: Serve, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Calls ``serve`` with every connection, one after the other; yields host and port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with suppress(OSError), connection:
                    serve(context.wrap_socket(connection, server_side=True) if context else connection)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.fixture
def connections() -> Connections:
    return Connections(ssl.create_default_context, silence_seconds=SILENCE_SECONDS)


@dataclass(frozen=True)
class Speaking:
    """Plain HTTP, or TLS. Attributes:
    scheme: Of URLs.
    server: The server's side.
    client: What the client trusts.
    """

    scheme: str
    server: ssl.SSLContext | None
    client: Callable[[], ssl.SSLContext]

    def connections(self, silence_seconds: float = SILENCE_SECONDS) -> Connections:
        return Connections(self.client, silence_seconds=silence_seconds)


@pytest.fixture(scope="module", params=["http", "https"])
def speaking(request: pytest.FixtureRequest, authority: Authority) -> Speaking:
    if request.param == "http":
        return Speaking("http", None, ssl.create_default_context)
    pair = authority.issue("spoken", user="store", hosts=("127.0.0.1",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return Speaking("https", context, lambda: ssl.create_default_context(cafile=str(authority.certificate)))


def head_of(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        received = connection.recv(65536)
        if not received:
            raise ConnectionResetError
        head += received
    return head


def answering(*answers: bytes) -> Serve:
    """Gives these answers to the requests of a connection, one each."""

    def serve(connection: socket.socket) -> None:
        for answer in answers:
            head_of(connection)
            connection.sendall(answer)

    return serve


def get(connections: Connections, url: str, size: int = 0) -> tuple[Answer, bytes]:
    buffers = [bytearray(size // 3), bytearray(size - size // 3)]
    request = HttpRequest("GET", url, SILENCE_SECONDS)
    answer = connections.exchange(request, into=[memoryview(buffer) for buffer in buffers], fill_on=(200, 206))
    return answer, b"".join(buffers)


DATA = bytes(range(256)) * 1000
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA) + DATA
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(DATA) + DATA + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED], ids=["of known length", "in chunks"])
def test_a_body_is_received_into_several_buffers(answer: bytes, connections: Connections) -> None:
    with server(answering(answer, answer)) as at:
        for _ in range(2):
            received, data = get(connections, f"http://{at}/", len(DATA))
            assert received.filled
            assert data == DATA


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED], ids=["of known length", "in chunks"])
@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1], ids=["too long", "too short"])
def test_a_body_of_another_length_fills_nothing_and_its_connection_is_given_up(
    answer: bytes, size: int, connections: Connections
) -> None:
    with server(answering(answer)) as at:
        assert not get(connections, f"http://{at}/", size)[0].filled
        assert get(connections, f"http://{at}/", len(DATA))[0].filled


def trickling(beginning: bytes, again: bytes, seconds: float) -> Serve:
    """Gives one piece after the other, as long as the client stays."""

    def serve(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(beginning)
        while True:
            connection.sendall(again)
            time.sleep(seconds)

    return serve


NEVER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("serve", "size"),
    [
        (trickling(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05), 0),
        (trickling(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", b"x", 0.05), 0),
        (trickling(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", b"x", 0.05), 9000),
        (trickling(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, 0), 0),
        (trickling(NEVER + b"5\r\nwhole\r\n0\r\n", b"X: x\r\n" * 10_000, 0), 5),
    ],
    ids=["a header", "a small body", "data", "continue", "trailers"],
)
def test_an_answer_without_an_end_ends(serve: Serve, size: int, connections: Connections) -> None:
    into, fill_on = ([memoryview(bytearray(size))], (200,)) if size else ([], ())
    with server(serve) as at, pytest.raises(FAILURES):
        connections.exchange(HttpRequest("GET", f"http://{at}/", SILENCE_SECONDS), into=into, fill_on=fill_on)


def test_after_a_renewal_no_connection_is_used_that_was_open_before(connections: Connections) -> None:
    """One server answers one connection after the other: a request over the first one would be answered `first`."""
    first, second = (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + word for word in (b"first", b"other"))
    served: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        served.append(b"a connection")
        answering(*[first if len(served) == 1 else second] * 3)(connection)

    with server(serve) as at:
        assert [get(connections, f"http://{at}/", 5)[1] for _ in range(2)] == [b"first", b"first"]
        connections.renew()
        assert get(connections, f"http://{at}/", 5)[1] == b"other"
        connections.renew()  # the server waits for the end of the connection that it serves


@pytest.mark.timeout(30)
def test_the_last_bytes_of_a_body_are_not_waited_for_longer_than_they_take(speaking: Speaking) -> None:
    """The kernel wakes us once in a megabyte, which must not be more than what is left."""
    connections = speaking.connections(silence_seconds=600)
    sizes = [MIB - 1, MIB, MIB + 1, 3 * MIB // 2, 3 * MIB, 3 * MIB + 7]

    def serve(connection: socket.socket) -> None:
        for size in sizes:
            head_of(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            nearly = max(size - MIB + 5000, 0)
            for piece in (bytes(nearly), bytes(size - nearly - 5), b"whole"):
                connection.sendall(piece)
                time.sleep(SILENCE_SECONDS / 5)

    with server(serve, speaking.server) as host:
        for size in sizes:
            answer, body = get(connections, f"{speaking.scheme}://{host}/", size)
            assert answer.filled
            assert body == bytes(size - 5) + b"whole"


def test_a_body_that_comes_slowly_is_no_silence(speaking: Speaking) -> None:
    piece, pieces = bytes(range(256)) * 256, 24

    def serve(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(piece) * pieces))
        for _ in range(pieces):
            connection.sendall(piece)
            time.sleep(SILENCE_SECONDS / 5)

    with server(serve, speaking.server) as host:
        answer, body = get(speaking.connections(), f"{speaking.scheme}://{host}/", len(piece) * pieces)
        assert answer.filled
        assert body == piece * pieces


def test_a_body_that_breaks_off_is_an_error(connections: Connections) -> None:
    with server(answering(WHOLE[:-1])) as at, pytest.raises(Exception, match="IncompleteRead"):
        get(connections, f"http://{at}/", len(DATA))


@pytest.mark.parametrize("missing", [1, 2 * MIB], ids=["its last byte", "half of it"])
def test_a_body_that_stops_coming_is_silence(speaking: Speaking, missing: int) -> None:
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (4 * MIB) + bytes(4 * MIB - missing))
        over.wait()

    with server(serve, speaking.server) as at:
        with pytest.raises(TimeoutError):
            get(speaking.connections(), f"{speaking.scheme}://{at}/", 4 * MIB)
        over.set()


def test_a_server_that_takes_no_more_of_a_body_is_silent(connections: Connections) -> None:
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        head_of(connection)
        over.wait()

    body = [memoryview(bytes(64 * 1024 * 1024))]
    with server(serve) as at:
        with pytest.raises(TimeoutError):
            connections.exchange(HttpRequest("PUT", f"http://{at}/", 60, body=body))
        over.set()


def test_of_an_endless_error_only_the_beginning_is_read(connections: Connections) -> None:
    def serve(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 500 No\r\n\r\n")
        while True:
            connection.sendall(bytes(65536))

    with server(serve) as at:
        answer = connections.exchange(HttpRequest("PUT", f"http://{at}/", SILENCE_SECONDS))
    assert answer.status == 500
    assert len(answer.body) == MOST_ANSWER_BYTES
    assert not answer.whole


def test_a_refusal_before_the_body_was_read_is_an_answer(connections: Connections) -> None:
    def serve(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    with server(serve) as at:
        body = [memoryview(bytes(1024 * 1024))]
        assert connections.exchange(HttpRequest("PUT", f"http://{at}/", 5, body=body)).status == 503


def test_a_connection_that_the_server_closed_is_not_used_again(connections: Connections) -> None:
    closed = threading.Event()

    def serve(connection: socket.socket) -> None:
        answering(WHOLE)(connection)
        connection.shutdown(socket.SHUT_RDWR)
        closed.set()

    with server(serve) as at:
        for _ in range(3):
            assert get(connections, f"http://{at}/", len(DATA))[1] == DATA
            assert closed.wait(5)
            closed.clear()


def test_a_failed_connection_has_its_own_error(connections: Connections) -> None:
    with pytest.raises(NoConnectionError):
        get(connections, "http://127.0.0.1:9/")


def test_a_signed_url_does_not_show(connections: Connections) -> None:
    request = HttpRequest("GET", "http://127.0.0.1:9/?X-Amz-Signature=secret", 1)

    assert "secret" not in repr(request)
    with pytest.raises(NoConnectionError) as raised:
        connections.exchange(request)
    assert "secret" not in repr(raised.value) + str(raised.value)


def test_a_proxy_gets_whole_urls_and_its_credentials(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []

    def serve(connection: socket.socket) -> None:
        heads.append(head_of(connection))
        connection.sendall(WHOLE)

    with server(serve) as at:
        monkeypatch.setenv("http_proxy", f"http://me:pass%40word@{at}")
        monkeypatch.setenv("no_proxy", "internal")
        assert get(connections, "http://store.invalid/bucket/key?x=1", len(DATA))[1] == DATA
        with pytest.raises(NoConnectionError):
            get(connections, "http://store.internal/")

    assert heads[0].startswith(b"GET http://store.invalid/bucket/key?x=1 HTTP/1.1\r\n")
    assert b"Host: store.invalid\r\n" in heads[0]
    assert b"Proxy-Authorization: Basic bWU6cGFzc0B3b3Jk\r\n" in heads[0]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> ssl.SSLContext:
    pair = authority.issue("store", user="store", hosts=("store.invalid",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def test_a_proxy_is_a_tunnel_for_tls(
    authority: Authority, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = []

    def serve(connection: socket.socket) -> None:
        heads.append(head_of(connection))
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        answering(WHOLE, WHOLE)(tls.wrap_socket(connection, server_side=True))

    trusting = Connections(
        lambda: ssl.create_default_context(cafile=str(authority.certificate)), silence_seconds=SILENCE_SECONDS
    )
    with server(serve) as at:
        monkeypatch.setenv("https_proxy", f"http://{at}")
        monkeypatch.delenv("no_proxy", raising=False)
        for _ in range(2):
            assert get(trusting, "https://store.invalid/bucket/key", len(DATA))[1] == DATA
    assert len(heads) == 1
    assert heads[0].startswith(b"CONNECT store.invalid:443 ")


def test_a_body_goes_through_tls(authority: Authority) -> None:
    pair = authority.issue("local", user="store", hosts=("127.0.0.1",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    received = bytearray()

    def serve(connection: socket.socket) -> None:
        received.extend(head_of(connection).partition(b"\r\n\r\n")[2])
        while len(received) < len(DATA):
            received.extend(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    trusting = Connections(lambda: ssl.create_default_context(cafile=str(authority.certificate)), silence_seconds=5)
    with server(serve, context) as at:
        body = [memoryview(DATA)[:3], memoryview(DATA)[3:]]
        answer = trusting.exchange(HttpRequest("PUT", f"https://{at}/", 5, body=body))
    assert answer.status == 200
    assert received == DATA
