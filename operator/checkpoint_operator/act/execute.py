"""Carries out a plan. Every action is idempotent: after a kill anywhere, the next plan leads to the same state.

Store actions block, so they run in a thread. Each append asks ``decide.appends`` again, so that an outdated plan does
nothing.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from checkpoint_operator.act import erasure
from checkpoint_operator.act.unfinished import discard, unfinished
from checkpoint_operator.decide.appends import entry_for, fence, finish_purge, start_purge
from checkpoint_operator.fairness.store_threads import release_frames
from checkpoint_operator.gather.kube import Kube
from checkpoint_operator.gather.run_store import RunStore
from checkpoint_operator.model.actions import (
    Claim,
    CollectLast,
    CollectOrphans,
    Compact,
    CreateMirror,
    Erase,
    MirrorAction,
    PublishPointer,
    Purge,
    RecordCheck,
    ReportMirror,
    StoreAction,
    SurveyPrefix,
    Verify,
)
from checkpoint_operator.model.observed import ScrubFinding
from checkpoint_operator.model.outcome import ActionOutcome
from checkpoint_sidecar.core import layout, orphans
from checkpoint_sidecar.core.belongings import Survey, belongings, survey
from checkpoint_sidecar.core.errors import (
    CheckpointError,
    CorruptSnapshotError,
    ForeignObjectError,
    LogError,
)
from checkpoint_sidecar.core.log import MAX_TEXT, Owner, RunAdopted, SnapshotVerified
from checkpoint_sidecar.core.policy import VerifyLevel
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from checkpoint_sidecar.core.shared_files import names_in
from checkpoint_sidecar.core.sharing import key_in_evidence
from checkpoint_sidecar.engine.pointer import repair
from checkpoint_sidecar.engine.removal import delete_data
from checkpoint_sidecar.engine.verify import VerificationPass, verify_snapshot
from checkpoint_sidecar.runs.marker import leave_marker
from checkpoint_sidecar.store.base import Store, UnfinishedUpload

_CONNECTIONS = 2
"""Concurrent requests while a snapshot is read, slowly and in little memory."""

ROUND_SECONDS = 60.0

logger = logging.getLogger(__name__)


def carry_out(planned: Iterable[StoreAction], session: RunStore, *, owner: Owner) -> tuple[ActionOutcome, ...]:
    """Run store actions one after the other. A failed action does not stop the others.

    Deletions are the exception: after one fails, nothing more is deleted in this round. Grace periods are measured by
    a clock that was read just before. After ``ROUND_SECONDS`` no action begins; the next pass plans the rest again.
    """
    outcomes: list[ActionOutcome] = []
    surprised = clock_read = False
    until = time.monotonic() + ROUND_SECONDS
    for action in planned:
        if time.monotonic() > until:
            break
        after_grace = isinstance(action, Purge | CollectOrphans | CollectLast)
        deletes = after_grace or isinstance(action, Erase)
        if deletes and surprised:
            continue
        session.begin_action()
        try:
            if after_grace and not clock_read:
                session.read_clock()
                clock_read = True
            found = _carry_out(action, session, owner)
        except CheckpointError as error:
            logger.warning("%s: %s", type(action).__name__, error)
            release_frames(error)
            outcomes.append(ActionOutcome(action, error))
            surprised = surprised or deletes
        else:
            outcomes.append(ActionOutcome(action, survey=found))
    return tuple(outcomes)


async def mirror(planned: Iterable[MirrorAction], kube: Kube, *, namespace: str) -> None:
    """Create, report and delete CheckpointSnapshot objects.

    Raises:
        KubeError: The API server refused; what was done stays, and the next pass continues.
    """
    for action in planned:
        if isinstance(action, CreateMirror):
            if await kube.create_snapshot(action.body):
                await kube.write_snapshot_status(namespace, action.body["metadata"]["name"], action.status)
        elif isinstance(action, ReportMirror):
            await kube.write_snapshot_status(namespace, action.name, action.status)
        else:
            await kube.delete_snapshot(namespace, action.name, action.uid)


def _carry_out(action: StoreAction, session: RunStore, owner: Owner) -> Survey | None:
    if isinstance(action, Purge):
        _purge(action, session, owner)
    elif isinstance(action, PublishPointer):
        repair(session.store, session.log, action.step)
    elif isinstance(action, CollectOrphans):
        _collect_orphans(session, owner)
    elif isinstance(action, CollectLast):
        _collect_last(action, session, owner)
    elif isinstance(action, SurveyPrefix):
        return _survey_prefix(session, owner)
    elif isinstance(action, Erase):
        return erasure.erase(session, owner)
    elif isinstance(action, Compact):
        session.log.compact(action.span)
    elif isinstance(action, Verify):
        record = RecordCheck(verify(session.store, session.log.run.snapshots[action.snapshot]))
        session.log.append(lambda run: entry_for(record, run, owner=owner, now=session.now()))
    else:
        session.log.append(lambda run: entry_for(action, run, owner=owner, now=session.now()))
        if isinstance(action, Claim) and session.log.run.owner == owner:
            leave_marker(session.store, session.log.run)
    return None


def verify(
    store: Store,
    snapshot: Snapshot,
    *,
    level: VerifyLevel = "Sizes",
    before_read: Callable[[int], None] = lambda _: None,
    same_pass: VerificationPass | None = None,
) -> ScrubFinding:
    """Compare the objects of a snapshot with its manifest.

    Args:
        before_read, same_pass: See ``verify_snapshot``; at ``Sizes`` nothing is read.

    Raises:
        IncompatibleSnapshotError: A newer version wrote the manifest.
        StoreError: The store failed, which is not evidence against the snapshot.
    """
    try:
        verify_snapshot(
            store,
            snapshot.commit,
            level=level,
            connections=_CONNECTIONS,
            before_read=before_read,
            # Evidence is refuted by reading the files again, not by what was read before.
            same_pass=None if snapshot.failures else same_pass,
        )
    except CorruptSnapshotError as error:
        message = str(error)
        if snapshot.failures and f"{error.subject}: {error.cause}" not in snapshot.evidence:
            message = f"differs from the last time, so suspect the network or memory of the reader too: {message}"
        message = message[:MAX_TEXT]
        key = key_in_evidence(error.subject)
        found = SnapshotVerified(snapshot.id, level, False, error.evidence, message, key)
        return ScrubFinding(found, snapshot.judged)
    return ScrubFinding(SnapshotVerified(snapshot.id, level, passed=True), snapshot.judged)


def _purge(action: Purge, session: RunStore, owner: Owner) -> None:
    """Delete a snapshot's data: announce it, repair the pointer, delete, and record it."""
    session.log.append(lambda run: start_purge(run, action, owner=owner, now=session.now()))
    if snapshot := _being_purged(session.log.run, action, owner):
        folder = layout.parse_save_folder(snapshot.commit.path)
        with contextlib.suppress(ForeignObjectError):
            repair(session.store, session.log, folder.step)
    # Repairs read the log again: the run may have changed hands.
    if snapshot := _being_purged(session.log.run, action, owner):
        delete_data(session.store, snapshot.commit, keep=names_in(snapshot.kept), delete=session.delete)
        session.log.append(lambda run: finish_purge(run, action.snapshot, owner=owner))


