"""What one rank stores of a folder: objects that it sends, and objects that the store copies by itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from checkpoint_sidecar.core.errors import CheckpointError, TransferCancelledError
from checkpoint_sidecar.core.folder_plan import PlannedObject
from checkpoint_sidecar.core.manifest import File
from checkpoint_sidecar.engine.checksums import block_checksums, packed
from checkpoint_sidecar.engine.files import FilePlan
from checkpoint_sidecar.engine.folders.staging import StagedReader
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.server_copy import ServerCopy
from checkpoint_sidecar.store.base import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CopySource:
    """The previous snapshot, whose objects may be copied.

    Attributes:
        path: Its folder.
        block_bytes: Block size of its checksums.
        files: The manifest's entries of its objects, by name.
    """

    path: str
    block_bytes: int
    files: dict[str, File] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FolderShare:
    """What a rank stores of the folder.

    Attributes:
        objects: This rank's.
        reader: Reads the staged files of its folder.
        total_bytes: Of all ranks.
        index: The encoded index, on rank 0.
        source: Where unchanged objects are copied from, or None.
        no_copies: Set when the store turns out not to copy, so that later saves do not ask again.
    """

    objects: Sequence[PlannedObject]
    reader: StagedReader | None
    total_bytes: int
    index: bytes = b""
    source: CopySource | None = None
    no_copies: threading.Event = field(default_factory=threading.Event)

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.objects]

    def plans(self, objects: Sequence[PlannedObject]) -> list[FilePlan]:
        """Return how to send objects."""
        return [FilePlan(each.name, tuple(map(self._reader.segment, each.paths))) for each in objects]

    def copy(
        self, store: Store, folder: str, block_bytes: int, settings: EngineSettings, progress: TransferMeter | None
    ) -> list[File]:
        """Let the store copy the objects that did not change. Returns their entries; the others have to be sent.

        Files are unchanged if the filesystem says so and their checksums are those of the previous snapshot. The store
        must report that the copy has them, too.
        """
        source = self.source
        if source is None or source.block_bytes != block_bytes or self.no_copies.is_set():
            return []
        meter = progress or TransferMeter()
        by_store = ServerCopy(store, store, settings.connections, meter.add)
        copied: list[File] = []
        for each in self.objects:
            old = source.files.get(each.copied_from)
            if old is None or not by_store.able(old) or not self._same(each, old, block_bytes, meter):
                continue
            meter.check()
            meter.expect(old.size)
            try:
                if by_store.copied(old, source.path, folder, name=each.name):
                    copied.append(File(each.name, old.size, old.crc32c, old.block_crc32c))
            except TransferCancelledError:
                raise
            except CheckpointError as error:
                logger.warning("sending files that did not change, because they cannot be copied: %s", error)
        if not by_store.copies:
            self.no_copies.set()
        return copied

    def check(self) -> None:
        """Raise an error if a file changed since it was staged.

        Raises:
            StateCopyError: One did.
        """
        for each in self.objects:
            for path in each.paths:
                self._reader.check(path)

    @property
    def _reader(self) -> StagedReader:
        assert self.reader is not None  # a rank with objects has staged or shares a folder
        return self.reader

    def _same(self, planned: PlannedObject, old: File, block_bytes: int, meter: TransferMeter) -> bool:
        if planned.size != old.size:
            return False
        meter.expect(planned.size)
        sums = packed(block_checksums(self._read(planned, meter), block_bytes))
        return sums == old.block_crc32c

    def _read(self, planned: PlannedObject, meter: TransferMeter) -> Iterator[memoryview]:
        for path in planned.paths:
            for data in self._reader.contents(path):
                meter.check()
                yield data
                meter.add(len(data))
