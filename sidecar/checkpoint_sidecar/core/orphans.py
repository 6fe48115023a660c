"""Finds leftovers of saves that can never become snapshots: the objects of a killed attempt.

A fenced attempt can no longer commit. So if the log is read *after* the objects were listed, a save of a fenced attempt
that is not in a snapshot is left over: even a process that still runs cannot make it a snapshot. This includes the
folder of a rejected commit, and files that a late writer adds to a purged snapshot. ``core.belongings`` decides which
objects belong to the run.

The highest attempt deletes its own leftovers. If it is silent for long and no later one starts, an entry fences it
before its leftovers are deleted.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace

from checkpoint_sidecar.core.belongings import belongings
from checkpoint_sidecar.core.layout import SaveFolder, is_probe
from checkpoint_sidecar.core.run import Run

DEFAULT_GRACE_SECONDS = 3600.0
"""How long leftovers are kept for inspection without a retention policy."""

AGAIN_SECONDS = 3600.0
"""Time between collections: a writer that was stopped for hours may still add files."""

SILENCE_SECONDS = 86400.0
"""Silence after which an attempt counts as dead; a running attempt reports every few seconds."""


def collection_due_at(run: Run, *, last: dt.datetime | None = None) -> dt.datetime | None:
    """Return when the leftovers of earlier attempts are old enough, or None if there cannot be any.

    Args:
        last: Time of the last collection.
    """
    attempt, policy = run.attempt, run.policy.retention
    if attempt is None or attempt.number == 1 or (policy is not None and policy.dry_run):
        return None
    due = attempt.started_at + _grace(run)
    return due if last is None or last < due else last + max(_grace(run), dt.timedelta(seconds=AGAIN_SECONDS))


def last_collection_due_at(run: Run, *, heard: dt.datetime | None, ended: bool) -> dt.datetime | None:
    """Return when the highest attempt may be fenced because of its unfinished saves, or None if never.

    Args:
        heard: Time of its last progress report, by the store's clock, if known.
        ended: Whether that report announced its end.
    """
    attempt, policy = run.attempt, run.policy.retention
    if attempt is None or (policy is not None and policy.dry_run):
        return None
    newest = run.snapshots.get(attempt.last_commit or "")
    signs = [attempt.started_at, newest.committed_at if newest else None, heard]
    silence = dt.timedelta(seconds=0.0 if ended else SILENCE_SECONDS)
    return max(sign for sign in signs if sign is not None) + max(_grace(run), silence)


def left_by_last(run: Run, modified: Mapping[str, dt.datetime], *, now: dt.datetime) -> bool:
    """Return whether the highest attempt left objects that fencing it would allow to delete, and no longer writes.

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
    """Return the keys of the objects that may be deleted.

    Args:
        run: The run, read after the listing, so that no commit in between is missed.
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
    """Return whether a save is a fenced attempt's and old enough, so that its unfinished parts are never needed."""
    fenced = folder.attempt < run.highest_attempt or folder.attempt <= min(run.fenced_up_to, run.highest_attempt)
    return folder.step is not None and fenced and now - written >= _grace(run)


def old_probes(modified: Mapping[str, dt.datetime], *, now: dt.datetime) -> tuple[str, ...]:
    """Return the keys that may be deleted in the folder for probes of stores.

    Args:
        modified: A listing of ``PROBE_FOLDER``. Each probe removes its objects from there unless it is killed.
    """
    grace = dt.timedelta(seconds=DEFAULT_GRACE_SECONDS)
    return tuple(key for key in modified if is_probe(key) and now - modified[key] >= grace)


def _grace(run: Run) -> dt.timedelta:
    policy = run.policy.retention
    return dt.timedelta(seconds=DEFAULT_GRACE_SECONDS if policy is None else policy.grace_seconds)
