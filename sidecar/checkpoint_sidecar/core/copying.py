"""Decides what a copy of a run to another prefix writes. Pure.

The copy is a run of its own: its log has one attempt, marked with the identity of the run that it copies, and a commit
for each snapshot. Files keep their bytes and checksums. Folder names keep their length, so that the folder's name in
torch's own pickled metadata can be replaced without unpickling it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.commits import without_shares
from checkpoint_sidecar.core.folder_index import INDEX_NAME
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.lineage import lineage, quarantined
from checkpoint_sidecar.core.log import AttemptStarted, SnapshotCommitted
from checkpoint_sidecar.core.manifest import FILES_FORMAT, FORMAT, File, Manifest
from checkpoint_sidecar.core.overwrite import existing_save
from checkpoint_sidecar.core.pointers import MAX_ORIGIN_BYTES, Origin
from checkpoint_sidecar.core.run import Run, Snapshot
from checkpoint_sidecar.core.stock_paths import with_paths

MAX_STOCK_METADATA_BYTES = 64 * 1024 * 1024
"""Larger metadata for torch's own reader is left out of a copy: it is rewritten in memory."""


def snapshots_to_copy(run: Run) -> tuple[Snapshot, ...]:
    """Return what a copy of the whole run holds, oldest first: what a restore of it may try."""
    newest: dict[int, Snapshot] = {}
    for snapshot in lineage(run):
        if snapshot.live and not quarantined(run, snapshot):
            newest.setdefault(snapshot.step, snapshot)
    return tuple(reversed(newest.values()))


def why_not_copied_into(target: Run, source: Run) -> str:
    """Return why snapshots of ``source`` cannot be added to a run, or an empty string."""
    if target.identity == source.identity:
        return "it is the same run"
    attempt = target.attempt
    if attempt is None:
        return ""
    if attempt.started.copies != source.identity:
        return "another run is there, or training has begun in the copy"
    return "" if target.may_commit(attempt.number) else "the copy was given to another owner"


def start_copy(target: Run, source: Run) -> AttemptStarted | None:
    """Return the entry with which a copy begins, or None if an earlier call began it."""
    if target.attempt is not None:
        return None
    return AttemptStarted(attempt=1, world_size=1, copies=source.identity)


def folder_in(target: Run, snapshot: Snapshot) -> SaveFolder:
    """Return where a snapshot's copy is stored: the same place each time, so that an interrupted copy continues."""
    source = layout.parse_save_folder(snapshot.commit.path)
    run = target.short_identity if source.run else ""
    return SaveFolder(snapshot.step, target.highest_attempt, source.nonce, run)


def copied_already(target: Run, snapshot: Snapshot) -> Snapshot | None:
    """Return the copy of a snapshot, also if it was deleted since."""
    folder = folder_in(target, snapshot)
    return target.snapshots.get(layout.snapshot_id(snapshot.step, folder.attempt, folder.nonce))


def manifest_of_copy(manifest: Manifest, identifier: str, folder: SaveFolder) -> Manifest:
    """Return the manifest of a copy, which shares no files, without those that depend on its place."""
    files = tuple(
        msgspec.structs.replace(file, shared_in="")
        for file in manifest.files
        if file.name != layout.STOCK_METADATA_NAME
    )
    has_folder = any(file.name == INDEX_NAME for file in files)
    return msgspec.structs.replace(
        manifest,
        snapshot=identifier,
        step=folder.step or 0,
        attempt=folder.attempt,
        files=files,
        format=FILES_FORMAT if has_folder else FORMAT,
    )


def stock_metadata_of_copy(
    data: bytes, source: SaveFolder, folder: SaveFolder, identifier: str, shared: Iterable[File] = ()
) -> bytes | None:
    """Return the metadata for torch's own reader, with the folder of the copy; None if that name has another length.

    Args:
        data: The bytes in the source. Paths in them begin with the name of the save's folder.
        shared: Files of the source that are in folders of other snapshots.
    """
    old, new = (each.path.rpartition("/")[2].encode() for each in (source, folder))
    if len(old) != len(new):
        return None
    end = len(data)
    if Origin.find(data[-MAX_ORIGIN_BYTES:]) is not None:
        end = data.rindex(b"\ncheckpoint-operator ")
    data = with_paths(data[:end], {file.key(source.path): f"{new.decode()}/{file.name}" for file in shared})
    return data.replace(old + b"/", new + b"/") + Origin(folder.run, identifier).encode()


def commit_of_copy(target: Run, snapshot: Snapshot, manifest: Manifest, digest: str) -> SnapshotCommitted | None:
    """Return the commit of a copy, or None if it was committed meanwhile."""
    attempt = target.attempt
    if attempt is None or copied_already(target, snapshot) is not None:
        return None
    parent = attempt.last_commit or ""
    existing = existing_save(target, parent, snapshot.step)
    return msgspec.structs.replace(
        without_shares(snapshot.commit),
        snapshot=manifest.snapshot,
        attempt=manifest.attempt,
        path=folder_in(target, snapshot).path,
        manifest_digest=digest,
        bytes=manifest.size,
        files=len(manifest.files),
        parent=parent,
        replaces=existing.id if existing else "",
        restore_request=attempt.started.restore_request,
        save_request="",
    )
