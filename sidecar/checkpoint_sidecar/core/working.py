"""The tables of a run while entries are folded into it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec

from checkpoint_sidecar.core.commits import shares_of
from checkpoint_sidecar.core.errors import NO_EVIDENCE
from checkpoint_sidecar.core.log import RestoreFinished, SnapshotVerified
from checkpoint_sidecar.core.policy import VerifyLevel
from checkpoint_sidecar.core.run import Attempt, Snapshot, SnapshotState
from checkpoint_sidecar.core.shared_files import names_in
from checkpoint_sidecar.core.sharing import holder_of, users_of


@dataclass(frozen=True, slots=True)
class Working:
    """The tables of a run that grow, updated in place while entries are folded."""

    attempts: dict[int, Attempt]
    snapshots: dict[str, Snapshot]
    first_commits: dict[int, int]
    sharers: dict[str, tuple[str, ...]]

    def change_attempt(self, number: int, **changes: Any) -> None:
        if number in self.attempts:
            self.attempts[number] = replace(self.attempts[number], **changes)

    def change_snapshot(self, identifier: str, **changes: Any) -> None:
        if identifier in self.snapshots:
            self.snapshots[identifier] = replace(self.snapshots[identifier], **changes)

    def state(self, identifier: str) -> SnapshotState | None:
        found = self.snapshots.get(identifier)
        return found.state if found else None

    def reinstate(self, identifier: str) -> None:
        if self.state(identifier) is SnapshotState.RETIRED:
            self.change_snapshot(identifier, state=SnapshotState.LIVE, retired_at=None, reasons=())

    def record_check(
        self, check: RestoreFinished | SnapshotVerified, *, passed: bool, level: VerifyLevel, number: int
    ) -> None:
        found = self.snapshots.get(check.snapshot)
        if found is None:
            return
        if passed and not found.verified_at_least(level):
            self.change_snapshot(check.snapshot, verified=level)
        if passed and level == "Checksums":
            # All of it was read and is intact, so earlier findings were not damage of the stored object.
            if found.failures:
                self.change_snapshot(check.snapshot, failures=0, evidence="", judged=number)
            self.clear_files(found)
        # A failure without evidence concerns the store or the pod, not the snapshot.
        elif not passed and check.evidence != NO_EVIDENCE:
            evidence = f"{check.evidence}: {check.message}"
            key = "" if isinstance(check.damaged_file, msgspec.UnsetType) else check.damaged_file
            for identifier in dict.fromkeys((check.snapshot, *users_of(self, key))):
                failures = self.snapshots[identifier].failures + 1
                self.change_snapshot(identifier, failures=failures, evidence=evidence, judged=number)
            if (held := holder_of(self, key)) is not None:
                holder, name = held
                self.change_snapshot(holder.id, damaged=holder.damaged | {name})

    def clear_files(self, snapshot: Snapshot) -> None:
        """Discard the evidence against all files that a snapshot needs."""
        self.change_snapshot(snapshot.id, damaged=frozenset())
        for shared in shares_of(snapshot.commit):
            holder = self.snapshots.get(shared.snapshot)
            if holder is not None and holder.damaged:
                self.change_snapshot(holder.id, damaged=holder.damaged - names_in(shared.files))
