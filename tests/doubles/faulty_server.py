"""A proxy in front of a real S3 server that does as told what networks and stores do to requests and replies."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from doubles.proxies import QuietHandler, Seen, listening

SLOW_SECONDS = 1.5
"""How long a request body takes that is read slowly."""

LATE_SECONDS = 0.05

BUSY_WITH = 3
"""Requests that a busy server serves at once; it refuses more."""

Effect: TypeAlias = Literal[
    "lose the request",  # close the connection without an answer
    "reset the connection",  # in the middle of the request's body
    "keep silent",  # neither answer nor close
    "read slowly",
    "answer late",
    "be busy",  # answer late, and 503 to more than a few requests at once
    "lose the reply",
    "cut the reply",
    "shorten the reply",  # by its last byte, and declare that length
    "flip a bit of the data",  # in the object that is sent, else in the reply
    "answer as before",  # with the first answer to the same listing
    "answer in small pages",  # a listing
    "drop the condition",
    "refuse each key",  # in a deletion: as S3 does without the right, or under object lock, in an answer that is 200
]
Answer: TypeAlias = tuple[int, str]
"""A status and an error code."""


@dataclass
class Fault:
    """What befalls the next ``times`` requests of a method whose path and query contain a text.

    Attributes:
        effect: One of the effects, or what to answer without asking the server.
        signed_by: Only requests signed with this key id.
        after: How many such requests are left alone before.
    """

    method: str
    containing: str
    effect: Effect | Answer
    times: int = 1
    signed_by: str = ""
    after: int = 0


@dataclass
class FaultyServer(Seen):
    """Where the proxy listens, what it shall do, and which requests it has seen.

    Attributes:
        keeps_host: Whether forwarded requests keep the host name of the incoming one, which S3 signs.
        at_once: How many requests were under way when each of those began, itself among them.
        tokens: The session tokens that came with them.
    """

    behind: str = ""
    keeps_host: bool = True
    endpoint: str = ""
    faults: list[Fault] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    under_way: int = 0
    at_once: list[int] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    first_answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)

    def note(self, method: str, path: str, signature: str) -> Effect | Answer | None:
        with self.lock:
            self.seen.append((method, path))
            self.at_once.append(self.under_way)
            for fault in self.faults:
                if (
                    fault.times
                    and fault.method == method
                    and fault.containing in path
                    and (not fault.signed_by or f"Credential={fault.signed_by}" in signature)
                ):
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault.effect
            return None

    def forget(self) -> None:
        """Behave from now on, and begin to count again."""
        with self.lock:
            self.faults.clear()
            self.seen.clear()
            self.at_once.clear()
            self.tokens.clear()


@contextlib.contextmanager
def faulty_server(behind: str, *, tls: ssl.SSLContext | None = None, keeps_host: bool = True) -> Iterator[FaultyServer]:
    """Listen on loopback and forward to the server at ``behind``."""
    control = FaultyServer(behind=behind, keeps_host=keeps_host)
    with listening(_handler(control), tls) as control.endpoint:
        try:
            yield control
        finally:
            control.closed.set()


def _handler(control: FaultyServer) -> type[QuietHandler]:
    class Handler(QuietHandler):
        def handle_request(self) -> None:
            with control.lock:
                control.under_way += 1
            try:
                self.handle_one()
            finally:
                with control.lock:
                    control.under_way -= 1

        def handle_one(self) -> None:
            if token := self.headers.get("X-Amz-Security-Token"):
                control.tokens.add(token)
            effect = control.note(self.command, self.path, f"{self.headers.get('Authorization', '')} {self.path}")
            length = int(self.headers.get("Content-Length", 0))
            if effect == "reset the connection":
                self.rfile.read(length // 2)
                self.reset()
                return
            body = self.read_slowly(length) if effect == "read slowly" else self.rfile.read(length)
            if effect in ("answer late", "be busy"):
                crowd = control.under_way
                time.sleep(LATE_SECONDS)
                if effect == "be busy" and crowd > BUSY_WITH:
                    effect = (503, "SlowDown")
            if effect == "keep silent":
                control.closed.wait()
            if effect in ("lose the request", "keep silent"):
                self.close_connection = True
                return
            if isinstance(effect, tuple):
                status, code = effect
                key_id = self.headers.get("Authorization", "")
                answer = f"<Error><Code>{code}</Code><Message>{key_id}</Message></Error>".encode()
                self.reply(status, {"Content-Type": "application/xml"}, answer)
                return
            if effect == "refuse each key":
                self.reply(200, {"Content-Type": "application/xml"}, _refused(body))
                return
            sends = self.command == "PUT" or "uploadType=media" in self.path
            if effect == "flip a bit of the data" and sends:
                body = _flipped(body)
            status, headers, answer = self.forward(body, effect)
            if "list-type" in self.path:
                with control.lock:
                    first = control.first_answers.setdefault(self.path, (status, headers, answer))
                if effect == "answer as before":
                    status, headers, answer = first
            if effect == "flip a bit of the data" and not sends:
                answer = _flipped(answer)
            if effect == "shorten the reply":
                answer = answer[:-1]
            if effect == "lose the reply":
                self.close_connection = True
                return
            self.reply(status, headers, answer, cut=effect == "cut the reply")

        def reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

        def read_slowly(self, length: int) -> bytes:
            pieces = []
            for read in range(10):
                pieces.append(self.rfile.read(length // 10 if read < 9 else length - 9 * (length // 10)))
                time.sleep(SLOW_SECONDS / 10)
            return b"".join(pieces)

        def forward(self, body: bytes, effect: Effect | None) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(urlsplit(control.behind).netloc, timeout=60)
            headers: dict[str, Any] = dict(self.headers.items())
            if not control.keeps_host:
                headers["Host"] = urlsplit(control.behind).netloc
            if effect == "drop the condition":
                headers = {name: value for name, value in headers.items() if name.lower() != "if-none-match"}
            path = f"{self.path}&max-keys=2" if effect == "answer in small pages" else self.path
            connection.request(self.command, path, body, headers)
            response = connection.getresponse()
            data = response.read()
            connection.close()
            return response.status, dict(response.getheaders()), data

        def reply(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            if cut:
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            elif self.command != "HEAD":
                self.wfile.write(data)

    return Handler


def _refused(deletion: bytes) -> bytes:
    errors = (
        b"<Error><Key>%b</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>" % key
        for key in re.findall(rb"<Key>(.*?)</Key>", deletion)
    )
    return b"<DeleteResult>%b</DeleteResult>" % b"".join(errors)


def _flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:] if data else data
