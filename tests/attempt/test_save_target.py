"""A commit counts if the log holds it, however the save around it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from checkpoint_sidecar.attempt.run_save import NewSave
from checkpoint_sidecar.attempt.save_target import Draft, RunTarget
from checkpoint_sidecar.attempt.session import AttemptSession, Defaults
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core.errors import FencedError, StoreError, UnknownOutcomeError
from checkpoint_sidecar.core.log import SnapshotCommitted
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.core.pointers import Origin
from checkpoint_sidecar.engine.upload import upload_bytes
from doubles.memory import MemoryStore
from support.builders import OWNER

LATE = StoreError("read", "the run log", "the store does not answer")


@pytest.fixture
def session() -> Iterator[AttemptSession]:
    session = AttemptSession(MemoryStore(), OWNER, Defaults())
    session.start(world_size=1, pods=(), timeout_seconds=1)
    yield session
    session.stop(timeout_seconds=5)


def stored(session: AttemptSession, save: NewSave) -> tuple[Manifest, str]:
    """Store the files of a save, as the writer does before the commit."""
    origin = Origin(save.folder.run, save.snapshot).encode()
    contents = {"__0_0.distcp": bytes(700), layout.METADATA_NAME: b"metadata", layout.STOCK_METADATA_NAME: origin}
    files = [
        upload_bytes(session.store, f"{save.folder.path}/{name}", data, block_bytes=manifests.BLOCK_BYTES)
        for name, data in sorted(contents.items())
    ]
    manifest = Manifest(save.snapshot, save.step, session.attempt, 1, tuple(files))
    encoded = manifests.encode(manifest)
    session.store.put(save.folder.manifest, encoded)
    return manifest, manifests.digest(encoded)


def saved(session: AttemptSession, append: Callable[..., Any]) -> tuple[RunTarget, Exception]:
    """Save step 100 up to its commit, which ``append`` lets fail; return the error."""
    target = RunTarget(session, Draft(100, "Manual"))
    save = target.begin()
    manifest, digest = stored(session, save)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.log, "append", append)
        with pytest.raises(StoreError) as raised:
            target.commit(save, manifest, digest)
    assert not target.committed
    return target, raised.value


def test_a_commit_stays_when_an_error_follows_it_and_hooks_and_pointer_come_after(session: AttemptSession) -> None:
    seen: list[SnapshotCommitted] = []
    session.on_commit = seen.append
    append = session.log.append

    def appended_and_then_lost(compute: Callable[..., Any]) -> None:
        append(compute)
        raise LATE

    target, error = saved(session, appended_and_then_lost)
    assert (seen, session.store.stat(layout.pointer_key(100))) == ([], None)

    assert target.settle(error) == (None, True)
    target.publish()

    snapshot = session.log.refresh().snapshots[seen[0].snapshot]
    assert (target.committed, [each.step for each in seen], snapshot.live) == (True, [100], True)
    assert session.store.stat(layout.pointer_key(100)) is not None
    # A second error after that changes nothing any more.
    assert target.settle(LATE) == (None, True)


def test_a_save_whose_commit_was_not_written_stays_failed_and_has_no_hook_and_no_pointer(
    session: AttemptSession,
) -> None:
    seen: list[SnapshotCommitted] = []
    session.on_commit = seen.append

    def lost(_: Callable[..., Any]) -> None:
        raise LATE

    target, error = saved(session, lost)

    assert target.settle(error) == (error, False)
    target.publish()
    assert (target.committed, seen, session.store.stat(layout.pointer_key(100))) == (False, [], None)
    assert not session.log.refresh().snapshots


def test_a_commit_that_replay_rejects_does_not_count(session: AttemptSession) -> None:
    other = AttemptSession(session.store, OWNER, Defaults())
    append = session.log.append

    def overtaken(compute: Callable[..., Any]) -> None:
        entry = compute(session.log.run)
        other.start(world_size=1, pods=(), timeout_seconds=1)
        append(lambda _: entry)
        raise LATE

    target, error = saved(session, overtaken)
    other.stop(timeout_seconds=5)
    assert target.settle(error) == (error, False)


def test_an_unreadable_log_leaves_the_outcome_unknown(session: AttemptSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any) -> None:
        raise LATE

    target, error = saved(session, lost)
    monkeypatch.setattr(session.log, "refresh", lost)
    unknown, committed = target.settle(error)
    assert isinstance(unknown, UnknownOutcomeError)
    assert (committed, target.committed) == (False, False)
    fenced = FencedError("write to the run log as", "attempt 1", "attempt 2 has started since")
    assert target.settle(fenced) == (fenced, False), "a refusal needs no look into the log"
