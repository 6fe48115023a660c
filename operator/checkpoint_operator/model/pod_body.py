"""Builds the body of a pod that replaces one that is gone. Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

RECREATED = "checkpoint-operator.dev/recreated"
"""Annotation: how often the pod was created again without having lived long in between."""

_KEPT_METADATA = ("name", "namespace", "labels", "annotations")
_SET_BY_OTHERS = ("nodeName", "priority", "preemptionPolicy", "overhead", "ephemeralContainers")
"""Fields that the scheduler, admission (by priority class and runtime class; it sets them again) and
``kubectl debug`` have set. A pod with an ephemeral container cannot be created.
"""
_TOKEN_VOLUME = "kube-api-access-"  # noqa: S105 - of the service account, mounted by admission


def created_again(body: Mapping[str, Any], *, failures: int) -> dict[str, Any]:
    """Return the pod to create in place of one that is gone, restored to what was submitted.

    Injected environment variables stay, since those set by hand look the same.

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
    """Yield the terms that select other pods by their labels."""
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
