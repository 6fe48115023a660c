"""Which Checkpoint may have a prefix when several want overlapping ones: the one that holds it, else the oldest.

The run log settles two claims on the *same* prefix; of a prefix inside another the logs know nothing.

Prefixes overlap only at one server: anybody can run a store of one's own and name its buckets like other people's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from checkpoint_operator.gather.places import Server
from checkpoint_operator.model.observed import Key
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import check_url, overlaps
from checkpoint_sidecar.core.log import Owner


class Standing(IntEnum):
    """How well a Checkpoint stands; smaller is better."""

    HOLDER = 0
    """Its run log names it."""
    NEW = 1
    """It was not judged yet."""
    REFUSED = 2
    """It could not use its prefix so far, so it keeps nobody from it: a wish alone must not block a whole bucket."""


def standing(status: Mapping[str, Any], owner: Owner) -> Standing:
    """As the Checkpoint's status tells it, which outlives this process."""
    if status.get("claimedBy") in (str(owner), str(owner.deleted)):
        return Standing.HOLDER
    return Standing.REFUSED if status.get("conditions") else Standing.NEW


@dataclass(frozen=True, slots=True)
class _PrefixClaim:
    url: str
    server: Server | None
    standing: Standing
    created_at: str
    uid: str

    @property
    def precedence(self) -> tuple[Standing, str, str]:
        """Smaller comes first; RFC 3339 times of one server sort as text."""
        return (self.standing, self.created_at, self.uid)


class Prefixes:
    """All Checkpoints seen so far and where they want to live."""

    def __init__(self) -> None:
        self._wishes: dict[Key, _PrefixClaim] = {}

    def note(self, key: Key, *, url: str, server: Server | None, standing: Standing, created_at: str, uid: str) -> None:
        """A Checkpoint exists. URLs that name no place are forgotten: they overlap nothing.

        Args:
            server: None while it is not known, as that takes the Secret; what was known before stays.
        """
        known = self._wishes.get(key)
        if server is None and known is not None and known.url == url.rstrip("/"):
            server = known.server
        try:
            self._wishes[key] = _PrefixClaim(check_url(url), server, standing, created_at, uid)
        except ConfigurationError:
            self._wishes.pop(key, None)

    def forget(self, key: Key) -> tuple[Key, ...]:
        """A Checkpoint is gone. Returns those that overlapped it and may have a chance now."""
        gone = self._wishes.pop(key, None)
        if gone is None:
            return ()
        return tuple(other for other, wish in self._wishes.items() if overlaps(wish.url, gone.url))

    def locate(self, key: Key, server: Server) -> None:
        """The server of a Checkpoint is known now."""
        if key in self._wishes:
            self._wishes[key] = replace(self._wishes[key], server=server)

    def to_locate(self, key: Key) -> tuple[Key, ...]:
        """Checkpoints that would be this one's rivals if they were at its server, which is not known of them."""
        return tuple(other for _, other in self._before(key) if self._wishes[other].server is None)

    def rival(self, key: Key) -> Key | None:
        """The Checkpoint to which this one must leave an overlapping prefix, or None.

        An *equal* prefix is no matter of precedence: who is in the log has it.
        """
        mine = self._wishes.get(key)
        if mine is None or mine.server is None:
            return None
        return next((other for _, other in self._before(key) if self._wishes[other].server == mine.server), None)

    def _before(self, key: Key) -> list[tuple[tuple[Standing, str, str], Key]]:
        """Those with an overlapping prefix, at whatever server, that come first."""
        mine = self._wishes.get(key)
        if mine is None:
            return []
        return sorted(
            (wish.precedence, other)
            for other, wish in self._wishes.items()
            if other != key
            and wish.standing is not Standing.REFUSED
            and wish.url != mine.url
            and wish.precedence < mine.precedence
            and overlaps(wish.url, mine.url)
        )
