"""Announcements of the watched nodes, and the Checkpoints that have pods there. No clock, no I/O.

A node changes every few seconds, because its kubelet reports. Only a change of its announcements matters, and only to
the Checkpoints that have pods on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from checkpoint_operator.model.observed import CORDON, Announcement, Key, Node

ANNOUNCING = frozenset(
    {
        CORDON,
        "ToBeDeletedByClusterAutoscaler",
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",  # Karpenter before 1.0
        "cloud.google.com/impending-node-termination",
    }
)
ANNOUNCING_PREFIX = "aws-node-termination-handler/"


def node_from(body: Mapping[str, Any]) -> Node:
    """Read a watched node, with only those taints that may announce its end."""
    metadata = body["metadata"]
    taints = (body.get("spec") or {}).get("taints") or ()
    found = (
        Announcement(taint["key"], taint["effect"], taint.get("value") or "", taint.get("timeAdded") or "")
        for taint in taints
        if taint["effect"] == "NoExecute" or taint["key"] in ANNOUNCING or taint["key"].startswith(ANNOUNCING_PREFIX)
    )
    return Node(metadata["name"], metadata["uid"], tuple(sorted(found, key=lambda each: (each.since, each.key))))


class Nodes:
    """The announcing nodes, from the watch, and where each Checkpoint has pods, from the passes."""

    def __init__(self) -> None:
        self._announcing: dict[str, Node] = {}
        self._appeared: dict[str, Counter[Announcement]] = {}
        self._places: dict[Key, frozenset[str]] = {}

    def show(self, node: Node) -> frozenset[Key]:
        """Note a node that the watch showed. Return the Checkpoints that this concerns.

        Earlier announcements stay in front, and one that returns differs from its first time by its count.
        """
        known = self._announcing.get(node.name)
        if known is not None and known.uid != node.uid:
            self.remove(known.name)
            known = None
        before = {replace(each, times=0): each for each in known.announcements} if known else {}
        if before.keys() == set(node.announcements):
            return frozenset()
        appeared = self._appeared.setdefault(node.uid, Counter())
        kept = [now for each, now in before.items() if each in node.announcements]
        for each in node.announcements:
            if each not in before:
                appeared[each] += 1
                kept.append(replace(each, times=appeared[each]))
        self._announcing[node.name] = Node(node.name, node.uid, tuple(kept))
        return frozenset(key for key, names in self._places.items() if node.name in names)

    def remove(self, name: str) -> None:
        """Forget a node that is gone. The watch on pods shows what becomes of its pods."""
        node = self._announcing.pop(name, None)
        if node is not None:
            self._appeared.pop(node.uid, None)

    def place(self, key: Key, names: Iterable[str]) -> tuple[Node, ...]:
        """Note on which nodes a Checkpoint has pods. Return those nodes that announce something."""
        self._places[key] = frozenset(names)
        found = (self._announcing.get(name) for name in sorted(self._places[key]))
        return tuple(node for node in found if node is not None and node.announcements)

    def forget(self, key: Key) -> None:
        """Forget a Checkpoint that is gone."""
        self._places.pop(key, None)
