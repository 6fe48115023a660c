"""Copies files of the previous snapshot into a save, without sending their bytes.

In a bucket, the store copies and reports the CRC32C of the copy, which must be the committed one. In a file system, the
copy is a hard link: the same bytes under a second name, for which the file system counts references. A file that was
written to since its snapshot was committed is not linked, as far as sizes and times tell.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    CheckpointError,
    RequestRefusedError,
    TransferCancelledError,
)
from checkpoint_sidecar.core.layout import MANIFEST_NAME
from checkpoint_sidecar.core.manifest import File
from checkpoint_sidecar.engine.folders.sending import CopySource
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.server_copy import ServerCopy
from checkpoint_sidecar.store.base import LinksObjects, Store

logger = logging.getLogger(__name__)


def may_copy(store: Store) -> bool:
    """Return whether a store copies objects of its own, as far as is known before it is asked."""
    return isinstance(store, LinksObjects) or ServerCopy(store, store, 1, lambda _: None).copies


class SettledCopies:
    """Copies files of one snapshot.

    Args:
        source: The snapshot, of this store.
        folder: ``SaveFolder.path`` of the save.
        meter: Counts the bytes of copies; may cancel.

    Attributes:
        refused: Whether the store turned out not to copy.
    """

    def __init__(
        self, store: Store, source: CopySource, folder: str, *, settings: EngineSettings, meter: TransferMeter
    ) -> None:
        self._store = store
        self._source = source
        self._folder = folder
        self._settings = settings
        self._meter = meter
        self._by_store = ServerCopy(store, store, settings.connections, meter.add)
        self.refused = False

    def made(self, wanted: Mapping[str, str]) -> list[File]:
        """Copy files at the same time. Returns the entries of the copies; the others have to be sent.

        Args:
            wanted: Names in the source by names in the save.

        Raises:
            TransferCancelledError: See ``TransferMeter.cancel``.
        """
        old = {name: self._source.files[source_name] for name, source_name in wanted.items()}
        if not old:
            return []
        copied = self._linked if isinstance(self._store, LinksObjects) else self._copied

        def made(name: str) -> File | None:
            file = old[name]
            return File(name, file.size, file.crc32c, file.block_crc32c) if self._tried(copied, file, name) else None

        with ThreadPoolExecutor(self._settings.connections, thread_name_prefix="copy") as pool:
            return [file for file in pool.map(made, old) if file is not None]

    def _tried(self, copied: Callable[[File, str], bool], file: File, name: str) -> bool:
        if self.refused:
            return False
        self._meter.expect(file.size)
        try:
            return copied(file, name)
        except TransferCancelledError:
            raise
        except (AccessDeniedError, RequestRefusedError) as error:
            logger.info("the store does not copy: %s", error)
            self.refused = True
        except CheckpointError as error:
            logger.warning("sending a file that did not change, because it cannot be copied: %s", error)
        return False

    def _copied(self, file: File, name: str) -> bool:
        done = self._by_store.copied(file, self._source.path, self._folder, name=name)
        self.refused |= not self._by_store.copies
        return done

    def _linked(self, file: File, name: str) -> bool:
        store, key, source_key = self._store, f"{self._folder}/{name}", file.key(self._source.path)
        assert isinstance(store, LinksObjects)
        committed = self._written(f"{self._source.path}/{MANIFEST_NAME}")
        linked = store.link(key, source_key)
        if linked.size == file.size and committed is not None and linked.modified <= committed:
            self._meter.add(file.size)
            return True
        store.delete([key])
        cause = "it was written to after its snapshot was committed"
        raise CheckpointError("link the file", source_key, cause)

    def _written(self, key: str) -> dt.datetime | None:
        info = self._store.stat(key)
        return info.modified if info else None
