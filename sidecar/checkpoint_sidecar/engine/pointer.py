"""Maintains the stock pointer: the ``.metadata`` that lets torch's own reader load a step.

It is derived from the log and may be wrong or missing at any time; library and operator both repair it, and neither
reads it. A pointer that this run did not write is never changed: it may be the only pointer to another checkpoint.

Only bytes that match the committed manifest of the snapshot are published. Large pointers are copied part by part, in
bounded memory.

Paths of shared files are absolute, so they are wrong where a run was moved. A pointer of up to one part is published
with the paths of the place where the run is; ``republish`` does the same for all that exist already.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from crc32c import crc32c

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.commits import shares_of
from checkpoint_sidecar.core.errors import (
    CheckpointError,
    ConfigurationError,
    CorruptSnapshotError,
    ForeignObjectError,
    IncompatibleSnapshotError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
)
from checkpoint_sidecar.core.failures import INTERRUPTS, described
from checkpoint_sidecar.core.layout import STOCK_METADATA_NAME, SaveFolder
from checkpoint_sidecar.core.manifest import File, Manifest
from checkpoint_sidecar.core.pointers import MAX_ORIGIN_BYTES, Origin, published_for, published_steps, saves_of
from checkpoint_sidecar.core.run import Run, Snapshot
from checkpoint_sidecar.core.stock_paths import root_of, with_paths
from checkpoint_sidecar.engine.confirm import confirmed
from checkpoint_sidecar.engine.delivery import Want
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.read import Files, missing
from checkpoint_sidecar.engine.requests import ByteRange
from checkpoint_sidecar.engine.verify import read_manifest
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import ObjectInfo, Store
from checkpoint_sidecar.store.common.parts import PART_BYTES, write_object

MAX_METADATA_BYTES = 1024 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_MOST_LOOKS = 8
"""How often a pointer may vanish before a store that says so counts as failing."""
_SETTINGS = EngineSettings(connections=1)
"""One request at a time: a copy needs memory for its buffer and one part only."""

logger = logging.getLogger(__name__)


def publish(store: Store, log: RunLog, step: int | None, *, replace_foreign: bool = False) -> None:
    """Make the pointer of a step show the snapshot that the log selects, or remove it if there is none.

    The log is read again after writing: of two publishers that race, the one that wrote last also sees last, and
    corrects itself. Costs a few small reads when nothing has to change.

    Args:
        store: Opened at the run's root, like ``log``.
        step: The step; None for a DCP drop-in directory.
        replace_foreign: Whether the user has asked to overwrite checkpoints of others.

    Raises:
        ForeignObjectError: The pointer is not this run's, and was left alone.
        CorruptSnapshotError: The bytes to publish are missing or not what was committed; nothing was published.
        IncompatibleSnapshotError: A newer version wrote the manifest; likewise.
        StoreError, LogError: The store failed; the pointer may be old.
    """
    run = log.refresh()
    looks = 0
    while True:
        looks += 1
        wanted = published_for(run, step)
        try:
            _show(store, run, wanted, step, replace_foreign=replace_foreign)
        except ForeignObjectError:
            # It may belong to a newer commit.
            if log.refresh().head == run.head:
                raise
        except (CorruptSnapshotError, ObjectNotFoundError) as error:
            vanished = isinstance(error, ObjectNotFoundError) and store.stat(layout.pointer_key(step)) is None
            if vanished and looks < _MOST_LOOKS:
                run = log.refresh()
                continue  # another publisher removed the pointer between two looks at it
            # Purged between the read of the log and now, or damaged; only the log can tell.
            if _identifier(published_for(log.refresh(), step)) == _identifier(wanted):
                raise
        run = log.refresh()
        if _identifier(published_for(run, step)) == _identifier(wanted):
            return


def publish_if_possible(store: Store, log: RunLog, step: int, *, outcome: str) -> None:
    """Publish like ``publish``, and only log what prevents it: the snapshot is committed in any case.

    Torch's own reader then misses the snapshot until the operator repairs the pointer.

    Args:
        outcome: What was done with the step, for the log: ``saved``, ``restored`` or ``copied``.
    """
    try:
        publish(store, log, step)
    except INTERRUPTS:
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of native code is no reason to fail either
        cause = str(error) if isinstance(error, CheckpointError) else described(error)
        logger.warning("step %d is %s, but its stock .metadata is not published: %s", step, outcome, cause)


def repair(store: Store, log: RunLog, step: int | None) -> None:
    """Publish like ``publish``, or remove the pointer if the bytes to publish are damaged.

    The verification of the snapshot itself reports the damage.

    Raises:
        ForeignObjectError, StoreError, LogError: See ``publish``.
    """
    try:
        publish(store, log, step)
    except (CorruptSnapshotError, IncompatibleSnapshotError) as error:
        logger.warning("removing %s/%s: %s", store.url, layout.pointer_key(step), error)
        _show(store, log.run, None, step, replace_foreign=False)


def republish(store: Store, log: RunLog, *, dry_run: bool = False) -> tuple[Snapshot, ...]:
    """Write again the pointers in which torch's own reader would look for shared files at another place.

    For a run whose objects were moved or copied as they are. Pointers of snapshots that share nothing move with the
    run. Each pointer is read and written in memory. Those of others and of damaged snapshots are left alone.

    Args:
        dry_run: Write nothing.

    Returns:
        The snapshots whose pointers were not as they should be, newest first.

    Raises:
        ConfigurationError: torch's own reader has no spelling for shared files in this store.
        StoreError, LogError: The store failed; call again.
    """
    run, changed = log.refresh(), list[Snapshot]()
    for step, identifier in published_steps(run).items():
        snapshot = run.snapshots[identifier]
        if not shares_of(snapshot.commit):
            continue
        if not root_of(store.url):
            raise ConfigurationError(
                "publish pointers with shared files",
                store.url,
                "torch's own reader cannot find files of other folders there",
                "Use checkpoint copy: its snapshots share nothing.",
            )
        try:
            if _republished(store, log, run, snapshot, dry_run=dry_run):
                changed.append(snapshot)
        except (CorruptSnapshotError, ForeignObjectError, IncompatibleSnapshotError, ObjectTooLargeError) as error:
            logger.warning("the pointer of step %d stays as it is: %s", step, error)
    return tuple(changed)


def _republished(store: Store, log: RunLog, run: Run, snapshot: Snapshot, *, dry_run: bool) -> bool:
    """Write the pointer of a snapshot again if it is not as it should be. Returns whether it was not."""
    key, data = layout.pointer_key(snapshot.step), _Source(store, snapshot).whole()
    shown = store.stat(key)
    if shown is not None:
        if not _is_own(store, run, snapshot.step, shown, _origin(store, shown)):
            raise _foreign(store, key)
        if shown.size == len(data) and b"".join(_pieces(store, shown)) == data:
            return False
    if not dry_run:
        write_object(store, key, data)
        publish(store, log, snapshot.step)  # the log may want another one by now
    return True


def is_own_pointer(store: Store, run: Run, step: int | None) -> bool:
    """Return whether there is a pointer of this step that this run wrote.

    Raises:
        StoreError: The store failed.
    """
    shown = store.stat(layout.pointer_key(step))
    return shown is not None and _is_own(store, run, step, shown, _origin(store, shown))


def _show(store: Store, run: Run, snapshot: Snapshot | None, step: int | None, *, replace_foreign: bool) -> None:
    key = layout.pointer_key(step)
    shown = store.stat(key)
    if shown is None:
        if snapshot is not None and not _Source(store, snapshot).create(key):
            _show(store, run, snapshot, step, replace_foreign=replace_foreign)
        return
    origin = _origin(store, shown)
    if snapshot is not None and origin == Origin(run.short_identity, snapshot.id):
        return
    foreign = not _is_own(store, run, step, shown, origin)
    if foreign and not (replace_foreign and snapshot is not None):
        raise _foreign(store, key)
    if snapshot is None:
        store.delete([key])
        return
    # A pointer that names another snapshot as its origin differs; only one without an origin has to be compared.
    if origin is None and _shows(store, shown, layout.parse_save_folder(snapshot.commit.path)):
        return
    _Source(store, snapshot).write(key)


def _foreign(store: Store, key: str) -> ForeignObjectError:
    return ForeignObjectError(
        "publish the pointer for torch's own reader",
        f"{store.url}/{key}",
        "this run did not write the object that is there",
        "The object stays, and this run's own reader needs no pointer. Move the object away if it is not needed.",
    )


class _Source:
    """The bytes of a snapshot's pointer, as its manifest describes them."""

    def __init__(self, store: Store, snapshot: Snapshot) -> None:
        self._store = store
        self._folder = layout.parse_save_folder(snapshot.commit.path)
        # Read back, so that no reader is led to a snapshot whose manifest the store has lost or damaged.
        self._manifest: Manifest = read_manifest(store, snapshot.commit)
        self._file = self._described()

    def create(self, key: str) -> bool:
        """Publish the bytes under an unused key. Returns False if the key is in use."""
        try:
            if self._file.size > PART_BYTES:
                self._copy(key, create=True)
            else:
                self._store.put_if_absent(key, self.whole())
        except ObjectExistsError:
            return False
        return True

    def write(self, key: str) -> None:
        """Publish the bytes and replace the present pointer."""
        if self._file.size > PART_BYTES:
            self._copy(key, create=False)
        else:
            self._store.put(key, self.whole())

    def whole(self) -> bytes:
        """Return the bytes, with the paths that shared files have here."""
        root, folder = root_of(self._store.url), self._folder.path
        keys = (file.key(folder) for file in self._manifest.files if file.shared_in)
        paths = {key: f"{root}/{key}" for key in keys} if root else {}
        return with_paths(confirmed(self._store, self._read), paths)

    def _described(self) -> File:
        subject = f"{self._store.url}/{self._folder.stock_metadata}"
        operation = "publish the pointer for torch's own reader"
        file = self._manifest.file(STOCK_METADATA_NAME)
        if file is None:
            raise CorruptSnapshotError(operation, subject, "the manifest does not list it", evidence="ManifestMismatch")
        if file.size > MAX_METADATA_BYTES:
            cause = f"it has {file.size} bytes, more than {MAX_METADATA_BYTES}"
            raise ObjectTooLargeError(operation, subject, cause, "This run's own reader does not need it.")
        return file

    def _read(self) -> bytes:
        key, file = self._folder.stock_metadata, self._file
        try:
            data = self._store.get(key, max_bytes=file.size).data
        except ObjectNotFoundError as error:
            raise missing(key) from error
        except ObjectTooLargeError as error:
            raise CorruptSnapshotError(error.operation, key, error.cause, evidence="SizeMismatch") from error
        if len(data) != file.size:
            cause = f"it has {len(data)} bytes, but {file.size} were committed"
            raise CorruptSnapshotError("read the file", key, cause, evidence="SizeMismatch")
        checksum = crc32c(data)
        if checksum != file.crc32c:
            cause = f"its CRC32C is {checksum:08x}, but {file.crc32c:08x} was committed"
            raise CorruptSnapshotError("read the file", key, cause, evidence="ChecksumMismatch")
        return data

    def _copy(self, key: str, *, create: bool) -> None:
        """Copy the bytes part by part, comparing each before it is sent; they become visible once all match."""
        files = Files(self._store, self._folder.path, self._manifest, settings=_SETTINGS)
        with self._store.upload(key, self._file.size) as upload:
            for index, start in enumerate(range(0, self._file.size, upload.part_bytes)):
                # A new buffer for each part: the store may still hold the previous one.
                part = memoryview(bytearray(min(upload.part_bytes, self._file.size - start)))
                files.read([Want(self._file.name, ByteRange(start, part.nbytes), part)])
                upload.write_part(index, [part])
            if create and self._store.stat(key) is not None:
                # Not every store supports create-if-absent for an object of several parts.
                raise ObjectExistsError("create", f"{self._store.url}/{key}", "it appeared meanwhile")


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
    """Return whether the object has the bytes of this save's pointer."""
    stored = store.stat(folder.stock_metadata)
    if stored is None or stored.size != shown.size:
        return False
    pairs = zip(_pieces(store, stored), _pieces(store, shown), strict=True)
    return all(mine == theirs for mine, theirs in pairs)


def _contains(store: Store, shown: ObjectInfo, marks: tuple[bytes, ...]) -> bool:
    """Return whether the object contains any of the marks."""
    overlap = max(map(len, marks)) - 1
    before = b""
    for piece in _pieces(store, shown):
        before = before[-overlap:] + piece
        if any(mark in before for mark in marks):
            return True
    return False


def _pieces(store: Store, info: ObjectInfo) -> Iterator[bytes]:
    """Yield an object's bytes in bounded memory."""
    for start in range(0, info.size, _CHUNK_BYTES):
        piece = bytearray(min(_CHUNK_BYTES, info.size - start))
        store.read_into(info.key, start, [memoryview(piece)])
        yield bytes(piece)


def _identifier(snapshot: Snapshot | None) -> str | None:
    return snapshot.id if snapshot else None
