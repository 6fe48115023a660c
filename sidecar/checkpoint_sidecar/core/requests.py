"""What a user may ask of a run, and the log entry for it, computed from the log as it stands. Pure.

The operator asks these functions for the wishes in a Checkpoint and its CheckpointSnapshots, and the library for calls
of ``StoredRun``. Each returns the *whole* entry, or None when the log already says so or its state does not allow it;
the functions ``why_not_*`` give the reason in words.
"""

from __future__ import annotations

from collections.abc import Iterator

from checkpoint_sidecar.core.lineage import in_use, walk
from checkpoint_sidecar.core.log import (
    DispositionSet,
    QuarantineReleased,
    RollbackRequested,
    SaveRequested,
    SnapshotRead,
    SnapshotVerified,
)
from checkpoint_sidecar.core.policy import NOT_CHECKED, Disposition
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState

_READABLE = (SnapshotState.LIVE, SnapshotState.RETIRED)


def roll_back(run: Run, snapshot: str, request: str) -> RollbackRequested | None:
    """Return the entry after which the next start restores ``snapshot``. Each request takes effect once."""
    if request in run.rollbacks or not readable(run, snapshot):
        return None
    return RollbackRequested(request, snapshot)


def save(run: Run, request: str, *, reason: str = "") -> SaveRequested | None:
    """Return the entry that asks the running attempt to save now.

    Args:
        reason: The operator's reason; empty for the user's requests.
    """
    attempt = run.attempt
    if attempt is None or why_not_saved(run):
        return None
    asked = (each.request for each in attempt.save_requests)
    if request in asked or request in answered_saves(run):
        return None
    return SaveRequested(request, attempt.number, reason)


def dispose(run: Run, snapshot: str, disposition: Disposition) -> DispositionSet | None:
    """Return the entry that holds a snapshot, gives it up, or leaves it to the policy again."""
    found = run.snapshots.get(snapshot)
    if found is None or found.disposition == disposition:
        return None
    if disposition == "Retire" and why_not_retired(run, snapshot):
        return None
    return DispositionSet(snapshot, disposition)


def release_quarantine(run: Run, snapshot: str, request: str) -> QuarantineReleased | None:
    """Return the entry that discards the evidence against a snapshot. Each request takes effect once.

    Also if nothing was found yet: the request acts now, and not on damage that is found years later.
    """
    if not readable(run, snapshot) or request in run.snapshots[snapshot].releases:
        return None
    return QuarantineReleased(snapshot, request)


def record_check(run: Run, check: SnapshotVerified, *, judged: int) -> SnapshotVerified | None:
    """Return the entry that records a check, or None if it would tell nothing new, or something wrong.

    A purge that began meanwhile deletes the very objects; their absence would look like evidence. Evidence that another
    reader found meanwhile must not count twice (two operators during a roll-out would quarantine a snapshot by
    themselves), and a check that began before it must not clear it.

    Args:
        judged: ``Snapshot.judged`` when the check began. A number of failures would not do: a release takes it back to
            what it was before, and the evidence that it discards would count again.
    """
    found = run.snapshots.get(check.snapshot)
    if found is None or not found.live or found.judged != judged:
        return None
    clears = found.failures and check.level == "Checksums"
    return check if not check.passed or clears or not found.verified_at_least(check.level) else None


def announce_reading(run: Run, snapshot: str, reader: str, seconds: float) -> SnapshotRead | None:
    """Return the entry that keeps a snapshot's data for a reader, or None where nothing would delete it.

    Args:
        seconds: For how long at most; 0 when the reader has ended.
    """
    found = run.snapshots.get(snapshot)
    if found is None or not readable(run, snapshot) or run.policy.retention is None:
        return None
    if not seconds and reader not in (each.reader for each in found.readings):
        return None
    return SnapshotRead(snapshot, reader, seconds)


def readable(run: Run, snapshot: str) -> bool:
    """Return whether the data of a snapshot is still there, so that a start could restore it."""
    found = run.snapshots.get(snapshot)
    return found is not None and found.state in _READABLE


def unverified(snapshot: Snapshot) -> bool:
    """Return whether nothing is known yet about the stored objects of a live snapshot, for or against it."""
    return snapshot.live and snapshot.verified == NOT_CHECKED and snapshot.failures == 0


def why_not_retired(run: Run, snapshot: str) -> str:
    """Return why a user cannot retire a snapshot now, or an empty string."""
    if run.policy.retention is None:
        return "the Checkpoint has no spec.retention, without which nothing is ever retired"
    if snapshot == in_use(run):
        return "an attempt restores it or continues from it"
    newest_verified = next((s.id for s in walk(run, run.newest) if s.live and s.proven), None)
    return "it is the newest verified snapshot" if snapshot == newest_verified else ""


def why_not_saved(run: Run) -> str:
    """Return why no attempt can be asked to save, or an empty string."""
    if run.attempt is None:
        return "training has never started"
    if not run.may_commit(run.attempt.number):
        return f"attempt {run.attempt.number} may no longer commit"
    return ""


def answered_saves(run: Run) -> Iterator[str]:
    """Yield the save requests that commits answered, newest first; a commit answers earlier ones of its attempt too."""
    for _, request in _answers(run):
        yield request


def answer_to(run: Run, request: str) -> Snapshot | None:
    """Return the snapshot that answered a save request, or None."""
    return next((snapshot for snapshot, answered in _answers(run) if answered == request), None)


def answered_user(run: Run) -> str | None:
    """Return the newest of the user's save requests that a commit answered, or None."""
    own = {each.request for attempt in run.attempts.values() for each in attempt.save_requests if each.reason}
    return next((request for request in answered_saves(run) if request not in own), None)


def _answers(run: Run) -> Iterator[tuple[Snapshot, str]]:
    for snapshot in reversed(tuple(run.snapshots.values())):
        answered = snapshot.commit.save_request
        if not answered or snapshot.state is SnapshotState.REJECTED:
            continue
        yield snapshot, answered
        attempt = run.attempts.get(snapshot.commit.attempt)
        asked = [each.request for each in attempt.save_requests] if attempt else []
        if answered in asked:
            yield from ((snapshot, earlier) for earlier in reversed(asked[: asked.index(answered)]))
