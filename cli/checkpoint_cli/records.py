"""What ``-o json`` and ``-o yaml`` print: stable records, described by docs/cli-schema.json.

Fields are only ever added. Times are RFC 3339 in UTC by the store's clock, sizes bytes, durations seconds. A field that
is not known is null.
"""

from __future__ import annotations

from typing import Any

import msgspec

API_VERSION = "cli.checkpoint-operator.dev/v1"


class CommandRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag_field="kind"):
    """One printed object; ``kind`` says which."""

    api_version: str = API_VERSION


class SnapshotRecord(CommandRecord, frozen=True, kw_only=True, tag="Snapshot"):
    """One snapshot.

    Attributes:
        state: ``Live``, ``Retired``, ``Purging``, ``Purged`` or ``Rejected``.
        verified: ``None``, ``Sizes`` or ``Checksums``: how thoroughly its bytes were compared.
        failures: How often evidence was found against it.
        marks: ``latest``, ``best``, ``in-use``, ``rollback-target``, ``quarantined``, ``superseded``, where they apply.
        kept: Whether retention keeps it; null if that is unknown.
        reasons: Why it is kept, or why it goes.
        path: Its folder below the run's URL.
        saved_in: Duration of the save.
        purge_after: When the data of a retired snapshot may be deleted.
    """

    id: str
    step: int
    attempt: int
    state: str
    committed_at: str | None = None
    bytes: int | None = None
    shared_bytes: int | None = None
    files: int | None = None
    world_size: int | None = None
    trigger: str | None = None
    metrics: dict[str, str] = {}
    verified: str | None = None
    failures: int = 0
    evidence: str = ""
    disposition: str = "Auto"
    marks: tuple[str, ...] = ()
    kept: bool | None = None
    reasons: tuple[str, ...] = ()
    parent: str = ""
    path: str = ""
    manifest_digest: str = ""
    saved_in: float | None = None
    purge_after: str | None = None


class SnapshotRecords(CommandRecord, frozen=True, kw_only=True, tag="SnapshotList"):
    """Snapshots, newest first."""

    run: str
    items: tuple[SnapshotRecord, ...]


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The newest attempt.

    Attributes:
        step: Its last step that is known, of the heartbeat or of a commit.
        step_at: When that was.
        steps_per_second: Its average speed between its start and its last step; null if it is unknown.
        notice: Why it is expected to end.
    """

    number: int
    started_at: str
    world_size: int | None = None
    restored: str = ""
    step: int | None = None
    step_at: str | None = None
    steps_per_second: float | None = None
    ended: bool | None = None
    notice: str = ""


class NextPurgeRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A snapshot that retention retires or deletes next.

    Attributes:
        action: ``Retire`` or ``Purge``.
        at: When, if it waits for a grace period.
    """

    snapshot: str
    action: str
    bytes: int | None = None
    at: str | None = None
    reasons: tuple[str, ...] = ()


class ConditionRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One condition of a Checkpoint, as in its status."""

    type: str
    status: str
    reason: str
    message: str


class RunRecord(CommandRecord, frozen=True, kw_only=True, tag="Run"):
    """One run.

    Attributes:
        name: ``namespace/name`` of the Checkpoint, or the URL.
        owner: ``cluster/namespace/name`` in the log; empty before the prefix is claimed.
        managed: Whether an operator has configured it.
        health: ``Healthy``, ``Degraded`` or ``Broken``; ``problems`` says why.
        snapshots, retained_bytes: Count and size of the snapshots that can be restored.
        lost_steps: Steps that the newest start lost.
        next_save: When, or after which step, the next save is due, in words.
        pending: The rollback or fresh start that no commit has carried yet.
        next_purges: The next actions of retention, at most 16.
    """

    name: str
    url: str
    owner: str = ""
    managed: bool | None = None
    suspended: bool | None = None
    health: str = "Healthy"
    problems: tuple[str, ...] = ()
    log_entries: int | None = None
    attempt: AttemptRecord | None = None
    latest: SnapshotRecord | None = None
    best: SnapshotRecord | None = None
    snapshots: int | None = None
    retained_bytes: int | None = None
    lost_steps: int | None = None
    lost_seconds: float | None = None
    next_save: str = ""
    pending: str = ""
    next_purges: tuple[NextPurgeRecord, ...] = ()
    conditions: tuple[ConditionRecord, ...] = ()


class RunRecords(CommandRecord, frozen=True, kw_only=True, tag="RunList"):
    """Runs by name."""

    items: tuple[RunRecord, ...]


class EntryRecord(CommandRecord, frozen=True, kw_only=True, tag="LogEntry"):
    """One entry of the run log, or one Event.

    Attributes:
        number: Its number in the log; null for an Event.
        event: The kind of the entry, or the reason of the Event.
        text: What happened, in one sentence.
        details: The entry's fields.
    """

    number: int | None = None
    time: str
    event: str
    text: str
    writer: str = ""
    details: dict[str, Any] = {}


class EntryRecords(CommandRecord, frozen=True, kw_only=True, tag="LogEntryList"):
    """Entries, oldest first."""

    run: str
    items: tuple[EntryRecord, ...]


class CheckRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One check.

    Attributes:
        result: ``ok``, ``warning``, ``problem`` or ``unknown``.
        detail: What was found, and the next step.
    """

    check: str
    result: str
    detail: str = ""


