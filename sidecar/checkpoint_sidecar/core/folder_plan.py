"""Decides which rank uploads which file of a folder, and into which object. Pure, and the same on every rank.

Ranks that share a folder list it once. Files are put into objects: a large one alone, small ones together with their
neighbors in the order of their paths. Objects are given to the ranks that see the files, so that each rank has about
equally many bytes. An object of the previous snapshot whose files are all unchanged is copied by the store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from checkpoint_sidecar.core.folder_index import FolderIndex, IndexEntry, Kind

ALONE_BYTES = 16 * 1024 * 1024
"""Size from which a file has an object of its own."""
LEAST_PACK_BYTES, PACK_BYTES = 4 * 1024 * 1024, 32 * 1024 * 1024
"""Maximum size of an object with several files: a rank's part of them, within these bounds (one part of an upload)."""


@dataclass(frozen=True, slots=True)
class ListedEntry:
    """A file, link or empty folder that a rank found.

    Attributes:
        path, kind, mode, size, target: See ``IndexEntry``.
        in_memory: Whether only the rank that listed it can send it.
        unchanged: The entry of the previous snapshot with the same contents, as far as the filesystem says.
        digest: Of its contents, where folders must be compared; else empty.
    """

    path: str
    kind: Kind = "File"
    mode: int = 0o644
    size: int = 0
    target: str = ""
    in_memory: bool = False
    unchanged: IndexEntry | None = None
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class PlannedObject:
    """An object that a rank stores.

    Attributes:
        folder: Number of the folder that the rank reads the files from.
        paths: Files whose bytes follow each other.
        copied_from: Name of an object of the previous snapshot that has the same bytes; else empty.
    """

    name: str
    rank: int
    folder: int
    paths: tuple[str, ...]
    size: int
    copied_from: str = ""


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """What all ranks store together."""

    index: FolderIndex
    objects: tuple[PlannedObject, ...]

    @property
    def size(self) -> int:
        return sum(each.size for each in self.objects)


@dataclass(frozen=True, slots=True)
class _Content:
    """A path with the same contents in several folders, and its rank if only one can send it."""

    entry: ListedEntry
    folders: tuple[int, ...]
    only_rank: int | None


def to_compare(listings: Sequence[Sequence[ListedEntry]]) -> list[set[str]]:
    """Return, for each folder, the files that must be compared with those of others: same path, mode and size."""
    alike: defaultdict[tuple[str, int, int], list[int]] = defaultdict(list)
    for number, listing in enumerate(listings):
        for entry in listing:
            if entry.kind == "File" and entry.size:
                alike[entry.path, entry.mode, entry.size].append(number)
    wanted: list[set[str]] = [set() for _ in listings]
    for (path, _, _), numbers in alike.items():
        if len(numbers) > 1:
            for number in numbers:
                wanted[number].add(path)
    return wanted


def plan_folder(
    listings: Sequence[Sequence[ListedEntry]],
    folders: Sequence[Sequence[int]],
    previous: FolderIndex | None,
) -> FolderPlan:
    """Return what each rank stores.

    Args:
        listings: What is below each folder.
        folders: The ranks that share each folder; the first one listed it.
        previous: The index of the snapshot whose objects may be copied, or None.
    """
    contents = _contents(listings, folders)
    entries: list[IndexEntry] = []
    pending: list[_Content] = []
    objects: list[PlannedObject] = []
    load = {rank: 0 for ranks in folders for rank in ranks}
    count = dict.fromkeys(load, 0)

    def store(rank: int, members: Sequence[_Content], copied_from: str = "") -> None:
        name = f"__{rank}_{count[rank]}.files"
        size = sum(each.entry.size for each in members)
        folder = next(number for number in members[0].folders if rank in folders[number])
        objects.append(PlannedObject(name, rank, folder, tuple(each.entry.path for each in members), size, copied_from))
        count[rank] += 1
        load[rank] += 0 if copied_from else size
        offset = 0
        for each in members:
            entries.append(_indexed(each, name, offset))
            offset += each.entry.size

    copied = _copied(contents, previous) if previous else {}
    for name, members in copied.items():
        rank = min(_able(members, folders), key=lambda rank: (count[rank], rank))
        store(rank, members, name)
    done = {id(each) for members in copied.values() for each in members}
    for each in contents:
        if each.entry.kind != "File" or not each.entry.size:
            entries.append(_indexed(each))
        elif id(each) not in done:
            pending.append(each)
    share = sum(each.entry.size for each in pending) // len(load)
    limit = min(max(share, LEAST_PACK_BYTES), PACK_BYTES)
    for members in sorted(_packs(pending, limit), key=lambda pack: -sum(each.entry.size for each in pack)):
        store(min(_able(members, folders), key=lambda rank: (load[rank], rank)), members)
    index = FolderIndex(
        tuple(tuple(ranks) for ranks in folders), tuple(sorted(entries, key=lambda e: (e.path, e.folders)))
    )
    return FolderPlan(index, tuple(objects))


