"""One operator, a healthy tenant, and hostile ones beside it: what these cannot do to the others.

``make test-tenants`` runs it with a thousand Checkpoints at a black hole.
"""

from __future__ import annotations

import contextlib
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
from crc32c import crc32c
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from checkpoint_sidecar.core import attempt, layout
from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.log import Owner, SnapshotCommitted
from checkpoint_sidecar.core.manifest import BLOCK_BYTES, File, Manifest
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.opening import open_store
from doubles.hostile_server import HostileServer, Zeros, hostile_server
from localcluster import network
from localcluster.objectstore import ObjectStore
from support.admission import Namespace, checkpoint
from support.operators import OperatorProcess, Watched
from support.trainers import Trainer

pytestmark = [pytest.mark.api, pytest.mark.store]

LONG = os.environ.get("CHECKPOINT_FAULTS") == "long"
SILENT = 1000 if LONG else 60
COMMITS = 100 if LONG else 8
PROMISED_SECONDS = 10.0
PROMISED_BYTES = 400 * 1024 * 1024
HUGE = 700 * 1024 * 1024

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAHOSTILETENANT000", "AWS_SECRET_ACCESS_KEY": "a-secret-key-of-a-hostile-tenant"}

IDENTITY = {
    "AWS_ACCESS_KEY_ID": "AKIAOPERATORSOWNKEY0",
    "AWS_SECRET_ACCESS_KEY": "operators-own-secret",
    "AWS_SESSION_TOKEN": "operators-own-session",
    "AZURE_STORAGE_ACCOUNT_NAME": "operatorsownaccount",
    "AZURE_STORAGE_ACCOUNT_KEY": "b3BlcmF0b3JzLW93bi1henVyZS1rZXk=",
    "AZURE_STORAGE_TOKEN": "operators-own-bearer-token",
}
"""What the operator finds in its environment, and never uses for a Checkpoint that names a Secret."""

HOSTILE: Mapping[str, set[str]] = {
    "silent": {"StoreUnavailable"},
    "slow": {"StoreTooSlow", "StoreUnavailable"},
    "dripping": {"PassTimedOut", "StoreUnavailable"},
    "endless-listing": {"ListingTooLong", "StoreTooSlow"},
    "endless-log": {"LogTooLong"},
    "lying": {"StoreUnavailable"},
    "unconditional": {"NoConditionalWrite"},
    "redirecting": {"StoreUnavailable", "InvalidSpec", "AccessDenied"},
    "garbage": {"LogUnreadable"},
    "huge-manifests": {"ObjectTooLarge"},
    "wide-manifests": {"", "ObjectTooLarge"},
    "huge-metadata": {""},
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
    "cloud-key": NOT_READY,
    "squatter": {""},
}
"""Why each Checkpoint is not Ready; empty where it is."""

LARGE = {"huge-manifests", "wide-manifests", "huge-metadata"}
SHORT = HOSTILE.keys() - LARGE - {"slow", "lying"}
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
    """Of hostile tenants: a silent one, one of most other kinds, one of large objects, and where redirects lead to."""

    silent: HostileServer
    hostile: HostileServer
    large: HostileServer
    elsewhere: HostileServer


@pytest.fixture
def servers() -> Iterator[Servers]:
    with contextlib.ExitStack() as stack:
        found = Servers(*(stack.enter_context(hostile_server()) for _ in range(4)))
        found.hostile.elsewhere = found.elsewhere.endpoint
        yield found


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


def in_cloud(endpoint: str, scheme: str, secret: str, name: str = "") -> dict[str, Any]:
    """A Checkpoint in another cloud than Amazon's, at a server of one's own."""
    storage = {"url": f"{scheme}://cloud/run", "endpoint": endpoint, "credentialsSecret": {"name": secret}}
    return checkpoint(f"cloud-{name or scheme}", storage=storage)


