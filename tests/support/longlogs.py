"""Long logs as real runs write them: most entries are about snapshots that come and go under ``keepLast: 3``."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
from collections import deque
from collections.abc import Iterator

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.compaction import RawEntry, due
from checkpoint_sidecar.core.log import (
    AttemptStarted,
    Body,
    PodIdentity,
    PurgeStarted,
    RestoreFinished,
    RestoreStarted,
    RunClaimed,
    RunConfigured,
    SnapshotCommitted,
    SnapshotPurged,
    SnapshotRetired,
    SnapshotVerified,
    encode,
)
from checkpoint_sidecar.core.policy import Policy
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store
from support.builders import BEGINNING, OBJECT_UID, OWNER, nonce_of

GIB = 1024**3
PODS = tuple(PodIdentity(f"llama-{rank}", f"{rank:08x}-0000-4000-8000-000000000000") for rank in range(16))
SAVES_PER_ATTEMPT = 100


def long_log(count: int, *, policy: Policy | None = None) -> Iterator[RawEntry]:
    """The first ``count`` entries, a minute of the store's clock apart.

    Args:
        policy: A policy that keeps every snapshot; without one, the 3 newest are kept.
    """
    previous, now = "", BEGINNING
    for number, body in enumerate(itertools.islice(_story(policy), count), start=1):
        now += dt.timedelta(minutes=1)
        data = encode(
            number=number,
            entry_id=hashlib.md5(str(number).encode()).hexdigest(),
            previous=previous,
            time=now,
            writer="library 0.1.0",
            body=body,
        )
        previous = hashlib.sha256(data).hexdigest()
        yield RawEntry(number, data, now)


def write_log(store: Store, count: int, *, policy: Policy | None = None) -> None:
    """Put a long log into a store, without asking it about each entry first."""
    for entry in long_log(count, policy=policy):
        store.put(layout.log_key(entry.number), entry.data)


def compact(store: Store) -> int:
    """Write every compaction that is due, as the operator does; how many that were."""
    log = RunLog(store, writer="operator test")
    head, written = log.refresh().head, 0
    while planned := due(head, log.compactions):
        for span in planned:
            log.compact(span)
        written += len(planned)
    return written


def _story(policy: Policy | None) -> Iterator[Body]:
    yield RunClaimed(OWNER)
    if policy is not None:
        yield RunConfigured(OBJECT_UID, 1, policy)
    kept: deque[str] = deque()
    parent, step = "", 0
    for attempt in itertools.count(1):
        yield AttemptStarted(attempt, world_size=64, candidate=parent, pods=PODS)
        if parent:
            yield RestoreStarted(attempt, parent)
            yield RestoreFinished(
                attempt,
                parent,
                restored=True,
                verified="Checksums",
                seconds=12.5,
                bytes=100 * GIB,
                compared_bytes=100 * GIB,
            )
        for _ in range(SAVES_PER_ATTEMPT):
            step += 500
            commit = _commit(step, attempt, parent)
            yield commit
            yield SnapshotVerified(commit.snapshot, "Sizes", passed=True)
            parent = commit.snapshot
            kept.append(parent)
            if policy is None and len(kept) > 3:
                old = kept.popleft()
                yield from (SnapshotRetired(old, ("NoRuleKeepsIt",)), PurgeStarted(old), SnapshotPurged(old, 100 * GIB))


def _commit(step: int, attempt: int, parent: str) -> SnapshotCommitted:
    nonce = nonce_of(step)
    return SnapshotCommitted(
        snapshot=layout.snapshot_id(step, attempt, nonce),
        step=step,
        attempt=attempt,
        path=layout.SaveFolder(step, attempt, nonce).path,
        manifest_digest=hashlib.sha256(nonce.encode()).hexdigest(),
        bytes=100 * GIB,
        files=66,
        world_size=64,
        parent=parent,
        trigger="Schedule",
        metrics={"loss": f"{1000 / step:.4f}"},
        seconds=31.25,
        blocked_seconds=0.5,
    )
