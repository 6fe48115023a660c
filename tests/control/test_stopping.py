"""Asked to end in the middle of a pass, the operator finishes the step at hand, and the next operator continues."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.core.run import SnapshotState
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.opening import open_store
from doubles.faulty_server import Fault, faulty_server
from localcluster.objectstore import ObjectStore
from support.admission import Namespace, checkpoint
from support.operators import OperatorProcess, Watched
from support.trainers import Trainer

pytestmark = [pytest.mark.api, pytest.mark.store]


def test_a_purge_under_way_is_finished_before_the_process_ends_and_nothing_is_begun_after_it(
    namespace: Namespace,
    start_operator: Callable[..., OperatorProcess],
    object_store: ObjectStore,
    bucket: str,
    secret: str,
) -> None:
    url, keys = f"s3://{bucket}/run", Credentials.of(object_store.environment)
    settings = StoreSettings(url, object_store.endpoint, "us-east-1", credentials=keys)
    trainer = Trainer(open_store(settings), Owner(namespace.api.uid, namespace.name, "run")).start()
    snapshots = [trainer.commit(step) for step in (100, 200, 300)]
    with faulty_server(object_store.endpoint) as server:
        operator = start_operator("--verify-rate=0")
        storage = {"endpoint": server.endpoint, "region": "us-east-1", "credentialsSecret": {"name": secret}}
        namespace.create(checkpoint("run", storage={"url": url, **storage}))
        run = Watched(namespace, "run")
        run.eventually(lambda it: len(it.snapshots()) == 3, within=90)
        server.forget()
        server.faults.append(Fault("POST", "delete", "read slowly", times=1))
        namespace.patch("checkpoints", "run", {"spec": {"retention": {"keepLast": 1, "gracePeriod": "0s"}}})
        run.eventually(lambda _: server.count("POST", "delete"), within=90)
        assert operator.stop() == 0
        states = [snapshot.state for snapshot in trainer.run.snapshots.values()]
        assert SnapshotState.PURGED in states
        asked = len(server.seen)
        time.sleep(2)
        assert len(server.seen) == asked
        start_operator("--verify-rate=0")
        run.eventually(lambda it: list(it.snapshots()) == [f"run-{snapshots[-1].id}"], within=90)
        purged = [snapshot.state for snapshot in trainer.run.snapshots.values()]
        assert purged == [SnapshotState.PURGED, SnapshotState.PURGED, SnapshotState.LIVE]
