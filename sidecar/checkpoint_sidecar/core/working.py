"""The tables of a run while entries are folded into it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from checkpoint_sidecar.core.errors import NO_EVIDENCE
from checkpoint_sidecar.core.log import RestoreFinished, SnapshotVerified
from checkpoint_sidecar.core.policy import VerifyLevel
from checkpoint_sidecar.core.run import Attempt, Snapshot, SnapshotState


@dataclass(frozen=True, slots=True)
class Working:
    """The tables of a run that grow, updated in place while entries are folded."""

    attempts: dict[int, Attempt]
    snapshots: dict[str, Snapshot]
    first_commits: dict[int, int]

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

    def record_check(self, check: RestoreFinished | SnapshotVerified, *, passed: bool, level: VerifyLevel) -> None:
        found = self.snapshots.get(check.snapshot)
        if found is None:
            return
        if passed and not found.verified_at_least(level):
            self.change_snapshot(check.snapshot, verified=level)
        if passed and level == "Checksums":
            # All of it was read and is intact, so earlier findings were not damage of the stored object.
            self.change_snapshot(check.snapshot, failures=0, evidence="")
        # A failure without evidence concerns the store or the pod, not the snapshot.
        elif not passed and check.evidence != NO_EVIDENCE:
            evidence = f"{check.evidence}: {check.message}"
            self.change_snapshot(check.snapshot, failures=found.failures + 1, evidence=evidence)
