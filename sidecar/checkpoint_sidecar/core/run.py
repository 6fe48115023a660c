"""The state of a run as recorded in its log: the result of ``core.replay`` and the input of every decision.

Everything here is frozen. Mappings keep insertion order: snapshots in order of commit, attempts in order of number.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.log import (
    AttemptStarted,
    EvictionNoticed,
    Owner,
    RestoreFinished,
    RunAdopted,
    SaveFailed,
    SaveRequested,
    SnapshotCommitted,
    WarmStartChosen,
    WarmStartFinished,
)
from checkpoint_sidecar.core.policy import NOT_CHECKED, Disposition, Policy, VerifyLevel
from checkpoint_sidecar.core.reading import Reading
from checkpoint_sidecar.core.shared_files import FileRuns

LIBRARY_UID = "checkpoint_sidecar"
"""In place of a Checkpoint's UID, in policies that the library wrote rather than an operator."""

_VERIFY_ORDER: tuple[VerifyLevel, ...] = (NOT_CHECKED, "Sizes", "Checksums")


class SnapshotState(Enum):
    """The stage of a snapshot's life. Only LIVE ones are candidates; PURGING cannot be undone."""

    LIVE = "Live"
    RETIRED = "Retired"
    PURGING = "Purging"
    PURGED = "Purged"
    REJECTED = "Rejected"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One committed save.

    Attributes:
        commit: The log entry that committed it.
        number: That entry's number; a later commit has a larger one.
        committed_at: The store's clock at the commit.
        retired_at: The store's clock at the latest SnapshotRetired, while it is retired.
        purge_started_at: The store's clock at PurgeStarted.
        verified: How thoroughly its bytes were checked with success, since the last release from quarantine.
        failures: Number of times evidence was found against it since then.
        evidence: Description of the latest such evidence.
        judged: Number of the log entry that last found, cleared or discarded evidence; 0 if none did.
        reasons: Why it was retired or rejected.
        releases: Requests to discard the evidence against it, in order; each took effect once.
        kept: Its files that its purge has left, because other snapshots need them.
        purged_bytes: Bytes that its purges have deleted.
        damaged: Names of its shared files against which there is evidence.
    """

    commit: SnapshotCommitted
    number: int
    committed_at: dt.datetime
    state: SnapshotState = SnapshotState.LIVE
    retired_at: dt.datetime | None = None
    purge_started_at: dt.datetime | None = None
    verified: VerifyLevel = NOT_CHECKED
    failures: int = 0
    evidence: str = ""
    judged: int = 0
    disposition: Disposition = "Auto"
    reasons: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    readings: tuple[Reading, ...] = ()
    kept: FileRuns = ""
    purged_bytes: int = 0
    damaged: frozenset[str] = frozenset()

    @property
    def id(self) -> str:
        return self.commit.snapshot

    @property
    def step(self) -> int:
        return self.commit.step

    @property
    def live(self) -> bool:
        return self.state is SnapshotState.LIVE

    @property
    def own_bytes(self) -> int:
        """Size of the files in its own folder."""
        return self.commit.bytes - self.commit.shared_bytes

    @property
    def proven(self) -> bool:
        """Whether it was checked at least by size, without any evidence against it."""
        return self.verified != NOT_CHECKED and self.failures == 0

    def verified_at_least(self, level: VerifyLevel) -> bool:
        return _VERIFY_ORDER.index(self.verified) >= _VERIFY_ORDER.index(level)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of the process group.

    Attributes:
        started_at: The store's clock.
        fresh: Whether it serves a request to begin at step 0.
        in_use: The snapshot it announced or restored, until that fails or the attempt commits; never retired meanwhile.
        restored: The snapshot it continues from, or None.
        last_commit: Its newest commit, or None.
        restores: Its finished restores, in order.
        warm_start: The outcome of loading a snapshot of another run, or None if it did not try.
        save_requests: Requests for saves, in order.
        save_failure: The failure reported since its last commit, or None.
    """

    started: AttemptStarted
    number: int
    started_at: dt.datetime
    fresh: bool = False
    in_use: str | None = None
    restored: str | None = None
    last_commit: str | None = None
    restores: tuple[RestoreFinished, ...] = ()
    warm_start: WarmStartFinished | None = None
    eviction: EvictionNoticed | None = None
    eviction_at: dt.datetime | None = None
    save_requests: tuple[SaveRequested, ...] = ()
    save_failure: SaveFailed | None = None

    @property
    def save_request(self) -> str:
        """The newest request; a commit that carries it also fulfills earlier ones."""
        return self.save_requests[-1].request if self.save_requests else ""


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """A request that the next start restores something other than the latest snapshot, once.

    Attributes:
        snapshot: The rollback's target, or None for a fresh start (``restore.mode: None``).
    """

    id: str
    snapshot: str | None