def _being_purged(run: Run, action: Purge, owner: Owner) -> Snapshot | None:
    snapshot = run.snapshots.get(action.snapshot)
    if snapshot is None or snapshot.state is not SnapshotState.PURGING or run.owner != owner:
        return None
    return snapshot


def _survey_prefix(session: RunStore, owner: Owner) -> Survey | None:
    keys = session.keys()
    run = session.log.refresh()
    if run.owner != owner:
        return None
    leave_marker(session.store, run)
    return survey(run, keys)


def _collect_orphans(session: RunStore, owner: Owner) -> None:
    """Delete what is left of saves that never became snapshots and never can."""
    modified = {info.key: info.modified for info in session.store.list(layout.STEP_PREFIX)}
    # Refresh after the listing: commits from before the fence are in the log by now.
    run, now = session.log.refresh(), session.now()
    due = orphans.collection_due_at(run)
    if run.owner == owner and not run.unknown_critical and due is not None and due <= now:
        _delete_orphans(session, run, modified, unfinished(session.store, belongings(run, modified)))
        _delete_remnants(session, run)


def _collect_last(action: CollectLast, session: RunStore, owner: Owner) -> None:
    """Fence the last attempt if it left anything, then delete what it left."""
    modified = {info.key: info.modified for info in session.store.list(layout.STEP_PREFIX)}
    uploads = unfinished(session.store, belongings(session.log.run, modified))
    written = {**{upload.key: upload.begun for upload in uploads}, **modified}
    if not orphans.left_by_last(session.log.run, written, now=session.now()):
        return
    session.log.append(lambda run: fence(run, action, owner=owner))
    # As of after the append, with all commits from before the fence.
    run = session.log.run
    if run.owner == owner and run.fenced_up_to >= action.attempt:
        _delete_orphans(session, run, modified, uploads)


def _delete_orphans(
    session: RunStore, run: Run, modified: Mapping[str, dt.datetime], uploads: Iterable[UnfinishedUpload]
) -> None:
    now = session.now()
    keys = orphans.orphaned(run, modified, now=now)
    session.delete(keys)
    if keys:
        logger.info("%s: deleted %d objects of saves that never became snapshots", session.store.url, len(keys))
    ours = belongings(run, modified)
    for upload in uploads:
        folder = ours.save_of(upload.key)
        if folder is not None and orphans.abandoned(run, folder, upload.begun, now=now):
            discard(session.store, upload)


def _delete_remnants(session: RunStore, run: Run) -> None:
    """Delete what an interrupted deletion left of an earlier run's log: all below its tombstone."""
    if run.remnants:
        listed = {layout.log_number(info.key) or 0: info.key for info in session.store.list(layout.LOG_FOLDER)}
        tombstone = _tombstone_below(session, run.first, listed)
        session.delete([key for number, key in listed.items() if 0 < number < tombstone])


def _tombstone_below(session: RunStore, first: int, listed: Collection[int]) -> int:
    """Number of the earlier run's tombstone, or of the lowest entry of stale writers that stand where it was.

    Such entries may follow the tombstone. They stay, so that no stale writer can create one of these numbers again.
    """
    number = first
    while number - 1 in listed:
        number -= 1
        try:
            (entry,) = session.log.entries([number])
        except LogError:
            continue  # a stale writer's, and unreadable
        if isinstance(entry.body, RunAdopted) and entry.body.owner.is_deleted:
            break
    return number
