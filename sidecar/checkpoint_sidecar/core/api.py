"""The Kubernetes API in the user's spelling: ``spec`` and ``status`` of Checkpoint and CheckpointSnapshot.

Durations (``720h``) and quantities (``2Ti``) stay strings here; the operator parses them once and writes
``core.policy`` into the log. The schema users meet is ``crds/*.yaml``; a test walks it against these types in both
directions, so that names, required fields, defaults and enums cannot drift apart. Constraints live in the schema
alone: values that the API server admitted are not checked again here.

Optional fields are None; absence has no separate meaning. Status types encode without their Nones.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeAlias

import msgspec

from checkpoint_sidecar.core.api_sources import Grant, StartSource, WarmStartStatus
from checkpoint_sidecar.core.api_sources import LocalReference as LocalReference
from checkpoint_sidecar.core.environment import AddressingStyle
from checkpoint_sidecar.core.log import Trigger
from checkpoint_sidecar.core.policy import (
    Disposition,
    MetricMode,
    OnFailure,
    OnMissing,
    OverwritePolicy,
    RestoreMode,
    UnchangedPolicy,
    VerifyLevel,
)

GROUP = "checkpoint-operator.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

CHECKPOINT_KIND = "Checkpoint"
CHECKPOINT_PLURAL = "checkpoints"
SNAPSHOT_KIND = "CheckpointSnapshot"
SNAPSHOT_PLURAL = "checkpointsnapshots"

RELEASE_ANNOTATION = f"{GROUP}/release-quarantine"
"""On a CheckpointSnapshot: a new value discards, once, the evidence against the snapshot."""

MAX_LISTED = 16
"""Longest list in any status. The log and the CLI have the rest."""

Duration: TypeAlias = str
"""As in the Gateway API (GEP-2257): ``90s``, ``15m``, ``1h30m``, ``720h``."""
Quantity: TypeAlias = str
"""A Kubernetes quantity of bytes: ``500Gi``, ``2Ti``."""
Timestamp: TypeAlias = str
"""RFC 3339 in UTC, by the store's clock."""

DeletionPolicy = Literal["Retain", "Delete"]
RollbackTarget = Literal["Snapshot", "Best"]
RestoreReason = Literal["Latest", "Fallback", "Rollback", "FreshStart", "WarmStart"]
ConditionStatus = Literal["True", "False", "Unknown"]


ServerSideEncryption: TypeAlias = Literal["AES256", "aws:kms", "aws:kms:dsse"]


class Storage(msgspec.Struct, frozen=True, rename="camel"):
    """Location of the run. Only ``url`` is immutable.

    Attributes:
        server_side_encryption, kms_key_id, requester_pays, tags: Options of each S3 request (s3 only).
    """

    url: str
    endpoint: str = ""
    region: str = ""
    addressing_style: AddressingStyle = "Auto"
    server_side_encryption: ServerSideEncryption | None = None
    kms_key_id: str | None = None
    requester_pays: bool | None = None
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    credentials_secret: LocalReference | None = None
    take_over_from: str = ""


class Save(msgspec.Struct, frozen=True, rename="camel"):
    """Schedule of saves. ``every: 0s`` turns the time cadence off; a new ``request`` saves now.

    Attributes:
        on_failure: Effect of a failed automatic save on training.
        max_failures: With ``Continue``, the number of successive failures that stop training anyway.
        unchanged: What saves do with tensors that have not changed.
        keyframe_every: With ``Share``, how often a save sends everything.
    """

    every_steps: int | None = None
    every: Duration = "15m"
    on_termination: bool = True
    request: str = ""
    on_failure: OnFailure = "Continue"
    max_failures: int = 5
    unchanged: UnchangedPolicy = "Send"
    keyframe_every: int = 20


class KeepBestRule(msgspec.Struct, frozen=True, rename="camel"):
    """Keep the ``count`` snapshots with the best value of ``metric``."""

    metric: str
    mode: MetricMode = "Min"
    count: int = 1


class Retention(msgspec.Struct, frozen=True, rename="camel"):
    """Rules for keeping snapshots. Without ``spec.retention``, none are ever retired."""

    keep_last: int | None = None
    keep_every_steps: int | None = None
    keep_every: Duration | None = None
    keep_best: tuple[KeepBestRule, ...] = ()
    max_age: Duration | None = None
    max_total_size: Quantity | None = None
    grace_period: Duration = "1h"
    dry_run: bool = False


