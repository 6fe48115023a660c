"""Folds the log into a ``Run``: the state of a run, and why no process can break it.

All other properties follow from two rules:

1. **The log alone decides.** A process's view of a run follows from the entries up to the head, in order,
   by ``advance``: a pure function, the same in training, in the operator and in a test. It is total over valid
   entries: one that breaks a rule of the protocol changes nothing (or is kept as REJECTED), so a misbehaving writer
   cannot make the log unreadable, and its entries need not be prevented, only ignored.
2. **The chain is unbroken.** Each entry carries its predecessor's digest. A gap or a digest that does not match means
   that entries were lost or altered; ``LogError`` ends the reading, because any state would be a guess.

Fencing. The number of an attempt is its token: ``AttemptStarted`` is accepted only with the highest number plus one,
and only the highest attempt may commit, as long as ``fenced_up_to`` is below it. Time plays no part: a process that
was paused for a day and wakes up finds its commit rejected, although its upload succeeded::

    entry            state after it
    1  RunClaimed    the run exists, its identity is the digest of this entry
    2  Attempt 1     1 may commit
    3  Commit A      by 1: LIVE
    4  Attempt 2     2 may commit, 1 is fenced
    5  Commit B      by 1: REJECTED (Fenced)
    6  Commit C      by 2, parent A: LIVE
    7  RunAdopted    another owner: attempts up to 2 are fenced (AttemptFenced does the same, when training is silent)

Rollback. A request waits in ``pending`` until a commit carries it, regardless of the number of starts; then it is
consumed and has no further effect. ``restore.mode: None`` (a fresh start) takes the same path without a snapshot::

    RollbackRequested(r, 900)      pending = r -> 900; if 900 was retired it is live again, in the same entry
            |
    AttemptStarted(request=r)      a start that dies from here on leaves r pending, and the next one serves it again
            |
    RestoreStarted(900)            900 is in use: neither retired nor purged
            |
    RestoreFinished(900)
            |
    SnapshotCommitted(request=r)   newest = this commit, whose parent is 900; r is consumed, nothing is pending

See ``core.lineage`` for the ancestors of a commit, and so for the snapshots that a rollback leaves behind,
``core.overwrite`` for rejected commits, and ``core.fold`` for the meaning of all other entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType

from checkpoint_sidecar.core.errors import LogError
from checkpoint_sidecar.core.fold import FOLD
from checkpoint_sidecar.core.log import RunAdopted, RunClaimed, StoredEntry, Unknown
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.core.working import Working


def replay(entries: Iterable[StoredEntry]) -> Run:
    """Return the state after all entries, from number 1."""
    return advance(Run(), entries)


def advance(run: Run, entries: Iterable[StoredEntry]) -> Run:
    """Return the state after further entries.

    Raises:
        LogError: A number is missing or an entry does not continue its predecessor.
    """
    # Working copies, frozen again at the end: folding n entries costs n steps, not n copies.
    attempts, snapshots, first_commits = dict(run.attempts), dict(run.snapshots), dict(run.first_commits)
    sharers = dict(run.sharers)
    working = Working(attempts, snapshots, first_commits, sharers)
    run = replace(run, attempts=attempts, snapshots=snapshots, first_commits=first_commits, sharers=sharers)
    head, head_digest = run.head, run.head_digest
    for entry in entries:
        _check_chain(run, head, head_digest, entry)
        head, head_digest = entry.number, entry.digest
        if isinstance(entry.body, Unknown):
            if entry.critical:
                run = replace(run, unknown_critical=entry.body.kind)
            continue
        run = FOLD[type(entry.body)](run, working, entry, entry.body)
    return replace(
        run,
        head=head,
        head_digest=head_digest,
        attempts=MappingProxyType(attempts),
        snapshots=MappingProxyType(snapshots),
        first_commits=MappingProxyType(first_commits),
        sharers=MappingProxyType(sharers),
    )


def resume(entry: StoredEntry) -> Run | None:
    """Return the state before an entry whose predecessors are gone, or None if a log cannot begin with it.

    A deletion removes all entries of a run except the last one, its tombstone; the next run's claim follows it.
    """
    body = entry.body
    if isinstance(body, RunClaimed):
        return Run(head=entry.number - 1, head_digest=entry.previous)
    if isinstance(body, RunAdopted) and body.owner.is_deleted:
        return Run(head=entry.number - 1, head_digest=entry.previous, owner=body.previous_owner)
    return None


def _check_chain(run: Run, head: int, head_digest: str, entry: StoredEntry) -> None:
    if entry.number != head + 1:
        raise LogError(
            "read",
            f"entry {entry.number} of the run log",
            f"entry {head + 1} is missing although a later one exists",
            "Restore the missing object from the bucket's versions; nothing is read, written or deleted until then.",
        )
    if entry.previous != head_digest:
        raise LogError(
            "read",
            f"entry {entry.number} of the run log",
            f"it does not continue entry {head}: the digests differ",
            "An entry was altered or two runs were mixed; restore the object from the bucket's versions.",
        )
    if run.owner is None and not isinstance(entry.body, RunClaimed):
        raise LogError(
            "read",
            f"entry {entry.number} of the run log",
            "it does not claim the run",
            "The prefix holds the log of something else; use another one.",
        )
