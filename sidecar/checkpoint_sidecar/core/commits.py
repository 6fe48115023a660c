"""The two entries that commit a save: with files of its own only, and with files that it shares.

They are two kinds because versions that do not know the second one must neither append nor delete once the log has it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from checkpoint_sidecar.core.shared_files import MOST_FILES, SharedFiles
from checkpoint_sidecar.core.wire import Count, Positive, Seconds, SmallPositive

MOST_SHARES = 64
"""Maximum number of snapshots with which one shares files."""

Trigger = Literal["Schedule", "Request", "Termination", "Eviction", "Manual", "Final"]

_Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_OptionalIdentifier = Annotated[str, msgspec.Meta(max_length=128)]
_Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Metric = Annotated[str, msgspec.Meta(max_length=64)]


class SnapshotCommitted(msgspec.Struct, frozen=True, rename="camel"):
    """The commit point of a save. Only rank 0 of the attempt that uploaded it writes it.

    Attributes:
        parent: The attempt's previous commit, else the snapshot it restored, else empty. Lineage walks these links.
        replaces: The live snapshot of the same step that this one replaces, or empty.
        manifest_digest: SHA-256 of the manifest's bytes.
        metrics: Decimal strings, so that JSON readers do not change their values.
        seconds: Duration from the start of staging to the last uploaded byte.
        blocked_seconds: Part of it for which the training loop waited.
        copied_bytes: Part of ``bytes`` that the store copied from the parent; the rest was sent.
    """

    snapshot: _Identifier
    step: Count
    attempt: Positive
    path: _Identifier
    manifest_digest: _Digest
    bytes: Count
    files: Count
    world_size: SmallPositive
    parent: _OptionalIdentifier = ""
    replaces: _OptionalIdentifier = ""
    restore_request: _OptionalIdentifier = ""
    save_request: _OptionalIdentifier = ""
    trigger: Trigger = "Manual"
    metrics: Annotated[dict[_Metric, _Metric], msgspec.Meta(max_length=32)] = {}
    seconds: Seconds = 0.0
    blocked_seconds: Seconds = 0.0
    copied_bytes: Count = 0

    @property
    def shared_bytes(self) -> int:
        """Part of ``bytes`` in files of other snapshots."""
        return sum(each.bytes for each in shares_of(self))


class SnapshotCommittedSharing(SnapshotCommitted, frozen=True, rename="camel", kw_only=True):
    """The commit of a save that names files of earlier snapshots instead of storing them again.

    Critical: versions that do not know it would delete what it needs.

    Attributes:
        shares: These files, by the snapshot whose folder they are in. A snapshot occurs at most once.
    """

    shares: Annotated[tuple[SharedFiles, ...], msgspec.Meta(min_length=1, max_length=MOST_SHARES)]

    def __post_init__(self) -> None:
        if sum(each.count for each in self.shares) > MOST_FILES:
            raise ValueError(f"more than {MOST_FILES} files are shared")
        if len({each.snapshot for each in self.shares}) != len(self.shares):
            raise ValueError("a snapshot is listed twice")


def shares_of(commit: SnapshotCommitted) -> tuple[SharedFiles, ...]:
    """Return the files of other snapshots that one needs."""
    return commit.shares if isinstance(commit, SnapshotCommittedSharing) else ()


def with_shares(commit: SnapshotCommitted, shares: tuple[SharedFiles, ...]) -> SnapshotCommitted:
    """Return the commit with the files that the snapshot shares, if there are any.

    Raises:
        ValueError: They are too many, or of too many snapshots.
    """
    if not shares:
        return commit
    fields = {name: getattr(commit, name) for name in SnapshotCommitted.__struct_fields__}
    return SnapshotCommittedSharing(**fields, shares=shares)


def without_shares(commit: SnapshotCommitted) -> SnapshotCommitted:
    """Return the commit of the same snapshot with all files in its own folder."""
    return SnapshotCommitted(**{name: getattr(commit, name) for name in SnapshotCommitted.__struct_fields__})
