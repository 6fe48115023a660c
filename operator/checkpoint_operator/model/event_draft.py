"""An Event before it is written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EventDraft:
    """The content of one Event.

    Attributes:
        identifier: Unique within the run.
    """

    reason: str
    message: str
    identifier: str
    warning: bool = False
