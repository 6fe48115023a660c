"""Leftovers of saves that were never committed and never can be: what a killed attempt leaves behind.

An attempt that is fenced cannot commit any more. So if the log is read *after* the objects were listed, a save of a
fenced attempt that it does not name is nobody's: not even a process that still runs can make a snapshot of it. What any
commit ever named, a rejected one too, is no orphan.

Saves of the highest attempt are its own to clean up. If no later one starts, and nothing is heard of it for long, it is
fenced by an entry of its own before what it left is deleted.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.run import Run

DEFAULT_GRACE_SECONDS = 3600.0
"""How long leftovers are kept, for somebody who wants to look at them, where no retention policy says."""


SILENCE_SECONDS = 86400.0
"""After how long an attempt of which nothing is heard is taken for dead; one that trains reports all the time."""


def collection_due_at(run: Run) -> dt.datetime | None:
    """When the leftovers of the attempts before the running one are old enough, or None while there can be none."""
    attempt, policy = run.attempt, run.policy.retention
    if attempt is None or attempt.number == 1 or (policy is not None and policy.dry_run):
        return None
    return attempt.started_at + _grace(run)


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
    folders = ((layout.save_folder_of(key), written) for key, written in modified.items())
    mine = [written for folder, written in folders if folder is not None and folder.attempt == run.highest_attempt]
    if any(now - written < _grace(run) for written in mine):
        return False
    return bool(orphaned(replace(run, fenced_up_to=run.highest_attempt), modified, now=now))


def orphaned(run: Run, modified: Mapping[str, dt.datetime], *, now: dt.datetime) -> tuple[str, ...]:
    """Keys of the objects that may be deleted.

    Args:
        run: Read after the listing, or a commit in between would be missed.
        modified: A listing: when each key was written, by the store's clock.
        now: The store's clock.
    """
    named = {snapshot.commit.path for snapshot in run.snapshots.values()}
    folders = {key: folder for key in modified if (folder := layout.save_folder_of(key)) is not None}
    newest: dict[SaveFolder, dt.datetime] = {}
    for key, folder in folders.items():
        newest[folder] = max(modified[key], newest.get(folder, modified[key]))
    doomed = {
        folder
        for folder, written in newest.items()
        if folder.path not in named and abandoned(run, folder, written, now=now)
    }
    return tuple(key for key, folder in folders.items() if folder in doomed)


def abandoned(run: Run, folder: SaveFolder, written: dt.datetime, *, now: dt.datetime) -> bool:
    """Whether a save is a fenced attempt's and old enough: nothing that is unfinished in it will ever be needed."""
    fenced = folder.attempt < run.highest_attempt or folder.attempt <= min(run.fenced_up_to, run.highest_attempt)
    return folder.step is not None and fenced and now - written >= _grace(run)


def old_probes(modified: Mapping[str, dt.datetime], *, now: dt.datetime) -> tuple[str, ...]:
    """Keys that may be deleted of what is left in the folder in which stores are probed.

    Args:
        modified: A listing of ``PROBE_FOLDER``, which each probe leaves as it found it unless it is killed.
    """
    grace = dt.timedelta(seconds=DEFAULT_GRACE_SECONDS)
    return tuple(key for key in modified if key.startswith(layout.PROBE_FOLDER) and now - modified[key] >= grace)


def _grace(run: Run) -> dt.timedelta:
    policy = run.policy.retention
    return dt.timedelta(seconds=DEFAULT_GRACE_SECONDS if policy is None else policy.grace_seconds)
