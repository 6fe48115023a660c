"""A log that is gone is not a new run, and an attempt whose run is gone commits nothing into what is there now."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import FencedError, LogMissingError, RestoreError
from checkpoint_sidecar.core.log import Owner, RunAdopted, RunClaimed, RunConfigured
from checkpoint_sidecar.core.policy import Policy, RestorePolicy
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store
from training.checkpointer_runs import RunStorage, Training

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]


def contents(store: Store) -> dict[str, bytes]:
    return {info.key: store.get(info.key, max_bytes=1 << 26).data for info in store.list()}


def remove(store: Store, *prefixes: str) -> None:
    store.delete([info.key for info in store.list() if info.key.startswith(prefixes)])


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        pytest.param(("_log/",), "_progress.json", id="the log alone"),
        pytest.param(("_log/", "_run.json"), "_progress.json", id="and the marker"),
        pytest.param(("_log/", "_run.json", "_progress.json"), "step-", id="all but the snapshots"),
        pytest.param(("_log/", "step-", "_progress.json"), "_run.json", id="all but the marker"),
    ],
)
def test_a_log_that_is_gone_is_not_a_new_run(storage: RunStorage, lost: tuple[str, ...], named: str) -> None:
    storage.train(3)
    remove(storage.store, *lost)
    left = contents(storage.store)
    with pytest.raises(
        RestoreError, match=r"there is no run log, but the prefix holds data of a run: .*StartFresh"
    ) as raised:
        storage.train(7)
    assert named in str(raised.value)
    assert storage.trained == [1, 2, 3]
    assert contents(storage.store) == left


def test_a_log_that_lost_all_but_its_beginning_is_not_a_new_run(storage: RunStorage) -> None:
    storage.train(3)
    remove(storage.store, *(layout.log_key(number) for number in range(2, storage.run.head + 1)))
    left = contents(storage.store)
    with pytest.raises(RestoreError, match="ends with entry 1, but the prefix holds data of a run: step-"):
        storage.train(7)
    assert storage.trained == [1, 2, 3]
    assert contents(storage.store) == left


def test_a_pod_with_a_log_floor_refuses_an_empty_prefix(storage: RunStorage) -> None:
    storage.train(3)
    head = storage.run.head
    remove(storage.store, "")
    for floor, refused in ((head, True), (0, False)):
        checkpointer = Checkpointer(Training().state, storage.url, log_floor=floor)
        if refused:
            with pytest.raises(LogMissingError, match=f"entry {head} was seen"):
                checkpointer.restore()
            assert contents(storage.store) == {}
        else:
            assert checkpointer.restore() is None
        checkpointer.close()


def test_a_run_may_start_over_on_purpose(storage: RunStorage) -> None:
    storage.train(3)
    remove(storage.store, "_log/")
    left = {key for key in contents(storage.store) if layout.save_folder_of(key)}
    log = RunLog(storage.store, writer="operator")
    log.append(lambda _: RunClaimed(Owner("local", "local", "run")))
    fresh = Policy(restore=RestorePolicy(on_missing="StartFresh"))
    log.append(lambda _: RunConfigured("uid-1", 1, fresh))
    checkpointer = Checkpointer(Training().state, storage.url, run="run", log_floor=57)
    assert checkpointer.restore() is None
    checkpointer.save(1)
    checkpointer.close()
    assert left <= set(contents(storage.store)), "what the lost run saved stays"


def test_a_new_run_may_begin_beside_the_checkpoints_of_others(storage: RunStorage) -> None:
    others = {
        "step-3/.metadata": b"torch's own",
        "step-3/__0_0.distcp": b"torch's own",
        "step-4/_log/00000000000000000001.json": b"a drop-in's",
        "step-4/0001-aaaaaaaa/__0_0.distcp": b"a drop-in's",
        "step-4/.metadata": b"a drop-in's",
        "notes.txt": b"a note",
    }
    for key, data in others.items():
        storage.store.put(key, data)
    storage.train(4)
    assert {s.step for s in storage.run.snapshots.values() if s.live} >= {4}
    assert contents(storage.store).items() >= others.items()
    assert storage.train(5) is not None


def emptied(store: Store) -> None:
    remove(store, "")


def deleted(store: Store) -> None:
    log = RunLog(store, writer="operator")
    owner = log.refresh().owner
    assert owner is not None
    log.append(lambda _: RunAdopted(owner.deleted, owner))
    store.delete([layout.log_key(number) for number in range(1, log.run.head)])
    remove(store, "step-", "_progress.json", "_run.json")


@pytest.mark.parametrize("next_run", [False, True], ids=["nothing follows", "the next run has begun"])
@pytest.mark.parametrize("goes", [emptied, deleted])
def test_a_trainer_that_stalled_while_its_run_was_deleted_commits_nothing(
    storage: RunStorage, goes: Callable[[Store], None], next_run: bool
) -> None:
    stalled = Checkpointer(Training().state, storage.url)
    stalled.restore()
    stalled.save(1)
    assert stalled._session is not None
    stalled._session.stop(timeout_seconds=5)  # its threads stand still, as its process does
    goes(storage.store)
    if next_run:
        storage.train(2)
    before = contents(storage.store)
    before.pop("_progress.json", None)
    with pytest.raises(FencedError, match=r"attempt 1|use the run log"):
        stalled.save(2)
    with pytest.raises(FencedError):
        stalled.close()
    after = contents(storage.store)
    after.pop("_progress.json", None)
    assert after == before
