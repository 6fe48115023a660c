"""Conditions in the form of Kubernetes: the transition time changes only when the status does."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from checkpoint_operator.model.timestamps import timestamp
from checkpoint_sidecar.core.api import Condition, ConditionStatus, ConditionType

MAX_MESSAGE = 1024


@dataclass(frozen=True, slots=True)
class Judgement:
    """The content of one condition.

    Attributes:
        quotes: Whether the message quotes an error. Such texts differ between attempts (a nonce, a request id), so the
            first one stays while the reason and the spec are the same; else every retry would write the status.
    """

    type: ConditionType
    status: ConditionStatus
    reason: str
    message: str
    quotes: bool = False


def merge(
    previous: Iterable[Mapping[str, Any]], judgements: Iterable[Judgement], *, generation: int, wall: dt.datetime
) -> tuple[Condition, ...]:
    """Return the conditions to store: those judged, in that order, with the transition times of the previous ones."""
    before = {condition.get("type"): condition for condition in previous}
    return tuple(
        Condition(
            type=judged.type,
            status=judged.status,
            reason=judged.reason,
            message=_message(before.get(judged.type), judged, generation)[:MAX_MESSAGE],
            last_transition_time=_transition(before.get(judged.type), judged.status, wall),
            observed_generation=generation,
        )
        for judged in judgements
    )


def _message(previous: Mapping[str, Any] | None, judged: Judgement, generation: int) -> str:
    if judged.quotes and previous is not None:
        same = (judged.status, judged.reason, generation)
        if (previous.get("status"), previous.get("reason"), previous.get("observedGeneration")) == same:
            return str(previous.get("message", judged.message))
    return judged.message


def cut(text: str, most_bytes: int) -> str:
    """Cut a text to a number of bytes, because the API server limits an Event's message in bytes, not characters."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= most_bytes:
        return encoded.decode()
    return encoded[: most_bytes - 3].decode(errors="ignore") + "..."


def _transition(previous: Mapping[str, Any] | None, status: ConditionStatus, wall: dt.datetime) -> str:
    if previous is not None and previous.get("status") == status:
        kept = previous.get("lastTransitionTime")
        if isinstance(kept, str):
            return kept
    return timestamp(wall)
