"""A run's log that vanishes, data of others, and take-overs, as users meet them: a real operator and API server."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.log import Owner, RollbackRequested
from checkpoint_sidecar.core.run import SnapshotState
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from support.admission import Namespace
from support.operators import StartOperator, create
from support.trainers import Trainer

pytestmark = pytest.mark.api

OPTIONS = ("--allow-file-urls", "--verify-rate=0")
SOON = 60.0


def contents(folder: Path) -> dict[str, bytes]:
    """All but what operators probe the store with."""
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {key: data for key, data in found.items() if not key.startswith("_probe")}


@pytest.fixture
def folder(url: str) -> Path:
    return Path(url.removeprefix("file://"))


def test_a_lost_log_is_reported_and_nothing_is_touched(
    namespace: Namespace, start_operator: StartOperator, url: str, folder: Path, trainer: Trainer
) -> None:
    trainer.start()
    first, _ = (trainer.commit(step) for step in (100, 200))
    operator = start_operator(*OPTIONS)
    run = create(namespace, url, retention={"keepLast": 1, "gracePeriod": "0s"})
    run.becomes("Ready", "True", "Configured")
    run.eventually(lambda it: it.status.get("latest", {}).get("step") == 200)
    # Until the purge is over, the operator appends to the log.
    run.eventually(lambda _: trainer.run.snapshots[first.id].state is SnapshotState.PURGED, within=SOON)
    run.eventually(lambda it: it.status["logSequence"] == trainer.run.head, within=SOON)
    assert list((folder / "step-100").glob("*/manifest.json")) == []
    shutil.move(folder / "_log", folder.parent / "lost")
    left = contents(folder)

    told = run.becomes("Ready", "False", "LogMissing", within=SOON)
    assert "there is no run log, but entry" in told["message"]
    assert run.condition("Stalled")["status"] == "True"
    assert run.status["latest"]["step"] == 200
    run.tells("LogMissing")
    operator.stop()
    shutil.rmtree(folder)
    folder.mkdir()
    start_operator(*OPTIONS)
    time.sleep(3)
    assert run.condition("Ready")["reason"] == "LogMissing"
    assert contents(folder) == {}, "the status alone tells that there was a run"
    for key, data in left.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    shutil.move(folder.parent / "lost", folder / "_log")
    run.becomes("Ready", "True", "Configured", within=SOON)
    assert contents(folder).items() >= left.items()
    shutil.rmtree(folder)
    run.becomes("Ready", "False", "LogMissing", within=SOON)
    namespace.patch("checkpoints", "run", {"spec": {"restore": {"onMissing": "StartFresh"}}})
    run.becomes("Ready", "True", "Configured", within=SOON)
    assert run.status["logSequence"] == 2


def test_data_of_others_is_reported_and_stays(
    namespace: Namespace, start_operator: StartOperator, url: str, folder: Path, trainer: Trainer
) -> None:
    others = {
        "step-7/_log/00000000000000000001.json": b"of a drop-in",
        "step-7/0001-aaaaaaaa/__0_0.distcp": b"of a drop-in",
        "step-100/.metadata": b"torch's own",
        "step-300/0001-aaaaaaaa/__0_0.distcp": b"of an unknown writer",
    }
    for key, data in others.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    trainer.start()
    with pytest.raises(Exception, match="this run did not write"):
        trainer.commit(100)
    trainer.start()
    start_operator(*OPTIONS)
    run = create(namespace, url, retention={"keepLast": 1, "gracePeriod": "0s"})
    told = run.becomes("ForeignData", "True", "LeftAlone", within=SOON)
    run.eventually(lambda it: "step-100/.metadata" in it.condition("ForeignData")["message"])
    for named in ("step-7/ (has a run log of its own)", "step-300/0001-aaaaaaaa/ (looks like a save"):
        assert named in told["message"]
    assert run.condition("Ready")["status"] == "True"
    run.eventually(lambda it: "ForeignData" in it.events())
    assert contents(folder).items() >= others.items()


def test_after_a_rollback_an_operator_that_was_restarted_removes_stale_pointers(
    namespace: Namespace, start_operator: StartOperator, url: str, folder: Path, trainer: Trainer
) -> None:
    trainer.start()
    snapshots = {step: trainer.commit(step) for step in (100, 200, 300)}
    operator = start_operator(*OPTIONS)
    run = create(namespace, url)
    run.eventually(lambda it: it.status.get("latest", {}).get("step") == 300)
    operator.stop()
    trainer.log.append(lambda _: RollbackRequested("rollback-1", snapshots[100].id))
    trainer.start().commit(150)
    start_operator(*OPTIONS)
    run.eventually(lambda it: it.status["latest"]["step"] == 150)
    run.eventually(lambda _: {path.parent.name for path in folder.glob("step-*/.metadata")} == {"step-100", "step-150"})


def test_a_run_may_go_from_one_checkpoint_to_another_and_back_again(
    namespace: Namespace, start_operator: StartOperator, url: str
) -> None:
    start_operator(*OPTIONS)
    owners = {name: Owner(namespace.api.uid, namespace.name, name) for name in ("a", "b")}
    a = create(namespace, url, "a")
    a.becomes("Ready", "True", "Configured")
    b = create(namespace, url, "b", storage={"takeOverFrom": str(owners["a"])})
    b.becomes("Ready", "True", "Configured", within=SOON)
    a.becomes("Ready", "False", "PrefixClaimed", within=SOON)
    a.namespace.patch("checkpoints", "a", {"spec": {"storage": {"takeOverFrom": str(owners["b"])}}})
    a.becomes("Ready", "True", "Configured", within=SOON)
    told = b.becomes("Ready", "False", "PrefixClaimed", within=SOON)
    assert "clear spec.storage.takeOverFrom" in told["message"]
    for value in ("", str(owners["a"])):
        namespace.patch("checkpoints", "b", {"spec": {"storage": {"takeOverFrom": value}}})
        b.eventually(lambda it: it.status["observedGeneration"] == it.body["metadata"]["generation"], within=SOON)
    b.becomes("Ready", "True", "Configured", within=SOON)
    a.becomes("Ready", "False", "PrefixClaimed", within=SOON)
    log = Trainer(LocalStore(StoreSettings(url)), owners["b"]).run
    assert [each.owner.name for each in log.adoptions] == ["b", "a", "b"]
    assert (Path(url.removeprefix("file://")) / layout.MARKER_KEY).is_file()
