"""Reads and appends one attempt's entries of the run log. Used on rank 0 only.

``core.attempt`` decides what may be written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version

from checkpoint_sidecar.attempt.claiming import claim_prefix
from checkpoint_sidecar.attempt.periodic import Periodic
from checkpoint_sidecar.attempt.predecessor import wait_for_predecessor
from checkpoint_sidecar.core import attempt as decisions
from checkpoint_sidecar.core.compaction import due
from checkpoint_sidecar.core.errors import (
    NO_EVIDENCE,
    CheckpointError,
    CorruptSnapshotError,
    FencedError,
    IncompatibleSnapshotError,
    RestoreError,
    RestoreInterrupted,
    UnreliableReadError,
    UntrustedSnapshotError,
)
from checkpoint_sidecar.core.folder_index import INDEX_NAME, FolderIndex
from checkpoint_sidecar.core.layout import METADATA_NAME
from checkpoint_sidecar.core.log import (
    MAX_TEXT,
    AttemptStarted,
    Owner,
    PodIdentity,
    RestoreFinished,
    RestoreStarted,
    SavesIdentified,
    SnapshotCommitted,
    SnapshotReinstated,
    Trigger,
)
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.core.metadata_index import without_pickle
from checkpoint_sidecar.core.overwrite import base_of, existing_save
from checkpoint_sidecar.core.policy import NOT_CHECKED, OverwritePolicy, SavePolicy, VerifyLevel
from checkpoint_sidecar.core.run import Attempt, Run, Snapshot
from checkpoint_sidecar.core.sharing import key_in_evidence, users_of
from checkpoint_sidecar.core.units import counted, moved
from checkpoint_sidecar.engine.compared import ComparedBytes
from checkpoint_sidecar.engine.folders.reading import read_index
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.pointer import publish_if_possible
from checkpoint_sidecar.engine.requests import ByteRange
from checkpoint_sidecar.engine.verify import compare_rest, read_file, read_manifest
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store

logger = logging.getLogger(__name__)

POLL_SECONDS = 3.0

# Errors that name the caller's next step; every other error that stops a restore becomes RestoreInterrupted.
_TELLING = (FencedError, IncompatibleSnapshotError, UntrustedSnapshotError, RestoreError, RestoreInterrupted)


@dataclass(frozen=True, slots=True)
class Defaults:
    """The policy that applies until the log has one."""

    save: SavePolicy = field(default_factory=SavePolicy)
    overwrite: OverwritePolicy = "Never"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A snapshot that is announced in the log and may be read.

    Attributes:
        path: Its folder, relative to the store's root.
        metadata: What ranks need of its ``.metadata``, verified; rank 0 reads it for all of them.
        index: The files of a folder that are in it, or None.
        verify: How thoroughly to check its bytes.
    """

    snapshot: str
    step: int
    path: str
    manifest: Manifest
    metadata: bytes
    verify: VerifyLevel
    index: FolderIndex | None = None


def interruption(error: Exception, subject: str) -> Exception:
    """Return the error to raise after one that stopped a restore without evidence against the snapshot."""
    if isinstance(error, _TELLING):
        return error
    return RestoreInterrupted(
        "restore",
        subject,
        f"{type(error).__name__}: {error}",
        "There is no evidence against the snapshot. Start again: the next attempt tries it again.",
    )


def candidate_of(store: Store, snapshot: Snapshot, *, verify: VerifyLevel) -> Candidate:
    """Read the description of a snapshot: its manifest and metadata, both verified.

    Raises:
        CorruptSnapshotError: One of them is damaged.
        IncompatibleSnapshotError: A newer version wrote it.
        StoreError: The store failed.
    """
    path = snapshot.commit.path
    manifest = read_manifest(store, snapshot.commit)
    settings = EngineSettings.from_environment()
    metadata = read_file(store, path, manifest, METADATA_NAME, level=verify, settings=settings)
    return Candidate(
        snapshot=snapshot.id,
        step=snapshot.step,
        path=path,
        manifest=manifest,
        metadata=without_pickle(metadata),
        verify=verify,
        index=read_index(store, path, manifest, level=verify, settings=settings),
    )


