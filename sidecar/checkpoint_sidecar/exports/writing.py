"""Writes one file of an export: read and sent in parts, or composed of ranges that the store copies by itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from checkpoint_sidecar.core.errors import AccessDeniedError, RequestRefusedError
from checkpoint_sidecar.core.manifest import BLOCK_BYTES
from checkpoint_sidecar.engine.adaptive_pool import AdaptivePool
from checkpoint_sidecar.engine.budget import MemoryBudget
from checkpoint_sidecar.engine.checksums import of_parts
from checkpoint_sidecar.engine.files import FilePlan
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.safetensors import DTYPES
from checkpoint_sidecar.engine.upload import upload_files
from checkpoint_sidecar.exports.contents import ArchivePlace
from checkpoint_sidecar.exports.files import ExportFile, largest_run, size_of
from checkpoint_sidecar.exports.parts import ObjectPart, Span, plan_parts
from checkpoint_sidecar.exports.reading import FileBytes, SnapshotReading
from checkpoint_sidecar.store.base import LEAST_PART_BYTES, ComposesObjects, Composition, Store
from checkpoint_sidecar.store.common.parts import PART_BYTES

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourceRange:
    """Bytes of a file that the store of the snapshot has as they are.

    Attributes:
        span: Their position in the export.
        file: Name in the save's folder.
        start: Their position in that file.
    """

    span: Span
    file: str
    start: int


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that was written.

    Attributes:
        crc32c: Of the whole file; None if the store did not report it.
        sent: Bytes that passed through this process; the others were copied by the store.
    """

    crc32c: int | None
    sent: int


def source_ranges(file: ExportFile, payloads: Mapping[ArchivePlace, int]) -> list[SourceRange]:
    """Return the bytes of a file that a store could copy, in order, and large enough for a part. Pure."""
    found = []
    begins = 0
    for piece in file.pieces:
        if not isinstance(piece, bytes) and largest_run(piece) >= LEAST_PART_BYTES:
            item = DTYPES[piece.dtype].bytes
            for shard in piece.stored.shards:
                if shard.box.run * item < LEAST_PART_BYTES:
                    continue
                for at, position, count in shard.box.spans(0, shard.box.count):
                    start = begins + position * item
                    source = payloads[shard.place] + at * item
                    found.append(SourceRange(Span(start, start + count * item), shard.place.file, source))
        begins += size_of(piece)
    return sorted(found, key=lambda each: each.span)


def planned_parts(file: ExportFile, ranges: Sequence[SourceRange]) -> list[ObjectPart]:
    """Return the parts of a file that the store composes; no part is copied if nothing can be."""
    return plan_parts(file.size, [each.span for each in ranges])


@dataclass(frozen=True, slots=True)
class FileWriter:
    """Writes files of an export.

    Attributes:
        store: Opened at the destination.
        source: The store of the snapshot, if ``store`` may compose files of its objects; else None.
        keys: Keys of the snapshot's files in it, by name.
        settings: Limits; memory is for the parts that are sent, without what reading them needs.
        progress: Counts every byte that is stored; may cancel.
    """

    store: Store
    source: Store | None
    keys: Mapping[str, str]
    reading: SnapshotReading
    settings: EngineSettings
    progress: TransferMeter

    def write(self, file: ExportFile) -> WrittenFile:
        """Write a file, which becomes visible when it is whole.

        Raises:
            BaseException: The first failure; nothing is visible then, except perhaps after an ``UnknownOutcomeError``.
        """
        if self.source is not None and isinstance(self.store, ComposesObjects):
            ranges = source_ranges(file, self.reading.payloads)
            parts = planned_parts(file, ranges)
            if any(part.copied is not None for part in parts):
                try:
                    return self._compose(self.store, self.source, file, ranges, parts)
                except (RequestRefusedError, AccessDeniedError) as error:
                    # Some servers do not copy ranges, or only with parts of one size.
                    logger.warning("the store does not copy ranges, so %s is read and sent: %s", file.name, error)
        plan = FilePlan(file.name, (FileBytes(file, self.reading),))
        # Each thread keeps memory that it used, so there are no more than parts that fit.
        threads = min(self.settings.connections, max(self.settings.memory_bytes // PART_BYTES, 1))
        settings = replace(self.settings, connections=threads)
        (written,) = upload_files(
            self.store, "", [plan], block_bytes=BLOCK_BYTES, settings=settings, progress=self.progress
        )
        return WrittenFile(written.crc32c, file.size)

    def _compose(
        self,
        store: ComposesObjects,
        source: Store,
        file: ExportFile,
        ranges: Sequence[SourceRange],
        parts: Sequence[ObjectPart],
    ) -> WrittenFile:
        contents = FileBytes(file, self.reading)
        budget = MemoryBudget(self.settings.memory_bytes)
        self.progress.expect(file.size)

        def copy(composition: Composition, index: int, part: ObjectPart, of: SourceRange) -> None:
            composition.copy_part(index, self.keys[of.file], of.start + part.span.start - of.span.start)
            self.progress.add(part.span.length)

        def send(composition: Composition, index: int, part: ObjectPart) -> None:
            try:
                composition.write_part(index, [contents.view(part.span.start, part.span.stop)])
            finally:
                budget.release(part.span.length)
            self.progress.add(part.span.length)

        sizes = [part.span.length for part in parts]
        with (
            store.compose(file.name, source, sizes) as composition,
            AdaptivePool(
                "export",
                first=self.settings.threads_at_first,
                most=self.settings.connections,
                poll=self.progress.check,
                on_failure=composition.abort,
            ) as pool,
        ):
            try:
                for index, part in enumerate(parts):
                    if part.copied is not None:
                        pool.start(copy, composition, index, part, ranges[part.copied])
                    else:
                        pool.wait_for_thread()
                        budget.acquire(part.span.length, meanwhile=pool.check)
                        pool.start(send, composition, index, part)
                pool.wait()
            except BaseException as error:
                pool.fail(error)
                raise
        checksums = [composition.part_checksum(index) for index in range(len(parts))]
        sent = sum(part.span.length for part in parts if part.copied is None)
        return WrittenFile(_combined(checksums, sizes), sent)


def _combined(checksums: Sequence[int | None], sizes: Sequence[int]) -> int | None:
    known = [each for each in checksums if each is not None]
    return of_parts(known, sizes) if len(known) == len(sizes) else None
