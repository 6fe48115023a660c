"""Whether the pods' grace period is long enough for the save that an eviction asks for. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from checkpoint_operator.model.observed import Pod
from checkpoint_sidecar.core.lineage import lineage
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.core.schedule import seconds_to_end

OBSERVED_SAVES = 3
"""How many of the newest saves are looked at; the slowest of them counts."""


def needed_seconds(run: Run) -> float | None:
    """Return the grace period that fits a save as slow as recent ones; None before any save."""
    recent = [snapshot.commit.seconds for snapshot in lineage(run)][:OBSERVED_SAVES]
    return seconds_to_end(max(recent)) if recent else None


def too_short(run: Run, pods: Iterable[Pod]) -> str:
    """Return a message about the pod with too little time to save when it is evicted, or an empty string."""
    needed = needed_seconds(run)
    known = [(pod.grace_seconds, pod.name) for pod in pods if pod.active and pod.grace_seconds is not None]
    if needed is None or not run.policy.save.on_termination or not known:
        return ""
    shortest, name = min(known)
    if shortest >= needed:
        return ""
    return (
        f"Pod {name} has {shortest:g} s from SIGTERM to SIGKILL, a save as slow as recent ones needs {needed:.0f} s: "
        "an eviction would lose the steps since the last save. Raise terminationGracePeriodSeconds."
    )
