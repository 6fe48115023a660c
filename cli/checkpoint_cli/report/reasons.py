"""The reasons of the retention policy as sentences for a reader of the report."""

from __future__ import annotations

from checkpoint_sidecar.core.removal import REMOVED
from checkpoint_sidecar.core.retention import RetentionReason

_SENTENCES: dict[str, str] = {
    RetentionReason.NO_RETENTION: "the run has no retention policy",
    RetentionReason.NOTHING_VERIFIED: "no snapshot is verified yet, so none is retired",
    RetentionReason.IN_USE: "the newest attempt uses it",
    RetentionReason.ROLLBACK_TARGET: "a pending rollback restores it",
    RetentionReason.WARM_START: "another run begins at it",
    RetentionReason.HOLD: "a user holds it",
    RetentionReason.NEWEST: "the newest",
    RetentionReason.NEWEST_VERIFIED: "the newest verified",
    RetentionReason.UNDER_SUSPICION: "newer than every verified one, and under suspicion",
    RetentionReason.KEEP_LAST: "among the newest (keepLast)",
    RetentionReason.NEWEST_COMPARED: "the newest whose checksums were compared",
    RetentionReason.BEING_READ: "it is being read back",
    RetentionReason.DISPOSITION: "a user retired it",
    RetentionReason.MAX_AGE: "older than maxAge",
    RetentionReason.NO_KEEP_RULE: "the policy has no keep rule",
    RetentionReason.KEEP_EVERY_STEPS: "first of its interval of steps (keepEverySteps)",
    RetentionReason.KEEP_EVERY: "first of its interval of time (keepEvery)",
    RetentionReason.KEEP_BEST: "among the best (keepBest)",
    RetentionReason.MAX_TOTAL_SIZE: "beyond maxTotalSize",
    RetentionReason.QUOTA: "beyond the quota of the namespace",
    RetentionReason.REPLACEMENT_UNVERIFIED: "its replacement is not verified yet",
    RetentionReason.BRANCH_TOO_YOUNG: "rolled back, and the new branch is still short",
    RetentionReason.TOO_FEW_GOOD: "damaged, but too few good ones exist",
    RetentionReason.SUPERSEDED: "rolled back",
    RetentionReason.DAMAGED: "damaged",
    RetentionReason.REPLACED: "a later save of the step replaced it",
    RetentionReason.NO_RULE_KEEPS_IT: "no rule keeps it",
    REMOVED: "a user removed it",
    "Fenced": "committed by an attempt that a later one had replaced",
    "DuplicateSnapshot": "committed twice",
    "InvalidPath": "its folder is not one of this run",
    "WrongParent": "it does not descend from what its attempt trained on",
    "WrongRequest": "it does not carry the rollback of its attempt",
    "NothingRestored": "its attempt restored nothing although the run had snapshots",
    "ReplacesNothing": "it claims to replace a snapshot that does not exist",
    "StepExists": "the step existed already",
    "ReplaceNotAllowed": "the policy does not allow to replace a step",
}


def explain(reason: str) -> str:
    """Return a reason in words; one that this version does not know is quoted."""
    name, _, metric = reason.partition(":")
    sentence = _SENTENCES.get(name)
    if sentence is None:
        return reason
    return f"{sentence} by {metric}" if metric else sentence


def explain_all(reasons: tuple[str, ...]) -> str:
    """Return all reasons in one sentence."""
    return "; ".join(explain(reason) for reason in reasons)
