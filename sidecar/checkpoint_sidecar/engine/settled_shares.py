"""Looks whether files of the previous snapshot are still as it left them, so that a save may name them as its own."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.core.layout import MANIFEST_NAME
from checkpoint_sidecar.core.manifest import File
from checkpoint_sidecar.engine.folders.sending import CopySource
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.store.base import Store

logger = logging.getLogger(__name__)


def shared_files(store: Store, source: CopySource, names: Iterable[str], *, settings: EngineSettings) -> list[File]:
    """Return the entries of files that a save may share, each with the folder that it is in. The others must be sent.

    A file that is gone, has another size, or was written to since the source was committed is not shared. The bytes are
    not read.

    Args:
        source: A committed snapshot of this store.
        names: Names of files in its manifest.
    """
    files = [source.files[name] for name in names]
    if not files:
        return []

    def usable(file: File, committed: dt.datetime) -> bool:
        found = store.stat(file.key(source.path))
        return found is not None and found.size == file.size and found.modified <= committed

    try:
        manifest = store.stat(f"{source.path}/{MANIFEST_NAME}")
        if manifest is None:
            return []
        with ThreadPoolExecutor(settings.connections, thread_name_prefix="stat") as pool:
            found = list(pool.map(partial(usable, committed=manifest.modified), files))
    except CheckpointError as error:
        logger.warning("sending files that did not change, because they cannot be looked up: %s", error)
        return []
    for file, good in zip(files, found, strict=True):
        if not good:
            logger.warning("sending %s again: it is not as its snapshot left it", file.key(source.path))
    return [
        msgspec.structs.replace(file, shared_in=file.shared_in or source.path)
        for file, good in zip(files, found, strict=True)
        if good
    ]
