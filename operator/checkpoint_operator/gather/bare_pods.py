"""Pods without a controller that a disruption ended, from the bodies the watch last showed. No clock, no I/O.

What counts is the condition DisruptionTarget: the Eviction API, taints, preemption, the kubelet and the collector of
lost pods set it, and somebody who deletes a pod does not.
"""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from checkpoint_operator.model.observed import DisruptedPod, Key
from checkpoint_operator.report.conditions import parse_timestamp

RECREATED = "checkpoint-operator.dev/recreated"
"""Annotation: how often the pod was created again without having lived long in between."""

LIVED_LONG = dt.timedelta(minutes=10)
"""A pod that ran this long was no part of a loop."""

_KEPT_METADATA = ("name", "namespace", "labels", "annotations")
_SET_BY_OTHERS = ("nodeName", "priority", "preemptionPolicy", "overhead", "ephemeralContainers")
"""By the scheduler, by admission from the priority class and the runtime class (it sets them again), and by
``kubectl debug``: a pod with such a container cannot be created.
"""
_TOKEN_VOLUME = "kube-api-access-"  # noqa: S105 - of the service account, mounted by admission


def disruption_of(status: Mapping[str, Any]) -> str:
    """Why a pod was or is being disrupted, or empty."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return condition.get("reason") or "DisruptionTarget"
    return ""


def created_again(body: Mapping[str, Any], *, failures: int) -> dict[str, Any]:
    """The pod to create in place of one that is gone: as it was submitted, as far as its body tells.

    The environment of the injection stays, since one set by hand looks the same.

    Args:
        failures: See ``DisruptedPod``.
    """
    metadata = {name: body["metadata"][name] for name in _KEPT_METADATA if name in body["metadata"]}
    metadata["annotations"] = {**(metadata.get("annotations") or {}), RECREATED: str(failures + 1)}
    spec = copy.deepcopy({name: value for name, value in body["spec"].items() if name not in _SET_BY_OTHERS})
    spec["volumes"] = _without_token(spec.get("volumes"))
    for container in (*spec["containers"], *(spec.get("initContainers") or ())):
        container["volumeMounts"] = _without_token(container.get("volumeMounts"))
    for term in _label_terms(spec):
        _remove_derived(term)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _label_terms(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What selects other pods by their labels."""
    yield from spec.get("topologySpreadConstraints") or ()
    for kind in ("podAffinity", "podAntiAffinity"):
        affinity = (spec.get("affinity") or {}).get(kind) or {}
        yield from affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or ()
        for weighted in affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ():
            yield weighted["podAffinityTerm"]


def _remove_derived(term: dict[str, Any]) -> None:
    """Remove the expressions that the API server derives from label keys; it refuses them in a new pod."""
    keys = {*(term.get("matchLabelKeys") or ()), *(term.get("mismatchLabelKeys") or ())}
    if keys:
        selector = term["labelSelector"]
        selector["matchExpressions"] = [
            each for each in selector.get("matchExpressions") or () if each["key"] not in keys
        ]


def _without_token(listed: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    return [each for each in listed or () if not each["name"].startswith(_TOKEN_VOLUME)]


class BarePods:
    """What the watch showed of pods that nobody but us would create again. Lost with the process."""

    def __init__(self) -> None:
        self._disrupted: dict[Key, dict[str, DisruptedPod]] = {}

    def show(self, key: Key, body: Mapping[str, Any], *, now: dt.datetime) -> None:
        """The watch showed a labelled pod, there or just gone."""
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
        """The disrupted pods of a Checkpoint that nobody has replaced yet, as far as known."""
        return tuple(self._disrupted.get(key, {}).values())

    def settle(self, key: Key, name: str) -> None:
        """The pod is there again."""
        self._disrupted.get(key, {}).pop(name, None)

    def postpone(self, key: Key, name: str, *, now: dt.datetime) -> None:
        """It could not be created."""
        mine = self._disrupted.get(key, {})
        if name in mine:
            mine[name] = replace(mine[name], since=now, failures=mine[name].failures + 1)

    def forget(self, key: Key) -> None:
        """The Checkpoint is gone, or does not want its pods back."""
        self._disrupted.pop(key, None)


def _failures(metadata: Mapping[str, Any], status: Mapping[str, Any], now: dt.datetime) -> int:
    began = parse_timestamp(status.get("startTime") or metadata["creationTimestamp"])
    count = (metadata.get("annotations") or {}).get(RECREATED, "")
    return int(count) if count.isdecimal() and len(count) < 6 and now - began < LIVED_LONG else 0
