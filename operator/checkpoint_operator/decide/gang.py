"""Which pods belong to an attempt. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from checkpoint_operator.model.observed import Pod
from checkpoint_sidecar.core.log import MAX_PODS, PodIdentity
from checkpoint_sidecar.core.run import Attempt


def members(attempt: Attempt, pods: Iterable[Pod]) -> Iterator[Pod]:
    """Yield the labelled pods that belong to an attempt.

    The log lists only the first pods of a large attempt; any other one counts if it existed when the attempt started.
    """
    listed = {pod.uid for pod in attempt.started.pods}
    truncated = len(attempt.started.pods) == MAX_PODS
    for pod in pods:
        if pod.uid in listed or (truncated and pod.created_at <= attempt.started_at):
            yield pod


def lost(attempt: Attempt, pods: Iterable[Pod]) -> tuple[PodIdentity, str] | None:
    """Return a pod that the attempt is losing, or has lost while others are still there, and why; or None.

    Args:
        pods: All that carry the label.
    """
    mine = tuple(members(attempt, pods))
    # A pod that succeeded and is being cleaned up was not evicted.
    leaving = next((pod for pod in mine if pod.leaving and pod.phase != "Succeeded"), None)
    if leaving is not None:
        return PodIdentity(leaving.name, leaving.uid), leaving.leaving
    present = {pod.uid for pod in mine}
    gone = next((pod for pod in attempt.started.pods if pod.uid not in present), None)
    return (gone, "Gone") if gone is not None and any(pod.active for pod in mine) else None
