"""Decides which files snapshots may share, and which of them a purge must leave. Pure.

A snapshot may name settled files of earlier snapshots, their *holders*, instead of storing them again. Its own manifest
and its commit list all of them, each with the snapshot that stored it, so that nothing has to be looked up elsewhere::

    100 (holder)   __0_s0  __0_s1                        PurgeStarted(100, keep=__0_s0): __0_s1 goes
     ^      ^
     |      +----- 200 shares __0_s0                     purged: it is the holder of nothing
     +------------ 300 shares __0_s0                     while its data is there, so is __0_s0 of 100

The rules, each of which ``tests/model/test_sharing.py`` shows to be necessary:

1. Whether a file may be shared is decided by the log to which the commit is appended, and again after each conflict.
2. PurgeStarted names the files that other snapshots need; they stay.
3. That list, too, is that of the log to which the entry is appended. ``core.fold`` ignores an entry that keeps less.
4. A snapshot lists what it shares in full, each file by the snapshot that stored it.
5. Of a snapshot that is being purged, only files that stay may be shared.
6. Only files of committed snapshots are shared.
7. Once fewer of the files that a purge left are needed, another PurgeStarted releases the others.
8. What a snapshot needs is in the log, so that no unreadable manifest can hide it from a purge.
9. The commit is of a critical kind: a version that does not know it neither appends nor deletes.
10. Evidence against a shared file counts against every snapshot that needs it, at once.
11. A file against which there is evidence is not shared again.
12. Bytes are counted once, however many snapshots share them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Protocol

import msgspec

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.commits import MOST_SHARES, shares_of
from checkpoint_sidecar.core.lineage import walk
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from checkpoint_sidecar.core.shared_files import MOST_FILES, SharedFiles, names_in, runs_of

_IN_NEED = (SnapshotState.LIVE, SnapshotState.RETIRED)
"""Snapshots whose data must be complete. What is being purged needs nothing any more."""
_PURGED = (SnapshotState.PURGING, SnapshotState.PURGED)


class SharingTables(Protocol):
    """What a log says about shared files: a ``Run``, or one into which entries are being folded."""

    @property
    def snapshots(self) -> Mapping[str, Snapshot]: ...

    @property
    def sharers(self) -> Mapping[str, tuple[str, ...]]: ...


def needed_of(tables: SharingTables, holder: str) -> frozenset[str]:
    """Return the names of a snapshot's files that other snapshots need."""
    return frozenset(
        name
        for sharer, shared in _shared_from(tables, holder)
        if sharer.state in _IN_NEED
        for name in names_in(shared.files)
    )


def to_keep(tables: SharingTables, holder: str) -> str:
    """Return the files that a purge which begins now has to leave."""
    return runs_of(needed_of(tables, holder))


def why_not_purged(tables: SharingTables, holder: str) -> str:
    """Return why a snapshot cannot be purged now, or an empty string.

    A log entry lists at most ``MOST_FILES`` files that stay. No snapshot shares more, but several together may. Then
    the snapshot stays whole until they need fewer.
    """
    needed = len(needed_of(tables, holder))
    if needed <= MOST_FILES:
        return ""
    return f"other snapshots share {needed} of its files, and a purge can leave at most {MOST_FILES}"


def releasable(tables: SharingTables) -> tuple[str, ...]:
    """Return the snapshots of whose remaining files fewer are needed than their purge has left."""
    kept = [each for each in tables.snapshots.values() if each.kept and each.state in _PURGED]
    return tuple(each.id for each in kept if not names_in(each.kept) <= needed_of(tables, each.id))


def may_purge(tables: SharingTables, holder: Snapshot, keep: str) -> bool:
    """Return whether a PurgeStarted that leaves these files takes effect.

    It does for a retired snapshot, and later for one whose purge left more. It never does if another snapshot would
    lose a file.
    """
    fewer = holder.state in _PURGED and names_in(keep) < names_in(holder.kept)
    return (holder.state is SnapshotState.RETIRED or fewer) and needed_of(tables, holder.id) <= names_in(keep)


def why_not_shared(tables: SharingTables, shares: Iterable[SharedFiles]) -> str:
    """Return why one of these files is no longer there for certain, or an empty string."""
    for shared in shares:
        holder = tables.snapshots.get(shared.snapshot)
        if holder is None or holder.state is SnapshotState.REJECTED:
            return f"{shared.snapshot} is not a snapshot"
        if holder.state in _PURGED and not names_in(shared.files) <= names_in(holder.kept):
            return f"{shared.snapshot} was purged"
    return ""


