"""Copies snapshots to another store or prefix, where they become a run of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

from checkpoint_sidecar.conformance.probe import probe
from checkpoint_sidecar.core import attempt as decisions
from checkpoint_sidecar.core import copying, layout
from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core.belongings import traces, unaccounted
from checkpoint_sidecar.core.errors import ChangeRefusedError, CorruptSnapshotError
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.log import Body, Owner, SnapshotVerified
from checkpoint_sidecar.core.manifest import BLOCK_BYTES, File, Manifest
from checkpoint_sidecar.core.requests import record_check
from checkpoint_sidecar.core.run import Run, Snapshot
from checkpoint_sidecar.engine.delivery import Want
from checkpoint_sidecar.engine.files import Bytes, FilePlan
from checkpoint_sidecar.engine.limits import LEAST_MEMORY_BYTES, EngineSettings
from checkpoint_sidecar.engine.pointer import publish_if_possible
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.requests import ByteRange
from checkpoint_sidecar.engine.server_copy import ServerCopy
from checkpoint_sidecar.engine.upload import upload_files
from checkpoint_sidecar.engine.verify import read_manifest
from checkpoint_sidecar.manage.changes import APPEND_TIMEOUT_SECONDS, check_changeable, why_unreadable
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.runs.marker import leave_marker, telling_keys
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.parts import write_object

if TYPE_CHECKING:
    from checkpoint_sidecar.manage.stored_run import StoredRun

_COPY = "copy to"
_BATCH_BYTES = 1024**3
_BATCH_FILES = 64
"""Files appear together once all of them are stored. A copy that is interrupted continues behind the last batch."""
_PARALLEL_REQUESTS = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CopySettings:
    """How to copy.

    Attributes:
        progress: Called with the number of bytes of each piece that was read. It may raise, to stop.
        without_operator: Also copy to a prefix that an operator manages.
        engine: Limits on memory and connections.
    """

    progress: Callable[[int], None] = lambda _: None
    without_operator: bool = False
    engine: EngineSettings = field(default_factory=EngineSettings)


def plan_copy(source: StoredRun, target: StoredRun, selector: str | int = "") -> tuple[Snapshot, ...]:
    """Return what ``copy_run`` would copy, oldest first. Writes nothing, and raises as ``copy_run`` does."""
    run, there = source.refresh(), _log_of(target).refresh()
    check_target(run, there, target.url, without_operator=True)
    chosen = (source.find(selector),) if selector != "" else copying.snapshots_to_copy(run)
    return tuple(each for each in chosen if there.attempt is None or copying.copied_already(there, each) is None)


def copy_run(
    source: StoredRun, target: StoredRun, selector: str | int = "", *, settings: CopySettings | None = None
) -> Iterator[Snapshot]:
    """Copy snapshots to another store or prefix, which becomes a run of its own; yields each copy once it is committed.

    >>> for snapshot in copy_run(open_run("s3://training/llama-7b"), open_run("gs://backup/llama-7b")):
    ...     print(snapshot.step)

    Call it again after an interruption, or when the source has new snapshots: it continues with what is missing. Every
    byte is compared with its checksum on the way, also of files that are there already.

    Args:
        target: Where nothing is yet, or an earlier copy of the same run.
        selector: One snapshot, see ``StoredRun.find``; by default all that a restore of the run may try.

    Raises:
        RunNotFoundError, SnapshotNotFoundError, AmbiguousSelectorError: There is no such run or snapshot.
        ChangeRefusedError: Another run is there, training has begun in the copy, or it is the same run.
        RunManagedError: An operator manages the target.
        CorruptSnapshotError: A snapshot is damaged; nothing of it is committed.
        LogError, StoreError: It stopped there; call again.
    """
    settings = settings or CopySettings()
    snapshots, run, log = plan_copy(source, target, selector), source.state, _log_of(target)
    if snapshots:
        _begin(run, log, settings)
    for snapshot in snapshots:
        with source.reading(snapshot.id):
            copy = _SnapshotCopy(source.store, run, log, snapshot, settings).made()
        yield copy


def _log_of(target: StoredRun) -> RunLog:
    writer = f"library {version('checkpoint-operator')}"
    return RunLog(target.store, writer=writer, timeout_seconds=APPEND_TIMEOUT_SECONDS)


def check_target(source: Run, target: Run, url: str, *, without_operator: bool) -> None:
    """Raise an error unless copies of a run may be added to a prefix; see ``copy_run``."""
    if not target.free:
        check_changeable(target, _COPY, subject=url, without_operator=without_operator)
    cause = copying.why_not_copied_into(target, source)
    if cause and not target.free:
        raise ChangeRefusedError(_COPY, url, cause, "Choose another prefix.")


def _begin(source: Run, log: RunLog, settings: CopySettings) -> None:
    store, run = log.store, log.refresh()
    check_target(source, run, store.url, without_operator=settings.without_operator)
    keys = () if run.ever_committed or (run.head and run.free) else telling_keys(store)
    decisions.check_log(run, url=store.url, traces=unaccounted(run, keys) if run.head else traces(keys))
    if run.free:
        probe(store)
    owner = Owner("local", "local", store.url.rpartition("/")[2][-253:])

    def checked(compute: Callable[[Run], Body | None]) -> Callable[[Run], Body | None]:
        def decide(run: Run) -> Body | None:
            check_target(source, run, store.url, without_operator=settings.without_operator)
            return compute(run)

        return decide

    log.append(checked(lambda run: decisions.claim(run, owner if run.free else run.owner or owner, url=store.url)))
    leave_marker(store, log.run)
    log.append(checked(decisions.identify))
    log.append(checked(lambda run: copying.start_copy(run, source)))


class _SnapshotCopy:
    """The copy of one snapshot."""

    def __init__(self, source: Store, run: Run, target: RunLog, snapshot: Snapshot, settings: CopySettings) -> None:
        self._source, self._run, self._log, self._snapshot = source, run, target, snapshot
        self._store, self._settings = target.store, settings
        self._by_store = ServerCopy(source, target.store, settings.engine.connections, settings.progress)
        if cause := why_unreadable(run, snapshot.id):
            raise ChangeRefusedError("copy", f"{source.url}@{snapshot.id}", cause, "Choose another one.")
        self._folder = copying.folder_in(target.run, snapshot)
        self._identifier = layout.snapshot_id(snapshot.step, self._folder.attempt, self._folder.nonce)

    def made(self) -> Snapshot:
        """Copy the files, commit them and publish the pointer for torch's own reader."""
        original = read_manifest(self._source, self._snapshot.commit)
        manifest = self._with_files(original)
        encoded = manifests.encode(manifest)
        write_object(self._store, self._folder.manifest, encoded)
        digest = manifests.digest(encoded)
        self._append(lambda run: copying.commit_of_copy(run, self._snapshot, manifest, digest))
        check = SnapshotVerified(self._identifier, "Checksums", passed=True)
        self._append(lambda run: record_check(run, check, judged=0))
        if manifest.file(layout.STOCK_METADATA_NAME) is not None:
            publish_if_possible(self._store, self._log, self._snapshot.step, outcome="copied")
        return self._log.run.snapshots[self._identifier]

    def _append(self, compute: Callable[[Run], Body | None]) -> None:
        def checked(run: Run) -> Body | None:
            check_target(self._run, run, self._store.url, without_operator=self._settings.without_operator)
            return compute(run)

        self._log.append(checked)

    def _with_files(self, original: Manifest) -> Manifest:
        manifest = copying.manifest_of_copy(original, self._identifier, self._folder)
        # Parts are multiples of 4 MiB, and of whole blocks.
        block_bytes = original.block_bytes if BLOCK_BYTES % original.block_bytes == 0 else BLOCK_BYTES
        there = self._stored(manifest) if block_bytes == original.block_bytes else []
        there = [file for file in there if self._is_whole(file, manifest)]
        files = [*there]
        if block_bytes == original.block_bytes:
            stored = {file.name: file for file in original.files}
            files += [file for file in manifest.files if file not in there and self._copied_by_store(stored[file.name])]
        contents = Files(self._source, self._snapshot.commit.path, original, settings=_one_request())
        for batch in _batches([file for file in manifest.files if file not in files]):
            plans = [FilePlan(each.name, (_Stored(contents, each, self._settings.progress),)) for each in batch]
            sent = upload_files(
                self._store, self._folder.path, plans, block_bytes=block_bytes, settings=self._settings.engine
            )
            files += map(self._compared, batch, sent)
        stock = self._stock_metadata(original, contents)
        if stock is not None:
            plan = FilePlan(layout.STOCK_METADATA_NAME, (Bytes(stock),))
            files += upload_files(
                self._store, self._folder.path, [plan], block_bytes=block_bytes, settings=self._settings.engine
            )
        return Manifest(
            manifest.snapshot,
            manifest.step,
            manifest.attempt,
            manifest.world_size,
            tuple(sorted(files, key=lambda file: file.name)),
            manifest.versions,
            block_bytes,
            manifest.format,
        )

    def _copied_by_store(self, file: File) -> bool:
        return self._by_store.copied(file, self._snapshot.commit.path, self._folder.path)

    def _stored(self, manifest: Manifest) -> list[File]:
        """Return the files that an earlier call has stored."""

        def same(file: File) -> bool:
            info = self._store.stat(f"{self._folder.path}/{file.name}")
            return info is not None and info.size == file.size

        if not any(True for _ in self._store.list(f"{self._folder.path}/")):
            return []
        with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="stat") as pool:
            return [file for file, found in zip(manifest.files, pool.map(same, manifest.files), strict=True) if found]

    def _is_whole(self, file: File, manifest: Manifest) -> bool:
        """Read back a file that is there already. A damaged one is sent again: it belongs to no snapshot yet."""
        contents = Files(self._store, self._folder.path, manifest, settings=self._settings.engine)
        step = max(_READ_BYTES // manifest.block_bytes, 1) * manifest.block_bytes
        for start in range(0, file.size, step):
            span = ByteRange(start, min(step, file.size - start))
            try:
                contents.read([Want(file.name, span, memoryview(bytearray(span.length)))])
            except CorruptSnapshotError as error:
                logger.info("copying %s/%s again: %s", self._folder.path, file.name, error)
                return False
            self._settings.progress(span.length)
        return True

    def _compared(self, committed: File, sent: File) -> File:
        if committed.crc32c != sent.crc32c:
            key = f"{self._snapshot.commit.path}/{committed.name}"
            cause = f"its CRC32C is {sent.crc32c:08x}, {committed.crc32c:08x} was committed"
            raise CorruptSnapshotError("copy the file", key, cause, evidence="ChecksumMismatch")
        return sent

    def _stock_metadata(self, original: Manifest, contents: Files) -> bytes | None:
        file = original.file(layout.STOCK_METADATA_NAME)
        source: SaveFolder = layout.parse_save_folder(self._snapshot.commit.path)
        if file is None or file.size > copying.MAX_STOCK_METADATA_BYTES:
            return None
        data = bytearray(file.size)
        contents.read([Want(file.name, ByteRange(0, file.size), memoryview(data))])
        shared = [each for each in original.files if each.shared_in]
        return copying.stock_metadata_of_copy(bytes(data), source, self._folder, self._identifier, shared)


_READ_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Stored:
    """A segment whose bytes are read from the source, and compared, when they are needed."""

    contents: Files
    file: File
    progress: Callable[[int], None]

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def in_memory(self) -> bool:
        return False

    def view(self, start: int, stop: int) -> memoryview:
        buffer = memoryview(bytearray(stop - start))
        self.contents.read([Want(self.file.name, ByteRange(start, stop - start), buffer)])
        self.progress(stop - start)
        return buffer


def _one_request() -> EngineSettings:
    """Return the limits of one part: parts are sent concurrently."""
    return EngineSettings(memory_bytes=LEAST_MEMORY_BYTES, connections=1)


def _batches(files: Sequence[File]) -> Iterator[list[File]]:
    batch: list[File] = []
    for file in files:
        if batch and (sum(each.size for each in batch) + file.size > _BATCH_BYTES or len(batch) == _BATCH_FILES):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch
