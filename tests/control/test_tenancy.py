"""What tenants of one operator cannot do to each other, and where their secrets do not go: the real process."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.core.run import SnapshotState
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from checkpoint_sidecar.store.opening import open_store
from localcluster import network
from localcluster.objectstore import ObjectStore
from support.admission import Namespace, checkpoint
from support.operators import StartOperator, Watched
from support.trainers import Trainer

pytestmark = pytest.mark.api

KEEP_ALL = {"keepLast": 1, "keepEverySteps": 1, "gracePeriod": "1s"}
ROOM_FOR_FOUR, ROOM_FOR_TWO = "4500", "2500"  # a snapshot of the tests has a little more than 1,000 bytes


def in_folder(namespace: Namespace, folder: Path, name: str, **spec: object) -> tuple[Watched, Trainer]:
    url = f"file://{folder / name}"
    namespace.create(checkpoint(name, storage={"url": url}, **spec))
    trainer = Trainer(LocalStore(StoreSettings(url)), Owner(namespace.api.uid, namespace.name, name))
    return Watched(namespace, name), trainer


def live(trainer: Trainer) -> list[int]:
    return [s.step for s in trainer.run.snapshots.values() if s.state is SnapshotState.LIVE]


def test_the_oldest_snapshots_of_the_namespace_go_when_its_quota_is_full(
    namespace: Namespace, start_operator: StartOperator, tmp_path: Path
) -> None:
    start_operator("--allow-file-urls", f"--quota={namespace.name}={ROOM_FOR_FOUR}")
    one, old = in_folder(namespace, tmp_path, "one", retention=KEEP_ALL)
    two, young = in_folder(namespace, tmp_path, "two", retention=KEEP_ALL)
    one.becomes("Ready", "True", "Configured", within=90)
    two.becomes("Ready", "True", "Configured")
    old.start()
    for step in (100, 200, 300):
        old.commit(step)
    one.eventually(lambda it: it.status.get("snapshots") == 3)
    young.start()
    for step in (100, 200, 300):
        young.commit(step)
    one.eventually(lambda _: live(old) == [300])
    two.eventually(lambda it: it.status.get("snapshots") == 3)
    one.eventually(lambda it: it.status["snapshots"] == 1 and "pendingPurge" not in it.status)
    assert live(young) == [100, 200, 300]
    assert "(Quota)" in namespace.kubectl("get", "events", "--output=yaml")
    for run in (one, two):
        assert run.condition("RetentionEnforced")["reason"] == "Enforced"
        assert run.condition("Ready")["status"] == "True"


def test_what_must_be_kept_is_kept_beyond_the_quota_and_every_checkpoint_reports_it(
    namespace: Namespace, start_operator: StartOperator, tmp_path: Path
) -> None:
    start_operator("--allow-file-urls", f"--quota=*={ROOM_FOR_TWO}")
    hoarder, many = in_folder(namespace, tmp_path, "hoarder")
    frugal, few = in_folder(namespace, tmp_path, "frugal", retention=KEEP_ALL)
    frugal.becomes("Ready", "True", "Configured", within=90)
    few.start().commit(100)
    frugal.eventually(lambda it: it.status.get("snapshots") == 1)
    many.start()
    for step in (100, 200, 300):
        many.commit(step)
    for run in (hoarder, frugal):
        told = run.becomes("RetentionEnforced", "False", "QuotaExceeded")
        assert "spec.retention" in told["message"]
        assert run.condition("Ready")["status"] == "True", "saves continue"
    assert (live(many), live(few)) == ([100, 200, 300], [100])
    namespace.patch("checkpoints", "hoarder", {"spec": {"retention": {"keepLast": 1, "gracePeriod": "1s"}}})
    for run in (hoarder, frugal):
        run.becomes("RetentionEnforced", "True", "Enforced")
    assert (live(many), live(few)) == ([300], [100])


@pytest.mark.store
def test_secrets_are_in_no_resource_event_log_line_metric_or_object_of_the_bucket(
    namespace: Namespace,
    start_operator: StartOperator,
    object_store: ObjectStore,
    bucket: str,
    secret: str,
    tmp_path: Path,
) -> None:
    port = next(network.free_ports())
    operator = start_operator("--verbose", "--log-format=json", f"--metrics=127.0.0.1:{port}")
    token = "a-token-of-another-use-that-must-not-appear"
    wrong = "wrong-secret-key-that-must-not-appear"
    namespace.patch("secrets", secret, {"stringData": {"AWS_SECRET_ACCESS_KEY": wrong, "other": token}})
    storage = {"endpoint": object_store.endpoint, "region": "us-east-1", "credentialsSecret": {"name": secret}}
    namespace.create(checkpoint(storage={"url": f"s3://{bucket}/run", **storage}))
    run = Watched(namespace)
    run.becomes("StorageAvailable", "False", "AccessDenied", within=90)
    namespace.patch("secrets", secret, {"stringData": {"AWS_SECRET_ACCESS_KEY": object_store.secret_key}})
    run.becomes("Ready", "True", "Configured")
    store = open_store(
        StoreSettings(
            f"s3://{bucket}/run",
            object_store.endpoint,
            "us-east-1",
            credentials=Credentials.of(object_store.environment),
        )
    )
    snapshot = Trainer(store, Owner(namespace.api.uid, namespace.name, "run")).start().commit(100)
    run.eventually(lambda it: f"run-{snapshot.id}" in it.snapshots())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        metrics = answer.read().decode()
    stored = {info.key: store.get(info.key, max_bytes=1 << 20).data.decode("latin-1") for info in store.list()}
    assert any(key.startswith("_log/") for key in stored)
    assert "checkpoint_operator_ready" in metrics
    seen = {
        "resources and Events": namespace.kubectl("get", "ckpt,ckptsnap,events", "--output=yaml"),
        "log": operator.logged,
        "metrics": metrics,
        **stored,
    }
    for value in (object_store.secret_key, wrong, token):
        assert [where for where, text in seen.items() if value in text] == []
