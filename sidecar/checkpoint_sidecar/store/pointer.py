"""The stock pointer: the ``.metadata`` that lets torch's own reader load a step.

It is derived from the log and may be wrong or missing at any time; library and operator both repair it. Nothing of ours
reads it. One that this run did not write stays as it is: somebody else's checkpoint would be lost with it.
"""

from __future__ import annotations

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import ForeignObjectError, ObjectExistsError, ObjectNotFoundError
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.pointers import MAX_ORIGIN_BYTES, Origin, published_for, saves_of
from checkpoint_sidecar.core.run import Run, Snapshot
from checkpoint_sidecar.store.base import ObjectInfo, Store
from checkpoint_sidecar.store.runlog import RunLog

MAX_METADATA_BYTES = 1024 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024


def publish(store: Store, log: RunLog, step: int | None, *, replace_foreign: bool = False) -> None:
    """Make the pointer of a step show the snapshot the log says it should, or remove it when there is none.

    The log is read again after writing: of two publishers that race, the one that wrote last also sees last, and
    corrects itself. Costs a few small reads when nothing has to change.

    Args:
        store: Opened at the run's root, like ``log``.
        step: None for a DCP drop-in directory.
        replace_foreign: Whether the user has asked to overwrite what others saved there.

    Raises:
        ForeignObjectError: The pointer is not this run's, and was left alone.
        ObjectNotFoundError: The bytes to publish are not in the snapshot's folder.
        StoreError, LogError: The store failed; the pointer may be old.
    """
    run = log.refresh()
    while True:
        wanted = published_for(run, step)
        try:
            _show(store, run, wanted, step, replace_foreign=replace_foreign)
        except ForeignObjectError:
            # Perhaps it is that of a commit which came meanwhile.
            if log.refresh().head == run.head:
                raise
        except ObjectNotFoundError:
            # Purged between the read of the log and now, or never stored; only the log can tell.
            if _identifier(published_for(log.refresh(), step)) == _identifier(wanted):
                raise
        run = log.refresh()
        if _identifier(published_for(run, step)) == _identifier(wanted):
            return


def withdraw(store: Store, run: Run, step: int | None) -> None:
    """Remove the pointer of a step.

    Raises:
        ForeignObjectError: It is not this run's, and was left alone.
        StoreError: The store failed; the pointer may be there still.
    """
    _show(store, run, None, step, replace_foreign=False)


def is_own_pointer(store: Store, run: Run, step: int | None) -> bool:
    """Whether there is a pointer of this step, and this run wrote it.

    Raises:
        StoreError: The store failed.
    """
    shown = store.stat(layout.pointer_key(step))
    return shown is not None and _is_own(store, run, step, shown, _origin(store, shown))


def _show(store: Store, run: Run, snapshot: Snapshot | None, step: int | None, *, replace_foreign: bool) -> None:
    key = layout.pointer_key(step)
    shown = store.stat(key)
    if shown is None:
        if snapshot is not None and not _create(store, key, _bytes_of(store, snapshot)):
            _show(store, run, snapshot, step, replace_foreign=replace_foreign)
        return
    origin = _origin(store, shown)
    if snapshot is not None and origin == Origin(run.short_identity, snapshot.id):
        return
    foreign = not _is_own(store, run, step, shown, origin)
    if foreign and not (replace_foreign and snapshot is not None):
        raise ForeignObjectError(
            "publish a checkpoint for torch's own reader",
            f"{store.url}/{key}",
            "there is one that this run did not write",
            "It is left alone; this run's own reader does not need it. Move it away if it is of no use.",
        )
    if snapshot is None:
        store.delete([key])
        return
    data = _bytes_of(store, snapshot)
    if shown.size != len(data) or _read(store, key) != data:
        store.put(key, data)


def _create(store: Store, key: str, data: bytes) -> bool:
    try:
        store.put_if_absent(key, data)
    except ObjectExistsError:
        return False
    return True


def _origin(store: Store, shown: ObjectInfo) -> Origin | None:
    tail = bytearray(min(shown.size, MAX_ORIGIN_BYTES))
    store.read_into(shown.key, shown.size - len(tail), [memoryview(tail)])
    return Origin.find(bytes(tail))


def _is_own(store: Store, run: Run, step: int | None, shown: ObjectInfo, origin: Origin | None) -> bool:
    if origin is not None:
        return origin.run == run.short_identity
    mine = saves_of(run, step)
    marks = tuple(f"{folder.path.rpartition('/')[2]}/".encode() for folder in mine)
    return bool(mine) and (_contains(store, shown, marks) or any(_shows(store, shown, folder) for folder in mine))


def _shows(store: Store, shown: ObjectInfo, folder: SaveFolder) -> bool:
    """Whether the object is what this save has to be published."""
    stored = store.stat(folder.stock_metadata)
    return stored is not None and stored.size == shown.size and _read(store, stored.key) == _read(store, shown.key)


def _contains(store: Store, shown: ObjectInfo, marks: tuple[bytes, ...]) -> bool:
    """Whether any of the marks is in the object, which is read piece by piece."""
    overlap = max(map(len, marks)) - 1
    before = b""
    for start in range(0, shown.size, _CHUNK_BYTES):
        chunk = bytearray(min(_CHUNK_BYTES, shown.size - start))
        store.read_into(shown.key, start, [memoryview(chunk)])
        before = before[-overlap:] + chunk
        if any(mark in before for mark in marks):
            return True
    return False


def _bytes_of(store: Store, snapshot: Snapshot) -> bytes:
    folder = layout.parse_save_folder(snapshot.commit.path)
    return store.get(folder.stock_metadata, max_bytes=MAX_METADATA_BYTES).data


def _read(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key, max_bytes=MAX_METADATA_BYTES).data
    except ObjectNotFoundError:
        return None


def _identifier(snapshot: Snapshot | None) -> str | None:
    return snapshot.id if snapshot else None
