"""What is read from outside of training is not deleted meanwhile; a reader that may not write reads all the same."""

from __future__ import annotations

import pytest

from checkpoint_sidecar.core.errors import AccessDeniedError
from checkpoint_sidecar.core.log import SnapshotRead
from checkpoint_sidecar.core.policy import Policy, RetentionPolicy
from checkpoint_sidecar.manage.copying import copy_run
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.store.base import Store
from doubles.faulty import FaultyStore, fails_with
from doubles.memory import MemoryStore
from support.trainers import Trainer

KEEP_ONE = Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=0))
DENIED = AccessDeniedError("write", "an entry", "the credentials do not allow it")


def pruned(*steps: int) -> StoredRun:
    """A run of which retention wants the newest snapshot only."""
    trainer = Trainer(MemoryStore()).start()
    for step in steps:
        trainer.commit(step)
    run = StoredRun(trainer.store)
    run.configure(KEEP_ONE)
    run.verify(steps[-1], checksums=True, record=True)
    return run


def announcements(store: Store) -> list[tuple[int, bool]]:
    run = StoredRun(store)
    found = (entry.body for entry in run.entries())
    return [(run.find(body.snapshot).step, body.seconds > 0) for body in found if isinstance(body, SnapshotRead)]


def test_data_that_is_being_read_is_deleted_only_afterwards() -> None:
    run = pruned(100, 200)
    with run.reading(100):
        other = StoredRun(run.store)
        assert other.prune().purge == ()
        assert not other.find(100).live, "it is retired, and its data stays"
        assert run.verify(100, checksums=True).passed
    assert StoredRun(run.store).prune().purge == (run.find(100).id,)


def test_a_check_and_a_copy_announce_what_they_read_and_that_they_have_ended() -> None:
    run = pruned(100, 200)
    run.verify(100, checksums=True)
    list(copy_run(run, StoredRun(MemoryStore()), 100))
    own = [(200, True), (200, False)]
    assert announcements(run.store) == [*own, *2 * [(100, True), (100, False)]]


def test_nothing_is_announced_where_nothing_is_ever_deleted_or_no_byte_is_read() -> None:
    run = StoredRun(Trainer(MemoryStore()).start().store)
    Trainer(run.store, run.owner).start().commit(100)  # type: ignore[arg-type]
    run.verify(100, checksums=True)
    other = pruned(100, 200)
    head = other.refresh().head
    other.verify(100)
    assert announcements(run.store) == []
    assert other.refresh().head == head


def test_a_reader_that_may_not_write_reads_unannounced() -> None:
    run = pruned(100, 200)
    reader = StoredRun(FaultyStore(run.store, puts=[fails_with(DENIED)]))
    head = run.refresh().head
    assert reader.verify(100, checksums=True).passed
    assert run.refresh().head == head


def test_a_reader_that_fails_ends_its_announcement() -> None:
    run = pruned(100, 200)
    with pytest.raises(KeyboardInterrupt), run.reading(100):
        raise KeyboardInterrupt
    assert announcements(run.store)[-2:] == [(100, True), (100, False)]
