"""Reads pods as the API server shows them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from checkpoint_operator.gather.bare_pods import disruption_of
from checkpoint_operator.model.observed import Pod, Toleration
from checkpoint_operator.model.timestamps import parse_timestamp


def pod_from(body: Mapping[str, Any]) -> Pod:
    """Read a pod."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    started = status.get("startTime")
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        phase=status.get("phase", "Unknown"),
        created_at=parse_timestamp(metadata["creationTimestamp"]),
        started_at=parse_timestamp(started) if started else None,
        leaving=_why_leaving(metadata, status),
        grace_seconds=spec.get("terminationGracePeriodSeconds"),
        node=spec.get("nodeName") or "",
        tolerations=tuple(_toleration(each) for each in spec.get("tolerations") or ()),
        running_since=_running_since(status),
    )


def _toleration(body: Mapping[str, Any]) -> Toleration:
    return Toleration(
        key=body.get("key") or "",
        operator=body.get("operator") or "Equal",
        value=body.get("value") or "",
        effect=body.get("effect") or "",
        limited=body.get("tolerationSeconds") is not None,
    )


def _running_since(status: Mapping[str, Any]) -> dt.datetime | None:
    states = (each.get("state") or {} for each in status.get("containerStatuses") or ())
    starts = (parse_timestamp(state["running"]["startedAt"]) for state in states if state.get("running"))
    return max(starts, default=None)


def _why_leaving(metadata: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    return disruption_of(status) or ("Deleted" if metadata.get("deletionTimestamp") else "")
