"""A proxy in front of a real kube-apiserver that does as told what API servers and networks do to their clients."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import parse_qs, urlsplit

from doubles.proxies import QuietHandler, Seen, listening
from localcluster.client import ApiServer

Effect: TypeAlias = Literal["busy", "broken", "expired", "cut"]
"""429 with Retry-After; 500; of a watch: 410, its place in history is gone; no answer, the connection closes."""

_STATUS = {"busy": (429, "TooManyRequests"), "broken": (500, "InternalError"), "expired": (410, "Expired")}


@dataclass
class ApiFault:
    """What befalls the next ``times`` requests of a method whose path and query contain a text."""

    method: str
    containing: str
    effect: Effect
    times: int = 1


@dataclass
class FaultyApi(Seen):
    """Where the proxy listens, what it shall do, and what it has seen.

    Attributes:
        silent: While set, watches stay open and tell nothing; what would have been told is lost.
        watches: The connections to the API server of those that are open.
    """

    url: str = ""
    faults: list[ApiFault] = field(default_factory=list)
    silent: threading.Event = field(default_factory=threading.Event)
    watches: set[socket.socket] = field(default_factory=set)

    def add(self, *faults: ApiFault) -> None:
        with self.lock:
            self.faults.extend(faults)

    def befalls(self, method: str, path: str) -> Effect | None:
        with self.lock:
            self.seen.append((method, path))
            for fault in self.faults:
                if fault.times and fault.method == method and fault.containing in path:
                    fault.times -= 1
                    return fault.effect
        return None

    def spent(self) -> bool:
        """Whether everything that was to befall has befallen."""
        with self.lock:
            return not any(fault.times for fault in self.faults)

    def forget(self) -> None:
        """Behave from now on, and begin to count again."""
        with self.lock:
            self.faults.clear()
            self.seen.clear()
        self.silent.clear()

    def cut_watches(self) -> None:
        """Close every open watch, as a load balancer does."""
        with self.lock:
            watches = tuple(self.watches)
        for watch in watches:
            with contextlib.suppress(OSError):
                watch.shutdown(socket.SHUT_RDWR)

    def kubeconfig(self, folder: Path) -> Path:
        """Write the kubeconfig of a client that goes through the proxy, which adds its own identity."""
        path = folder / "faulty.kubeconfig"
        body = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "faulty",
            "contexts": [{"name": "faulty", "context": {"cluster": "faulty", "user": "nobody"}}],
            "clusters": [{"name": "faulty", "cluster": {"server": self.url}}],
            "users": [{"name": "nobody", "user": {}}],
        }
        path.write_text(json.dumps(body))
        return path


@contextlib.contextmanager
def faulty_api(server: ApiServer) -> Iterator[FaultyApi]:
    """Listen on loopback and forward to the API server with its administrator's certificate."""
    control = FaultyApi()
    with listening(_handler(control, server)) as control.url:
        try:
            yield control
        finally:
            control.cut_watches()


def _handler(control: FaultyApi, server: ApiServer) -> type[QuietHandler]:
    pki = server.directory / "pki"
    tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    tls.load_cert_chain(str(pki / "admin.crt"), str(pki / "admin.key"))

    class Handler(QuietHandler):
        def handle_request(self) -> None:
            effect = control.befalls(self.command, self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if effect == "cut":
                self.close_connection = True
            elif effect is not None:
                self.refuse(*_STATUS[effect])
            else:
                self.forward(body)

        def refuse(self, code: int, reason: str) -> None:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
            if code == 410:
                # A watch that cannot continue gets its error in a stream that began well.
                self.reply(200, json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            else:
                self.reply(code, json.dumps(status).encode(), {"Retry-After": "1"} if code == 429 else {})

        def forward(self, body: bytes) -> None:
            connection = http.client.HTTPSConnection(urlsplit(server.url).netloc, context=tls)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            connection.request(self.command, self.path, body, headers | {"Accept-Encoding": "identity"})
            watching, upstream = "watch" in parse_qs(urlsplit(self.path).query), connection.sock
            response = connection.getresponse()
            with contextlib.closing(connection):
                if watching:
                    self.stream(response, upstream)
                else:
                    self.reply(response.status, response.read(), {"Content-Type": response.headers["Content-Type"]})

        def stream(self, response: http.client.HTTPResponse, upstream: socket.socket) -> None:
            self.send_response_only(response.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            with control.lock:
                control.watches.add(upstream)
            try:
                while line := response.readline():
                    if not control.silent.is_set():
                        self.wfile.write(line)
            finally:
                with control.lock:
                    control.watches.discard(upstream)

        def reply(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response_only(status)
            for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
