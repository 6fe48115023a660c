"""Waits for an attempt that still trains instead of fencing it.

A start takes the fencing token from the attempt that holds it. If a controller restarts a stale gang beside a healthy
one, the two would take the token from each other endlessly. So a start that sees another attempt's heartbeat waits
until it stops.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable, Collection

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.heartbeat import INTERVAL_SECONDS, may_be_running
from checkpoint_sidecar.core.log import PodIdentity
from checkpoint_sidecar.runs.heartbeat import StoredHeartbeat, read_heartbeat
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store

logger = logging.getLogger(__name__)

SILENT_AFTER_SECONDS = 1.5 * INTERVAL_SECONDS
_POLL_SECONDS = 1.0


def wait_for_predecessor(
    log: RunLog,
    *,
    pods: Collection[PodIdentity],
    timeout_seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until no other attempt seems to be training, or the timeout has passed.

    Args:
        pods: The pods of the attempt that is about to start.
        timeout_seconds: The timeout.
        clock, sleep: Seconds, monotonic.
    """
    deadline = clock() + timeout_seconds
    seen: StoredHeartbeat | None = None
    heard = clock()
    while True:
        run, latest = log.refresh(), read_heartbeat(log.store)
        if latest is None or not may_be_running(run, latest.heartbeat, pods=pods):
            return
        heartbeat = latest.heartbeat
        if seen is None:
            heard -= _age(log.store, latest)
        elif latest != seen:
            heard = clock()
        silent = clock() - heard
        if silent >= SILENT_AFTER_SECONDS:
            return
        if clock() >= deadline:
            logger.warning(
                "attempt %d in %s is still training at step %d; starting anyway after %g s, which stops it",
                heartbeat.attempt,
                _names(heartbeat.pods),
                heartbeat.step,
                timeout_seconds,
            )
            return
        if seen is None:
            logger.warning(
                "attempt %d in %s is at step %d, perhaps running: waiting for its end or %g s of silence, at most %g s",
                heartbeat.attempt,
                _names(heartbeat.pods),
                heartbeat.step,
                SILENT_AFTER_SECONDS,
                timeout_seconds,
            )
        seen = latest
        sleep(_POLL_SECONDS)


def _age(store: Store, heartbeat: StoredHeartbeat) -> float:
    """Return the seconds since a heartbeat by the store's clock, read from an object written for the purpose."""
    key = f"{layout.PROBE_FOLDER}{layout.new_nonce()}"
    store.put(key, b"")
    try:
        probe = store.stat(key)
    finally:
        store.delete([key])
    now = probe.modified if probe else heartbeat.at
    return max(now - heartbeat.at, dt.timedelta()).total_seconds()


def _names(pods: Collection[PodIdentity]) -> str:
    return ", ".join(pod.name for pod in pods) or "unknown pods"
