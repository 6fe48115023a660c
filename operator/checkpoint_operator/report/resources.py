"""Builds Kubernetes objects as dicts. Pure."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Set
from typing import Any

import msgspec

from checkpoint_operator.model.observed import Checkpoint, Mirror, Observed
from checkpoint_operator.model.timestamps import timestamp
from checkpoint_operator.report import conditions
from checkpoint_operator.report.snapshot_health import JudgedSnapshot, judge_snapshot
from checkpoint_sidecar.core import api
from checkpoint_sidecar.core.environment import POD_LABEL
from checkpoint_sidecar.core.purging import purge_at
from checkpoint_sidecar.core.retention import RetentionVerdict
from checkpoint_sidecar.core.run import Run, Snapshot
from checkpoint_sidecar.core.units import quantity

COMPONENT = "checkpoint-operator"
MAX_EVENT_BYTES = 1024


def mirror_name(checkpoint: str, snapshot: str) -> str:
    """Return the name of a snapshot's CheckpointSnapshot; unique, as its last three parts are always the snapshot's."""
    return f"{checkpoint}-{snapshot}"


def mirror(checkpoint: Checkpoint, snapshot: Snapshot) -> dict[str, Any]:
    """Return a CheckpointSnapshot to create, with the disposition in the log."""
    spec = api.CheckpointSnapshotSpec(
        checkpoint_ref=api.LocalReference(checkpoint.key.name),
        step=snapshot.step,
        attempt=snapshot.commit.attempt,
        path=snapshot.commit.path,
        manifest_digest=snapshot.commit.manifest_digest,
        disposition=snapshot.disposition,
    )
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.SNAPSHOT_KIND,
        "metadata": {
            "name": mirror_name(checkpoint.key.name, snapshot.id),
            "namespace": checkpoint.key.namespace,
            "labels": {POD_LABEL: checkpoint.key.name},
            "ownerReferences": [
                {
                    "apiVersion": api.API_VERSION,
                    "kind": api.CHECKPOINT_KIND,
                    "name": checkpoint.key.name,
                    "uid": checkpoint.uid,
                    "controller": True,
                }
            ],
        },
        "spec": msgspec.to_builtins(spec),
    }


def mirror_status(
    observed: Observed, run: Run, snapshot: Snapshot, verdict: RetentionVerdict, *, chain: Set[str], mirror: Mirror
) -> dict[str, Any]:
    """Return ``CheckpointSnapshot.status`` for a snapshot in the log.

    Args:
        chain: Ids of the lineage, which is walked once for all snapshots of a run instead of once for each.
    """
    commit = snapshot.commit
    judged = JudgedSnapshot(
        run=run,
        snapshot=snapshot,
        verdict=verdict,
        superseded=snapshot.id not in chain,
        asked=mirror.disposition,
        obstacle=observed.memory.unverifiable.get(snapshot.id, ""),
    )
    status = api.CheckpointSnapshotStatus(
        observed_generation=mirror.generation,
        conditions=conditions.merge(
            mirror.status.get("conditions", ()),
            judge_snapshot(judged),
            generation=mirror.generation,
            wall=observed.wall,
        ),
        committed_at=timestamp(snapshot.committed_at),
        bytes=commit.bytes,
        copied_bytes=commit.copied_bytes or None,
        shared_bytes=commit.shared_bytes or None,
        size=quantity(commit.bytes),
        files=commit.files,
        world_size=commit.world_size,
        metrics=commit.metrics,
        saved_in=_duration(commit.seconds),
        trigger=commit.trigger,
        retention=_retention(snapshot, verdict),
        retired_at=timestamp(snapshot.retired_at) if snapshot.retired_at else None,
        purge_after=purge_after(run, snapshot),
        last_release_request=snapshot.releases[-1] if snapshot.releases else None,
    )
    return encode_status(status)


def purge_after(run: Run, snapshot: Snapshot) -> str | None:
    """Return when the data of a retired snapshot may be deleted, or None if that is not planned."""
    end = purge_at(run, snapshot)
    return timestamp(end) if end is not None else None


def encode_status(status: api.CheckpointStatus | api.CheckpointSnapshotStatus) -> dict[str, Any]:
    """Encode a status as the API server returns it, so that equal ones compare equal (a tuple never equals a list)."""
    encoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(status))
    return {key: value for key, value in encoded.items() if value is not None}


def event(
    checkpoint: Checkpoint, *, reason: str, message: str, warning: bool, identifier: str, time: dt.datetime
) -> dict[str, Any]:
    """Return a core/v1 Event about a Checkpoint.

    Args:
        identifier: Unique name of the event (a log number). The object's name follows from it, so that a second
            operator that reports the same entry does not create a second Event.
        time: Time to the microsecond, which determines the order of events within one second.
    """
    moment = timestamp(time)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{checkpoint.key.name}.{checkpoint.uid[:8]}.{identifier}".lower(),
            "namespace": checkpoint.key.namespace,
        },
        "involvedObject": {
            "apiVersion": api.API_VERSION,
            "kind": api.CHECKPOINT_KIND,
            "namespace": checkpoint.key.namespace,
            "name": checkpoint.key.name,
            "uid": checkpoint.uid,
        },
        "type": "Warning" if warning else "Normal",
        "reason": reason,
        "message": conditions.cut(message, MAX_EVENT_BYTES),
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "eventTime": time.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "action": "Reconcile",
        "count": 1,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
    }


def _retention(snapshot: Snapshot, verdict: RetentionVerdict) -> api.SnapshotRetention | None:
    if snapshot.id in verdict.keep:
        return api.SnapshotRetention(kept=True, reasons=verdict.keep[snapshot.id])
    if snapshot.id in verdict.retire:
        return api.SnapshotRetention(kept=False, reasons=verdict.retire[snapshot.id])
    return None


def _duration(seconds: float) -> api.Duration:
    """Format a duration, rounded up to whole seconds: ``12s``, ``1m30s``."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def conditions_of(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the stored conditions by type."""
    return {condition["type"]: condition for condition in status.get("conditions", ())}
