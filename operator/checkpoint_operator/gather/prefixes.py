"""Decides which Checkpoint gets a prefix when several want overlapping ones: the holder, else the oldest.

The run log settles two claims on the *same* prefix. It cannot settle a prefix inside another one.

Prefixes overlap only at one server: any tenant can run a store and name its buckets like those of others.
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


class ClaimState(IntEnum):
    """Precedence of a Checkpoint; smaller comes first."""

    HOLDER = 0
    """Its run log names it."""
    NEW = 1
    """No pass has judged it yet."""
    REFUSED = 2
    """It never got its prefix, so it blocks no other Checkpoint: a wish alone must not block a whole bucket."""


def claim_state(status: Mapping[str, Any], owner: Owner) -> ClaimState:
    """Read the state of the claim from the Checkpoint's status, which outlives this process."""
    if status.get("claimedBy") in (str(owner), str(owner.deleted)):
        return ClaimState.HOLDER
    return ClaimState.REFUSED if status.get("conditions") else ClaimState.NEW


@dataclass(frozen=True, slots=True)
class _PrefixClaim:
    url: str
    server: Server | None
    state: ClaimState
    created_at: str
    uid: str

    @property
    def precedence(self) -> tuple[ClaimState, str, str]:
        """Smaller comes first; RFC 3339 times of one server sort as text."""
        return (self.state, self.created_at, self.uid)


class Prefixes:
    """All Checkpoints seen so far, with the prefixes they want."""

    def __init__(self) -> None:
        self._wishes: dict[Key, _PrefixClaim] = {}

    def note(self, key: Key, *, url: str, server: Server | None, state: ClaimState, created_at: str, uid: str) -> None:
        """Note a Checkpoint. One with an invalid URL is forgotten, because it overlaps nothing.

        Args:
            server: None while it is not known because the Secret was not read; a known one stays.
        """
        known = self._wishes.get(key)
        if server is None and known is not None and known.url == url.rstrip("/"):
            server = known.server
        try:
            self._wishes[key] = _PrefixClaim(check_url(url), server, state, created_at, uid)
        except ConfigurationError:
            self._wishes.pop(key, None)

    def forget(self, key: Key) -> tuple[Key, ...]:
        """Forget a Checkpoint that is gone. Return those that overlapped it and may get their prefix now."""
        gone = self._wishes.pop(key, None)
        if gone is None:
            return ()
        return tuple(other for other, wish in self._wishes.items() if overlaps(wish.url, gone.url))

    def locate(self, key: Key, server: Server) -> None:
        """Note the server of a Checkpoint."""
        if key in self._wishes:
            self._wishes[key] = replace(self._wishes[key], server=server)

    def to_locate(self, key: Key) -> tuple[Key, ...]:
        """Return the Checkpoints of unknown server that would be rivals of this one if they shared its server."""
        return tuple(other for _, other in self._before(key) if self._wishes[other].server is None)

    def rival(self, key: Key) -> Key | None:
        """Return the Checkpoint to which this one must leave an overlapping prefix, or None.

        Precedence does not settle an *equal* prefix: it belongs to the owner in the log.
        """
        mine = self._wishes.get(key)
        if mine is None or mine.server is None:
            return None
        return next((other for _, other in self._before(key) if self._wishes[other].server == mine.server), None)

    def _before(self, key: Key) -> list[tuple[tuple[ClaimState, str, str], Key]]:
        """Return those with an overlapping prefix, at any server, that take precedence, in order."""
        mine = self._wishes.get(key)
        if mine is None:
            return []
        return sorted(
            (wish.precedence, other)
            for other, wish in self._wishes.items()
            if other != key
            and wish.state is not ClaimState.REFUSED
            and wish.url != mine.url
            and wish.precedence < mine.precedence
            and overlaps(wish.url, mine.url)
        )
