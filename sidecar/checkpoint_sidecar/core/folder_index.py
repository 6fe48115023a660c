"""The index of a snapshot's folder: every file, link and empty folder below it, and where the bytes are stored.

Bytes of files are stored in objects ``__<rank>_<n>.files``: a large file alone, small ones one after the other. The
index, ``files.json``, is listed in the manifest like every other file of a snapshot. It may come from a bucket of a
stranger, so that every path and link target is checked before anything is written below a folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal

import msgspec

from checkpoint_sidecar.core.errors import IncompatibleSnapshotError
from checkpoint_sidecar.core.wire import Count, UndecodableError, decode_json

INDEX_NAME = "files.json"
WORK_FOLDER = ".checkpoint-operator"
"""Folder for our own files below the user's: probes, files being uploaded or restored, and files set aside."""
MAX_INDEX_BYTES = 64 * 1024 * 1024
MAX_PATH_BYTES = 4096
_FORMAT = 1
_UPGRADE = "A newer version may have written it: upgrade checkpoint-operator here."

Kind = Literal["File", "Folder", "Link"]
Rank = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class IndexEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file, a symbolic link or an empty folder.

    Attributes:
        path: Relative to the folder, with ``/`` between its parts.
        mode: Permission bits of a file.
        size: Bytes of a file.
        object: Name of the stored object that holds them; empty for a file without bytes.
        offset: Their position in it.
        target: Where a link points, relative to the link's own folder; stays below the user's folder.
        folders: Numbers of the folders that have the entry, see ``FolderIndex.folders``.
    """

    path: str
    kind: Kind = "File"
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o777)] = 0o644
    size: Count = 0
    object: str = ""
    offset: Count = 0
    target: str = ""
    folders: tuple[Rank, ...] = (0,)


class FolderIndex(msgspec.Struct, frozen=True):
    """What was below the folder of each rank.

    Attributes:
        folders: The ranks that saw each folder. Ranks that share a folder, on one node or a shared filesystem, are
            together; one rank is in one folder only.
        entries: Sorted by path. A path occurs several times if folders have different contents under it.
    """

    folders: tuple[tuple[Rank, ...], ...]
    entries: tuple[IndexEntry, ...]
    format: int = _FORMAT

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)


def encode(index: FolderIndex) -> bytes:
    """Return the index's bytes.

    Raises:
        ValueError: ``decode`` would refuse them.
    """
    data = msgspec.json.encode(index)
    if len(data) > MAX_INDEX_BYTES:
        raise ValueError(f"the index of {len(index.entries)} files has {len(data)} bytes, more than {MAX_INDEX_BYTES}")
    if problem := _inconsistency(index):
        raise ValueError(problem)
    return data


def decode(data: bytes, *, sizes: dict[str, int], subject: str) -> FolderIndex:
    """Read an index and check every path, target and range in it.

    Args:
        sizes: Size of each object by its name, from the manifest.
        subject: Name in errors.

    Raises:
        IncompatibleSnapshotError: This version cannot use it, or it must not be restored.
    """
    operation = "read the index of files in"
    try:
        index = decode_json(data, FolderIndex)
    except UndecodableError as error:
        raise IncompatibleSnapshotError(operation, subject, f"it is not an index: {error}", _UPGRADE) from error
    if index.format != _FORMAT:
        cause = f"it has format {index.format}, this version reads {_FORMAT}"
        raise IncompatibleSnapshotError(operation, subject, cause, _UPGRADE)
    problem = _inconsistency(index)
    if not problem:
        outside = (entry for entry in index.entries if entry.size and entry.offset + entry.size > _size(entry, sizes))
        found = next(outside, None)
        problem = f"{found.path!r} is at bytes that no object of the snapshot has" if found else ""
    if problem:
        raise IncompatibleSnapshotError(operation, subject, problem, "Nothing was restored.")
    return index


def _size(entry: IndexEntry, sizes: dict[str, int]) -> int:
    return sizes.get(entry.object, -1)


def check_path(path: str) -> str:
    """Return why a path must not be used below a folder, or an empty string."""
    parts = path.split("/")
    if not path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        return "it does not stay below the folder"
    if parts[0] == WORK_FOLDER:
        return f"{WORK_FOLDER} is reserved"
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8"
    return f"it has more than {MAX_PATH_BYTES} bytes" if len(encoded) > MAX_PATH_BYTES else ""


def check_target(path: str, target: str) -> str:
    """Return why a link must not point to a target, or an empty string.

    Args:
        path: The link's path below the folder.
        target: Relative to the folder that has the link.
    """
    if not target or "\0" in target or target.startswith("/"):
        return f"it points to {target!r}, outside of the folder"
    place = path.split("/")[:-1]
    for part in target.split("/"):
        if part == "..":
            if not place:
                return f"it points to {target!r}, outside of the folder"
            place.pop()
        elif part not in ("", "."):
            place.append(part)
    if place[:1] == [WORK_FOLDER]:
        return f"it points into {WORK_FOLDER}, which is reserved"
    try:
        target.encode()
    except UnicodeEncodeError:
        return "its target is not valid UTF-8"
    return ""


def entries_for(index: FolderIndex, ranks: Sequence[int], *, folders: Sequence[Sequence[int]]) -> list[IndexEntry]:
    """Return what a folder gets when it is restored, each path once.

    Where the ranks share folders just as they did when they saved, each folder gets its own entries. Otherwise each
    folder gets those of all; of different contents under one path it gets those of its lowest rank, or of the lowest
    rank if that one did not exist.

    Args:
        ranks: The ranks that share this folder now.
        folders: The ranks of all folders now.
    """
    saved = [sorted(each) for each in index.folders]
    own = next((number for number, each in enumerate(saved) if min(ranks) in each), 0)
    if sorted(map(sorted, folders)) == sorted(saved):
        return [entry for entry in index.entries if own in entry.folders]
    order = sorted(range(len(saved)), key=lambda number: (number != own, saved[number]))
    rank_of = {number: place for place, number in enumerate(order)}
    chosen: dict[str, tuple[int, IndexEntry]] = {}
    for entry in index.entries:
        place = min(rank_of[number] for number in entry.folders)
        if entry.path not in chosen or place < chosen[entry.path][0]:
            chosen[entry.path] = place, entry
    kept = [entry for _, entry in chosen.values()]
    # A link or file of one folder may be where another one has a folder.
    covered = {entry.path for entry in kept if entry.kind != "Folder"}
    return [entry for entry in kept if not any(parent in covered for parent in parents(entry.path))]


def differing_paths(index: FolderIndex) -> list[str]:
    """Return the paths under which folders had different contents."""
    count = Counter(entry.path for entry in index.entries)
    return sorted(path for path, times in count.items() if times > 1)


def parents(path: str) -> Iterator[str]:
    """Yield the folders above a path, the nearest one first."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _inconsistency(index: FolderIndex) -> str:
    count = len(index.folders)
    ranks = [rank for folder in index.folders for rank in folder]
    if not all(index.folders) or len(set(ranks)) != len(ranks):
        return "a folder has no rank, or a rank has two folders"
    for number in range(count):
        if problem := _tree_problem(entry for entry in index.entries if number in entry.folders):
            return problem
    for entry in index.entries:
        if not entry.folders or max(entry.folders) >= count:
            return f"{entry.path!r} is in a folder that does not exist"
        problem = check_path(entry.path)
        if not problem and entry.kind == "Link":
            problem = check_target(entry.path, entry.target)
        if problem:
            return f"{entry.path!r}: {problem}"
    return ""


def _tree_problem(entries: Iterable[IndexEntry]) -> str:
    """Return why entries cannot lie below one folder: a path occurs twice, or lies below a file or a link."""
    paths: set[str] = set()
    leaves: set[str] = set()
    for entry in entries:
        if entry.path in paths:
            return f"{entry.path!r} is listed twice"
        paths.add(entry.path)
        if entry.kind != "Folder":
            leaves.add(entry.path)
    below = (path for path in paths if any(parent in leaves for parent in parents(path)))
    found = next(below, None)
    return f"{found!r} lies below a file or a link" if found else ""