def damage_among(tables: SharingTables, shares: Iterable[SharedFiles]) -> str:
    """Return the key of a file among these against which there is evidence, or an empty string."""
    for shared in shares:
        holder = tables.snapshots.get(shared.snapshot)
        if holder is not None and (found := names_in(shared.files) & holder.damaged):
            return f"{holder.commit.path}/{min(found)}"
    return ""


def holder_of(tables: SharingTables, key: str) -> tuple[Snapshot, str] | None:
    """Return the snapshot that stored a file, and the file's name, or None if the file cannot be shared."""
    folder, _, name = key.rpartition("/")
    if layout.settled_place(name) is None:
        return None
    found = next((each for each in tables.snapshots.values() if each.commit.path == folder), None)
    return (found, name) if found is not None and found.state is not SnapshotState.REJECTED else None


def users_of(tables: SharingTables, key: str) -> tuple[str, ...]:
    """Return all snapshots that need a file and hold data, or nothing if it cannot be shared."""
    found = holder_of(tables, key)
    if found is None:
        return ()
    holder, name = found
    sharers = [each for each, shared in _shared_from(tables, holder.id) if name in names_in(shared.files)]
    return tuple(each.id for each in (holder, *sharers) if each.state in _IN_NEED)


def _shared_from(tables: SharingTables, holder: str) -> Iterator[tuple[Snapshot, SharedFiles]]:
    """Yield the snapshots that name files of one, in any state, each with these files."""
    for identifier in tables.sharers.get(holder, ()):
        sharer = tables.snapshots[identifier]
        yield from ((sharer, shared) for shared in shares_of(sharer.commit) if shared.snapshot == holder)


def may_share(run: Run, base: Snapshot | None, every: int) -> bool:
    """Return whether a save may share files, or has to store all of its bytes: every so many saves, one does.

    A file that rots takes every snapshot that shares it.

    Args:
        base: The snapshot from which it descends.
        every: ``SavePolicy.keyframe_every``.
    """
    if base is None:
        return False
    sharing = sum(1 for _ in takewhile(lambda each: shares_of(each.commit), walk(run, base.id)))
    return sharing + 1 < min(every, MOST_SHARES)


def freed_bytes(run: SharingTables, snapshot: Snapshot) -> int:
    """Return how many bytes the running purge, or the next one, deletes."""
    purging = snapshot.state is SnapshotState.PURGING
    keep = names_in(snapshot.kept) if purging else needed_of(run, snapshot.id)
    return snapshot.own_bytes - snapshot.purged_bytes - _bytes_of(run, snapshot.id, keep)


def left_bytes(run: SharingTables, snapshot: Snapshot) -> int:
    """Return the size of the snapshot's files that are still stored; until a purge ends, also what it deletes."""
    purged = snapshot.state is SnapshotState.PURGED
    return (
        _bytes_of(run, snapshot.id, names_in(snapshot.kept)) if purged else snapshot.own_bytes - snapshot.purged_bytes
    )


def _bytes_of(tables: SharingTables, holder: str, names: Collection[str]) -> int:
    if not names:
        return 0
    sizes: dict[str, int] = {}
    for _, shared in _shared_from(tables, holder):
        sizes.update(shared.by_name)
    return sum(sizes.get(name, 0) for name in names)


def key_in_evidence(key: str) -> str | msgspec.UnsetType:
    """Return what a log entry says about a damaged file: its key, if snapshots may share it."""
    settled = layout.save_folder_of(key) is not None and layout.settled_place(key.rpartition("/")[2]) is not None
    return key if settled else msgspec.UNSET


class DistinctBytes:
    """Sums the bytes of snapshots, counting each file once."""

    def __init__(self) -> None:
        self._whole: set[str] = set()
        self._parts: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def add(self, snapshot: Snapshot) -> int:
        """Return how many more bytes a snapshot takes than those before it."""
        more = snapshot.own_bytes - sum(self._parts.pop(snapshot.id, {}).values())
        self._whole.add(snapshot.id)
        for shared in shares_of(snapshot.commit):
            if shared.snapshot not in self._whole:
                counted = self._parts[shared.snapshot]
                new = {name: size for name, size in shared.by_name.items() if name not in counted}
                counted.update(new)
                more += sum(new.values())
        return more


def distinct_bytes(snapshots: Collection[Snapshot]) -> int:
    """Return the size of all files that these snapshots need."""
    total = DistinctBytes()
    return sum(map(total.add, snapshots))
