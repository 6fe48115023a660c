"""Remembers which Checkpoints are about to begin at snapshots of others, so that those keep the snapshots."""

from __future__ import annotations

from dataclasses import dataclass

from checkpoint_operator.decide.warm_starts import request_of
from checkpoint_operator.model.observed import Checkpoint, Key


@dataclass(frozen=True, slots=True)
class _Pending:
    """A run that has not begun.

    Attributes:
        source: The Checkpoint that its spec names, or None for a URL.
        namespace: The namespace whose run is meant by ``url``.
        url, snapshot: The snapshot that its log names; empty before it was chosen.
    """

    source: Key | None
    namespace: str
    url: str
    snapshot: str


class WarmStarts:
    """All Checkpoints seen so far that begin at snapshots of others and have no commit yet.

    A URL counts for Checkpoints of the same namespace only: no tenant can make another one keep anything. By name, the
    grant of the other one has been checked before the snapshot is in the status.
    """

    def __init__(self) -> None:
        self._pending: dict[Key, _Pending] = {}

    def note(self, checkpoint: Checkpoint) -> None:
        """Note a Checkpoint, with its status as it is now."""
        spec, status = checkpoint.spec, checkpoint.status.get("warmStart", {})
        start = spec.restore.start_from if spec is not None else None
        if start is None or checkpoint.deleted_at is not None or status.get("state", "Pending") != "Pending":
            self._pending.pop(checkpoint.key, None)
            return
        request = request_of(checkpoint)
        source = request.key if request else None
        namespace = source.namespace if source else checkpoint.key.namespace
        self._pending[checkpoint.key] = _Pending(
            source, namespace, status.get("url", "").rstrip("/"), status.get("snapshot", "")
        )

    def forget(self, key: Key) -> tuple[Key, ...]:
        """Forget a Checkpoint that is gone. Return those that name it."""
        self._pending.pop(key, None)
        return self.waiting_for(key)

    def waiting_for(self, key: Key) -> tuple[Key, ...]:
        """Return the Checkpoints that name this one and have not begun."""
        return tuple(other for other, pending in self._pending.items() if pending.source == key)

    def wanted(self, checkpoint: Checkpoint) -> frozenset[str]:
        """Return the ids of this Checkpoint's snapshots at which others are about to begin."""
        if checkpoint.spec is None:
            return frozenset()
        place = (checkpoint.key.namespace, checkpoint.spec.storage.url.rstrip("/"))
        return frozenset(
            pending.snapshot
            for pending in self._pending.values()
            if pending.snapshot and (pending.namespace, pending.url) == place
        )
