"""Decides when the self-made certificate of the webhook is replaced. Pure.

A certificate is signed by an authority of its own, whose key is discarded at once: nothing that is stored can sign.
Before a certificate is served, the API servers must know its authority. So the next one is made well before the current
one expires, its authority is published, and it is served a while later. Until the old authority expires, both are
trusted.
"""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass

BACKDATED = dt.timedelta(minutes=5)
"""Certificates are valid from before they were made, for clocks that are slow."""
_MOST_OVERLAP = dt.timedelta(hours=1)


class Step(enum.Enum):
    """What to do with the certificates.

    Attributes:
        KEEP: Nothing.
        PREPARE: Make the next one, and publish its authority.
        SWITCH: Serve the next one, whose authority is known by now.
        REPLACE: Make one and serve it at once, because none can be served.
    """

    KEEP = "keep"
    PREPARE = "prepare"
    SWITCH = "switch"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class Validity:
    """When a certificate of the right server is valid."""

    begins: dt.datetime
    ends: dt.datetime

    @property
    def made(self) -> dt.datetime:
        """When it was made."""
        return self.begins + BACKDATED

    def at(self, now: dt.datetime) -> bool:
        """Whether it is valid then."""
        return self.begins <= now < self.ends


def next_step(current: Validity | None, upcoming: Validity | None, now: dt.datetime) -> Step:
    """Decide.

    Args:
        current: Of the certificate that is served; None if there is none, or it is useless.
        upcoming: Of the one that comes next, likewise.
        now: The time.
    """
    ready = upcoming is not None and upcoming.at(now)
    if current is None or not current.at(now):
        return Step.SWITCH if ready else Step.REPLACE
    if ready:
        assert upcoming is not None
        return Step.SWITCH if now - upcoming.made >= overlap_of(upcoming) else Step.KEEP
    lifetime = current.ends - current.made
    return Step.PREPARE if current.ends - now < lifetime / 3 else Step.KEEP


def overlap_of(certificate: Validity) -> dt.timedelta:
    """Return how long an authority is published before its certificate is served."""
    return min(_MOST_OVERLAP, (certificate.ends - certificate.made) / 12)
