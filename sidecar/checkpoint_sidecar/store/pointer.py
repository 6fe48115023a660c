"""The stock pointer: the ``.metadata`` that lets torch's own reader load a step.

It is derived from the log and may be wrong or missing at any time; library and operator both repair it. Nothing of ours
reads it.
"""

from __future__ import annotations

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import ObjectNotFoundError
from checkpoint_sidecar.core.pointers import published_for
from checkpoint_sidecar.core.run import Run, Snapshot
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.runlog import RunLog

MAX_METADATA_BYTES = 1024 * 1024 * 1024


def publish(store: Store, log: RunLog, step: int | None) -> None:
    """Make the pointer of a step show the snapshot the log says it should, or remove it when there is none.

    The log is read again after writing: of two publishers that race, the one that wrote last also sees last, and
    corrects itself. Costs a few small reads when nothing has to change, and those of both objects where several
    snapshots of the step could be shown.

    Args:
        store: Opened at the run's root, like ``log``.
        step: None for a DCP drop-in directory.

    Raises:
        ObjectNotFoundError: The bytes to publish are not in the snapshot's folder.
        StoreError, LogError: The store failed; the pointer may be old.
    """
    run = log.refresh()
    while True:
        wanted = published_for(run, step)
        try:
            _show(store, run, wanted, step)
        except ObjectNotFoundError:
            # Purged between the read of the log and now, or never stored; only the log can tell.
            if _identifier(published_for(log.refresh(), step)) == _identifier(wanted):
                raise
        run = log.refresh()
        if _identifier(published_for(run, step)) == _identifier(wanted):
            return


def _show(store: Store, run: Run, snapshot: Snapshot | None, step: int | None) -> None:
    if snapshot is None:
        store.delete([layout.pointer_key(step)])
        return
    folder = layout.parse_save_folder(snapshot.commit.path)
    shown = store.stat(folder.pointer)
    if shown is not None and shown.modified >= snapshot.committed_at and _only_one(run, snapshot, step):
        return
    data = store.get(folder.stock_metadata, max_bytes=MAX_METADATA_BYTES).data
    if shown is None or shown.size != len(data) or _read(store, folder.pointer) != data:
        store.put(folder.pointer, data)


def _only_one(run: Run, snapshot: Snapshot, step: int | None) -> bool:
    """Whether nothing else can ever have been shown: metadata of a large model is too large to be read for nothing."""
    others = (s for s in run.snapshots.values() if s.id != snapshot.id)
    return not any(step is None or s.step == step for s in others)


def _read(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key, max_bytes=MAX_METADATA_BYTES).data
    except ObjectNotFoundError:
        return None


def _identifier(snapshot: Snapshot | None) -> str | None:
    return snapshot.id if snapshot else None
