"""The webhook of an installed chart, on an API server without nodes: pods are processes, the Service is a forwarder."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from localcluster import network
from localcluster.client import ApiServer
from support.accounts import account_kubeconfig
from support.admission import Body, eventually
from support.preloaded import Forked, preloaded

RELEASE, NAMESPACE = "ckpt", "operators"
NAME = f"{RELEASE}-checkpoint-operator-webhook"
CONFIGURATION = f"{RELEASE}-checkpoint-operator-injection"


def offers(api: ApiServer, resource: str) -> bool:
    """Whether the API server has a kind of admission policies, by its plural."""
    served = api.get("/apis/admissionregistration.k8s.io/v1")["resources"]
    return resource in [each["name"] for each in served]


def needs(api: ApiServer, resource: str) -> None:
    """Skip the test where the API server lacks a kind of admission policies."""
    if not offers(api, resource):
        since = {"mutatingadmissionpolicies": "1.36", "validatingadmissionpolicies": "1.30"}[resource]
        pytest.skip(f"this API server has no {resource}, which Kubernetes has since {since}")


class Forwarder:
    """What kube-proxy makes of a Service: connections to its address go to one of the pods that accept them."""

    def __init__(self, host: str, port: int) -> None:
        self.ports: list[int] = []
        self._turn = itertools.count()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        started = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._accept, host, port), self._loop)
        self._server = started.result()

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = next(self._turn)
        for offset in range(len(self.ports)):
            port = self.ports[(first + offset) % len(self.ports)]
            # The end of the forwarder cancels what is open, which must not end in a complaint of asyncio.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                back_reader, back_writer = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(self._copy(reader, back_writer), self._copy(back_reader, writer))
                return
        writer.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


@dataclass
class Replica:
    """A process of the webhook."""

    process: Forked
    port: int
    log: Path

    def get(self, path: str) -> int:
        """Status of a probe, as the kubelet asks; 0 without an answer."""
        context = ssl._create_unverified_context()
        try:
            with urllib.request.urlopen(f"https://127.0.0.1:{self.port}{path}", timeout=5, context=context) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def certificate(self) -> str:
        """The certificate that it serves now, in PEM."""
        return ssl.get_server_certificate(("127.0.0.1", self.port))


@dataclass
class Webhooks:
    """The webhook that the release ``ckpt`` brought to an API server."""

    api: ApiServer
    directory: Path
    name: str
    arguments: list[str]
    service: Forwarder
    replicas: list[Replica] = field(default_factory=list)

    @classmethod
    def installed(cls, api: ApiServer, directory: Path, name: str = NAME) -> Webhooks:
        """Find it; no replica runs yet. Raises `OSError` where the address of its Service is not to be had."""
        container = api.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{name}")["spec"]["template"]["spec"]
        address = api.get(f"/api/v1/namespaces/{NAMESPACE}/services/{name}")["spec"]["clusterIP"]
        account_kubeconfig(api, NAMESPACE, name, directory / f"{name}.kubeconfig")
        return cls(api, directory, name, container["containers"][0]["args"], Forwarder(address, 443))

    def start(self, *more: str) -> Replica:
        """Start a replica with the chart's arguments and rights, and some more; wait until it is ready."""
        replica = self.launch(*more)
        self.await_ready(replica)
        return replica

    def launch(self, *more: str) -> Replica:
        port = next(network.free_ports())
        given = [each for each in self.arguments if not each.startswith("--listen=")]
        arguments = [*given, f"--listen=127.0.0.1:{port}", *more]
        log = self.directory / f"webhook-{port}.log"
        environment = {**os.environ, "KUBECONFIG": str(self.directory / f"{self.name}.kubeconfig")}
        replica = Replica(preloaded().start(arguments, environment, log), port, log)
        self.replicas.append(replica)
        return replica

    def await_ready(self, replica: Replica) -> None:
        """Wait for a replica; then the Service sends connections to it."""
        eventually(
            lambda: (replica.get("/readyz"), replica.log.read_text()), lambda it: it[0] == 200, timeout_seconds=180
        )
        self.service.ports.append(replica.port)

    def stop(self) -> None:
        # First, or the forwarder turns the connections that it gives up to the next replica, which keeps them open.
        for replica in self.replicas:
            replica.process.kill()
            replica.process.wait()
        self.service.close()

    def configuration(self, kind: str = "mutating") -> Body:
        """The webhook in the configuration."""
        path = f"/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations/{CONFIGURATION}"
        (webhook,) = self.api.get(path)["webhooks"]
        found: dict[str, Any] = webhook
        return found

    def secret(self) -> Body:
        found: Body = self.api.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/{self.name}")["data"]
        return found


@contextlib.contextmanager
def running(api: ApiServer, directory: Path, replicas: int = 1, name: str = NAME) -> Iterator[Webhooks]:
    """The webhook with some replicas, until the context ends."""
    webhooks = Webhooks.installed(api, directory, name)
    try:
        for _ in range(replicas):
            webhooks.start()
        yield webhooks
    finally:
        webhooks.stop()
