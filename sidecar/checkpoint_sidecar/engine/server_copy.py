"""Lets the store copy the files of a snapshot by itself, where it can: their bytes do not pass through this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from checkpoint_sidecar.core.errors import AccessDeniedError, CorruptSnapshotError, RequestRefusedError
from checkpoint_sidecar.core.manifest import File
from checkpoint_sidecar.engine.checksums import of_blocks
from checkpoint_sidecar.store.base import COPIED_PART_BYTES, LEAST_PART_BYTES, ComposesObjects, CopiesObjects, Store

logger = logging.getLogger(__name__)

_OPERATION = "copy the file"


class ServerCopy:
    """Copies files within one service: by one request where the store then says what it has copied, else in parts.

    Args:
        source, target: Opened at the two runs.
        connections: Concurrent requests.
        progress: Called with the number of bytes of each part that the store has copied. It may raise, to stop.
    """

    def __init__(self, source: Store, target: Store, connections: int, progress: Callable[[int], None]) -> None:
        self._source = source
        self._target = target
        self._whole = target if isinstance(target, CopiesObjects) and target.can_copy_from(source) else None
        self._parts = target if isinstance(target, ComposesObjects) and target.can_compose_from(source) else None
        self._connections = connections
        self._progress = progress

    @property
    def copies(self) -> bool:
        """Whether the store copies by itself and says what it has copied, as far as is known."""
        return self._whole is not None or self._parts is not None

    def able(self, file: File) -> bool:
        """Return whether the store may copy a file, as far as is known."""
        return self.copies and file.size >= LEAST_PART_BYTES

    def copied(self, file: File, source_folder: str, folder: str, *, name: str = "") -> bool:
        """Copy one file, and return whether its checksum is known to be the committed one.

        A store that does not copy, or does not say what it has copied, copies no further file.

        Args:
            name: Of the copy; by default the file's own.

        Raises:
            CorruptSnapshotError: The stored file is not the one that was committed. Nothing is visible.
            StoreError: The store failed.
        """
        if not self.able(file):
            return False
        source_key, key = file.key(source_folder), f"{folder}/{name or file.name}"
        try:
            return self._copied_whole(file, source_key, key) or self._copied_in_parts(file, source_key, key)
        except (AccessDeniedError, RequestRefusedError) as error:
            logger.info("sending %s, because the store does not copy it by itself: %s", key, error)
            self._whole = self._parts = None
            return False

    def _copied_whole(self, file: File, source_key: str, key: str) -> bool:
        target = self._whole
        if target is None or file.size > COPIED_PART_BYTES:
            return False
        checksum = target.copy_object(key, self._source, source_key)
        if checksum == file.crc32c:
            self._progress(file.size)
            return True
        self._target.delete([key])
        if checksum is not None:
            raise _other_bytes(source_key, checksum, file)
        self._whole = None
        return False

    def _copied_in_parts(self, file: File, source_key: str, key: str) -> bool:
        target = self._parts
        if target is None:
            return False
        starts = range(0, file.size, COPIED_PART_BYTES)
        sizes = [min(COPIED_PART_BYTES, file.size - start) for start in starts]
        try:
            with (
                target.compose(key, self._source, sizes) as composition,
                ThreadPoolExecutor(self._connections, thread_name_prefix="copy") as pool,
            ):

                def copy(index: int) -> int | None:
                    composition.copy_part(index, source_key, starts[index])
                    self._progress(sizes[index])
                    return composition.part_checksum(index)

                _check(list(pool.map(copy, range(len(sizes)))), file, source_key)
        except _UncheckedError as error:
            logger.info("sending %s, because the store does not copy it by itself: %s", key, error)
            self._parts = None
            return False
        return True


class _UncheckedError(Exception):
    """The store did not report a checksum."""


def _check(checksums: Sequence[int | None], file: File, key: str) -> None:
    known = [each for each in checksums if each is not None]
    if len(known) < len(checksums):
        raise _UncheckedError("it does not say what it copied")
    checksum = of_blocks(known, COPIED_PART_BYTES, file.size)
    if checksum != file.crc32c:
        raise _other_bytes(key, checksum, file)


def _other_bytes(key: str, checksum: int, file: File) -> CorruptSnapshotError:
    cause = f"its CRC32C is {checksum:08x}, {file.crc32c:08x} was committed"
    return CorruptSnapshotError(_OPERATION, key, cause, evidence="ChecksumMismatch")
