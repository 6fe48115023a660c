"""Announces in the log that a snapshot is read, so that retention does not delete its data meanwhile."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from checkpoint_sidecar.core import requests
from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.core.reading import seconds_for
from checkpoint_sidecar.core.run import Snapshot
from checkpoint_sidecar.manage.changes import new_request
from checkpoint_sidecar.runs.log import RunLog

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def announced(log: RunLog, snapshot: Snapshot) -> Iterator[None]:
    """Announce a reader for the length of a block. Without the right to write, the block runs all the same."""
    reader = new_request("read")
    announced = _write(log, snapshot, reader, seconds_for(snapshot.commit.bytes))
    try:
        yield
    finally:
        if announced:
            _write(log, snapshot, reader, 0.0)


def _write(log: RunLog, snapshot: Snapshot, reader: str, seconds: float) -> bool:
    """Return whether it was announced, or its end."""
    try:
        entry = log.append(lambda run: requests.announce_reading(run, snapshot.id, reader, seconds))
    except CheckpointError as error:
        logger.info("reading %s@%s without announcing it: %s", log.store.url, snapshot.id, error)
        return False
    return entry is not None
