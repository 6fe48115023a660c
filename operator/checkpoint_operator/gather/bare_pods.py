"""Pods without a controller that a disruption ended, from the bodies the watch last showed. No clock, no I/O.

The condition DisruptionTarget decides: the Eviction API, taints, preemption, the kubelet and the collector of lost
pods set it, and `kubectl delete pod` does not.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from checkpoint_operator.model.observed import DisruptedPod, Key
from checkpoint_operator.model.pod_body import RECREATED
from checkpoint_operator.model.timestamps import parse_timestamp

LIVED_LONG = dt.timedelta(minutes=10)
"""A pod that ran this long was not part of a restart loop."""


def disruption_of(status: Mapping[str, Any]) -> str:
    """Return why a pod was or is being disrupted, or an empty string."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return condition.get("reason") or "DisruptionTarget"
    return ""


class BarePods:
    """The disrupted pods that only the operator would create again, as the watch showed them."""

    def __init__(self) -> None:
        self._disrupted: dict[Key, dict[str, DisruptedPod]] = {}

    def show(self, key: Key, body: Mapping[str, Any], *, now: dt.datetime) -> None:
        """Note a labelled pod that the watch showed, or whose deletion it showed."""
        metadata, status = body["metadata"], body.get("status") or {}
        if any(owner.get("controller") for owner in metadata.get("ownerReferences") or ()):
            return
        name, uid = metadata["name"], metadata["uid"]
        reason = "" if status.get("phase") == "Succeeded" else disruption_of(status)
        mine = self._disrupted.setdefault(key, {})
        known = mine.get(name)
        if not reason:
            mine.pop(name, None)
        elif known is not None and known.uid == uid:
            mine[name] = replace(known, body=body)
        else:
            mine[name] = DisruptedPod(name, uid, reason, body, now, _failures(metadata, status, now))

    def of(self, key: Key) -> tuple[DisruptedPod, ...]:
        """Return the disrupted pods of a Checkpoint that were not replaced yet, as far as known."""
        return tuple(self._disrupted.get(key, {}).values())

    def settle(self, key: Key, name: str) -> None:
        """Note that the pod exists again."""
        self._disrupted.get(key, {}).pop(name, None)

    def postpone(self, key: Key, name: str, *, now: dt.datetime) -> None:
        """Note that the pod could not be created."""
        mine = self._disrupted.get(key, {})
        if name in mine:
            mine[name] = replace(mine[name], since=now, failures=mine[name].failures + 1)

    def forget(self, key: Key) -> None:
        """Forget a Checkpoint that is gone, or does not want its pods back."""
        self._disrupted.pop(key, None)


def _failures(metadata: Mapping[str, Any], status: Mapping[str, Any], now: dt.datetime) -> int:
    began = parse_timestamp(status.get("startTime") or metadata["creationTimestamp"])
    count = (metadata.get("annotations") or {}).get(RECREATED, "")
    return int(count) if count.isdecimal() and len(count) < 6 and now - began < LIVED_LONG else 0
