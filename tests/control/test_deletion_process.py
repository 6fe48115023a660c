"""deletionPolicy: Delete as a user meets it: a real operator, a real API server, a real S3 server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from checkpoint_operator.decide.finalizer import FINALIZER
from checkpoint_sidecar.core import attempt
from checkpoint_sidecar.core.errors import FencedError
from checkpoint_sidecar.core.layout import SaveFolder, log_number
from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.opening import open_store
from doubles.faulty_server import Fault, faulty_server
from localcluster.objectstore import ObjectStore
from support.admission import Namespace, checkpoint, pod
from support.operators import UNREAD, StartOperator, Watched
from support.trainers import Trainer

pytestmark = [pytest.mark.api, pytest.mark.store]

TIMEOUT_SECONDS = 90.0


class Place:
    """A prefix of a real bucket, and the Checkpoint that has it."""

    def __init__(self, namespace: Namespace, server: ObjectStore, bucket: str, secret: str) -> None:
        self.namespace = namespace
        self.url = f"s3://{bucket}/run"
        self.storage = {
            "url": self.url,
            "endpoint": server.endpoint,
            "region": "us-east-1",
            "credentialsSecret": {"name": secret},
        }
        keys = Credentials.of(server.environment)
        self.store: Store = open_store(StoreSettings(self.url, server.endpoint, "us-east-1", credentials=keys))
        self.owner = Owner(namespace.api.uid, namespace.name, "run")

    def create(self, **spec: Any) -> Watched:
        storage = {**self.storage, **spec.pop("storage", {})}
        self.namespace.create(checkpoint("run", storage=storage, **{"deletionPolicy": "Delete", **spec}))
        return Watched(self.namespace, "run")

    def trained(self) -> Trainer:
        """Two attempts, three snapshots, and half a save."""
        trainer = Trainer(self.store, self.owner).start()
        trainer.commit(100)
        trainer.start()
        trainer.commit(200)
        trainer.commit(300)
        folder = SaveFolder(400, 2, "aaaaaaaa", trainer.run.short_identity)
        self.store.put(f"{folder.path}/__0_0.distcp", b"half")
        return trainer

    def delete(self) -> None:
        self.namespace.kubectl("annotate", "ckpt", "run", "checkpoint-operator.dev/confirm-deletion=run")
        self.namespace.kubectl("delete", "ckpt", "run", "--wait=false")

    def contents(self) -> set[str]:
        return {info.key for info in self.store.list()}

    def left(self) -> set[str]:
        """What is there besides the one tombstone of a deleted run."""
        contents = self.contents()
        (tombstone,) = (key for key in contents if log_number(key))
        return contents - {tombstone}

    def gone(self, *, within: float = TIMEOUT_SECONDS) -> None:
        """Wait until the object is."""
        deadline = time.monotonic() + within
        while any(item["metadata"]["name"] == "run" for item in self.namespace.read("checkpoints")["items"]):
            assert time.monotonic() < deadline, self.namespace.kubectl("get", "ckpt", "run", "--output=yaml")
            time.sleep(0.3)


@pytest.fixture
def place(namespace: Namespace, object_store: ObjectStore, bucket: str, secret: str) -> Place:
    return Place(namespace, object_store, bucket, secret)


def finalizers(run: Watched) -> list[str]:
    found: list[str] = run.body["metadata"].get("finalizers", [])
    return found


def test_the_finalizer_comes_and_goes_with_the_spec_and_retain_leaves_the_data(
    place: Place, start_operator: StartOperator
) -> None:
    start_operator(UNREAD)
    trainer = place.trained()
    run = place.create()
    run.eventually(lambda it: finalizers(it) == [FINALIZER], within=TIMEOUT_SECONDS)
    place.namespace.patch("checkpoints", "run", {"spec": {"deletionPolicy": "Retain"}})
    run.eventually(lambda it: finalizers(it) == [])
    run.becomes("Ready", "True", "Configured", within=TIMEOUT_SECONDS)
    place.delete()
    place.gone()
    assert [s.live for s in trainer.run.snapshots.values()] == [True] * 3
    assert trainer.run.owner == place.owner


@pytest.mark.parametrize("everywhere", [False], ids=["in one namespace"])
def test_with_delete_all_but_a_tombstone_is_gone_from_the_bucket_before_the_object_is(
    place: Place, start_operator: StartOperator, chart_rights: Path
) -> None:
    cluster = f"--cluster-id={place.namespace.api.uid}"
    operator = start_operator(UNREAD, cluster, kubeconfig=chart_rights)
    place.trained()
    place.store.put("notes.txt", b"another owner's")
    run = place.create()
    run.eventually(lambda it: len(it.snapshots()) == 3, within=TIMEOUT_SECONDS)
    place.delete()
    place.gone()
    assert place.left() == {"notes.txt"}
    assert run.events()[-1] == "RunDeleted"
    assert "answered 403" not in operator.logged
    again = place.create()
    again.becomes("Ready", "True", "Configured")
    assert "latest" not in again.status


def test_a_running_pod_is_fenced_at_once_and_its_data_goes_when_it_has_ended(
    place: Place, start_operator: StartOperator
) -> None:
    start_operator(UNREAD)
    trainer = place.trained()
    run = place.create()
    run.becomes("Ready", "True", "Configured", within=TIMEOUT_SECONDS)
    place.namespace.create(pod("run"))
    place.delete()
    run.becomes("Ready", "False", "Deleting")
    run.eventually(lambda _: trainer.run.owner == place.owner.deleted)
    with pytest.raises(FencedError):
        attempt.current(trainer.run, trainer.number)
    waiting = run.eventually(lambda it: "has not ended" in it.condition("Ready")["message"] and it.condition("Ready"))
    assert "trainer" in waiting["message"]
    time.sleep(3)
    assert len([key for key in place.contents() if key.endswith("manifest.json")]) == 3
    place.namespace.kubectl("delete", "pod", "trainer", "--force", "--grace-period=0")
    place.gone()
    assert place.left() == set()


def test_an_operator_that_is_killed_while_it_deletes_is_replaced_and_ends_it(
    place: Place, start_operator: StartOperator, object_store: ObjectStore
) -> None:
    trainer = place.trained()
    with faulty_server(object_store.endpoint) as server:
        first = start_operator(UNREAD)
        run = place.create(storage={"endpoint": server.endpoint})
        run.becomes("Ready", "True", "Configured", within=TIMEOUT_SECONDS)
        server.faults.append(Fault("POST", "delete", (503, "SlowDown"), times=1_000_000))
        server.faults.append(Fault("DELETE", "", (503, "SlowDown"), times=1_000_000))
        place.delete()
        run.eventually(lambda _: trainer.run.owner == place.owner.deleted)
        first.kill()
        with server.lock:
            server.faults.clear()
        start_operator(UNREAD)
        place.gone()
        assert place.left() == set()


def test_a_store_that_refuses_holds_the_object_until_the_user_lets_the_data_stay(
    place: Place, start_operator: StartOperator, object_store: ObjectStore
) -> None:
    trainer = place.trained()
    with faulty_server(object_store.endpoint) as server:
        server.faults.append(Fault("POST", "delete", "refuse each key", times=1_000_000))
        operator = start_operator(UNREAD)
        run = place.create(storage={"endpoint": server.endpoint})
        run.becomes("RetentionEnforced", "False", "DeletionRefused", within=TIMEOUT_SECONDS)
        place.delete()
        run.becomes("Ready", "False", "Deleting")
        time.sleep(3)
        place.namespace.patch("checkpoints", "run", {"spec": {"deletionPolicy": "Retain"}})
        place.gone()
    assert len(trainer.run.snapshots) == 3
    assert run.events()[-1] == "DataRetained"
    assert "up to 3 snapshots" in operator.logged


def test_a_prefix_that_belongs_to_another_run_is_left_alone_and_the_object_goes_at_once(
    place: Place, start_operator: StartOperator
) -> None:
    other = Trainer(place.store, Owner("another-cluster", "training", "run")).start()
    other.commit(100)
    before = place.contents()
    start_operator(UNREAD)
    run = place.create()
    run.becomes("Ready", "False", "PrefixClaimed", within=TIMEOUT_SECONDS)
    run.eventually(lambda it: finalizers(it) == [FINALIZER], within=TIMEOUT_SECONDS)
    place.delete()
    place.gone()
    assert place.contents() == before
    assert run.events()[-1] == "DataRetained"


@pytest.mark.parametrize("everywhere", [False, True], ids=["in one namespace", "in all namespaces"])
def test_a_namespace_that_is_deleted_with_its_secret_is_not_held_up(
    place: Place, start_operator: StartOperator, chart_rights: Path
) -> None:
    operator = start_operator(UNREAD, f"--cluster-id={place.namespace.api.uid}", kubeconfig=chart_rights)
    place.trained()
    run = place.create()
    run.becomes("Ready", "True", "Configured", within=TIMEOUT_SECONDS)
    run.eventually(lambda it: finalizers(it) == [FINALIZER], within=TIMEOUT_SECONDS)
    place.namespace.kubectl("delete", "secret", "s3-keys")
    # Without its controller the namespace stays terminating; this one's objects are deleted by hand, as that would.
    place.namespace.api.kubectl("delete", "namespace", place.namespace.name, "--wait=false")
    place.delete()
    place.gone()
    assert "s3-keys does not exist" in operator.logged
    assert any(key.endswith("manifest.json") for key in place.contents())
