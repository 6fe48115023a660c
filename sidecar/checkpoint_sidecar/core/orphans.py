"""Leftovers of saves that can never become snapshots: the objects that a killed attempt leaves behind.

An attempt that is fenced cannot commit any more. So if the log is read *after* the objects were listed, a save of a
fenced attempt that no snapshot holds is left over: not even a process that still runs can make a snapshot of it. That
includes what a rejected commit names, and files that a late writer adds to a snapshot that was purged. Which objects
are the run's at all is decided in ``core.belongings``.

Saves of the highest attempt are its own to clean up. If no later one starts, and it is silent for long, an entry fences
it before its leftovers are deleted.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace

from checkpoint_sidecar.core.belongings import belongings
from checkpoint_sidecar.core.layout import SaveFolder, is_probe
from checkpoint_sidecar.core.run import Run

DEFAULT_GRACE_SECONDS = 3600.0
"""How long leftovers are kept for inspection where no retention policy says."""

AGAIN_SECONDS = 3600.0
"""From one collection to the next: a writer that was stopped for hours may still add files."""

SILENCE_SECONDS = 86400.0
"""After how much silence an attempt counts as dead; one that trains reports all the time."""


def collection_due_at(run: Run, *, last: dt.datetime | None = None) -> dt.datetime | None:
    """When the leftovers of the attempts before the running one are old enough, or None while there can be none.

    Args:
        last: When they were collected last.
    """
    attempt, policy = run.attempt, run.policy.retention
    if attempt is None or attempt.number == 1 or (policy is not None and policy.dry_run):
        return None
    due = attempt.started_at + _grace(run)
    return due if last is None or last < due else last + max(_grace(run), dt.timedelta(seconds=AGAIN_SECONDS))


def last_collection_due_at(run: Run, *, heard: dt.datetime | None, ended: bool) -> dt.datetime | None:
    """When the highest attempt may be fenced for what it left of unfinished saves, or None while that may never be.

    Args:
        heard: When it reported its progress last, by the store's clock, if that is known.
        ended: Whether that report was its goodbye.
    """
    attempt, policy = run.attempt, run.policy.retention
    if attempt is None or (policy is not None and policy.dry_run):
        return None
    newest = run.snapshots.get(attempt.last_commit or "")
    signs = [attempt.started_at, newest.committed_at if newest else None, heard]
    silence = dt.timedelta(seconds=0.0 if ended else SILENCE_SECONDS)
    return max(sign for sign in signs if sign is not None) + max(_grace(run), silence)


def left_by_last(run: Run, modified: Mapping[str, dt.datetime], *, now: dt.datetime) -> bool:
    """Whether the highest attempt left anything that could be deleted if it were fenced, and writes nothing now.

    Args:
        run, modified, now: See ``orphaned``.
    """
    ours = belongings(run, modified)
    folders = ((ours.save_of(key), written) for key, written in modified.items())
    mine = [written for folder, written in folders if folder is not None and folder.attempt == run.highest_attempt]
    if any(now - written < _grace(run) for written in mine):
        return False
    return bool(orphaned(replace(run, fenced_up_to=run.highest_attempt), modified, now=now))


def orphaned(run: Run, modified: Mapping[str, dt.datetime], *, now: dt.datetime) -> tuple[str, ...]:
    """Keys of the objects that may be deleted.

    Args:
        run: Read after the listing, or a commit in between would be missed.
        modified: A complete listing of all saves: when each key was written, by the store's clock.
        now: The store's clock.
    """
    ours = belongings(run, modified)
    folders = {key: folder for key in modified if (folder := ours.save_of(key)) is not None}
    newest = {s.commit.path: s.committed_at for s in run.snapshots.values()}
    for key, folder in folders.items():
        newest[folder.path] = max(modified[key], newest.get(folder.path, modified[key]))
    doomed = {
        folder
        for folder in set(folders.values())
        if folder.path not in ours.held and abandoned(run, folder, newest[folder.path], now=now)
    }
    return tuple(key for key, folder in folders.items() if folder in doomed)


def abandoned(run: Run, folder: SaveFolder, written: dt.datetime, *, now: dt.datetime) -> bool:
    """Whether a save is a fenced attempt's and old enough: nothing that is unfinished in it will ever be needed."""
    fenced = folder.attempt < run.highest_attempt or folder.attempt <= min(run.fenced_up_to, run.highest_attempt)
    return folder.step is not None and fenced and now - written >= _grace(run)


def old_probes(modified: Mapping[str, dt.datetime], *, now: dt.datetime) -> tuple[str, ...]:
    """Return the keys that may be deleted in the folder in which stores are probed.

    Args:
        modified: A listing of ``PROBE_FOLDER``, which each probe leaves as it found it unless it is killed.
    """
    grace = dt.timedelta(seconds=DEFAULT_GRACE_SECONDS)
    return tuple(key for key in modified if is_probe(key) and now - modified[key] >= grace)


def _grace(run: Run) -> dt.timedelta:
    policy = run.policy.retention
    return dt.timedelta(seconds=DEFAULT_GRACE_SECONDS if policy is None else policy.grace_seconds)
