"""The run log's wire format: numbered, immutable JSON entries, each carrying its predecessor's digest.

The idea is that of the Delta Lake transaction log (Armbrust et al., VLDB 2020): state is a fold over entries, and an
entry is appended by creating the next number with put-if-absent. ``core.replay`` gives the entries their *meaning*.

An entry is one JSON object::

    {"format": "1.0", "number": 7, "id": "<32 hex>", "previous": "<sha256 of entry 6's bytes>", "time": "...",
     "writer": "library 0.1.0", "critical": false, "kind": "SnapshotCommitted", "body": {...}}

- ``time`` is the writer's clock, for humans only; decisions use the store's clock (``StoredEntry.stored_at``).
- A reader skips kinds it does not know. If such an entry is ``critical``, it may read but must not append or delete.
- A reader refuses a larger major ``format`` than its own; a larger minor one only adds.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from typing import Annotated, TypeAlias, get_args

import msgspec

from checkpoint_sidecar.core.commits import SnapshotCommitted as SnapshotCommitted
from checkpoint_sidecar.core.commits import SnapshotCommittedSharing as SnapshotCommittedSharing
from checkpoint_sidecar.core.commits import Trigger as Trigger
from checkpoint_sidecar.core.errors import NO_EVIDENCE, LogError
from checkpoint_sidecar.core.errors import Evidence as Evidence
from checkpoint_sidecar.core.log_format import FORMAT, Format, check_format, check_version
from checkpoint_sidecar.core.owner import Owner as Owner
from checkpoint_sidecar.core.owner import PodIdentity as PodIdentity
from checkpoint_sidecar.core.policy import NOT_CHECKED, Disposition, Policy, VerifyLevel
from checkpoint_sidecar.core.reading import SnapshotRead as SnapshotRead
from checkpoint_sidecar.core.shared_files import MOST_FILES, FileRuns, count_of
from checkpoint_sidecar.core.wire import Count, Positive, Seconds, SmallPositive, UndecodableError, decode_json

MAX_ENTRY_BYTES = 256 * 1024

MAX_TEXT = 1024

MAX_PODS = 16
"""Maximum number of pods recorded for an attempt; a large one has thousands."""

MAX_REQUEST = 128
"""Longest id of a request, in characters."""

Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
Names = Annotated[tuple[Text, ...], msgspec.Meta(max_length=32)]
Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
RequestId = Annotated[str, msgspec.Meta(max_length=MAX_REQUEST)]
AttemptNumber = Positive
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]

_FOREIGN = "Something else wrote to the log; restore the object from the bucket's versions or use another prefix."


class RunClaimed(msgspec.Struct, frozen=True, rename="camel"):
    """The first entry of a run: number 1, or the one after the tombstone of a deleted run.

    The loser of the race compares owners. The digest of its bytes is the run's identity.
    """

    owner: Owner


class RunAdopted(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The run gets a new owner. Fences every earlier attempt, and the former owner's operator.

    A run that is to be deleted gets the owner ``Owner.deleted``, from which it cannot be adopted. That entry stays
    as the run's tombstone, so that numbers are never reused.

    Attributes:
        request: The adopting Checkpoint object's request, ``<uid>/<generation>``. Each takes effect once.
    """

    owner: Owner
    previous_owner: Owner
    request: RequestId = ""


class SavesIdentified(msgspec.Struct, frozen=True, rename="camel"):
    """Folders of later saves carry the run's short identity. Critical: versions that cannot read them stop."""

    run: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}\Z")]


class RunConfigured(msgspec.Struct, frozen=True, rename="camel"):
    """The policy that applies from here on. Pods read it here, without access to Kubernetes.

    ``generation`` orders the configurations of one Checkpoint object; ``uid`` tells a re-created object, whose
    generations start again at 1, from a stale writer.
    """

    uid: Identifier
    generation: Positive
    policy: Policy


