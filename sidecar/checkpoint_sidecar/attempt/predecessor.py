"""Not fencing an attempt that still trains.

Starting takes the fencing token from whoever holds it. When a stale gang is restarted by its controller beside a
healthy one, the two would take it from each other for ever; so a start that sees another attempt's beat waits until
that stops.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable, Collection

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.heartbeat import INTERVAL_SECONDS, may_be_running
from checkpoint_sidecar.core.log import PodIdentity
from checkpoint_sidecar.runs.heartbeat import Beat, read_beat
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store

logger = logging.getLogger(__name__)

SILENT_AFTER_SECONDS = 1.5 * INTERVAL_SECONDS
_LOOK_SECONDS = 1.0


def wait_for_predecessor(
    log: RunLog,
    *,
    pods: Collection[PodIdentity],
    patience_seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when no other attempt seems to be training, or when the patience is over.

    Args:
        pods: Of the attempt about to start.
        clock, sleep: Seconds, monotonic.
    """
    deadline = clock() + patience_seconds
    beat: Beat | None = None
    heard = clock()
    while True:
        run, latest = log.refresh(), read_beat(log.store)
        if latest is None or not may_be_running(run, latest.progress, pods=pods):
            return
        progress = latest.progress
        if beat is None:
            heard -= _age(log.store, latest)
        elif latest != beat:
            heard = clock()
        silent = clock() - heard
        if silent >= SILENT_AFTER_SECONDS:
            return
        if clock() >= deadline:
            logger.warning(
                "attempt %d in %s is still training at step %d; starting all the same after %g s, which stops it",
                progress.attempt,
                _names(progress.pods),
                progress.step,
                patience_seconds,
            )
            return
        if beat is None:
            logger.warning(
                "attempt %d in %s is at step %d, perhaps running: waiting for its end or %g s of silence, at most %g s",
                progress.attempt,
                _names(progress.pods),
                progress.step,
                SILENT_AFTER_SECONDS,
                patience_seconds,
            )
        beat = latest
        sleep(_LOOK_SECONDS)


def _age(store: Store, beat: Beat) -> float:
    """Seconds since the beat by the store's clock, which is read off an object written for the purpose."""
    key = f"{layout.PROBE_FOLDER}{layout.new_nonce()}"
    store.put(key, b"")
    try:
        probe = store.stat(key)
    finally:
        store.delete([key])
    now = probe.modified if probe else beat.at
    return max(now - beat.at, dt.timedelta()).total_seconds()


def _names(pods: Collection[PodIdentity]) -> str:
    return ", ".join(pod.name for pod in pods) or "unknown pods"
