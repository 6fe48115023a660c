"""``_progress.json``: progress of the running attempt. A hint that is overwritten every few seconds.

The operator reads it to report how many steps an eviction cost; a starting attempt reads it to detect another one that
still runs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import msgspec

from checkpoint_sidecar.core.log import MAX_PODS, AttemptNumber, PodIdentity
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.core.wire import Count, UndecodableError, decode_json

INTERVAL_SECONDS = 10.0
MAX_PROGRESS_BYTES = 64 * 1024


class Heartbeat(msgspec.Struct, frozen=True, rename="camel"):
    """One heartbeat.

    Attributes:
        attempt: The attempt that wrote it.
        step: The last step every rank finished.
        time: The writer's clock, ISO 8601, for humans; ages are measured by the store's clock.
        pods: The attempt's pods, as in AttemptStarted.
        ended: Whether the attempt's processes are exiting, so that a start need not wait for them.
    """

    attempt: AttemptNumber
    step: Count
    time: Annotated[str, msgspec.Meta(max_length=64)]
    pods: Annotated[tuple[PodIdentity, ...], msgspec.Meta(max_length=MAX_PODS)] = ()
    ended: bool = False


def encode(progress: Heartbeat) -> bytes:
    return msgspec.json.encode(progress)


def decode(data: bytes) -> Heartbeat | None:
    """Read a heartbeat. Returns None for any other bytes: a damaged hint is ignored."""
    try:
        return decode_json(data, Heartbeat)
    except UndecodableError:
        return None


def may_be_running(run: Run, progress: Heartbeat, *, pods: Collection[PodIdentity]) -> bool:
    """Return whether the heartbeat may be from an attempt that a start by ``pods`` would fence while it trains.

    It is not if the attempt has ended, was fenced already, lost a pod to an eviction (it will end anyway), or ran in
    one of ``pods`` (a container that restarts in its pod has outlived its predecessor).
    """
    attempt = run.attempt
    if attempt is None or progress.attempt != attempt.number or progress.ended or attempt.eviction is not None:
        return False
    return {pod.uid for pod in pods}.isdisjoint(pod.uid for pod in progress.pods)
