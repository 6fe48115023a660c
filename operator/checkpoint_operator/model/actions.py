"""The actions of a plan, one frozen dataclass per effect. ``decide.appends`` and ``act`` carry them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from checkpoint_operator.model.observed import ScrubFinding
from checkpoint_sidecar.core.compaction import EntryRange
from checkpoint_sidecar.core.log import PodIdentity, WarmStartChosen
from checkpoint_sidecar.core.policy import Disposition, Policy
from checkpoint_sidecar.core.selection import NO_TERMS, Terms


@dataclass(frozen=True, slots=True)
class Claim:
    """Write entry 1."""


@dataclass(frozen=True, slots=True)
class Adopt:
    """Take the run over from ``previous``, in the form of ``status.claimedBy``.

    Attributes:
        request: The request of the Checkpoint object: ``<uid>/<generation>``.
        unset_at: The last generation that is known to have had another value; 0 if none is.
    """

    previous: str
    request: str = field(default="", compare=False)
    unset_at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Configure:
    """Put the policy into the log."""

    uid: str
    generation: int
    policy: Policy


@dataclass(frozen=True, slots=True)
class RequestRollback:
    request: str
    snapshot: str


@dataclass(frozen=True, slots=True)
class ChooseWarmStart:
    """Let the run begin at a snapshot of another one."""

    chosen: WarmStartChosen


@dataclass(frozen=True, slots=True)
class RequestSave:
    """Ask the running attempt to save now.

    Attributes:
        reason: Empty if the user asked; see ``SaveRequested``.
    """

    request: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class NoticeEviction:
    attempt: int
    pod: PodIdentity
    reason: str


@dataclass(frozen=True, slots=True)
class SetDisposition:
    snapshot: str
    disposition: Disposition


@dataclass(frozen=True, slots=True)
class ReleaseQuarantine:
    snapshot: str
    request: str


@dataclass(frozen=True, slots=True)
class Verify:
    """Compare the stored objects with the manifest, by size; the scrubber compares the checksums, in its own time."""

    snapshot: str


@dataclass(frozen=True, slots=True)
class RecordCheck:
    """Record in the log what ``Verify`` or the scrubber found."""

    finding: ScrubFinding


@dataclass(frozen=True, slots=True)
class Retire:
    """Take a snapshot out of the candidates, if the policy still wants that.

    Attributes:
        terms: What this operator added to the policy when this was planned.
    """

    snapshot: str
    terms: Terms = NO_TERMS


@dataclass(frozen=True, slots=True)
class Reinstate:
    """Undo ``Retire``; ``terms`` as there."""

    snapshot: str
    terms: Terms = NO_TERMS


@dataclass(frozen=True, slots=True)
class PublishPointer:
    """Make the stock ``.metadata`` of a step show what the log says.

    Attributes:
        snapshot: The snapshot that it should show when this was planned; empty for none.
    """

    step: int
    snapshot: str


@dataclass(frozen=True, slots=True)
class Purge:
    """Delete a snapshot's data, or continue to; ``terms`` as in ``Retire``."""

    snapshot: str
    terms: Terms = NO_TERMS


@dataclass(frozen=True, slots=True)
class Compact:
    """Write some log entries into one object, so that the log opens faster."""

    span: EntryRange


@dataclass(frozen=True, slots=True)
class SurveyPrefix:
    """Survey the prefix for what the run did not write, and for stock pointers."""


@dataclass(frozen=True, slots=True)
class CollectOrphans:
    """Delete what the attempts before this one left of saves that were never committed."""

    attempt: int


@dataclass(frozen=True, slots=True)
class CollectLast:
    """Do the same for the highest attempt itself after a long silence: fence it if it left anything.

    Attributes:
        commit: Its last commit when this was planned, or empty; another one is a sign of life.
    """

    attempt: int
    commit: str


@dataclass(frozen=True, slots=True)
class End:
    """Give the run up for good: it has no owner from then on."""


@dataclass(frozen=True, slots=True)
class Erase:
    """Delete a run that was given up, or continue to."""


@dataclass(frozen=True, slots=True)
class CreateMirror:
    """Create a CheckpointSnapshot and write its status, which needs a request of its own."""

    body: Mapping[str, Any]
    status: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReportMirror:
    """Write the status of a CheckpointSnapshot."""

    name: str
    status: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DeleteMirror:
    """Delete a CheckpointSnapshot, if it is still the object with this UID."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Create a bare pod again.

    Attributes:
        uid: UID of the pod that is gone.
        reason: Why that one had to go.
    """

    name: str
    uid: str
    reason: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete what is left of a bare pod, to free its name."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class EvictPod:
    """Evict a pod of an attempt that lost another one."""

    name: str
    uid: str
    attempt: int


LogAction: TypeAlias = (
    Claim
    | Adopt
    | Configure
    | RequestRollback
    | ChooseWarmStart
    | RequestSave
    | NoticeEviction
    | SetDisposition
    | ReleaseQuarantine
    | RecordCheck
    | Retire
    | Reinstate
    | End
)
StoreAction: TypeAlias = (
    LogAction | Verify | PublishPointer | Purge | Compact | SurveyPrefix | CollectOrphans | CollectLast | Erase
)
MirrorAction: TypeAlias = CreateMirror | ReportMirror | DeleteMirror
PodAction: TypeAlias = CreatePod | DeletePod | EvictPod
Action: TypeAlias = StoreAction | MirrorAction | PodAction
