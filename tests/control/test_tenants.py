"""One operator, a healthy tenant, and hostile ones beside it: what these cannot do to the others.

``make test-tenants`` runs it with a thousand Checkpoints at a black hole.
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from admission import Namespace, checkpoint
from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.store.settings import Credentials, StoreSettings
from doubles.hostile_server import HostileServer, hostile_server
from localcluster import network
from localcluster.objectstore import ObjectStore
from operators import OperatorProcess, Watched
from trainers import Trainer

pytestmark = [pytest.mark.api, pytest.mark.store]

LONG = os.environ.get("CHECKPOINT_FAULTS") == "long"
SILENT = 1000 if LONG else 60
COMMITS = 100 if LONG else 8
PROMISED_SECONDS = 10.0
PROMISED_BYTES = 400 * 1024 * 1024

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAHOSTILETENANT000", "AWS_SECRET_ACCESS_KEY": "a-secret-key-of-a-hostile-tenant"}

IDENTITY = {
    "AWS_ACCESS_KEY_ID": "AKIAOPERATORSOWNKEY0",
    "AWS_SECRET_ACCESS_KEY": "operators-own-secret",
    "AWS_SESSION_TOKEN": "operators-own-session",
    "AZURE_STORAGE_ACCOUNT_NAME": "operatorsownaccount",
    "AZURE_STORAGE_ACCOUNT_KEY": "b3BlcmF0b3JzLW93bi1henVyZS1rZXk=",
    "AZURE_STORAGE_TOKEN": "operators-own-bearer-token",
}
"""What the operator finds in its environment, and shows to nobody whose Checkpoint names a Secret."""

HOSTILE: Mapping[str, set[str]] = {
    "silent": {"StoreUnavailable"},
    "slow": {"StoreTooSlow", "StoreUnavailable"},
    "dripping": {"PassTimedOut", "StoreUnavailable"},
    "endless-listing": {"ListingTooLong"},
    "endless-log": {"LogTooLong"},
    "lying": {"StoreUnavailable"},
    "unconditional": {"NoConditionalWrite"},
    "redirecting": {"StoreUnavailable", "InvalidSpec", "AccessDenied"},
    "garbage": {"LogUnreadable"},
}
"""Buckets of the hostile server, and the reasons that name what is wrong with them."""

NOT_READY = {"StoreUnavailable", "InvalidCredentials", "AccessDenied", "BucketNotFound", "NoConditionalWrite"}

EXPECTED: Mapping[str, set[str]] = {
    **HOSTILE,
    "words": {""},
    "lines": {"InvalidCredentials", "AccessDenied", "StoreUnavailable"},
    "huge": {"InvalidCredentials"},
    "cloud-az": NOT_READY,
    "cloud-gs": NOT_READY,
    "squatter": {""},
}
"""Why each Checkpoint is not Ready; empty where it is."""

SHORT = HOSTILE.keys() - {"slow", "lying"}
"""What is found out within half a minute."""


@dataclass
class Sampler:
    """Looks at the operator all the time."""

    operator: OperatorProcess
    probe: str
    most_bytes: int = 0
    failures: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        process = psutil.Process(self.operator.process.pid)
        while not self.ended.wait(0.5):
            self.most_bytes = max(self.most_bytes, process.memory_info().rss)
            try:
                with urllib.request.urlopen(self.probe, timeout=5) as answer:
                    answer.read()
            except OSError as error:
                self.failures.append(f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Servers:
    """Of hostile tenants: one that does not answer at all, one of each other kind, and where that redirects to."""

    silent: HostileServer
    hostile: HostileServer
    elsewhere: HostileServer


@pytest.fixture
def servers() -> Iterator[Servers]:
    with hostile_server() as silent, hostile_server() as hostile, hostile_server() as elsewhere:
        hostile.elsewhere = elsewhere.endpoint
        yield Servers(silent, hostile, elsewhere)


@pytest.fixture
def hostile(namespace: Namespace) -> list[Namespace]:
    """Namespaces of hostile tenants, each with a Secret."""
    found = [Namespace.fresh(namespace.api) for _ in range(2)]
    for place in found:
        create_secret(place, "keys", KEYS)
    return found


def create_secret(namespace: Namespace, name: str, values: Mapping[str, str]) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": dict(values)}
    namespace.kubectl("create", "--filename=-", stdin=json.dumps(body))


def create_all(namespace: Namespace, bodies: list[dict[str, Any]]) -> None:
    body = {"apiVersion": "v1", "kind": "List", "items": bodies}
    namespace.kubectl("create", "--filename=-", stdin=json.dumps(body))


def at(endpoint: str, bucket: str, name: str, secret: str = "keys", **spec: Any) -> dict[str, Any]:
    storage = {
        "url": f"s3://{bucket}/{name}",
        "endpoint": endpoint,
        "region": "us-east-1",
        "credentialsSecret": {"name": secret},
    }
    return checkpoint(name, storage=storage, **spec)


def in_cloud(endpoint: str, scheme: str, secret: str) -> dict[str, Any]:
    """A Checkpoint in another cloud than Amazon's, at a server of one's own."""
    storage = {"url": f"{scheme}://cloud/run", "endpoint": endpoint, "credentialsSecret": {"name": secret}}
    return checkpoint(f"cloud-{scheme}", storage=storage)


def reasons(namespace: Namespace) -> dict[str, str]:
    """Why each Checkpoint of a namespace is not Ready, by name."""
    listed = namespace.read("checkpoints")["items"]
    conditions = {item["metadata"]["name"]: item.get("status", {}).get("conditions", []) for item in listed}
    return {
        name: next((c["reason"] for c in found if c["type"] == "Ready" and c["status"] == "False"), "")
        for name, found in conditions.items()
    }


@dataclass
class Healthy:
    """A tenant that uses the operator as it is meant."""

    namespace: Namespace
    store: ObjectStore
    bucket: str

    def new(self, name: str) -> tuple[Watched, Trainer, float]:
        """A new Checkpoint, its trainer, and how long it took to become Ready."""
        began = time.monotonic()
        self.namespace.create(at(self.store.endpoint, self.bucket, name, "s3-keys"))
        run = Watched(self.namespace, name)
        run.becomes("Ready", "True", "Configured", within=4 * PROMISED_SECONDS)
        seconds = time.monotonic() - began
        settings = StoreSettings(
            f"s3://{self.bucket}/{name}",
            self.store.endpoint,
            "us-east-1",
            credentials=Credentials.of(self.store.environment),
        )
        trainer = Trainer(open_store(settings), Owner(self.namespace.api.uid, self.namespace.name, name))
        return run, trainer.start(), seconds

    def commit(self, run: Watched, trainer: Trainer, step: int) -> float:
        """How long a commit takes to show in the status."""
        snapshot = trainer.commit(step)
        began = time.monotonic()
        run.eventually(
            lambda it: it.status.get("latest", {}).get("snapshot") == snapshot.id, within=4 * PROMISED_SECONDS
        )
        return time.monotonic() - began


def test_a_healthy_tenant_notices_nothing_of_hostile_ones(
    namespace: Namespace,
    hostile: list[Namespace],
    servers: Servers,
    start_operator: Callable[..., OperatorProcess],
    object_store: ObjectStore,
    bucket: str,
    secret: str,
) -> None:
    healthy = Healthy(namespace, object_store, bucket)
    crowd = [at(servers.silent.endpoint, f"silent-{number}", f"silent-{number}") for number in range(SILENT)]
    others = [at(servers.hostile.endpoint, kind, kind) for kind in (HOSTILE if LONG else SHORT) if kind != "silent"]
    create_all(hostile[0], crowd[::2])
    create_all(hostile[1], crowd[1::2] + others)
    # Secrets that hold what statuses consist of, what no header may have, and as much as fits.
    words = {"AWS_ACCESS_KEY_ID": "StorageAvailable", "AWS_SECRET_ACCESS_KEY": namespace.api.uid}
    words["AWS_SESSION_TOKEN"] = "Configured"
    create_secret(hostile[0], "words", words)
    create_secret(hostile[0], "lines", {**KEYS, "AWS_SESSION_TOKEN": "one line\r\nX-Another: header"})
    create_secret(hostile[0], "huge", {**KEYS, "AWS_SESSION_TOKEN": "x" * 1_000_000})
    create_all(hostile[0], [at(servers.hostile.endpoint, "plain", name, name) for name in ("words", "lines", "huge")])
    account = {"AZURE_STORAGE_ACCOUNT_NAME": "hostile", "AZURE_STORAGE_SAS_TOKEN": "sv=2026-01-01&sig=abc"}
    create_secret(hostile[0], "azure", account)
    create_secret(hostile[0], "google", {"GOOGLE_APPLICATION_CREDENTIALS_JSON": "{}"})
    clouds = [in_cloud(servers.hostile.endpoint, *each) for each in (("az", "azure"), ("gs", "google"))]
    create_all(hostile[0], clouds)
    # A bucket of the healthy tenant's name, at a server of one's own.
    squatter = at(servers.hostile.endpoint, bucket, "squatter")
    squatter["spec"]["storage"]["url"] = f"s3://{bucket}"
    create_all(hostile[0], [squatter])

    probes, metrics = (f"127.0.0.1:{port}" for port, _ in zip(network.free_ports(), range(2), strict=False))
    operator = start_operator(
        f"--liveness=http://{probes}/healthz",
        f"--metrics={metrics}",
        *(f"--namespace={place.name}" for place in hostile),
        identity=IDENTITY,
    )
    sampler = Sampler(operator, f"http://{probes}/healthz")
    while "started: " not in operator.logged:
        assert operator.process.poll() is None, operator.logged
        time.sleep(0.1)
    watching = threading.Thread(target=sampler.run)
    watching.start()
    try:
        run, trainer, first = healthy.new("first")
        ready = [first]
        shown = [healthy.commit(run, trainer, 100)]
        for number in range(COMMITS - 1):
            shown.append(healthy.commit(run, trainer, 200 + number))
            if number % max(1, COMMITS // 4) == 0:
                ready.append(healthy.new(f"another-{number}")[2])
        deadline = time.monotonic() + (600 if LONG else 90)
        wrong = None
        while wrong != [] and time.monotonic() < deadline:
            found = {name: why for place in hostile for name, why in reasons(place).items()}
            wrong = [(name, why) for name, why in found.items() if why not in EXPECTED[name.rstrip("-0123456789")]]
            time.sleep(1)
        ready.append(healthy.new("last")[2])
    finally:
        sampler.ended.set()
        watching.join()
    assert wrong == []
    assert max(ready) < PROMISED_SECONDS, ready
    assert max(shown) < PROMISED_SECONDS, shown
    assert sampler.failures == []
    assert sampler.most_bytes < PROMISED_BYTES
    assert operator.process.poll() is None
    sent = "".join(str(request) for server in vars(servers).values() for request in server.requests)
    assert len(sent) > 10_000
    assert [value for value in IDENTITY.values() if value in sent] == []
    assert [name for name in ("test-", "silent") if name in run.condition("Ready")["message"]] == []
    assert run.status["claimedBy"] == f"{namespace.api.uid}/{namespace.name}/first"
