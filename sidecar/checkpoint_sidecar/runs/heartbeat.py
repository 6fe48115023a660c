"""Reading ``_progress.json``, the hint of how far training has got."""

from __future__ import annotations

import datetime as dt
import functools
import logging
from dataclasses import dataclass

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import ObjectNotFoundError, StoreError
from checkpoint_sidecar.core.heartbeat import MAX_PROGRESS_BYTES, Heartbeat, decode
from checkpoint_sidecar.store.base import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredHeartbeat:
    """The latest heartbeat of a run.

    Attributes:
        at: Time by the store's clock when it was written.
    """

    heartbeat: Heartbeat
    at: dt.datetime


def read_heartbeat(store: Store) -> StoredHeartbeat | None:
    """Read the latest heartbeat; return None when it does not exist.

    An unreadable heartbeat counts as none: a start of training or a pass of the operator must not depend on a hint.
    It is logged once for each store and process.

    Raises:
        StoreError: The store failed, and may work later.
    """
    try:
        stored = store.get(layout.PROGRESS_KEY, max_bytes=MAX_PROGRESS_BYTES)
    except ObjectNotFoundError:
        return None
    except StoreError as error:
        if error.retryable:
            raise
        _warn_once(store.url, error.cause)
        return None
    heartbeat = decode(stored.data)
    if heartbeat is None:
        _warn_once(store.url, "it is not a heartbeat")
        return None
    return StoredHeartbeat(heartbeat, stored.info.modified)


@functools.lru_cache(maxsize=4096)
def _warn_once(url: str, cause: str) -> None:
    logger.warning("ignoring %s/%s until the next heartbeat replaces it: %s", url, layout.PROGRESS_KEY, cause)
