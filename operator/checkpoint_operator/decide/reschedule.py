"""``spec.reschedule``: create bare pods again, and restart gangs that hang. Pure.

Bare pods need no log: whether a pod is wanted is the API server's knowledge alone. A gang hangs when it is still the
running attempt although the grace period of the pod that it lost has passed; by then its last save is done or never
will be.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from checkpoint_operator.decide.gang import members
from checkpoint_operator.model.actions import CreatePod, DeletePod, EvictPod, PodAction
from checkpoint_operator.model.observed import DisruptedPod, Observed, Pod
from checkpoint_operator.model.pod_body import created_again
from checkpoint_sidecar.core.api import Reschedule
from checkpoint_sidecar.core.environment import DEFAULT_GRACE_SECONDS
from checkpoint_sidecar.core.run import Attempt

FIRST_WAIT, LONGEST_WAIT = dt.timedelta(seconds=10), dt.timedelta(minutes=5)
"""Delay between two creations of a pod that keeps failing; it doubles, as the kubelet's for containers does."""

MARGIN = dt.timedelta(seconds=15)
"""Added to the grace period, for evictions noticed late and for processes that end at the last moment."""

RETRY_SECONDS = 30.0
"""Delay before the next try of an action that the API server refused."""


def pod_actions(observed: Observed) -> tuple[PodAction, ...]:
    """Plan what to do to pods now."""
    return (*_creations(observed), *_restarts(observed))


def next_pass(observed: Observed) -> float | None:
    """Seconds until the passing of time alone makes one of them due, or None."""
    if pod_actions(observed):
        return RETRY_SECONDS
    waits: list[float] = []
    if _asked_for(observed).recreate_bare_pods:
        waits += [(_due_at(each) - observed.wall).total_seconds() for each in observed.cluster.disrupted]
    hanging_at = _hanging_at(observed)
    if hanging_at is not None and observed.now is not None:
        waits.append((hanging_at - observed.now).total_seconds())
    return min((wait for wait in waits if wait > 0), default=None)


def _asked_for(observed: Observed) -> Reschedule:
    """Return what the user asks for; nothing once the Checkpoint is being deleted."""
    spec = observed.checkpoint.spec
    return spec.reschedule if spec is not None and observed.checkpoint.deleted_at is None else Reschedule()


def _creations(observed: Observed) -> Iterator[PodAction]:
    if not _asked_for(observed).recreate_bare_pods:
        return
    present = {pod.name: pod for pod in observed.cluster.pods}
    for gone in observed.cluster.disrupted:
        if _due_at(gone) > observed.wall:
            continue
        there = present.get(gone.name)
        if there is None:
            body = created_again(gone.body, failures=gone.failures)
            yield CreatePod(gone.name, gone.uid, gone.reason, body)
        elif there.uid == gone.uid and there.phase == "Failed":
            # A pod that the kubelet evicts stays as a record, under the name that the next one needs.
            yield DeletePod(gone.name, gone.uid)


def _due_at(gone: DisruptedPod) -> dt.datetime:
    if not gone.failures:
        return gone.since
    return gone.since + min(LONGEST_WAIT, FIRST_WAIT * (1 << min(gone.failures - 1, 16)))


def _restarts(observed: Observed) -> tuple[EvictPod, ...]:
    hanging_at, run, now = _hanging_at(observed), observed.run, observed.now
    if hanging_at is None or run is None or run.attempt is None or now is None or now < hanging_at:
        return ()
    return tuple(EvictPod(pod.name, pod.uid, run.attempt.number) for pod in _survivors(run.attempt, observed))


def _hanging_at(observed: Observed) -> dt.datetime | None:
    """Return when the peers of a lost pod count as hanging, by the store's clock; None if there are none to restart."""
    run = observed.run
    attempt = run.attempt if run else None
    if run is None or attempt is None or attempt.eviction_at is None or not _asked_for(observed).restart_gang:
        return None
    heard = observed.memory.progress.get(attempt.number)
    ended = not run.may_commit(attempt.number) or (heard is not None and heard.ended)
    if not observed.ours or ended or len(attempt.started.pods) < 2:
        return None
    survivors = _survivors(attempt, observed)
    if not survivors:
        return None
    known = [pod.grace_seconds for pod in members(attempt, observed.cluster.pods) if pod.grace_seconds is not None]
    return attempt.eviction_at + dt.timedelta(seconds=max(known, default=DEFAULT_GRACE_SECONDS)) + MARGIN


def _survivors(attempt: Attempt, observed: Observed) -> tuple[Pod, ...]:
    """Return the pods of a gang that lost one, as far as they still run as before."""
    mine = tuple(members(attempt, observed.cluster.pods))
    staying = tuple(pod for pod in mine if pod.active and not pod.leaving)
    if attempt.eviction is None or attempt.eviction.pod.uid in {pod.uid for pod in staying}:
        return ()
    # A container that was restarted in its pod since then waits for the others, as it should.
    return tuple(pod for pod in staying if pod.running_since is None or _older(pod.running_since, attempt))


def _older(moment: dt.datetime, attempt: Attempt) -> bool:
    return attempt.eviction_at is None or moment <= attempt.eviction_at
