"""Leaving and removing ``_run.json``, the sign outside the log that there is a run. See ``core.marker``."""

from __future__ import annotations

import contextlib

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.core.marker import MAX_MARKER_BYTES, Marker, decode, encode
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.store.base import Store


def leave_marker(store: Store, run: Run) -> None:
    """Write the object that says that this run exists.

    Makes one small read if it is there already. An object of another writer stays.

    Raises:
        StoreError: The store failed.
    """
    there, marker = _read(store)
    if not there:
        # The next start tries again: a failure here must not prevent a start.
        with contextlib.suppress(ObjectExistsError, UnknownOutcomeError):
            store.put_if_absent(layout.MARKER_KEY, encode(run))
    elif marker is not None and marker.identity != run.identity:
        store.put(layout.MARKER_KEY, encode(run))


def telling_keys(store: Store) -> list[str]:
    """Keys that can tell whether a run was here, see ``core.belongings.traces``; all others are not even listed.

    Raises:
        StoreError: The store failed.
    """
    hints = (key for key in (layout.MARKER_KEY, layout.PROGRESS_KEY) if store.stat(key) is not None)
    folders = (layout.COMPACTION_FOLDER, layout.STEP_PREFIX)
    return [*hints, *(info.key for folder in folders for info in store.list(folder))]


def is_marker(store: Store, identity: str) -> bool:
    """Whether the object under the marker's key is one, of this run if its identity is known.

    Raises:
        StoreError: The store failed.
    """
    _, marker = _read(store)
    return marker is not None and identity in ("", marker.identity)


def _read(store: Store) -> tuple[bool, Marker | None]:
    try:
        return True, decode(store.get(layout.MARKER_KEY, max_bytes=MAX_MARKER_BYTES).data)
    except ObjectNotFoundError:
        return False, None
    except ObjectTooLargeError:
        return True, None
