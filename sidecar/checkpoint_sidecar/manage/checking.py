"""Checks of the stored bytes of a snapshot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from checkpoint_sidecar.core.errors import NO_EVIDENCE, CorruptSnapshotError, Evidence
from checkpoint_sidecar.core.log import MAX_TEXT, SnapshotVerified
from checkpoint_sidecar.core.policy import VerifyLevel
from checkpoint_sidecar.core.run import Snapshot
from checkpoint_sidecar.core.sharing import key_in_evidence
from checkpoint_sidecar.engine.verify import VerificationPass, verify_snapshot
from checkpoint_sidecar.store.base import Store


@dataclass(frozen=True, slots=True)
class SnapshotCheck:
    """The result of a check.

    Attributes:
        level: ``Sizes`` or ``Checksums``.
        passed: Whether every object is as it was committed.
        evidence: The kind of damage, or ``None``.
        message: Describes the first damage found.
        key: The object that is damaged, if it is known.
        bytes: Size of the snapshot's files.
        judged: ``Snapshot.judged`` when the check began.
    """

    snapshot: str
    level: VerifyLevel
    passed: bool
    evidence: Evidence = NO_EVIDENCE
    message: str = ""
    bytes: int = 0
    judged: int = 0
    key: str = ""

    @property
    def entry(self) -> SnapshotVerified:
        """The log entry that records the check."""
        return SnapshotVerified(
            self.snapshot,
            self.level,
            self.passed,
            self.evidence,
            self.message[:MAX_TEXT],
            key_in_evidence(self.key),
        )


def check_snapshot(
    store: Store,
    snapshot: Snapshot,
    *,
    checksums: bool,
    progress: Callable[[int], None] | None = None,
    same_pass: VerificationPass | None = None,
) -> SnapshotCheck:
    """Compare the stored objects of a snapshot with its manifest.

    Args:
        checksums: Read every byte, instead of asking for the sizes only.
        progress: Called with the number of bytes of each piece before it is read. It may raise, to stop.
        same_pass: Files that snapshots share are read once in a pass.

    Raises:
        IncompatibleSnapshotError: A newer version wrote the manifest.
        StoreError: The store failed, which says nothing about the snapshot.
    """
    level: VerifyLevel = "Checksums" if checksums else "Sizes"
    try:
        before_read = progress or (lambda _: None)
        if snapshot.failures:
            same_pass = None  # evidence is refuted by reading the files again, not by what was read before
        size = verify_snapshot(store, snapshot.commit, level=level, before_read=before_read, same_pass=same_pass)
    except CorruptSnapshotError as error:
        return SnapshotCheck(
            snapshot.id,
            level,
            False,
            error.evidence,
            str(error),
            snapshot.commit.bytes,
            snapshot.judged,
            error.subject,
        )
    return SnapshotCheck(snapshot.id, level, True, bytes=size, judged=snapshot.judged)
