"""Deleting data: that of one snapshot, and a whole run. What may be deleted was decided before; everything blocks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from checkpoint_operator.storage import Session
from checkpoint_operator.unfinished import discard, unfinished
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import CorruptSnapshotError, IncompatibleSnapshotError, LogError
from checkpoint_sidecar.core.log import Owner, RunAdopted
from checkpoint_sidecar.core.run import Run, Snapshot
from checkpoint_sidecar.engine.verify import read_manifest
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.deletion import delete_save
from checkpoint_sidecar.store.entries import get_entry

BUDGET_SECONDS = 60.0
"""After which a call ends with the snapshot it is at, so that a pass never looks as if it hung."""

logger = logging.getLogger(__name__)


def delete_data(session: Session, snapshot: Snapshot) -> None:
    """Delete exactly the objects that a snapshot's manifest names, and the manifest last. Idempotent.

    Raises:
        StoreError: Something was not deleted; call again.
    """
    try:
        manifest = read_manifest(session.store, snapshot.commit)
    except (CorruptSnapshotError, IncompatibleSnapshotError):
        manifest = None
    folder = layout.parse_save_folder(snapshot.commit.path)
    delete_save(session.store, folder, manifest, delete=session.delete)


def remains(session: Session, owner: Owner) -> Run:
    """The run, also when part of its log is deleted already: nothing but whose it is is known of it then.

    Args:
        owner: Whose run is being deleted.

    Raises:
        LogError: The log is broken, and not by a deletion.
        StoreError: The store failed.
    """
    try:
        return session.log.refresh()
    except LogError:
        last = max(_numbers(session.store), default=0)
        if not _ends(session.store, last, owner):
            raise
        return Run(head=last, owner=owner.deleted)


def erase(session: Session, owner: Owner) -> None:
    """Delete a run that belongs to nobody any more: as much as the budget allows, so call until the log is empty.

    Stock pointers go first, so that torch never reads half a checkpoint; then the snapshots, what was never committed,
    and the log. Objects that no run of ours writes are left alone. Killed anywhere, the next call goes on.

    Args:
        owner: Whose run it was.

    Raises:
        LogError, StoreError: Something was not deleted; call again.
    """
    until = time.monotonic() + BUDGET_SECONDS
    run = remains(session, owner)
    if run.owner != owner.deleted:
        return
    store = session.store
    listed = [info.key for info in store.list(layout.STEP_PREFIX)]
    snapshots = {snapshot.commit.path: snapshot for snapshot in run.snapshots.values()}
    folders = {folder.path: folder for key in listed if (folder := layout.save_folder_of(key)) is not None}
    session.delete(filter(layout.is_pointer, listed))
    for path in folders:
        if path in snapshots:
            delete_data(session, snapshots[path])
            if time.monotonic() > until:
                return
    session.delete(key for key in listed if (folder := layout.save_folder_of(key)) and folder.path not in snapshots)
    for upload in unfinished(store):
        if layout.save_folder_of(upload.key) is not None:
            discard(store, upload)
    _delete_log(session, owner)
    left = sum(1 for _ in store.list())
    logger.info("%s: the run is deleted; %d objects that are not the run's are left there", store.url, left)


def _delete_log(session: Session, owner: Owner) -> None:
    """Without its first entry a log is refused by every reader, so what is left of it is nobody's run."""
    store = session.store
    numbers = sorted(_numbers(store))
    if numbers and not _ends(store, numbers[-1], owner):
        raise LogError("delete the run log", store.url, "it goes on after the run was given up")
    # Compactions first: entries that are gone would look like a loss beside them.
    session.delete(_keys(store, layout.COMPACTION_FOLDER))
    session.delete([layout.PROGRESS_KEY, *_keys(store, layout.PROBE_FOLDER)])
    session.delete(map(layout.log_key, numbers[:-1]))
    session.delete(map(layout.log_key, numbers[-1:]))
    session.forget_log()


def _ends(store: Store, number: int, owner: Owner) -> bool:
    """Whether this entry gives the run up."""
    entry = get_entry(store, number) if number else None
    body = entry.decode().body if entry is not None else None
    return isinstance(body, RunAdopted) and body.owner == owner.deleted


def _numbers(store: Store) -> Iterable[int]:
    return (number for key in _keys(store, layout.LOG_FOLDER) if (number := layout.log_number(key)))


def _keys(store: Store, folder: str) -> list[str]:
    return [info.key for info in store.list(folder)]