class Rollback(msgspec.Struct, frozen=True, rename="camel"):
    """Restore another snapshot than the newest, once. A new ``request`` takes effect at the next start.

    Attributes:
        to: ``Best`` is the best snapshot by the first rule of ``retention.keepBest``.
        snapshot: A snapshot id, with ``to: Snapshot`` only.
    """

    request: str
    to: RollbackTarget = "Snapshot"
    snapshot: str | None = None


class Restore(msgspec.Struct, frozen=True, rename="camel"):
    """Settings of a start's restore: its mode, its verification, and its limits on failures and fallbacks."""

    mode: RestoreMode = "Latest"
    rollback: Rollback | None = None
    verify: VerifyLevel = "Checksums"
    max_failures_per_snapshot: int = 2
    max_fallback: int = 3
    on_missing: OnMissing = "Auto"
    start_from: StartSource | None = None


class Reschedule(msgspec.Struct, frozen=True, rename="camel"):
    """Best-effort help for pods whose controller does not replace them."""

    recreate_bare_pods: bool = False
    restart_gang: bool = False


class CheckpointSpec(msgspec.Struct, frozen=True, rename="camel"):
    """``Checkpoint.spec``: one training run."""

    storage: Storage
    save: Save = Save()
    overwrite_policy: OverwritePolicy = "Never"
    retention: Retention | None = None
    restore: Restore = Restore()
    grants: tuple[Grant, ...] = ()
    reschedule: Reschedule = Reschedule()
    suspend: bool = False
    deletion_policy: DeletionPolicy = "Retain"


class Condition(msgspec.Struct, frozen=True, rename="camel"):
    """``metav1.Condition``."""

    type: str
    status: ConditionStatus
    reason: str
    message: str
    last_transition_time: Timestamp
    observed_generation: int | None = None


class LatestSnapshot(msgspec.Struct, frozen=True, rename="camel"):
    """The newest live snapshot of the lineage."""

    step: int
    snapshot: str
    time: Timestamp
    bytes: int
    world_size: int


class BestSnapshot(msgspec.Struct, frozen=True, rename="camel"):
    """The snapshot that ``rollback.to: Best`` would restore. ``value`` is a decimal string."""

    step: int
    snapshot: str
    metric: str
    value: str


