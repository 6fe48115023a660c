"""Reading ``_progress.json``, the hint of how far training has got."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import ObjectNotFoundError, ObjectTooLargeError
from checkpoint_sidecar.core.progress import MAX_PROGRESS_BYTES, Progress, decode
from checkpoint_sidecar.store.base import Store


@dataclass(frozen=True, slots=True)
class Beat:
    """The last word of an attempt.

    Attributes:
        at: The store's clock when it was written.
    """

    progress: Progress
    at: dt.datetime


def read_beat(store: Store) -> Beat | None:
    """The last beat, or None when there is none or it makes no sense: a broken hint is no hint.

    Raises:
        StoreError: The store failed.
    """
    try:
        stored = store.get(layout.PROGRESS_KEY, max_bytes=MAX_PROGRESS_BYTES)
    except (ObjectNotFoundError, ObjectTooLargeError):
        return None
    progress = decode(stored.data)
    return Beat(progress, stored.info.modified) if progress else None