class RollbackRequested(msgspec.Struct, frozen=True, rename="camel"):
    """Restore ``snapshot`` at each start until a commit carries ``request``.

    The same entry reinstates a retired snapshot, so that a start in between cannot restore another one.
    """

    request: Identifier
    snapshot: Identifier


class WarmStartChosen(msgspec.Struct, frozen=True, rename="camel"):
    """The run begins at this snapshot of another run: each start loads it until this run has a commit.

    A later entry replaces it. Entries after the first commit are void.

    Attributes:
        asked: What was asked for, such as ``s3://training/llama@best``. Until that changes, the snapshot stays.
        url: The other run.
        snapshot: Empty if ``url`` is not a run.
        part: Name of the only object to load; empty for all of them, and to continue at ``step``.
    """

    asked: Text
    url: Text
    snapshot: RequestId = ""
    step: Count = 0
    part: RequestId = ""


class AttemptStarted(msgspec.Struct, frozen=True, rename="camel"):
    """A start of the run's process group. Its number is the fencing token.

    Attributes:
        attempt: Number of the attempt: the highest so far plus one.
        restore_request: The pending rollback or fresh start this attempt carries, or empty.
        candidate: Snapshot that it will try first, or empty; in use from here on, before any read.
        continues: Snapshot that its first commit descends from without a restore, or empty. Only DCP drop-in
            directories use it: there, each save is an attempt that overwrites the newest snapshot without reading it.
        copies: Identity of the run whose snapshots it copies; absent if it trains.
    """

    attempt: AttemptNumber
    world_size: SmallPositive
    restore_request: RequestId = ""
    candidate: RequestId = ""
    continues: RequestId = ""
    pods: Annotated[tuple[PodIdentity, ...], msgspec.Meta(max_length=MAX_PODS)] = ()
    copies: Digest | msgspec.UnsetType = msgspec.UNSET


class RestoreStarted(msgspec.Struct, frozen=True, rename="camel"):
    """The attempt is about to read this snapshot."""

    attempt: AttemptNumber
    snapshot: Identifier


class RestoreFinished(msgspec.Struct, frozen=True, rename="camel"):
    """The outcome of one candidate.

    Attributes:
        restored: True when every rank loaded it.
        evidence: Why the stored bytes are bad. Only evidence counts towards quarantine; ``None`` is an interruption.
        verified: How thoroughly the whole snapshot was checked while loading.
        seconds: Duration on the slowest rank.
        bytes: Size of the snapshot.
        compared_bytes: Number of them that all ranks together compared with checksums. Absent in entries of writers
            that did not count: those claimed the whole snapshot after reading a part, and verify nothing.
        damaged_file: Key of the file against which there is evidence, if snapshots may share it.
        missing: Names that the training state has and the snapshot lacks; if there are many, the first and a count.
        unused: Names that the snapshot has and the training state lacks; likewise.
    """

    attempt: AttemptNumber
    snapshot: Identifier
    restored: bool
    evidence: Evidence = NO_EVIDENCE
    message: Text = ""
    verified: VerifyLevel = NOT_CHECKED
    seconds: Seconds = 0.0
    bytes: Count = 0
    compared_bytes: Count | msgspec.UnsetType = msgspec.UNSET
    missing: Names = ()
    unused: Names = ()
    damaged_file: Text | msgspec.UnsetType = msgspec.UNSET


class WarmStartFinished(msgspec.Struct, frozen=True, rename="camel"):
    """The outcome of loading the snapshot of another run. Fields as in ``WarmStartChosen`` and ``RestoreFinished``."""

    attempt: AttemptNumber
    url: Text
    snapshot: RequestId = ""
    step: Count = 0
    part: RequestId = ""
    restored: bool = False
    evidence: Evidence = NO_EVIDENCE
    message: Text = ""
    seconds: Seconds = 0.0
    bytes: Count = 0
    missing: Names = ()
    unused: Names = ()


