"""Unfinished uploads: invisible parts that killed writers leave and that cost money. Best effort."""

from __future__ import annotations

import logging

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.belongings import Belongings
from checkpoint_sidecar.core.errors import StoreError
from checkpoint_sidecar.store.base import KeepsUnfinished, Store, UnfinishedUpload

logger = logging.getLogger(__name__)


def unfinished(store: Store, ours: Belongings) -> tuple[UnfinishedUpload, ...]:
    """List the unfinished uploads of the run's own saves.

    Listing them needs a right, and a server that can. Otherwise a lifecycle rule of the bucket does the same.
    """
    try:
        listed = tuple(store.unfinished(layout.STEP_PREFIX)) if isinstance(store, KeepsUnfinished) else ()
    except StoreError as error:
        logger.warning("unfinished uploads of killed attempts may stay: %s", error)
        return ()
    return tuple(upload for upload in listed if ours.save_of(upload.key) is not None)


def discard(store: Store, upload: UnfinishedUpload) -> None:
    """Delete the parts of an unfinished upload, if the store allows it."""
    if not isinstance(store, KeepsUnfinished):
        return
    try:
        store.discard(upload)
        logger.info("discarded the unfinished upload of %s", upload.key)
    except StoreError as error:
        logger.warning("the unfinished upload of %s may stay: %s", upload.key, error)
