"""``fork_run``: a new run is claimed and begins at a snapshot of another one; what is there already stays."""

from __future__ import annotations

import pytest

from checkpoint_sidecar import (
    ChangeRefusedError,
    ConfigurationError,
    PrefixClaimedError,
    RunManagedError,
    SnapshotNotFoundError,
    fork_run,
)
from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.store.base import Store
from doubles.memory import MemoryStore
from support.builders import OWNER, History
from support.stored import stored
from support.trainers import Trainer


@pytest.fixture
def source() -> StoredRun:
    store = MemoryStore("memory://bucket/first")
    trainer = Trainer(store).start()
    for step in (100, 200):
        trainer.commit(step)
    return StoredRun(store)


def contents(store: Store) -> list[str]:
    return [info.key for info in store.list()]


def begun(store: Store) -> Run:
    return StoredRun(store).refresh()


def test_the_new_run_waits_for_its_first_start_with_no_data_of_its_own(source: StoredRun, bucket: Store) -> None:
    change = fork_run(source, StoredRun(bucket), selector=100, part="model", run="fork")
    run = begun(bucket)
    assert change.done
    assert run.warm_start is not None
    assert (run.warm_start.snapshot, run.warm_start.step) == (source.find(100).id, 100)
    assert (run.warm_start.url, run.warm_start.part) == (source.url, "model")
    assert run.owner == Owner("local", "local", "fork")
    assert not [key for key in contents(bucket) if key.startswith("step-")]
    assert not fork_run(source, StoredRun(bucket), selector=100, part="model", run="fork").done, "it begins there"


def test_before_its_first_start_it_may_begin_elsewhere(source: StoredRun) -> None:
    bucket = MemoryStore("memory://bucket/second")
    fork_run(source, StoredRun(bucket), selector="latest")
    assert fork_run(source, StoredRun(bucket), selector=100).done
    chosen = begun(bucket).warm_start
    assert chosen is not None
    assert chosen.step == 100


def test_a_dry_run_writes_nothing(source: StoredRun) -> None:
    bucket = MemoryStore("memory://bucket/second")
    assert fork_run(source, StoredRun(bucket), dry_run=True).snapshot == source.find("latest").id
    assert contents(bucket) == []


@pytest.mark.parametrize(
    ("history", "error"),
    [
        pytest.param(History().started().committed(7), ChangeRefusedError, id="it has snapshots"),
        pytest.param(History().configured(), RunManagedError, id="an operator manages it"),
        pytest.param(History(Owner("local", "local", "other")), PrefixClaimedError, id="another run claimed it"),
    ],
)
def test_a_run_that_is_there_already_is_left_alone(source: StoredRun, history: History, error: type[Exception]) -> None:
    bucket = stored(history, MemoryStore("memory://bucket/second"))
    before = contents(bucket)
    with pytest.raises(error):
        fork_run(source, StoredRun(bucket), run=OWNER)
    assert contents(bucket) == before


def test_what_cannot_be_begun_from_is_refused_before_anything_is_claimed(source: StoredRun) -> None:
    bucket = MemoryStore("memory://bucket/second")
    with pytest.raises(SnapshotNotFoundError):
        fork_run(source, StoredRun(bucket), selector=300)
    with pytest.raises(ConfigurationError, match="of its own"):
        fork_run(source, source)
    assert contents(bucket) == []