class SnapshotVerified(msgspec.Struct, frozen=True, rename="camel"):
    """The stored objects were compared with the manifest, without restoring them. See also ``RestoreFinished``."""

    snapshot: Identifier
    level: VerifyLevel
    passed: bool
    evidence: Evidence = NO_EVIDENCE
    message: Text = ""
    damaged_file: Text | msgspec.UnsetType = msgspec.UNSET


class SaveRequested(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Ask the named attempt to save now.

    Attributes:
        reason: The operator's reason for the request; empty for the user's.
    """

    request: Identifier
    attempt: AttemptNumber
    reason: Text = ""


class SaveFailed(msgspec.Struct, frozen=True, rename="camel"):
    """Saves of the attempt fail, and training continues. At most once until the next commit.

    Attributes:
        step: The step of the latest failed save.
        failures: Number of successive failures when this was written.
        message: Cause of the latest failure.
    """

    attempt: AttemptNumber
    step: Count
    failures: AttemptNumber = 1
    message: Text = ""


class EvictionNoticed(msgspec.Struct, frozen=True, rename="camel"):
    """A pod of the attempt will be or was evicted. At most one per attempt."""

    attempt: AttemptNumber
    pod: PodIdentity
    reason: Text


class AttemptFenced(msgspec.Struct, frozen=True, rename="camel"):
    """The highest attempt has ended and may no longer commit, so its leftovers can be deleted.

    It does not affect later attempts, which have higher numbers.
    """

    attempt: AttemptNumber


class DispositionSet(msgspec.Struct, frozen=True, rename="camel"):
    """The user's decision about one snapshot, stored here so that it survives loss of etcd."""

    snapshot: Identifier
    disposition: Disposition


class QuarantineReleased(msgspec.Struct, frozen=True, rename="camel"):
    """Discard the evidence against a snapshot, because a user decided so. Each request takes effect once."""

    snapshot: Identifier
    request: Identifier


class SnapshotRetired(msgspec.Struct, frozen=True, rename="camel"):
    """The snapshot is no longer a candidate. Its data stays until PurgeStarted."""

    snapshot: Identifier
    reasons: Annotated[tuple[Text, ...], msgspec.Meta(max_length=8)]


class SnapshotReinstated(msgspec.Struct, frozen=True, rename="camel"):
    """The snapshot is a candidate again. With ``attempt``, implies RestoreStarted. Invalid after PurgeStarted."""

    snapshot: Identifier
    attempt: AttemptNumber | None = None


class PurgeStarted(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The first delete may follow; this cannot be undone.

    Attributes:
        keep: The snapshot's files that others need. They stay until another such entry, which may keep fewer of them.
    """

    snapshot: Identifier
    keep: FileRuns = ""

    def __post_init__(self) -> None:
        if count_of(self.keep) > MOST_FILES:
            raise ValueError(f"more than {MOST_FILES} files are kept")


class SnapshotPurged(msgspec.Struct, frozen=True, rename="camel"):
    """The data is deleted. Links and numbers stay."""

    snapshot: Identifier
    bytes: Count = 0


class Unknown(msgspec.Struct, frozen=True):
    """An entry of a kind that this version does not know."""

    kind: str


Body: TypeAlias = (
    RunClaimed
    | RunAdopted
    | SavesIdentified
    | RunConfigured
    | RollbackRequested
    | WarmStartChosen
    | AttemptStarted
    | RestoreStarted
    | RestoreFinished
    | WarmStartFinished
    | SnapshotCommitted
    | SnapshotCommittedSharing
    | SnapshotVerified
    | SnapshotRead
    | SaveRequested
    | SaveFailed
    | EvictionNoticed
    | AttemptFenced
    | DispositionSet
    | QuarantineReleased
    | SnapshotRetired
    | SnapshotReinstated
    | PurgeStarted
    | SnapshotPurged
)

KINDS: dict[str, type[Body]] = {kind.__name__: kind for kind in get_args(Body)}


class Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """The fields of every entry around its body."""

    format: Format
    number: AttemptNumber
    id: Identifier
    previous: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
    time: Annotated[str, msgspec.Meta(max_length=64)]
    writer: Annotated[str, msgspec.Meta(max_length=256)]
    kind: Identifier
    body: msgspec.Raw
    critical: bool = False


class StoredEntry(msgspec.Struct, frozen=True):
    """One entry as read from the store.

    Attributes:
        digest: SHA-256 of the entry's bytes; the successor carries it as ``previous``.
        stored_at: The store's clock when the entry was created, timezone-aware UTC.
        time: The writer's clock, for display only.
    """

    number: int
    id: str
    previous: str
    digest: str
    stored_at: dt.datetime
    time: str
    writer: str
    critical: bool
    body: Body | Unknown


def new_entry_id() -> str:
    """Return an id for one *intended* entry. Retries use the same id, so that a writer recognizes its own entry."""
    return uuid.uuid4().hex


def encode(*, number: int, entry_id: str, previous: str, time: dt.datetime, writer: str, body: Body) -> bytes:
    """Return the bytes of an entry.

    Raises:
        LogError: They exceed ``MAX_ENTRY_BYTES``, or a field is out of bounds. Readers could not decode such an entry,
            and entries cannot be undone.
    """
    operation, kind = "write a log entry", type(body).__name__
    envelope = Envelope(
        format=FORMAT,
        number=number,
        id=entry_id,
        previous=previous,
        time=time.astimezone(dt.UTC).isoformat(timespec="milliseconds"),
        writer=writer,
        kind=kind,
        body=msgspec.Raw(msgspec.json.encode(body)),
        critical=isinstance(body, SavesIdentified | SnapshotCommittedSharing),
    )
    data = msgspec.json.encode(envelope)
    if len(data) > MAX_ENTRY_BYTES:
        raise LogError(operation, kind, f"it has {len(data)} bytes, more than {MAX_ENTRY_BYTES}")
    try:
        decode(data, number=number, stored_at=time)
    except LogError as error:
        raise LogError(operation, kind, error.cause) from error
    return data


def decode(data: bytes, *, number: int, stored_at: dt.datetime) -> StoredEntry:
    """Read one entry.

    Args:
        data: Its bytes.
        number: The number in its key; the entry must agree.
        stored_at: The store's clock when it was created.

    Raises:
        LogError: It is not an entry, or has another number or a larger major format.
    """
    operation, subject = "read", f"entry {number} of the run log"
    try:
        envelope = _envelope(data, operation, subject)
    except UndecodableError as error:
        raise LogError(operation, subject, f"it is not a log entry: {error}", _FOREIGN) from error
    if envelope.number != number:
        raise LogError(operation, subject, f"it says that it is entry {envelope.number}", _FOREIGN)
    kind = KINDS.get(envelope.kind)
    body: Body | Unknown
    if kind is None:
        body = Unknown(envelope.kind)
    else:
        try:
            body = decode_json(envelope.body, kind)
        except UndecodableError as error:
            raise LogError(operation, subject, f"it is not a valid {envelope.kind}: {error}", _FOREIGN) from error
    return StoredEntry(
        number=number,
        id=envelope.id,
        previous=envelope.previous,
        digest=hashlib.sha256(data).hexdigest(),
        stored_at=stored_at,
        time=envelope.time,
        writer=envelope.writer,
        critical=envelope.critical,
        body=body,
    )


def _envelope(data: bytes, operation: str, subject: str) -> Envelope:
    """Decode an entry without its body; of a larger major format nothing but the format need be as it is here."""
    try:
        envelope = decode_json(data, Envelope)
    except UndecodableError:
        check_format(data, operation, subject)
        raise
    check_version(envelope.format, operation, subject)
    return envelope
