"""Starts an attempt on all ranks."""

from __future__ import annotations

import os
import socket
import uuid

from checkpoint_sidecar.attempt.heartbeat import ProgressReport
from checkpoint_sidecar.attempt.session import AttemptSession
from checkpoint_sidecar.core.log import MAX_PODS, PodIdentity
from checkpoint_sidecar.training.agreement import Agreement


def start_attempt(
    session: AttemptSession | None, agreement: Agreement, pod: PodIdentity | None, *, takeover_seconds: float
) -> ProgressReport | None:
    """Write the start of an attempt into the log, and begin its heartbeat. Collective.

    Args:
        session: The attempt's session; only that of rank 0 is used.
        pod: This process's pod; None outside Kubernetes.
        takeover_seconds: How long to wait for another attempt that still trains before it is stopped.

    Returns:
        The heartbeat on rank 0, None on the others.

    Raises:
        PrefixClaimedError, LogMissingError, StoreError, LogError: See ``AttemptSession.start``; on every rank.
    """
    own = pod or PodIdentity(f"{socket.gethostname()}:{os.getpid()}", uuid.uuid4().hex)
    pods = tuple({each.uid: each for each in agreement.gather(own)}.values())

    def start() -> None:
        assert session is not None  # runs on rank 0
        session.start(world_size=agreement.world_size, pods=pods, timeout_seconds=takeover_seconds)

    agreement.from_rank_0(start)
    if session is None or not agreement.leads:
        return None
    heartbeat = ProgressReport(session, pods[:MAX_PODS])
    heartbeat.start()
    return heartbeat
