"""Decides whether an installation is complete, for `checkpoint-operator check` and `helm test`. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from checkpoint_operator.model.rights import Right
from checkpoint_sidecar.core import api

KINDS = tuple(
    f"{plural}{subresource}"
    for plural in (api.CHECKPOINT_PLURAL, api.SNAPSHOT_PLURAL)
    for subresource in ("", "/status")
)


@dataclass(frozen=True, slots=True)
class Findings:
    """An installation as seen from inside.

    Attributes:
        served: Resources and subresources of our API that the server has.
        available: Pods of the operator that are ready; None when there is no such Deployment.
        missing: Rights that the operator should have and lacks.
        webhook: Pods of the webhook that are ready; None for an installation without it.
    """

    served: frozenset[str]
    available: int | None
    missing: tuple[Right, ...]
    webhook: int | None = None


def rights(rules: str, namespaces: Sequence[str]) -> list[Right]:
    """Return the rights in a JSON list of RBAC rules, once for each namespace (none: for the whole cluster).

    Raises:
        ValueError: It is not such a list.
    """
    try:
        found: list[dict[str, Any]] = json.loads(rules)
        return [
            Right(verb, group, resource, namespace)
            for namespace in namespaces or [""]
            for rule in found
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a list of RBAC rules: {rules}") from error


def complaints(findings: Findings) -> Iterable[str]:
    """Yield what is wrong, each with what to do about it."""
    unserved = [kind for kind in KINDS if kind not in findings.served]
    if unserved:
        yield (
            f"the API server does not serve {', '.join(unserved)} of {api.API_VERSION}: "
            "install the chart with crds.enabled, or the files in crds/"
        )
    if findings.available is None:
        yield "there is no Deployment of the operator"
    elif findings.available == 0:
        yield "no pod of the operator is ready: see `kubectl describe` and `kubectl logs` of its Deployment"
    if findings.webhook == 0:
        yield (
            "no pod of the webhook is ready, so labelled pods are denied: "
            "see `kubectl describe` and `kubectl logs` of its Deployment"
        )
    for right in findings.missing:
        yield f"the operator may not {right}: set rbac.create, or give its service account this right"