class AttemptSession:
    """An attempt, from its start to its last commit. The ``attempt`` is 0 before ``start``.

    Args:
        store: Opened at the run's root.
        owner: The owner of the run.
        log_floor: Number of a log entry known to exist in this run, from the environment; 0 if unknown.

    Attributes:
        on_commit: Called after each commit, in the thread of the save; must not block or raise.
    """

    def __init__(self, store: Store, owner: Owner, defaults: Defaults, *, log_floor: int = 0) -> None:
        self.store = store
        self.log = RunLog(store, writer=f"library {version('checkpoint-operator')}")
        self.defaults = defaults
        self.attempt = 0
        self.skipped: list[str] = []
        self._spoiled: set[str] = set()
        self.on_commit: Callable[[SnapshotCommitted], object] = lambda _: None
        self._owner = owner
        self._log_floor = log_floor
        self._poll = Periodic(self._watch, seconds=POLL_SECONDS, name="watch the run log")

    # Starting

    def start(self, *, world_size: int, pods: tuple[PodIdentity, ...], timeout_seconds: float) -> int:
        """Claim the prefix if it is free, wait for an attempt that still trains, and take the next number.

        Raises:
            LogMissingError: There was a run here, and its log is missing or incomplete.
            PrefixClaimedError: The prefix belongs to another run.
            StoreError, LogError: The store failed, or lacks a guarantee that commits need.
        """
        claim_prefix(self.log, self._owner, log_floor=self._log_floor)
        if not self.log.run.identified:
            self.log.append(self._identify)
        wait_for_predecessor(self.log, pods=pods, timeout_seconds=timeout_seconds)

        def next_attempt(run: Run) -> AttemptStarted:
            decisions.check_owner(run, self._owner, url=self.store.url)
            return decisions.start(run, world_size=world_size, pods=pods)

        entry = self.log.append(next_attempt)
        assert entry is not None
        assert isinstance(entry.body, AttemptStarted)
        self.attempt = entry.body.attempt
        logger.info(
            "attempt %d of %s at %s: %s %s",
            self.attempt,
            self._owner,
            self.store.url,
            counted(world_size, "rank"),
            _where(pods),
        )
        self._poll.start()
        return self.attempt

    def _identify(self, run: Run) -> SavesIdentified | None:
        decisions.check_owner(run, self._owner, url=self.store.url)
        return decisions.identify(run)

    def _watch(self) -> None:
        run = self.log.poll()
        # Where an operator manages the run, it compacts the log.
        if not run.managed and (spans := due(run.head, self.log.compactions, first=run.first)):
            self.log.compact(spans[0])

    def stop(self, *, timeout_seconds: float) -> None:
        """Stop polling the log."""
        self._poll.stop(timeout_seconds=timeout_seconds)

    # Restoring

    def next_candidate(self) -> Candidate | None:
        """Announce the next snapshot to try, or None for a fresh start.

        Candidates with a damaged manifest or metadata are recorded and skipped, before any other rank learns of
        them.

        Raises:
            RestoreError: No candidate is left, and the policy does not ask for a fresh start.
            FencedError, RestoreInterrupted: See ``core.attempt``.
            LogReplacedError: The log is gone, so it cannot be told whether there is something to restore.
        """
        while True:
            self._check_fallback()
            tried = {*self.skipped, *self._spoiled}
            entry = self.log.append(partial(decisions.announce, attempt=self.attempt, tried=tried))
            if entry is None:
                if not self.log.is_current():
                    continue
                self._begin_anew()
                return None
            assert isinstance(entry.body, RestoreStarted | SnapshotReinstated)
            snapshot = self.log.run.snapshots[entry.body.snapshot]
            try:
                return candidate_of(self.store, snapshot, verify=self.log.run.policy.restore.verify)
            except CheckpointError as error:
                self.failed(snapshot.id, error)

    def restored(
        self,
        candidate: Candidate,
        *,
        seconds: float,
        compared: ComparedBytes,
        missing: tuple[str, ...] = (),
        unused: tuple[str, ...] = (),
    ) -> None:
        """Record that every rank loaded the candidate.

        Args:
            compared: The bytes that all ranks together compared with checksums. Only all bytes verify the snapshot.
            missing: Names that the snapshot lacks, which keep their present state.
            unused: Names that only the snapshot has.
        """
        self._compare_rest(candidate, compared)
        size = candidate.manifest.size
        whole = candidate.verify == "Checksums" and not compared.bytes_left
        self._finish(
            RestoreFinished(
                self.attempt,
                candidate.snapshot,
                restored=True,
                verified="Checksums" if whole else NOT_CHECKED,
                seconds=seconds,
                bytes=size,
                compared_bytes=size - compared.bytes_left,
                missing=_texts(missing),
                unused=_texts(unused),
            )
        )
        if missing:
            logger.warning("not in snapshot %s, left as they are: %s", candidate.snapshot, ", ".join(missing))
        if unused:
            logger.warning("in snapshot %s, and not used: %s", candidate.snapshot, ", ".join(unused))
        logger.info(
            "restored step %d from %s/%s: %s",
            candidate.step,
            self.store.url,
            candidate.path,
            moved(size, seconds),
            extra={"operation": "restore", "step": candidate.step, "bytes": size, "seconds": seconds},
        )
        if candidate.snapshot in self.log.run.snapshots:
            # A kill right after its commit may have prevented that.
            publish_if_possible(self.store, self.log, candidate.step, outcome="restored")

    def failed(self, snapshot: str, error: Exception) -> None:
        """Record why a candidate was not restored. Returns if the next one may be tried, and raises otherwise.

        The next one is tried if there is evidence against this one. Unreliable reads may be the fault of this machine,
        so they interrupt the start, and the next start may run on another machine. After as many interrupted starts as
        the policy allows, the snapshot is skipped without being marked damaged.

        Raises:
            RestoreInterrupted: The error says nothing about the snapshot.
            FencedError, IncompatibleSnapshotError: The given error.
        """
        evidence = error.evidence if isinstance(error, CorruptSnapshotError) else NO_EVIDENCE
        key = error.subject if isinstance(error, CorruptSnapshotError) else ""
        if not isinstance(error, FencedError):
            self._finish(
                RestoreFinished(
                    self.attempt,
                    snapshot,
                    restored=False,
                    evidence=evidence,
                    message=str(error)[:MAX_TEXT],
                    damaged_file=key_in_evidence(key),
                )
            )
        self._spoiled.update(users_of(self.log.run, key))
        if evidence != NO_EVIDENCE or (isinstance(error, UnreliableReadError) and self._often_interrupted(snapshot)):
            logger.warning("skipping snapshot %s: %s", snapshot, error)
            self.skipped.append(snapshot)
            return
        stopped = interruption(error, snapshot)
        if stopped is error:
            raise error
        raise stopped from error

    def _often_interrupted(self, snapshot: str) -> bool:
        run = self.log.run
        outcomes = (outcome for attempt in run.attempts.values() for outcome in attempt.restores)
        mine = [outcome for outcome in outcomes if outcome.snapshot == snapshot]
        last_success = max((place for place, outcome in enumerate(mine) if outcome.restored), default=-1)
        unexplained = sum(outcome.evidence == NO_EVIDENCE for outcome in mine[last_success + 1 :])
        return unexplained >= run.policy.restore.max_failures_per_snapshot

    def _compare_rest(self, candidate: Candidate, compared: ComparedBytes) -> None:
        """Compare the bytes that the restore did not need. A failure does not affect the restore."""
        if candidate.verify != "Checksums":
            return
        settings = EngineSettings.from_environment()
        # Rank 0 read and verified it for all.
        for name in (METADATA_NAME, INDEX_NAME):
            file = candidate.manifest.file(name)
            if file is not None:
                compared.mark(name, ByteRange(0, file.size))
        try:
            compare_rest(self.store, candidate.path, candidate.manifest, compared, settings=settings)
        except CheckpointError as error:
            logger.warning(
                "snapshot %s: a part that was not needed could not be verified: %s", candidate.snapshot, error
            )

    def _check_fallback(self) -> None:
        limit = self.log.run.policy.restore.max_fallback
        if len(self.skipped) > limit:
            raise self._nothing_left(f"{len(self.skipped)} snapshots proved damaged, but maxFallback is {limit}")

    def _begin_anew(self) -> None:
        """Raise unless the policy asks for a start at step 0 and this process can still make one."""
        run = self.log.run
        if not decisions.plan_for(run, self.attempt).fresh_start:
            raise self._nothing_left(
                "no snapshot can be restored" if run.ever_committed else "nothing was ever committed"
            )
        if self.skipped:
            # Loading them has overwritten part of the model, so this process can no longer make a fresh start.
            raise self._nothing_left("every snapshot proved damaged; a fresh start needs a new process")
        asked = "nothing is restored, as the policy asks" if run.ever_committed else "nothing to restore"
        logger.info("%s: starting at step 0", asked)

    def _nothing_left(self, cause: str) -> RestoreError:
        tried = f" (skipped: {', '.join(self.skipped)})" if self.skipped else ""
        return RestoreError(
            "restore",
            self.store.url,
            f"{cause}{tried}",
            "Training does not start at step 0 by itself. Check the snapshots' evidence, then roll back to a good "
            "one (spec.restore.rollback) or ask for a fresh start (spec.restore.mode: None).",
        )

    def _finish(self, outcome: RestoreFinished) -> None:
        self.log.append(lambda run: decisions.finish_restore(run, outcome))

    # While training: from the log as last read, without a request

    @property
    def overwrite(self) -> OverwritePolicy:
        return self.log.run.policy.overwrite if self.log.run.configured else self.defaults.overwrite

    @property
    def save_policy(self) -> SavePolicy:
        return self.log.run.policy.save if self.log.run.configured else self.defaults.save

    @property
    def state(self) -> Attempt:
        return self.log.run.attempts[self.attempt]

    @property
    def fenced(self) -> FencedError | None:
        """The error to raise if a later attempt started, the run has another owner, or its log is gone."""
        if self.log.replaced is not None:
            return self.log.replaced
        try:
            decisions.current(self.log.run, self.attempt)
        except FencedError as error:
            return error
        return None

    @property
    def saved_step(self) -> int | None:
        """The step from which training would continue if it restarted now."""
        found = self.log.run.snapshots.get(base_of(self.state))
        return found.step if found else None

    def saved(self, step: int) -> Snapshot | None:
        """Return the live snapshot of a step that this attempt made or descends from."""
        return existing_save(self.log.run, base_of(self.state), step)

    def admit(self, step: int, trigger: Trigger) -> Snapshot | None:
        """Return the snapshot that makes a save of ``step`` unnecessary, or None to admit the save.

        Only this attempt's commits and the operator's retirements can change the answer, so the log as last read is
        enough to fail before anything is copied; the commit decides again.

        Raises:
            CheckpointExistsError, FencedError: See ``core.attempt.admit_save``.
        """
        admission = decisions.admit_save(
            self.log.run, self.attempt, step, trigger=trigger, overwrite=self.defaults.overwrite
        )
        return admission.snapshot if isinstance(admission, decisions.AlreadySaved) else None


def _where(pods: tuple[PodIdentity, ...]) -> str:
    count = decisions.places(pods)
    outside = any(":" in pod.name for pod in pods)
    return f"on {counted(count, 'host')}" if outside else f"in {counted(count, 'pod')}"


def _texts(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name[:MAX_TEXT] for name in names)