class LastRestore(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The restore of the newest attempt.

    Attributes:
        snapshot: None for a fresh start.
        skipped: Candidates that failed or were skipped before it, newest first, at most ``MAX_LISTED``.
        lost_steps, lost_seconds: Progress of the previous attempt after the restored snapshot, as far as known.
        seconds: Duration of the restore itself, rounded up.
    """

    attempt: int
    reason: RestoreReason
    time: Timestamp
    step: int | None = None
    snapshot: str | None = None
    skipped: tuple[str, ...] = ()
    lost_steps: int | None = None
    lost_seconds: int | None = None
    seconds: int | None = None


class AttemptStatus(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The newest attempt.

    Attributes:
        pods: Names, at most ``MAX_LISTED``; ``pod_count`` counts all.
        notice: Why it was expected to end, as soon as that was known: an eviction, or an announcement of its node.
    """

    number: int
    started_at: Timestamp
    restored_step: int | None = None
    pod_count: int | None = None
    pods: tuple[str, ...] = ()
    notice: str | None = None


class PendingPurge(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A retired snapshot whose data exists until ``purge_after``."""

    snapshot: str
    bytes: int
    purge_after: Timestamp
    reasons: tuple[str, ...] = ()


class QuarantinedSnapshot(msgspec.Struct, frozen=True, rename="camel"):
    """A snapshot that restores no longer try, and the evidence against it."""

    snapshot: str
    failures: int
    evidence: str


class CheckpointStatus(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """``Checkpoint.status``, derived from the run log; nothing in it changes by the clock alone.

    Attributes:
        claimed_by: ``<cluster>/<namespace>/<name>`` of the run that holds the prefix, perhaps not this one.
        snapshots, retained_bytes: Count and size of the snapshots that can be restored.
        retained_size: The same size in readable form, such as ``1.2Ti``.
        pending_purge_snapshots, pending_purge_bytes: Count and size of all snapshots whose data will be deleted;
            ``pending_purge`` lists the next ``MAX_LISTED``.
        quarantined_snapshots: Count of all; ``quarantined`` lists the newest ``MAX_LISTED``.
        last_save_request: The newest of the user's requests that a commit fulfilled.
        last_rollback: The newest request that is in the log.
        log_sequence: Number of the last log entry this status reflects.
    """

    observed_generation: int | None = None
    conditions: tuple[Condition, ...] = ()
    claimed_by: str | None = None
    latest: LatestSnapshot | None = None
    best: BestSnapshot | None = None
    last_restore: LastRestore | None = None
    warm_start: WarmStartStatus | None = None
    attempt: AttemptStatus | None = None
    snapshots: int | None = None
    retained_bytes: int | None = None
    retained_size: str | None = None
    pending_purge: tuple[PendingPurge, ...] = ()
    pending_purge_snapshots: int | None = None
    pending_purge_bytes: int | None = None
    quarantined: tuple[QuarantinedSnapshot, ...] = ()
    quarantined_snapshots: int | None = None
    last_save_request: str | None = None
    last_rollback: str | None = None
    log_sequence: int | None = None


class CheckpointSnapshotSpec(msgspec.Struct, frozen=True, rename="camel"):
    """``CheckpointSnapshot.spec``, written once by the operator; only ``disposition`` belongs to the user."""

    checkpoint_ref: LocalReference
    step: int
    attempt: int
    path: str
    manifest_digest: str
    disposition: Disposition = "Auto"


class SnapshotRetention(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The verdict of ``core.retention`` on the snapshot."""

    kept: bool
    reasons: tuple[str, ...] = ()


class CheckpointSnapshotStatus(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """``CheckpointSnapshot.status``.

    Attributes:
        committed_at: Time of the commit; the object may be younger, because the operator re-creates it from the log.
        copied_bytes: Part of ``bytes`` that the store copied from the parent.
        shared_bytes: Part of ``bytes`` in files that earlier snapshots stored.
        size: ``bytes`` in readable form, such as ``1.2Ti``.
        metrics: Decimal strings by name.
        saved_in: Duration from the start of staging to the last uploaded byte.
        purge_after: When the data of a retired snapshot may be deleted.
        last_release_request: The newest request to release it from quarantine that is in the log.
    """

    observed_generation: int | None = None
    conditions: tuple[Condition, ...] = ()
    committed_at: Timestamp | None = None
    bytes: int | None = None
    copied_bytes: int | None = None
    shared_bytes: int | None = None
    size: str | None = None
    files: int | None = None
    world_size: int | None = None
    metrics: dict[str, str] = {}
    saved_in: Duration | None = None
    trigger: Trigger | None = None
    retention: SnapshotRetention | None = None
    retired_at: Timestamp | None = None
    purge_after: Timestamp | None = None
    last_release_request: str | None = None


class ConditionType(StrEnum):
    """Types of conditions, of a Checkpoint unless noted otherwise.

    True is good, except for SavesFailing, ForeignData and Stalled.
    """

    READY = "Ready"  # both kinds
    STORAGE_AVAILABLE = "StorageAvailable"
    PROTECTED = "Protected"
    RESTORE_ENFORCED = "RestoreEnforced"
    RETENTION_ENFORCED = "RetentionEnforced"
    SAVES_FAILING = "SavesFailing"
    FOREIGN_DATA = "ForeignData"
    STALLED = "Stalled"
    COMMITTED = "Committed"  # CheckpointSnapshot
    VERIFIED = "Verified"  # CheckpointSnapshot


class Reason(StrEnum):
    """Reasons of a Checkpoint's conditions; ``docs/conditions.md`` gives the remedy for each."""

    # Ready, StorageAvailable and Stalled without faults
    CONFIGURED = "Configured"
    AVAILABLE = "Available"
    NOT_STALLED = "NotStalled"
    # Ready when False
    DELETING = "Deleting"
    # Ready and StorageAvailable when False; Stalled when True, if manual action is needed
    INVALID_SPEC = "InvalidSpec"
    PREFIX_CLAIMED = "PrefixClaimed"
    AMBIENT_NOT_ALLOWED = "AmbientNotAllowed"
    FILE_URL_NOT_ALLOWED = "FileUrlNotAllowed"
    ENDPOINT_NOT_ALLOWED = "EndpointNotAllowed"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105
    INVALID_CREDENTIALS = "InvalidCredentials"
    ACCESS_DENIED = "AccessDenied"
    READ_ONLY = "ReadOnly"
    BUCKET_NOT_FOUND = "BucketNotFound"
    NO_CONDITIONAL_WRITE = "NoConditionalWrite"
    STORE_UNAVAILABLE = "StoreUnavailable"
    STORE_TOO_SLOW = "StoreTooSlow"
    PASS_TIMED_OUT = "PassTimedOut"  # noqa: S105
    LISTING_TOO_LONG = "ListingTooLong"
    LOG_TOO_LONG = "LogTooLong"
    OBJECT_TOO_LARGE = "ObjectTooLarge"
    STATUS_REFUSED = "StatusRefused"
    INTERNAL_ERROR = "InternalError"
    LOG_UNREADABLE = "LogUnreadable"
    LOG_MISSING = "LogMissing"
    UPGRADE_REQUIRED = "UpgradeRequired"
    # Protected
    RECENT_SNAPSHOT = "RecentSnapshot"
    NO_SNAPSHOT = "NoSnapshot"
    SNAPSHOT_TOO_OLD = "SnapshotTooOld"
    NOT_VERIFIED = "NotVerified"
    GRACE_PERIOD_TOO_SHORT = "GracePeriodTooShort"
    # RestoreEnforced
    RESTORED_AS_ASKED = "RestoredAsAsked"
    NOT_REPORTED = "NotReported"
    RESTORE_MISMATCH = "RestoreMismatch"
    ROLLBACK_NOT_FOUND = "RollbackNotFound"
    WARM_START_NOT_GRANTED = "WarmStartNotGranted"
    WARM_START_NOT_FOUND = "WarmStartNotFound"
    WARM_START_NEEDS_SECRET = "WarmStartNeedsSecret"  # noqa: S105
    # RetentionEnforced
    ENFORCED = "Enforced"
    NO_RETENTION = "NoRetention"
    DRY_RUN = "DryRun"
    SUSPENDED = "Suspended"
    DELETION_REFUSED = "DeletionRefused"
    QUOTA_EXCEEDED = "QuotaExceeded"
    VERIFICATION_PENDING = "VerificationPending"
    UNRELIABLE_READS = "UnreliableReads"
    NOT_KNOWN = "NotKnown"
    # SavesFailing
    SAVE_FAILED = "SaveFailed"
    NOT_FAILING = "NotFailing"
    # ForeignData
    ONLY_THE_RUN = "OnlyTheRun"
    LEFT_ALONE = "LeftAlone"
    # Protected and RestoreEnforced when Unknown
    NOT_RUNNING = "NotRunning"


class SnapshotReason(StrEnum):
    """Reasons of a CheckpointSnapshot's conditions. A failed verification has its ``core.log.Evidence`` as reason."""

    # Committed
    COMMITTED = "Committed"
    BROKE_POLICY = "BrokePolicy"
    # Verified
    SIZES_MATCH = "SizesMatch"
    CHECKSUMS_MATCH = "ChecksumsMatch"
    NOT_VERIFIED = "NotVerified"
    # Ready when True
    RESTORABLE = "Restorable"
    RETIRE_REFUSED = "RetireRefused"
    # Ready when False
    QUARANTINED = "Quarantined"
    SUPERSEDED = "Superseded"
    RETIRED = "Retired"
    PURGING = "Purging"
    PURGED = "Purged"
    REJECTED = "Rejected"


class EventReason(StrEnum):
    """Reasons of the Events that the operator emits, in their usual order."""

    RUN_CLAIMED = "RunClaimed"
    RUN_ADOPTED = "RunAdopted"
    PREFIX_CLAIMED = "PrefixClaimed"
    LOG_MISSING = "LogMissing"
    FOREIGN_DATA = "ForeignData"
    WARM_START_CHOSEN = "WarmStartChosen"
    WARM_START_REFUSED = "WarmStartRefused"
    ATTEMPT_STARTED = "AttemptStarted"
    SNAPSHOT_COMMITTED = "SnapshotCommitted"
    SAVE_REQUESTED = "SaveRequested"
    SAVE_FAILED = "SaveFailed"
    ROLLBACK_NOT_FOUND = "RollbackNotFound"
    POD_EVICTED = "PodEvicted"
    POD_RECREATED = "PodRecreated"
    POD_NOT_RECREATED = "PodNotRecreated"
    GANG_RESTARTED = "GangRestarted"
    GANG_NOT_RESTARTED = "GangNotRestarted"
    ATTEMPT_FENCED = "AttemptFenced"
    RESTORED = "Restored"
    RESTORE_FAILED = "RestoreFailed"
    SNAPSHOT_QUARANTINED = "SnapshotQuarantined"
    QUARANTINE_RELEASED = "QuarantineReleased"
    SNAPSHOT_REJECTED = "SnapshotRejected"
    SNAPSHOT_RETIRED = "SnapshotRetired"
    SNAPSHOT_REINSTATED = "SnapshotReinstated"
    SNAPSHOT_PURGED = "SnapshotPurged"
    DELETION_REFUSED = "DeletionRefused"
    RUN_DELETED = "RunDeleted"
    DATA_RETAINED = "DataRetained"
    SECOND_OPERATOR = "SecondOperator"