class ReportRecord(CommandRecord, frozen=True, kw_only=True, tag="CheckReport"):
    """What `doctor` or `verify` found."""

    subject: str
    items: tuple[CheckRecord, ...]


class ChangeRecord(CommandRecord, frozen=True, kw_only=True, tag="Change"):
    """What a verb changed, or would change with ``--dry-run``.

    Attributes:
        done: False for a dry run, and if it was so already.
        request: The id under which a rollback, a save or a release is served once.
    """

    verb: str
    run: str
    snapshot: str = ""
    request: str = ""
    done: bool
    text: str


class ItemRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One module, tensor or other value of a snapshot.

    Attributes:
        type: ``module``, ``tensor``, ``value`` or ``file`` (of a trainer's folder).
        tensors: Number of tensors below a module; 1 for a tensor.
        bytes: Stored size; null for a value that is no tensor.
    """

    name: str
    type: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    tensors: int = 0
    bytes: int | None = None


class ItemRecords(CommandRecord, frozen=True, kw_only=True, tag="ItemList"):
    """The contents of a snapshot by name; ``bytes`` counts its tensors."""

    run: str
    snapshot: str
    bytes: int
    items: tuple[ItemRecord, ...]


class DifferenceRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One difference between two snapshots.

    Attributes:
        what: ``property``, ``metric``, ``item`` (one side lacks it), ``shape``, ``dtype`` or ``value``.
        a, b: Each side's; null where it lacks it. For ``value`` the Euclidean norms of a tensor.
        change: For ``value``, the norm of the difference divided by that of ``a``; null if ``a`` is zero.
    """

    what: str
    name: str
    a: str | None = None
    b: str | None = None
    change: float | None = None


class DifferenceRecords(CommandRecord, frozen=True, kw_only=True, tag="DifferenceList"):
    """What differs between two snapshots.

    Attributes:
        same: Number of tensors that were compared and do not differ.
        values: Whether the values of tensors were compared, and not only their shapes.
    """

    a: str
    b: str
    values: bool
    same: int
    items: tuple[DifferenceRecord, ...]


class ExportedFileRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One file of an export.

    Attributes:
        crc32c: Checksum in 8 hexadecimal digits; empty if it is not known.
        state: ``written``, ``planned``, or ``kept`` if an earlier call had written it.
    """

    name: str
    bytes: int
    crc32c: str = ""
    state: str


class ExportedRecord(CommandRecord, frozen=True, kw_only=True, tag="Export"):
    """What `export` wrote, or would write with ``--dry-run``.

    Attributes:
        to: ``hf``, ``safetensors`` or ``pt``.
        part: The part of the state.
        bytes: Size of the files.
        passing_bytes: How many of them pass through this machine; the store copies the others by itself.
        done: False for a dry run, and if the same export was complete already.
        manifest_digest: SHA-256 of the snapshot's manifest, which identifies what was exported.
        ties: Further names of tensors that are written once.
        skipped: Names of values that are no tensors.
    """

    run: str
    snapshot: str
    step: int
    destination: str
    to: str
    part: str
    tensors: int
    bytes: int
    passing_bytes: int
    done: bool
    manifest_digest: str
    items: tuple[ExportedFileRecord, ...]
    ties: dict[str, str] = {}
    skipped: tuple[str, ...] = ()


PRINTED: tuple[type[CommandRecord], ...] = (
    SnapshotRecord,
    SnapshotRecords,
    RunRecord,
    RunRecords,
    EntryRecord,
    EntryRecords,
    ReportRecord,
    ChangeRecord,
    ItemRecords,
    DifferenceRecords,
    ExportedRecord,
)
"""Everything that may stand at the top of the output."""