def _contents(listings: Sequence[Sequence[ListedEntry]], folders: Sequence[Sequence[int]]) -> list[_Content]:
    same: dict[tuple[object, ...], list[int]] = {}
    first: dict[tuple[object, ...], ListedEntry] = {}
    for number, listing in enumerate(listings):
        for entry in listing:
            # Without a digest, equal files of two folders stay apart.
            proof: object = entry.digest or (number if entry.kind == "File" and entry.size else b"")
            key = (entry.path, entry.kind, entry.mode, entry.size, entry.target, proof)
            same.setdefault(key, []).append(number)
            first.setdefault(key, entry)
    found = []
    for identity, numbers in same.items():
        entry = first[identity]
        only = folders[numbers[0]][0] if entry.in_memory else None
        found.append(_Content(entry, tuple(numbers), only))
    return sorted(found, key=lambda each: (each.entry.path, each.folders))


def _copied(contents: Iterable[_Content], previous: FolderIndex) -> dict[str, list[_Content]]:
    """Return the objects of the previous snapshot of which every file is unchanged, with the files in their order."""
    members: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
    for entry in previous.entries:
        if entry.object:
            members[entry.object].add((entry.path, entry.offset))
    found: defaultdict[str, dict[tuple[str, int], _Content]] = defaultdict(dict)
    for content in contents:
        old = content.entry.unchanged
        if old is not None and old.object:
            found[old.object].setdefault((old.path, old.offset), content)
    whole = {name: each for name, each in found.items() if each.keys() == members[name]}
    ordered = {name: [each[key] for key in sorted(each, key=lambda k: k[1])] for name, each in whole.items()}
    return {name: each for name, each in ordered.items() if len({content.folders for content in each}) == 1}


def _packs(contents: Iterable[_Content], limit: int) -> Iterator[list[_Content]]:
    packs: dict[tuple[object, ...], list[_Content]] = {}
    sizes: defaultdict[tuple[object, ...], int] = defaultdict(int)
    for content in contents:
        if content.entry.size >= ALONE_BYTES:
            yield [content]
            continue
        key = content.folders, content.only_rank
        if sizes[key] and sizes[key] + content.entry.size > limit:
            yield packs.pop(key)
            sizes[key] = 0
        packs.setdefault(key, []).append(content)
        sizes[key] += content.entry.size
    yield from packs.values()


def _able(members: Sequence[_Content], folders: Sequence[Sequence[int]]) -> list[int]:
    only = {each.only_rank for each in members if each.only_rank is not None}
    if only:
        return sorted(only)
    return sorted({rank for number in members[0].folders for rank in folders[number]})


def _indexed(content: _Content, name: str = "", offset: int = 0) -> IndexEntry:
    entry = content.entry
    mode = entry.mode if entry.kind == "File" else 0o644
    return IndexEntry(entry.path, entry.kind, mode, entry.size, name, offset, entry.target, content.folders)


def with_digests(listing: Sequence[ListedEntry], digests: Mapping[str, bytes]) -> list[ListedEntry]:
    """Return a listing whose files carry their digests."""
    return [replace(entry, digest=digests.get(entry.path, b"")) for entry in listing]
