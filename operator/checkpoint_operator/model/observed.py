"""The frozen values that decisions read: what the operator knows about one Checkpoint in one pass.

``None`` always means "not known", never "there is none": a decision that meets it must not act.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from checkpoint_sidecar.core.api import CheckpointSpec, Reason, Storage
from checkpoint_sidecar.core.api_sources import Grant
from checkpoint_sidecar.core.belongings import Survey
from checkpoint_sidecar.core.compaction import EntryRange
from checkpoint_sidecar.core.log import Owner, SnapshotVerified
from checkpoint_sidecar.core.policy import Disposition, Policy
from checkpoint_sidecar.core.retention import RetentionVerdict, judge
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.core.selection import Quota, Terms

CORDON = "node.kubernetes.io/unschedulable"
"""The taint of ``kubectl cordon``: set within milliseconds, and unlike ``spec.unschedulable`` it says since when."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """A Checkpoint by namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The object as read from the API server.

    Attributes:
        spec: None when it does not decode; the schema should have refused it.
        status: As stored, for comparison and for what only it remembers (transition times, ``logSequence``).
        resource_version: The version that was read, so that writes do not overwrite later changes.
        deleted_at: When its deletion was requested, by the API server's clock.
    """

    key: Key
    uid: str
    generation: int
    created_at: str
    spec: CheckpointSpec | None
    status: Mapping[str, Any] = field(default_factory=dict)
    resource_version: str = ""
    finalizers: tuple[str, ...] = ()
    deleted_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Toleration:
    """A toleration of a pod. Empty fields match everything; ``limited`` means only for some time."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""
    limited: bool = False


@dataclass(frozen=True, slots=True)
class Announcement:
    """A taint that announces that a node, or its pods, will be gone soon.

    Attributes:
        since: When it was set, as the API server writes times; empty if the taint does not say.
        times: How often this very taint was seen to appear, from 1.
    """

    key: str
    effect: str
    value: str = ""
    since: str = ""
    times: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A node and its announcements, the earliest first."""

    name: str
    uid: str
    announcements: tuple[Announcement, ...] = ()


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod labelled with the Checkpoint's name.

    Attributes:
        created_at, started_at: The API server's and the kubelet's clock.
        leaving: Why it was or is being evicted or deleted, or empty.
        grace_seconds: From SIGTERM to SIGKILL, or None when that is not known.
        node: Where it runs; empty before it was scheduled.
        running_since: When the youngest of its running containers started, or None when none runs.
    """

    name: str
    uid: str
    phase: str
    created_at: dt.datetime
    started_at: dt.datetime | None = None
    leaving: str = ""
    grace_seconds: float | None = None
    node: str = ""
    tolerations: tuple[Toleration, ...] = ()
    running_since: dt.datetime | None = None

    @property
    def active(self) -> bool:
        return self.phase in ("Pending", "Running")


@dataclass(frozen=True, slots=True)
class DisruptedPod:
    """A pod without a controller that was not deleted on purpose.

    Attributes:
        reason: The reason in its condition DisruptionTarget.
        body: As last seen.
        since: When that was first seen, or when creating it last failed; the operator's clock.
        failures: How often it was created again without living long, or could not be created.
    """

    name: str
    uid: str
    reason: str
    body: Mapping[str, Any]
    since: dt.datetime
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Mirror:
    """A CheckpointSnapshot object.

    Attributes:
        uid: Of this object, so that no other one of the same name is deleted instead.
        controller: UID of the object that controls it, or empty: after ``kubectl delete --cascade=orphan`` or a
            restore from a backup there is none, or one that is gone.
        release_request: A user's request to release the snapshot from quarantine, or empty.
    """

    name: str
    snapshot: str
    generation: int
    disposition: Disposition
    status: Mapping[str, Any] = field(default_factory=dict)
    deleting: bool = False
    release_request: str = ""
    uid: str = ""
    controller: str = ""

    def belongs_to(self, checkpoint: Checkpoint, run: Run) -> bool:
        """Whether it is an object of this Checkpoint, and shows a snapshot of its log."""
        return self.controller == checkpoint.uid and self.snapshot in run.snapshots


