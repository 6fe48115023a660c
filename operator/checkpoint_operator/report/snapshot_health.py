"""Judges the conditions of a CheckpointSnapshot from the log. Pure.

As for Checkpoints, each condition is a chain of named checks, and the first that applies decides.
``docs/conditions.md`` lists the reasons in this order, generated from ``SNAPSHOT_CHAINS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from checkpoint_operator.report.checks import Answer, ConditionCheck, Quote, Reasoned, check, first_answer, otherwise
from checkpoint_operator.report.conditions import Judgement
from checkpoint_sidecar.core.api import ConditionType, SnapshotReason
from checkpoint_sidecar.core.errors import NO_EVIDENCE, Evidence
from checkpoint_sidecar.core.lineage import quarantined
from checkpoint_sidecar.core.policy import NOT_CHECKED, Disposition
from checkpoint_sidecar.core.requests import why_not_retired
from checkpoint_sidecar.core.retention import RetentionVerdict
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState

EVIDENCE_REASONS: tuple[str, ...] = tuple(each for each in get_args(Evidence) if each != NO_EVIDENCE)


@dataclass(frozen=True, slots=True)
class JudgedSnapshot:
    """A snapshot and the facts that decide its conditions.

    Attributes:
        superseded: Whether it belongs to a branch that was rolled back.
        asked: The disposition that the user gave it, which the log may not have yet.
        obstacle: Why it cannot be compared with its manifest for now, or empty.
    """

    run: Run
    snapshot: Snapshot
    verdict: RetentionVerdict
    superseded: bool
    asked: Disposition
    obstacle: str = ""


def judge_snapshot(judged: JudgedSnapshot) -> tuple[Judgement, ...]:
    """Return all conditions of a CheckpointSnapshot, in the order in which they are shown."""
    return tuple(first_answer(kind, chain, judged) for kind, chain in SNAPSHOT_CHAINS.items())


# Committed


@check("False", SnapshotReason.BROKE_POLICY)
def _broke_policy(judged: JudgedSnapshot) -> Answer:
    snapshot = judged.snapshot
    if snapshot.state is not SnapshotState.REJECTED:
        return None
    return f"The commit broke the rules in force: {', '.join(snapshot.reasons)}."


@check("True", SnapshotReason.COMMITTED)
def _committed(judged: JudgedSnapshot) -> Answer:
    return f"Committed as entry {judged.snapshot.number} of the run log."


# Verified


@check("False", *EVIDENCE_REASONS)
def _damaged(judged: JudgedSnapshot) -> Answer:
    run, snapshot = judged.run, judged.snapshot
    if not snapshot.failures:
        return None
    message = snapshot.evidence
    if not quarantined(run, snapshot):
        limit = run.policy.restore.max_failures_per_snapshot
        message = f"Failure {snapshot.failures} of {limit}: it keeps its place and is read again. {message}"
    return Reasoned(snapshot.evidence.partition(":")[0] or "Evidence", message)


@check("Unknown", SnapshotReason.NOT_VERIFIED)
def _not_verifiable(judged: JudgedSnapshot) -> Answer:
    return Quote(judged.obstacle) if judged.obstacle and judged.snapshot.verified == NOT_CHECKED else None


@check("Unknown", SnapshotReason.NOT_VERIFIED)
def _not_checked(judged: JudgedSnapshot) -> Answer:
    return "Not checked yet." if judged.snapshot.verified == NOT_CHECKED else None


@check("True", SnapshotReason.SIZES_MATCH)
def _sizes_match(judged: JudgedSnapshot) -> Answer:
    sizes_only = judged.snapshot.verified == "Sizes"
    return "All files of the manifest exist with the right sizes." if sizes_only else None


# Ready


def _in_state(state: SnapshotState, reason: SnapshotReason, message: str) -> ConditionCheck[JudgedSnapshot]:
    """Return the check of one state that no restore considers."""
    return ConditionCheck(
        state.name.lower(), "False", (reason,), lambda judged: message if judged.snapshot.state is state else None
    )


@check("False", SnapshotReason.QUARANTINED)
def _quarantined(judged: JudgedSnapshot) -> Answer:
    return judged.snapshot.evidence if quarantined(judged.run, judged.snapshot) else None


@check("False", SnapshotReason.SUPERSEDED)
def _superseded(judged: JudgedSnapshot) -> Answer:
    return "It belongs to a branch that was rolled back; only a rollback restores it." if judged.superseded else None


@check("True", SnapshotReason.RETIRE_REFUSED)
def _retire_refused(judged: JudgedSnapshot) -> Answer:
    run, snapshot = judged.run, judged.snapshot
    if judged.asked != "Retire":
        return None
    kept = judged.verdict.keep.get(snapshot.id) if snapshot.disposition == "Retire" else None
    cause = why_not_retired(run, snapshot.id) or (f"the policy keeps it ({', '.join(kept)})" if kept else "")
    return f"disposition: Retire is refused for now: {cause}." if cause else None


SNAPSHOT_CHAINS: Mapping[ConditionType, tuple[ConditionCheck[JudgedSnapshot], ...]] = {
    ConditionType.COMMITTED: (_broke_policy, _committed),
    ConditionType.VERIFIED: (
        _damaged,
        _not_verifiable,
        _not_checked,
        _sizes_match,
        otherwise("True", SnapshotReason.CHECKSUMS_MATCH, "It was read and its checksums match."),
    ),
    ConditionType.READY: (
        _in_state(SnapshotState.RETIRED, SnapshotReason.RETIRED, "Retired; its data stays until purgeAfter."),
        _in_state(SnapshotState.PURGING, SnapshotReason.PURGING, "Its data is being deleted."),
        _in_state(SnapshotState.PURGED, SnapshotReason.PURGED, "Its data is gone."),
        _in_state(SnapshotState.REJECTED, SnapshotReason.REJECTED, "No restore considers it."),
        _quarantined,
        _superseded,
        _retire_refused,
        otherwise("True", SnapshotReason.RESTORABLE, "A restore may use it."),
    ),
}
"""The checks of each condition, in order of precedence; conditions in the order in which they are shown."""
