"""Runs that begin at snapshots of other Checkpoints, with the real operator and API server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint_sidecar.core import warm_start
from checkpoint_sidecar.core.log import Owner, WarmStartFinished
from checkpoint_sidecar.core.run import SnapshotState
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from support.admission import Namespace, checkpoint
from support.operators import OperatorProcess, Watched
from support.trainers import Trainer

pytestmark = pytest.mark.api

StartOperator = Callable[..., OperatorProcess]


def create(namespace: Namespace, folder: Path, name: str, **spec: Any) -> tuple[Watched, Trainer]:
    """A Checkpoint on the local file system, and what trains under it."""
    url = f"file://{folder / name}"
    namespace.create(checkpoint(name, storage={"url": url}, **spec))
    return Watched(namespace, name), Trainer(
        LocalStore(StoreSettings(url)), Owner(namespace.api.uid, namespace.name, name)
    )


def begin(trainer: Trainer) -> None:
    """Start an attempt that loads what the log says, as the library does."""
    trainer.start()
    chosen = warm_start.warm_start_of(trainer.run, trainer.number)
    assert chosen is not None
    outcome = WarmStartFinished(trainer.number, chosen.url, chosen.snapshot, chosen.step, restored=True)
    trainer.log.append(lambda run: warm_start.finish(run, outcome))


def test_a_fork_holds_its_snapshot_until_its_first_commit_and_waits_for_one_that_is_not_there(
    namespace: Namespace, start_operator: StartOperator, tmp_path: Path
) -> None:
    start_operator("--allow-file-urls")
    base, trainer = create(namespace, tmp_path, "base", retention={"keepLast": 1, "gracePeriod": "1s"})
    base.becomes("Ready", "True", "Configured", within=90)
    first = trainer.start().commit(100)
    base.eventually(lambda it: it.status.get("latest"))
    fork, forked = create(namespace, tmp_path, "fork", restore={"startFrom": {"checkpoint": "base"}})
    late, _ = create(namespace, tmp_path, "late", restore={"startFrom": {"checkpoint": "base@300", "part": "model"}})
    fork.eventually(lambda it: it.status.get("warmStart", {}).get("snapshot") == first.id)
    assert forked.run.warm_start is not None
    assert forked.run.warm_start.url == f"file://{tmp_path / 'base'}"
    refused = late.becomes("RestoreEnforced", "False", "WarmStartNotFound")
    assert "has no snapshot 300" in refused["message"]
    assert "warmStart" not in late.status
    late.tells("WarmStartRefused")

    second, third = trainer.commit(200), trainer.commit(300)
    base.eventually(lambda _: trainer.run.snapshots[second.id].state is SnapshotState.PURGED)
    assert trainer.run.snapshots[first.id].state is SnapshotState.LIVE, "the fork has not begun"
    late.eventually(lambda it: it.status.get("warmStart", {}).get("snapshot") == third.id)

    begin(forked)
    forked.commit(101)
    fork.eventually(lambda it: it.status["warmStart"]["state"] == "Used")
    assert fork.status["warmStart"]["snapshot"] == first.id
    assert fork.status["lastRestore"]["reason"] == "WarmStart"
    trainer.commit(400)
    base.eventually(lambda _: trainer.run.snapshots[first.id].state is SnapshotState.PURGED)


def test_another_namespace_begins_here_only_while_the_owner_grants_it(
    namespace: Namespace, start_operator: StartOperator, tmp_path: Path
) -> None:
    owner = Namespace.fresh(namespace.api)
    start_operator("--allow-file-urls", f"--namespace={owner.name}")
    base, trainer = create(owner, tmp_path, "base")
    fork, forked = create(namespace, tmp_path, "fork", restore={"startFrom": {"checkpoint": f"{owner.name}/base"}})
    ghost, _ = create(namespace, tmp_path, "ghost", restore={"startFrom": {"checkpoint": f"{owner.name}/nothing"}})
    base.becomes("Ready", "True", "Configured", within=90)
    snapshot = trainer.start().commit(100)
    base.eventually(lambda it: it.status.get("latest"))
    told = [run.becomes("RestoreEnforced", "False", "WarmStartNotGranted")["message"] for run in (fork, ghost)]
    assert told[0] == told[1].replace("/nothing", "/base"), "nothing shows which of them exists"
    assert forked.run.warm_start is None

    owner.patch("checkpoints", "base", {"spec": {"grants": [{"namespace": namespace.name, "snapshots": ["latest"]}]}})
    fork.eventually(lambda it: it.status.get("warmStart", {}).get("snapshot") == snapshot.id)
    assert fork.status["warmStart"]["checkpoint"] == f"{owner.name}/base"
    owner.patch("checkpoints", "base", {"spec": {"grants": []}})
    fork.becomes("RestoreEnforced", "False", "WarmStartNotGranted")
    fork.eventually(lambda it: "warmStart" not in it.status)
