"""Detects that the watch on Checkpoints is dead, by comparing what it showed with complete listings. Pure.

A watch may stop without an error, and one that reconnects never says what was deleted in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from checkpoint_operator.model.observed import Key


@dataclass(frozen=True, slots=True)
class Version:
    """An object, and a state of its spec."""

    uid: str
    generation: int

    def covers(self, other: Version) -> bool:
        """Whether this version replaces the other one: watches may skip a version that was soon replaced."""
        return self.uid == other.uid and self.generation >= other.generation


class Watchdog:
    """Compares what the watch showed with what it should have shown."""

    def __init__(self) -> None:
        self._shown: dict[Key, Version] = {}
        self._unshown: frozenset[tuple[Key, Version]] = frozenset()
        self.blind = False

    @property
    def shown(self) -> frozenset[Key]:
        """The Checkpoints that the watch showed until now. Read it *before* a listing begins."""
        return frozenset(self._shown)

    def show(self, key: Key, version: Version) -> None:
        """Note that the watch showed this Checkpoint."""
        self._shown[key] = version

    def compare(self, shown_before: Set[Key], listed: Mapping[Key, Version]) -> frozenset[Key]:
        """Judge the watch by a complete listing.

        It is ``blind`` when two listings in a row have a Checkpoint, or a change of one, that it never showed: what
        has just happened may be listed first. And one that was created while the listing was on its way may be shown
        and not listed, so only what was shown before can be missing.

        Args:
            shown_before: ``shown`` before the listing began.

        Returns:
            The Checkpoints that are gone.
        """
        gone = frozenset(shown_before - listed.keys())
        for key in gone:
            self._shown.pop(key, None)
        unshown = frozenset(item for item in listed.items() if not self._showed(*item))
        self.blind = bool(unshown & self._unshown)
        self._unshown = unshown
        return gone

    def _showed(self, key: Key, version: Version) -> bool:
        return key in self._shown and self._shown[key].covers(version)