def google_key(server: str) -> str:
    """A key that Google could have given out, for a server of one's own."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    email = "tenant@hostile.iam.gserviceaccount.com"
    fields = {"type": "service_account", "client_email": email, "private_key_id": "1", "private_key": pem.decode()}
    return json.dumps({**fields, "gcs_base_url": server})


def begun(server: HostileServer, bucket: str, owner: Owner) -> Trainer:
    """A training run of a hostile tenant, whose log is in order."""
    settings = StoreSettings(f"s3://{bucket}/{bucket}", server.endpoint, "us-east-1", credentials=Credentials.of(KEYS))
    trainer = Trainer(open_store(settings), owner).start()
    trainer.log.append(attempt.identify)
    return trainer


def commit(trainer: Trainer, server: HostileServer, bucket: str, step: int, manifest: bytes) -> SaveFolder:
    """A snapshot with this manifest. The server invents the rest of its data."""
    folder = SaveFolder(step, trainer.number, layout.new_nonce(), trainer.log.run.short_identity)
    snapshot = layout.snapshot_id(step, trainer.number, folder.nonce)
    server.put(bucket, f"{bucket}/{folder.manifest}", manifest)
    digest = manifests.digest(manifest)
    draft = SnapshotCommitted(snapshot, step, trainer.number, folder.path, digest, HUGE, 1, 1, trigger="Schedule")
    trainer.log.append(lambda run: attempt.commit(run, draft, overwrite="Never"))
    return folder


def huge_runs(server: HostileServer, cluster: str, namespace: str) -> None:
    """Runs with a `.metadata` of 700 MiB, and with manifests of 64 MiB that hold little or very much."""
    bucket = "huge-metadata"
    trainer = begun(server, bucket, Owner(cluster, namespace, bucket))
    blocks = b"".join(
        crc32c(Zeros(HUGE)[start : start + BLOCK_BYTES]).to_bytes(4, "big") for start in range(0, HUGE, BLOCK_BYTES)
    )
    file = File(layout.STOCK_METADATA_NAME, HUGE, crc32c(bytes(HUGE)), blocks)
    whole = Manifest("1-1-aaaaaaaa", 1, 1, 1, (file,), block_bytes=BLOCK_BYTES)
    folder = commit(trainer, server, bucket, 100, manifests.encode(whole))
    server.put(bucket, f"{bucket}/{folder.stock_metadata}", Zeros(HUGE))
    for bucket, filling in (("wide-manifests", b" "), ("huge-manifests", b"{")):
        start = (
            b'{"snapshot": "1-1-aaaaaaaa", "step": 1, "attempt": 1, "worldSize": 1, "files": [], "versions": {"a": "'
        )
        padding = filling * (manifests.MAX_MANIFEST_BYTES - len(start) - 3)
        trainer = begun(server, bucket, Owner(cluster, namespace, bucket))
        for step in (100, 200, 300):
            commit(trainer, server, bucket, step, start + padding + b'"}}')


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
    kinds = (HOSTILE.keys() if LONG else SHORT) - {"silent"}
    others = [at((servers.large if kind in LARGE else servers.hostile).endpoint, kind, kind) for kind in kinds]
    if LONG:
        huge_runs(servers.large, namespace.api.uid, hostile[1].name)
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
    create_secret(
        hostile[0], "google-key", {"GOOGLE_APPLICATION_CREDENTIALS_JSON": google_key(servers.hostile.endpoint)}
    )
    identities = (("az", "azure"), ("gs", "google"), ("gs", "google-key", "key"))
    clouds = [in_cloud(servers.hostile.endpoint, *each) for each in identities]
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
    assert "'authorization': 'Bearer " in sent, "a tenant's own key is used at the tenant's server"
    if LONG:
        pointer, _ = servers.large.objects["huge-metadata"]["huge-metadata/step-100/.metadata"]
        assert len(pointer) == HUGE
    assert [value for value in IDENTITY.values() if value in sent] == []
    assert [name for name in ("test-", "silent") if name in run.condition("Ready")["message"]] == []
    assert run.status["claimedBy"] == f"{namespace.api.uid}/{namespace.name}/first"
