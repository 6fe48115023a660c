"""A run is known from its bucket, and what users ask for acts once: a real API server, a real S3 server."""

from __future__ import annotations

from typing import Any

import pytest

from checkpoint_sidecar.core import attempt
from checkpoint_sidecar.core.api import RELEASE_ANNOTATION
from checkpoint_sidecar.core.log import Owner, RestoreFinished
from checkpoint_sidecar.core.run import SnapshotState
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.opening import open_store
from localcluster.objectstore import ObjectStore
from support.admission import Namespace, checkpoint
from support.operators import UNREAD, StartOperator, Watched
from support.trainers import Trainer

pytestmark = [pytest.mark.api, pytest.mark.store]

TIMEOUT_SECONDS = 90.0


@pytest.fixture
def storage(object_store: ObjectStore, bucket: str, secret: str) -> dict[str, Any]:
    return {
        "url": f"s3://{bucket}/run",
        "endpoint": object_store.endpoint,
        "region": "us-east-1",
        "credentialsSecret": {"name": secret},
    }


@pytest.fixture
def store(object_store: ObjectStore, storage: dict[str, Any]) -> Store:
    keys = Credentials.of(object_store.environment)
    return open_store(StoreSettings(storage["url"], object_store.endpoint, "us-east-1", credentials=keys))


@pytest.fixture
def trainer(namespace: Namespace, store: Store) -> Trainer:
    return Trainer(store, Owner(namespace.api.uid, namespace.name, "run"))


def create(namespace: Namespace, storage: dict[str, Any], **spec: Any) -> Watched:
    namespace.create(checkpoint("run", storage={**storage, **spec.pop("storage", {})}, **spec))
    return Watched(namespace)


def mirrors(run: Watched) -> dict[str, str]:
    """The disposition of each CheckpointSnapshot, by the snapshot's step."""
    return {str(body["spec"]["step"]): body["spec"]["disposition"] for body in run.snapshots().values()}


def condition(run: Watched, snapshot: str, kind: str) -> str:
    status = run.snapshots()[f"run-{snapshot}"].get("status", {})
    return next((c["reason"] for c in status.get("conditions", []) if c["type"] == kind), "")


def test_after_the_loss_of_all_objects_the_same_checkpoint_continues_and_its_snapshots_come_back(
    namespace: Namespace, start_operator: StartOperator, storage: dict[str, Any], trainer: Trainer
) -> None:
    first = start_operator(UNREAD)
    run = create(namespace, storage)
    trainer.start()
    held = trainer.commit(100)
    trainer.commit(200)
    run.eventually(lambda it: set(mirrors(it)) == {"100", "200"}, within=TIMEOUT_SECONDS)
    namespace.patch("checkpointsnapshots", f"run-{held.id}", {"spec": {"disposition": "Hold"}})
    run.eventually(lambda _: trainer.run.snapshots[held.id].disposition == "Hold")
    first.stop()
    namespace.kubectl("delete", "ckpt,ckptsnap", "--all", "--wait=true")
    assert run.snapshots() == {}

    start_operator(UNREAD)
    again = create(namespace, storage)
    again.becomes("Ready", "True", "Configured", within=TIMEOUT_SECONDS)
    again.eventually(lambda it: mirrors(it) == {"100": "Hold", "200": "Auto"})
    assert again.status["latest"]["step"] == 200
    trainer.start()
    assert trainer.commit(300).commit.parent == trainer.run.attempts[trainer.number].restored


def test_after_the_loss_of_the_cluster_the_run_is_taken_over_with_all_its_snapshots(
    namespace: Namespace, start_operator: StartOperator, storage: dict[str, Any], store: Store
) -> None:
    lost = Owner("lost-cluster", namespace.name, "run")
    trainer = Trainer(store, lost).start()
    held = trainer.commit(100)
    trainer.commit(200)
    start_operator(UNREAD)
    run = create(namespace, storage)
    run.becomes("Ready", "False", "PrefixClaimed", within=TIMEOUT_SECONDS)
    assert (run.status["claimedBy"], run.snapshots()) == (str(lost), {})
    namespace.patch("checkpoints", "run", {"spec": {"storage": {"takeOverFrom": str(lost)}}})
    run.becomes("Ready", "True", "Configured")
    run.eventually(lambda it: mirrors(it) == {"100": "Auto", "200": "Auto"})
    assert trainer.run.owner == Owner(namespace.api.uid, namespace.name, "run")
    assert not trainer.run.may_commit(trainer.number)
    assert all(snapshot.live for snapshot in trainer.run.snapshots.values())
    assert f"run-{held.id}" in run.snapshots()


