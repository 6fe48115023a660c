"""Runs for tests, told as a story: each sentence appends one real entry, and ``run`` is what replay makes of them.

>>> history = History().configured(retention=RetentionPolicy(keep_last=2)).started().committed(100, 200, 300)
>>> history.verified(300).started().restored()
>>> history.run.newest == history.id(300)

Snapshots are named by their step (the newest commit of that step is meant) or by their id. Nothing is made up beside
the log: what is filled in by default (attempt number, candidate, parent) comes from the run, as it does in the library.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any

import msgspec

from checkpoint_sidecar.core import attempt as library
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.log import (
    AttemptFenced,
    AttemptStarted,
    Body,
    DispositionSet,
    EvictionNoticed,
    Evidence,
    Owner,
    PodIdentity,
    PurgeStarted,
    QuarantineReleased,
    RestoreFinished,
    RestoreStarted,
    RollbackRequested,
    RunAdopted,
    RunClaimed,
    RunConfigured,
    SaveFailed,
    SaveRequested,
    SnapshotCommitted,
    SnapshotPurged,
    SnapshotReinstated,
    SnapshotRetired,
    SnapshotVerified,
    StoredEntry,
    decode,
    encode,
)
from checkpoint_sidecar.core.overwrite import base_of
from checkpoint_sidecar.core.policy import (
    Disposition,
    OverwritePolicy,
    Policy,
    RestorePolicy,
    RetentionPolicy,
    SavePolicy,
    VerifyLevel,
)
from checkpoint_sidecar.core.replay import advance
from checkpoint_sidecar.core.run import Run, Snapshot

BEGINNING = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
OWNER = Owner("cluster-a", "training", "llama")
OTHER_OWNER = Owner("cluster-b", "training", "llama")
POD = PodIdentity("llama-0", "11111111-0000-0000-0000-000000000000")
OBJECT_UID = "22222222-0000-0000-0000-000000000000"
"""UID of the Checkpoint object whose generations ``configured`` counts."""


class History:
    """One run's log, growing entry by entry; a minute of the store's clock passes before each.

    Args:
        owner: The owner that claims the prefix with entry 1; None for an empty log.
    """

    def __init__(self, owner: Owner | None = OWNER) -> None:
        self.entries: list[StoredEntry] = []
        self.now = BEGINNING
        self._run = Run()
        if owner is not None:
            self.append(RunClaimed(owner))

    @property
    def run(self) -> Run:
        return self._run

    def append(self, body: Body) -> History:
        """Write ``body`` as the next entry, legal or not, and fold it in."""
        self.now += dt.timedelta(minutes=1)
        number = len(self.entries) + 1
        data = encode(
            number=number,
            entry_id=f"entry-{number}",
            previous=self.entries[-1].digest if self.entries else "",
            time=self.now,
            writer="test",
            body=body,
        )
        entry = decode(data, number=number, stored_at=self.now)
        self._run = advance(self._run, [entry])
        self.entries.append(entry)
        return self

    def wait(self, **duration: float) -> History:
        """Let the store's clock run: ``wait(hours=2)``."""
        self.now += dt.timedelta(**duration)
        return self

    # Looking up

    def snapshot(self, which: int | str) -> Snapshot:
        if isinstance(which, str):
            return self.run.snapshots[which]
        return next(s for s in reversed(list(self.run.snapshots.values())) if s.step == which)

    def id(self, which: int | str) -> str:
        return self.snapshot(which).id

    def ids(self, *steps: int) -> tuple[str, ...]:
        return tuple(self.id(step) for step in steps)

    # What the operator writes

    def configured(
        self,
        *,
        overwrite: OverwritePolicy = "Never",
        retention: RetentionPolicy | None = None,
        restore: RestorePolicy | None = None,
        save: SavePolicy | None = None,
        uid: str = OBJECT_UID,
        generation: int | None = None,
    ) -> History:
        """A new policy; by default of the same object's next generation."""
        before = self.run.configured
        if generation is None:
            generation = before[1] + 1 if before and before[0] == uid else 1
        policy = Policy(save or SavePolicy(), overwrite, retention, restore or RestorePolicy())
        return self.append(RunConfigured(uid, generation, policy))

    def adopted(self, owner: Owner = OTHER_OWNER, *, previous: Owner | None = None, request: str = "") -> History:
        return self.append(RunAdopted(owner, previous or self.run.owner or OWNER, request))

    def rollback(self, to: int | str, *, request: str = "rollback-1") -> History:
        return self.append(RollbackRequested(request, self.id(to)))

    def verified(self, *which: int | str, level: VerifyLevel = "Sizes") -> History:
        for each in which:
            self.append(SnapshotVerified(self.id(each), level, passed=True))
        return self

    def found_damaged(self, *which: int | str, evidence: Evidence = "ChecksumMismatch") -> History:
        for each in which:
            self.append(SnapshotVerified(self.id(each), "Checksums", passed=False, evidence=evidence))
        return self

    def save_requested(self, request: str = "save-1", *, reason: str = "", attempt: int | None = None) -> History:
        return self.append(SaveRequested(request, attempt or self.run.highest_attempt, reason))

    def save_failed(self, step: int, *, failures: int = 1, message: str = "the disk is full") -> History:
        return self.append(SaveFailed(self.run.highest_attempt, step, failures, message))

    def evicted(self, reason: str = "EvictionByEvictionAPI", *, attempt: int | None = None) -> History:
        return self.append(EvictionNoticed(attempt or self.run.highest_attempt, POD, reason))

    def fenced(self, *, attempt: int | None = None) -> History:
        return self.append(AttemptFenced(attempt or self.run.highest_attempt))

    def disposed(self, which: int | str, disposition: Disposition) -> History:
        return self.append(DispositionSet(self.id(which), disposition))

    def retired(self, *which: int | str, reasons: tuple[str, ...] = ("NoRuleKeepsIt",)) -> History:
        for each in which:
            self.append(SnapshotRetired(self.id(each), reasons))
        return self

    def released(self, which: int | str, request: str = "release-1") -> History:
        return self.append(QuarantineReleased(self.id(which), request))

    def reinstated(self, which: int | str, *, attempt: int | None = None) -> History:
        return self.append(SnapshotReinstated(self.id(which), attempt))

    def purge_started(self, *which: int | str) -> History:
        for each in which:
            self.append(PurgeStarted(self.id(each)))
        return self

    def purged(self, *which: int | str) -> History:
        for each in which:
            self.append(SnapshotPurged(self.id(each), self.snapshot(each).commit.bytes))
        return self

    # What the library writes

    def started(self, *, world_size: int = 2, pods: tuple[PodIdentity, ...] = (POD,), **changes: Any) -> History:
        """The next attempt; ``changes`` override fields of the entry the library would write."""
        entry: AttemptStarted = library.start(self.run, world_size=world_size, pods=pods)
        return self.append(msgspec.structs.replace(entry, **changes))

    def restoring(self, which: int | str, *, attempt: int | None = None) -> History:
        return self.append(RestoreStarted(attempt or self.run.highest_attempt, self.id(which)))

    def restored(
        self,
        which: int | str | None = None,
        *,
        attempt: int | None = None,
        verified: VerifyLevel = "Checksums",
        **changes: Any,
    ) -> History:
        """The attempt loaded all of a snapshot; by default the one it announced."""
        return self.append(self._finished(which, attempt, restored=True, verified=verified, **changes))

    def failed_to_restore(
        self, which: int | str | None = None, *, attempt: int | None = None, evidence: Evidence = "ChecksumMismatch"
    ) -> History:
        """One candidate failed; ``evidence="None"`` for an interruption, which says nothing about the snapshot."""
        return self.append(self._finished(which, attempt, restored=False, evidence=evidence))

    def committed(self, *steps: int, attempt: int | None = None, **changes: Any) -> History:
        """Commits of the highest (or the given, perhaps fenced) attempt; ``changes`` override fields of the entry."""
        number = attempt or self.run.highest_attempt
        for step in steps:
            nonce = nonce_of(len(self.entries))
            entry = SnapshotCommitted(
                snapshot=layout.snapshot_id(step, number, nonce),
                step=step,
                attempt=number,
                path=layout.SaveFolder(step, number, nonce).path,
                manifest_digest=hashlib.sha256(nonce.encode()).hexdigest(),
                bytes=1000,
                files=3,
                world_size=2,
                parent=base_of(self.run.attempts[number]) if number in self.run.attempts else "",
                restore_request=self.run.attempts[number].started.restore_request
                if number in self.run.attempts
                else "",
            )
            self.append(msgspec.structs.replace(entry, **changes))
        return self

    def _finished(self, which: int | str | None, attempt: int | None, **outcome: Any) -> RestoreFinished:
        number = attempt or self.run.highest_attempt
        snapshot = self.run.attempts[number].in_use if which is None else self.id(which)
        assert snapshot is not None, f"attempt {number} announced nothing to restore"
        found = self.run.snapshots.get(snapshot)
        if found is not None and outcome.get("verified", "None") != "None":
            outcome = {"compared_bytes": found.commit.bytes} | outcome
        return RestoreFinished(number, snapshot, **outcome)


def nonce_of(number: int) -> str:
    """A valid nonce, the same for the same number, different for others."""
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    letters = []
    for _ in range(8):
        number, digit = divmod(number, len(alphabet))
        letters.append(alphabet[digit])
    return "".join(reversed(letters))
