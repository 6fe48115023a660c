"""Carries out what ``decide.reschedule`` decided, and drafts the Events about it."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence

from checkpoint_operator.gather.bare_pods import BarePods
from checkpoint_operator.gather.kube import Kube, KubeError
from checkpoint_operator.model.actions import CreatePod, DeletePod, EvictPod, PodAction
from checkpoint_operator.model.event_draft import EventDraft
from checkpoint_operator.model.observed import Key
from checkpoint_sidecar.core.api import EventReason

FORBIDDEN, TOO_MANY_REQUESTS = 403, 429
_MAX_NAMED = 8

logger = logging.getLogger(__name__)


async def carry_out(
    planned: Sequence[PodAction], kube: Kube, pods: BarePods, key: Key, *, now: dt.datetime
) -> tuple[EventDraft, ...]:
    """Create, delete and evict pods. What the API server refuses gets an Event and is retried later.

    Raises:
        KubeError: The API server did not answer, or failed.
    """
    drafts: list[EventDraft] = []
    for action in planned:
        if not isinstance(action, EvictPod):
            drafts += await _replace(action, kube, pods, key, now)
    gang = [action for action in planned if isinstance(action, EvictPod)]
    return (*drafts, *(await _restart(gang, kube, key) if gang else ()))


async def _replace(
    action: CreatePod | DeletePod, kube: Kube, pods: BarePods, key: Key, now: dt.datetime
) -> list[EventDraft]:
    try:
        if isinstance(action, DeletePod):
            await kube.delete_pod(key.namespace, action.name, action.uid)
            return []
        created = await kube.create_pod(action.body)
    except KubeError as error:
        pods.postpone(key, action.name, now=now)
        why = _refusal(error, "reschedule.recreateBarePods")
        message = f"Pod {action.name} was disrupted and is not created again: {why}"
        return [EventDraft(EventReason.POD_NOT_RECREATED, message, f"lost-{action.uid[:8]}", warning=True)]
    pods.settle(key, action.name)
    # Another operator or the user may have created it first.
    message = f"Pod {action.name} is created again: {action.reason}."
    return [EventDraft(EventReason.POD_RECREATED, message, f"recreated-{action.uid[:8]}")] if created else []


async def _restart(gang: Sequence[EvictPod], kube: Kube, key: Key) -> tuple[EventDraft, ...]:
    attempt, evicted, refused = gang[0].attempt, list[str](), ""
    for action in gang:
        try:
            if await kube.evict_pod(key.namespace, action.name, action.uid):
                evicted.append(action.name)
        except KubeError as error:
            refused = f"pod {action.name}: {_refusal(error, 'reschedule.restartGang')}"
    drafts = []
    if evicted:
        more = f" and {len(evicted) - _MAX_NAMED} more" if len(evicted) > _MAX_NAMED else ""
        names = ", ".join(evicted[:_MAX_NAMED]) + more
        message = f"Attempt {attempt} lost a pod and hung; evicted the others, so that all start together: {names}."
        drafts.append(EventDraft(EventReason.GANG_RESTARTED, message, f"gang-{attempt}-{gang[0].uid[:8]}"))
    if refused:
        message = f"Attempt {attempt} lost a pod and hangs; the others cannot be evicted: {refused}"
        drafts.append(EventDraft(EventReason.GANG_NOT_RESTARTED, message, f"hanging-{attempt}", warning=True))
    return tuple(drafts)


def _refusal(error: KubeError, right: str) -> str:
    """Return what the user can do about a refusal.

    Raises:
        KubeError: The user can do nothing: the API server itself failed.
    """
    if error.status == TOO_MANY_REQUESTS:
        return "a PodDisruptionBudget does not allow it yet."
    if not 400 <= error.status < 500:
        raise error
    logger.warning("%s", error)
    if error.status == FORBIDDEN:
        return f"the operator may not (403). Set {right} in the chart's values; or a quota or a policy forbids the pod."
    return f"the API server refuses it ({error.status})."
