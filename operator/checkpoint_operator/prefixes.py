"""Which Checkpoint may have a prefix when several want overlapping ones: the oldest.

The run log settles two claims on the *same* prefix; of a prefix inside another the logs know nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from checkpoint_operator.model import Key
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import check_url, overlaps


@dataclass(frozen=True, slots=True)
class _Wish:
    url: str
    created_at: str
    uid: str

    @property
    def seniority(self) -> tuple[str, str]:
        """Smaller is older; RFC 3339 times of one server sort as text."""
        return (self.created_at, self.uid)


class Prefixes:
    """All Checkpoints seen so far and where they want to live."""

    def __init__(self) -> None:
        self._wishes: dict[Key, _Wish] = {}

    def note(self, key: Key, *, url: str, created_at: str, uid: str) -> None:
        """A Checkpoint exists. URLs that name no place are forgotten: they overlap nothing."""
        try:
            self._wishes[key] = _Wish(check_url(url), created_at, uid)
        except ConfigurationError:
            self._wishes.pop(key, None)

    def forget(self, key: Key) -> tuple[Key, ...]:
        """A Checkpoint is gone. Returns those that overlapped it and may have a chance now."""
        gone = self._wishes.pop(key, None)
        if gone is None:
            return ()
        return tuple(other for other, wish in self._wishes.items() if overlaps(wish.url, gone.url))

    def rival(self, key: Key) -> Key | None:
        """The oldest Checkpoint that wants an overlapping prefix and is older than this one, or None.

        An *equal* prefix is no matter of age: who is in the log has it.
        """
        mine = self._wishes.get(key)
        if mine is None:
            return None
        older = [
            (wish.seniority, other)
            for other, wish in self._wishes.items()
            if other != key
            and wish.url != mine.url
            and wish.seniority < mine.seniority
            and overlaps(wish.url, mine.url)
        ]
        return min(older)[1] if older else None