def test_a_rollback_acts_exactly_once_is_echoed_and_may_stay_in_the_spec(
    namespace: Namespace, start_operator: StartOperator, storage: dict[str, Any], trainer: Trainer
) -> None:
    start_operator(UNREAD)
    best = {"retention": {"keepLast": 9, "keepBest": [{"metric": "loss", "mode": "Min", "count": 1}]}}
    run = create(namespace, storage, **best)
    run.becomes("Ready", "True", "Configured", within=TIMEOUT_SECONDS)
    trainer.start()
    losses = {100: "0.5", 200: "0.1", 300: "0.9"}
    saved = {step: trainer.commit(step, metrics={"loss": loss}).id for step, loss in losses.items()}
    run.eventually(lambda it: it.status.get("best", {}).get("snapshot") == saved[200])

    namespace.patch("checkpoints", "run", {"spec": {"restore": {"rollback": {"request": "to-the-best", "to": "Best"}}}})
    run.eventually(lambda it: it.status.get("lastRollback") == "to-the-best")
    trainer.start()
    run.eventually(lambda it: it.status["lastRestore"].get("reason") == "Rollback")
    assert run.status["lastRestore"]["snapshot"] == saved[200]
    newest = trainer.commit(250).id
    run.eventually(lambda it: it.status["latest"]["snapshot"] == newest)
    assert condition(run, saved[300], "Ready") in ("Superseded", "Restorable")
    run.eventually(lambda it: condition(it, saved[300], "Ready") == "Superseded")

    trainer.start()
    run.eventually(lambda it: it.status["lastRestore"]["attempt"] == 3)
    assert (run.status["lastRestore"]["reason"], run.status["lastRestore"]["snapshot"]) == ("Latest", newest)
    assert run.body["spec"]["restore"]["rollback"]["request"] == "to-the-best"

    rollback = {"request": "back-to-100", "to": "Snapshot", "snapshot": saved[100]}
    namespace.patch("checkpoints", "run", {"spec": {"restore": {"rollback": rollback}}})
    run.eventually(lambda it: it.status["lastRollback"] == "back-to-100")
    trainer.start()
    run.eventually(lambda it: it.status["lastRestore"].get("snapshot") == saved[100])


def test_a_restore_that_fails_twice_over_attempts_quarantines_until_a_user_releases_it(
    namespace: Namespace, start_operator: StartOperator, storage: dict[str, Any], trainer: Trainer
) -> None:
    start_operator(UNREAD)
    run = create(namespace, storage, restore={"maxFailuresPerSnapshot": 2})
    run.becomes("Ready", "True", "Configured", within=TIMEOUT_SECONDS)
    trainer.start()
    good, bad = trainer.commit(100), trainer.commit(200)
    run.eventually(lambda it: set(mirrors(it)) == {"100", "200"})
    for number in (2, 3):
        failed = RestoreFinished(number, bad.id, restored=False, evidence="ChecksumMismatch", message="block 7")
        trainer.log.append(lambda run: attempt.start(run, world_size=2, pods=()))
        trainer.log.append(lambda run, failed=failed: attempt.finish_restore(run, failed))  # type: ignore[misc]
    run.eventually(lambda it: it.status.get("quarantinedSnapshots") == 1)
    assert run.status["quarantined"][0]["failures"] == 2
    run.eventually(lambda it: condition(it, bad.id, "Ready") == "Quarantined")
    trainer.start()
    run.eventually(lambda it: it.status.get("lastRestore", {}).get("snapshot") == good.id)

    namespace.kubectl("annotate", "ckptsnap", f"run-{bad.id}", f"{RELEASE_ANNOTATION}=looked-at-it")
    run.eventually(lambda it: condition(it, bad.id, "Ready") == "Restorable")
    run.eventually(lambda it: "quarantined" not in it.status)
    assert run.snapshots()[f"run-{bad.id}"]["status"]["lastReleaseRequest"] == "looked-at-it"
    assert [s.failures for s in trainer.run.snapshots.values()] == [0, 0]
    run.eventually(lambda it: "QuarantineReleased" in it.events())
    run.eventually(lambda it: condition(it, bad.id, "Verified") == "SizesMatch")
    assert trainer.run.snapshots[bad.id].releases == ("looked-at-it",)


def test_a_snapshot_set_to_retire_goes_and_one_that_is_held_stays_against_the_policy(
    namespace: Namespace, start_operator: StartOperator, storage: dict[str, Any], trainer: Trainer
) -> None:
    start_operator(UNREAD)
    run = create(namespace, storage, retention={"keepLast": 1, "keepEverySteps": 1, "gracePeriod": "0s"})
    trainer.start()
    given_up, held, newest = (trainer.commit(step) for step in (100, 200, 300))
    run.eventually(lambda it: set(mirrors(it)) == {"100", "200", "300"}, within=TIMEOUT_SECONDS)
    namespace.patch("checkpointsnapshots", f"run-{given_up.id}", {"spec": {"disposition": "Retire"}})
    namespace.patch("checkpointsnapshots", f"run-{held.id}", {"spec": {"disposition": "Hold"}})
    run.eventually(lambda it: set(mirrors(it)) == {"200", "300"})
    assert trainer.run.snapshots[given_up.id].state is SnapshotState.PURGED
    namespace.patch("checkpoints", "run", {"spec": {"retention": {"keepEverySteps": None}}})
    run.eventually(lambda it: it.status["observedGeneration"] == 2)
    assert trainer.run.snapshots[held.id].live
    assert trainer.run.snapshots[newest.id].live
