"""Early saves: when a node announces that it will go, the attempt that runs on it is asked to save. Pure.

The eviction itself comes later, if at all, and is read from the pod.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from checkpoint_operator.decide.gang import members
from checkpoint_operator.model.actions import RequestSave
from checkpoint_operator.model.observed import CORDON, Announcement, Node, Pod, Toleration
from checkpoint_sidecar.core.run import Run


def requested_saves(run: Run, pods: Iterable[Pod], nodes: Iterable[Node]) -> tuple[RequestSave, ...]:
    """Return one request for each node that announces its end to a pod of the running attempt.

    All at once, since one save answers all that were asked before it. None when an eviction was noticed: that asks for
    a save by itself.
    """
    attempt = run.attempt
    if attempt is None or attempt.eviction is not None:
        return ()
    mine = [pod for pod in members(attempt, pods) if pod.active]
    found = ((node, _first(node, (pod for pod in mine if pod.node == node.name))) for node in nodes)
    return tuple(RequestSave(_request(node, what), _reason(node, what)) for node, what in found if what is not None)


def _first(node: Node, pods: Iterable[Pod]) -> Announcement | None:
    """Return the earliest announcement that concerns a pod; later ones of the same node need no second save."""
    there = tuple(pods)
    return next((each for each in node.announcements if any(_concerns(each, pod) for pod in there)), None)


def _concerns(announced: Announcement, pod: Pod) -> bool:
    # On a node that is dedicated by a NoExecute taint, pods that tolerate the taint stay.
    return announced.effect != "NoExecute" or not any(_tolerates(each, announced) for each in pod.tolerations)


def _tolerates(toleration: Toleration, announced: Announcement) -> bool:
    """Return whether the pod may stay without a time limit."""
    if toleration.limited or toleration.effect not in ("", announced.effect):
        return False
    if toleration.operator == "Exists":
        return toleration.key in ("", announced.key)
    return (toleration.operator, toleration.key, toleration.value) == ("Equal", announced.key, announced.value)


def _request(node: Node, what: Announcement) -> str:
    """Return an id that stays the same while the announcement stands, and differs when it is made again."""
    parts = (node.uid, what.key, what.effect, what.value, what.since, str(what.times))
    return f"node-{node.uid[:8]}-{hashlib.sha256('/'.join(parts).encode()).hexdigest()[:12]}"


def _reason(node: Node, what: Announcement) -> str:
    if what.key == CORDON:
        return f"Node {node.name} is cordoned."
    return f"Node {node.name} has the taint {what.key}:{what.effect}."