@dataclass(frozen=True, slots=True)
class Run:
    """The fold of a log up to ``head``.

    Attributes:
        head: Number of the last entry, 0 for an empty log.
        head_digest: SHA-256 of its bytes; the next entry carries it.
        first: Number of the entry that claimed the run.
        identity: SHA-256 of that entry's bytes; empty before the prefix is claimed, and of a deleted run.
        identified: Whether folders of saves carry the identity, so that versions that cannot read them stay away.
        erased: Whether only the tombstone of a run is left: the prefix is free again.
        tombstone: Number of the entry that gave the run up; 0 without one.
        remnants: Whether there are meaningless log entries below the first one.
        fenced_up_to: Attempts up to this number may not commit, including the highest (the run has a new owner, or
            training has ended).
        configured: ``(uid, generation)`` of the policy in force, or None before the first RunConfigured.
        longer_grace_until, longer_grace_seconds: Edits have shortened the grace period: until then, by the store's
            clock, no snapshot is purged before it was retired for so many seconds.
        last_grace_seconds: Grace period of the latest policy that had one.
        warm_start: The snapshot of another run at which this one begins, or None.
        pending: The rollback or fresh start that no commit has carried yet.
        rollbacks: Ids of all requested rollbacks, in order; each takes effect once.
        consumed: Request ids that a commit carried.
        adoptions: Changes of the run's owner, in order, so that each request to adopt it takes effect once.
        first_commits: By step, the number of the log entry that first committed it.
        sharers: By snapshot, those that were committed with files of it, also if they were purged since.
        newest: Id of the newest valid commit.
        unknown_critical: Kind of an entry that forbids this version to append or delete, or empty.
    """

    head: int = 0
    head_digest: str = ""
    first: int = 0
    identity: str = ""
    identified: bool = False
    erased: bool = False
    tombstone: int = 0
    remnants: bool = False
    owner: Owner | None = None
    adoptions: tuple[RunAdopted, ...] = ()
    fenced_up_to: int = 0
    configured: tuple[str, int] | None = None
    policy: Policy = field(default_factory=Policy)
    longer_grace_until: dt.datetime | None = None
    longer_grace_seconds: float = 0.0
    last_grace_seconds: float = 0.0
    warm_start: WarmStartChosen | None = None
    pending: RestoreRequest | None = None
    rollbacks: tuple[str, ...] = ()
    consumed: frozenset[str] = frozenset()
    attempts: Mapping[int, Attempt] = field(default_factory=lambda: MappingProxyType({}))
    snapshots: Mapping[str, Snapshot] = field(default_factory=lambda: MappingProxyType({}))
    first_commits: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    sharers: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    newest: str | None = None
    unknown_critical: str = ""

    @property
    def attempt(self) -> Attempt | None:
        """The highest attempt, the only one that may commit."""
        return self.attempts[len(self.attempts)] if self.attempts else None

    @property
    def highest_attempt(self) -> int:
        return self.attempt.number if self.attempt else 0

    @property
    def ever_committed(self) -> bool:
        return self.newest is not None

    @property
    def short_identity(self) -> str:
        """The identity's short form, as in the names of folders."""
        return layout.short_identity(self.identity)

    @property
    def managed(self) -> bool:
        """Whether an operator configured the run."""
        return self.configured is not None and self.configured[0] != LIBRARY_UID

    @property
    def free(self) -> bool:
        """Whether the prefix may be claimed."""
        return self.owner is None or self.erased

    def may_commit(self, attempt: int) -> bool:
        """Return whether this attempt may commit: no later attempt and no change of owner fences it."""
        return attempt == self.highest_attempt > self.fenced_up_to