@dataclass(frozen=True, slots=True)
class SourceCheckpoint:
    """The Checkpoint at whose snapshot this run is to begin, as the API server has it.

    Attributes:
        status: As its own passes have written it.
        mirrors: Its CheckpointSnapshots.
    """

    key: Key
    storage: Storage
    grants: tuple[Grant, ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    mirrors: tuple[Mirror, ...] = ()


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far an attempt came, by its last heartbeat: a hint for reporting, never for decisions.

    Attributes:
        at: The store's clock when it was written.
        ended: Whether the attempt said that it ends.
    """

    attempt: int
    step: int
    at: dt.datetime
    ended: bool = False


@dataclass(frozen=True, slots=True)
class ScrubFinding:
    """Result of comparing the stored objects of a snapshot with its manifest.

    Attributes:
        judged: ``Snapshot.judged`` before, so that of two findings at the same time only the first counts.
    """

    check: SnapshotVerified
    judged: int


@dataclass(frozen=True, slots=True)
class ReadBack:
    """State of reading the snapshots of a Checkpoint back.

    Attributes:
        reading: Id of the snapshot being read, or empty.
        trouble: Why the last one could not be read to its end, or empty.
        unreliable: Whether that was because each read gave other bytes.
        findings: Results that are not in the log yet.
    """

    reading: str = ""
    trouble: str = ""
    unreliable: bool = False
    findings: tuple[ScrubFinding, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreFault:
    """Why the run's store or log cannot be used.

    Attributes:
        stalled: Only a person can fix it; retries only notice the fix.
        unreachable: Why the store could not be reached, without any names; empty when it answered, whatever it said.
        retry_seconds: When to try again, or None for a back-off.
    """

    reason: Reason
    message: str
    stalled: bool = False
    unreachable: str = ""
    retry_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TakeOver:
    """The Checkpoint's request to take over the run of another one.

    Attributes:
        generation: The generation at which the present value was first seen; 0 if not known.
        unset_at: The last generation that was seen with another value; 0 if none was.
    """

    generation: int = 0
    unset_at: int = 0


@dataclass(frozen=True, slots=True)
class Remembered:
    """What earlier passes of this process have found out. It does not outlive the process, so it may be empty.

    Attributes:
        progress: The last known progress by attempt.
        pointers: The snapshot that the stock pointer of each step was last made to show; empty when nothing is known.
        orphans_collected: Attempt for which the leftovers of those before it were collected.
        orphans_collected_at: When that was, by the store's clock.
        last_collected: The highest attempt, if its own leftovers were collected too, and its last commit then.
        survey: What lies under the prefix besides the run's own objects; None while that is not known.
        survey_due: Whether to look for that now.
        take_over: What ``spec.storage.takeOverFrom`` asks for, see ``TakeOver``.
        refusal: Why the store does not let the operator delete, or empty.
        unverifiable: Why snapshots cannot be compared with their manifests for now, by id.
        compactions: Ranges of the log that were compacted already.
    """

    progress: Mapping[int, RunProgress] = field(default_factory=lambda: MappingProxyType({}))
    pointers: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    orphans_collected: int = 0
    orphans_collected_at: dt.datetime | None = None
    last_collected: tuple[int, str] = (0, "")
    survey: Survey | None = None
    survey_due: bool = False
    take_over: TakeOver = field(default_factory=TakeOver)
    refusal: str = ""
    unverifiable: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    compactions: frozenset[EntryRange] = frozenset()


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Checkpoint's surroundings in Kubernetes.

    Attributes:
        rival: The Checkpoint that has an overlapping prefix.
        namespace_deleted: Whether the namespace is going away; not looked up while that makes no difference.
        mirrors: The CheckpointSnapshot objects of this Checkpoint.
        pods: Those with the Checkpoint's label.
        nodes: Those of its pods' nodes that announce something.
        disrupted: Pods that only the operator would create again.
        source: The Checkpoint that ``spec.restore.startFrom`` names. None if it names none, if that is not to be seen
            from here, or once this run has a commit.
        wanted: Ids of this run's snapshots at which other runs are about to begin.
    """

    rival: Key | None = None
    namespace_deleted: bool = False
    mirrors: tuple[Mirror, ...] = ()
    pods: tuple[Pod, ...] = ()
    nodes: tuple[Node, ...] = ()
    disrupted: tuple[DisruptedPod, ...] = ()
    source: SourceCheckpoint | None = None
    wanted: frozenset[str] = frozenset()

    @property
    def trains(self) -> bool:
        """Whether a pod may train now, or soon."""
        return any(pod.active for pod in self.pods)


@dataclass(frozen=True)  # without slots: the verdict is computed once and kept
class Observed:
    """One Checkpoint, its run, and the cluster around it at one moment.

    Attributes:
        owner: Name of this Checkpoint in the log.
        policy: Its spec in machine units; None when the spec cannot be translated.
        run: The log's fold; None when the log could not be read.
        now: The store's clock; None when it is not known.
        wall: The operator's own clock, for pods and conditions only.
        memory: What earlier passes have found out.
        read_back: How reading snapshots back goes; None where none is read.
        quota: That of the namespace, or None where there is none.
    """

    owner: Owner
    checkpoint: Checkpoint
    wall: dt.datetime
    policy: Policy | None = None
    fault: StoreFault | None = None
    run: Run | None = None
    now: dt.datetime | None = None
    cluster: Cluster = field(default_factory=Cluster)
    memory: Remembered = field(default_factory=Remembered)
    read_back: ReadBack | None = None
    quota: Quota | None = None

    @property
    def terms(self) -> Terms:
        """Terms that this operator adds to the policy in the log."""
        return Terms(
            quota=self.quota,
            reads_back=self.read_back is not None,
            reading=self.read_back.reading if self.read_back else "",
            wanted=self.cluster.wanted,
        )

    @cached_property
    def verdict(self) -> RetentionVerdict | None:
        """What the policy wants of the run's snapshots; None while the log or the store's clock is not known."""
        return (
            judge(self.run, now=self.now, terms=self.terms) if self.run is not None and self.now is not None else None
        )

    @property
    def rival_named(self) -> str:
        """The rival, without names from other namespaces."""
        rival = self.cluster.rival
        if rival is not None and rival.namespace == self.checkpoint.key.namespace:
            return f"Checkpoint {rival.name}"
        return "a Checkpoint in another namespace"

    @property
    def ours(self) -> bool:
        """Whether the log is read and belongs to this Checkpoint."""
        return self.run is not None and self.run.owner == self.owner and self.cluster.rival is None
