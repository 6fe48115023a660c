"""Whether the watch on Checkpoints is alive, told by comparing what it showed with complete listings. Pure.

A watch may stop without an error, and one that reconnects never says what was deleted in between.
"""

from __future__ import annotations

from collections.abc import Set

from checkpoint_operator.model import Key


class Sightings:
    """What the watch showed, and what it should have shown."""

    def __init__(self) -> None:
        self._shown: set[Key] = set()
        self._unshown: frozenset[Key] = frozenset()
        self.blind = False

    @property
    def shown(self) -> frozenset[Key]:
        """What the watch showed until now; take it *before* a listing begins."""
        return frozenset(self._shown)

    def show(self, key: Key) -> None:
        """The watch showed this Checkpoint."""
        self._shown.add(key)

    def compare(self, shown_before: Set[Key], listed: Set[Key]) -> frozenset[Key]:
        """Judge the watch by a complete listing.

        It is ``blind`` when two listings in a row have a Checkpoint it never showed: one that was just created may be
        listed first. And one that was created while the listing was on its way may be shown and not listed, so only
        what was shown before can be missing.

        Args:
            shown_before: ``shown`` before the listing began.

        Returns:
            The Checkpoints that are gone.
        """
        gone = frozenset(shown_before - listed)
        self._shown -= gone
        unshown = frozenset(listed - self._shown)
        self.blind = bool(unshown & self._unshown)
        self._unshown = unshown
        return gone
