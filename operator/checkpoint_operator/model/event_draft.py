"""An Event before it is written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EventDraft:
    """One Event to be.

    Attributes:
        identifier: Unique within the run.
    """

    reason: str
    message: str
    identifier: str
    warning: bool = False
