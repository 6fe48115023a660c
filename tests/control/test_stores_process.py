"""What a store refuses, loses or damages, as the Checkpoint's conditions show it: a real process, real servers."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.core.run import Snapshot, SnapshotState
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.opening import open_store
from doubles.faulty_server import Fault, faulty_server
from localcluster.objectstore import ObjectStore
from support.admission import Namespace
from support.operators import FILES, UNREAD, StartOperator, create
from support.trainers import Trainer

pytestmark = pytest.mark.api


@pytest.mark.store
def test_stores_that_do_not_answer_delay_no_other_checkpoint_for_long(
    namespace: Namespace, start_operator: StartOperator, url: str, secret: str
) -> None:
    start_operator(FILES)
    nowhere = {"endpoint": "http://127.0.0.1:9", "credentialsSecret": {"name": secret}}
    silent = [create(namespace, f"s3://bucket/{number}", f"run-{number}", storage=nowhere) for number in range(9)]
    create(namespace, url).becomes("Ready", "True", "Configured", within=15)
    for run in silent:
        run.becomes("Ready", "False", "StoreUnavailable", within=30)


@pytest.mark.store
def test_wrong_keys_are_named_and_put_right_by_changing_the_secret(
    namespace: Namespace, start_operator: StartOperator, object_store: ObjectStore, bucket: str, secret: str
) -> None:
    operator = start_operator()
    wrong = {"stringData": {"AWS_SECRET_ACCESS_KEY": "wrong-secret-key-that-must-not-appear"}}
    namespace.patch("secrets", secret, wrong)
    storage = {"endpoint": object_store.endpoint, "region": "us-east-1", "credentialsSecret": {"name": secret}}
    run = create(namespace, f"s3://{bucket}/run", storage=storage)
    run.becomes("StorageAvailable", "False", "AccessDenied")
    namespace.patch("secrets", secret, {"stringData": {"AWS_SECRET_ACCESS_KEY": object_store.secret_key}})
    run.becomes("Ready", "True", "Configured")
    settings = StoreSettings(
        f"s3://{bucket}/run",
        endpoint=object_store.endpoint,
        region="us-east-1",
        credentials=Credentials.of(object_store.environment),
    )
    trainer = Trainer(open_store(settings), Owner(namespace.api.uid, namespace.name, "run"))
    snapshot = trainer.start().commit(100)
    run.eventually(lambda it: it.status.get("latest", {}).get("snapshot") == snapshot.id, within=10)
    everything = operator.logged + namespace.kubectl("get", "ckpt,ckptsnap,events", "--output=yaml")
    for value in (object_store.secret_key, "wrong-secret-key-that-must-not-appear"):
        assert value not in everything


@pytest.mark.store
def test_a_missing_secret_a_missing_bucket_and_a_foreign_identity_have_reasons_of_their_own(
    namespace: Namespace,
    start_operator: StartOperator,
    object_store: ObjectStore,
    bucket: str,
    secret: str,
    moto_endpoint: str,
) -> None:
    start_operator(f"--ambient-allow={namespace.name}=s3://allowed/team")
    endpoint = {"endpoint": object_store.endpoint, "region": "us-east-1"}
    moto = {"endpoint": moto_endpoint, "region": "us-east-1"}
    keys = {"credentialsSecret": {"name": secret}}
    cases = {
        "no-secret": (f"s3://{bucket}/a", endpoint | {"credentialsSecret": {"name": "absent"}}, "SecretNotFound"),
        "no-bucket": ("s3://there-is-no-such-bucket/b", moto | keys, "BucketNotFound"),
        # SeaweedFS would create the bucket on the first write.
        "no-bucket-yet": ("s3://there-is-no-such-bucket/e", endpoint | keys, "BucketNotFound"),
        "ambient": (f"s3://{bucket}/c", {}, "AmbientNotAllowed"),
        "ambient-endpoint": ("s3://allowed/team/d", endpoint, "AmbientNotAllowed"),
        "file": ("file:///tmp/run", {}, "FileUrlNotAllowed"),
    }
    watched = {
        name: (create(namespace, url, name, storage=storage), reason) for name, (url, storage, reason) in cases.items()
    }
    for run, reason in watched.values():
        run.becomes("StorageAvailable", "False", reason)
        assert run.condition("Ready")["reason"] == reason
    version = watched["no-bucket"][0].body["metadata"]["resourceVersion"]
    time.sleep(6)
    assert watched["no-bucket"][0].body["metadata"]["resourceVersion"] == version, "retries do not write"


@pytest.mark.store
@pytest.mark.parametrize(
    ("refused", "condition", "ready"),
    [
        pytest.param(
            Fault("POST", "delete", "refuse each key", times=1_000_000),
            ("RetentionEnforced", "False", "DeletionRefused"),
            "True",
            id="deleting",
        ),
        pytest.param(
            Fault("PUT", "", (403, "AccessDenied"), times=1_000_000),
            ("StorageAvailable", "False", "ReadOnly"),
            "False",
            id="writing",
        ),
    ],
)
def test_what_a_store_refuses_is_a_condition_and_no_hot_loop(
    refused: Fault,
    condition: tuple[str, str, str],
    ready: str,
    namespace: Namespace,
    start_operator: StartOperator,
    object_store: ObjectStore,
    bucket: str,
    secret: str,
) -> None:
    url, region = f"s3://{bucket}/run", {"region": "us-east-1"}
    settings = StoreSettings(
        url, object_store.endpoint, "us-east-1", credentials=Credentials.of(object_store.environment)
    )
    trainer = Trainer(open_store(settings), Owner(namespace.api.uid, namespace.name, "run")).start()
    first, second = trainer.commit(100), trainer.commit(200)
    with faulty_server(object_store.endpoint) as server:
        server.faults.append(replace(refused))
        start_operator(UNREAD)
        storage = {"endpoint": server.endpoint, **region, "credentialsSecret": {"name": secret}}
        run = create(namespace, url, storage=storage, retention={"keepLast": 1, "gracePeriod": "0s"})
        run.becomes(*condition)
        assert run.condition(condition[0])["message"].count("AccessDenied") == 1
        assert run.condition("Ready")["status"] == ready
        run.eventually(lambda it: it.status.get("latest", {}).get("snapshot") == second.id)
        run.eventually(lambda it: set(it.snapshots()) == {f"run-{first.id}", f"run-{second.id}"})
        time.sleep(5)
        version, asked = run.body["metadata"]["resourceVersion"], len(server.seen)
        time.sleep(6)
        assert run.body["metadata"]["resourceVersion"] == version, "nothing is written for nothing"
        assert len(server.seen) - asked < 10, server.seen[asked:]
        assert all(s.state is not SnapshotState.PURGING for s in trainer.run.snapshots.values())


@pytest.mark.store
def test_what_was_read_back_is_not_read_again_because_the_log_could_not_be_written(
    namespace: Namespace, start_operator: StartOperator, object_store: ObjectStore, bucket: str, secret: str
) -> None:
    url, keys = f"s3://{bucket}/run", Credentials.of(object_store.environment)
    settings = StoreSettings(url, object_store.endpoint, "us-east-1", credentials=keys)
    trainer = Trainer(open_store(settings), Owner(namespace.api.uid, namespace.name, "run")).start()
    snapshot = trainer.commit(100)
    with faulty_server(object_store.endpoint) as server:
        storage = {"endpoint": server.endpoint, "region": "us-east-1", "credentialsSecret": {"name": secret}}
        start_operator("--verify-rate=200")
        run = create(namespace, url, storage=storage)
        mirror = f"run-{snapshot.id}"
        run.eventually(lambda it: "SizesMatch" in str(it.snapshots().get(mirror, {}).get("status")))
        server.faults.append(Fault("PUT", "_log/", (503, "SlowDown"), times=1_000_000))
        run.becomes("StorageAvailable", "False", "StoreUnavailable", within=60)
        assert "ChecksumsMatch" not in str(run.snapshots()[mirror]["status"])
        with server.lock:
            server.faults.clear()
        run.eventually(lambda it: "ChecksumsMatch" in str(it.snapshots()[mirror]["status"]), within=90)
        assert server.count("GET", "__0_0.distcp") == 1


def test_what_is_damaged_is_found_in_the_background_and_told(
    namespace: Namespace, start_operator: StartOperator, url: str, trainer: Trainer
) -> None:
    start_operator(FILES)
    run = create(namespace, url, retention={"keepLast": 1, "gracePeriod": "1h"})
    run.becomes("Ready", "True", "Configured")
    good = trainer.start().commit(100)

    def verified(snapshot: Snapshot) -> tuple[str, str]:
        body = run.snapshots().get(f"run-{snapshot.id}", {"status": {}})
        found = [c for c in body.get("status", {}).get("conditions", []) if c["type"] == "Verified"]
        return (found[0]["status"], found[0]["reason"]) if found else ("", "")

    run.eventually(lambda _: verified(good) == ("True", "ChecksumsMatch"))
    folder = trainer.store.url.removeprefix("file://")
    bad = trainer.commit(200)
    Path(folder, bad.commit.path, "__0_0.distcp").write_bytes(b"\x01" + bytes(699))
    run.eventually(lambda _: verified(bad) == ("False", "ChecksumMismatch"))
    run.eventually(lambda it: "SnapshotQuarantined" in it.events())
    assert trainer.run.snapshots[good.id].state is SnapshotState.LIVE


@pytest.mark.store
def test_a_deleted_secret_is_noticed_while_the_connections_made_with_it_still_work(
    namespace: Namespace, start_operator: StartOperator, object_store: ObjectStore, bucket: str, secret: str
) -> None:
    start_operator(UNREAD)
    storage = {"endpoint": object_store.endpoint, "region": "us-east-1", "credentialsSecret": {"name": secret}}
    run = create(namespace, f"s3://{bucket}/run", storage=storage)
    run.becomes("Ready", "True", "Configured")
    kept = namespace.kubectl("get", "secret", secret, "--output=json")
    namespace.kubectl("delete", "secret", secret)
    run.becomes("Ready", "False", "SecretNotFound", within=20)
    namespace.create(json.loads(kept) | {"metadata": {"name": secret}})
    run.becomes("Ready", "True", "Configured", within=90)
