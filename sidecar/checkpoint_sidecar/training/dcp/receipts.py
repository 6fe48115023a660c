"""What each rank has stored, as arrays: DCP's ``WriteResult`` of every item on its way to rank 0."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.storage import WriteResult

from checkpoint_sidecar.core.manifest import File
from checkpoint_sidecar.training.dcp.columns import pack_rows, pack_texts, unpack_rows, unpack_texts
from checkpoint_sidecar.training.dcp.inventory import Integers, Inventory, integers, padded
from checkpoint_sidecar.training.dcp.remembered import Recent, digest_of, once_for_each


@dataclass(frozen=True, slots=True)
class FileLine:
    """A file that a rank has stored.

    Attributes:
        file: Its line in the manifest.
        sent: Bytes that were sent for it.
    """

    file: File
    sent: int


@dataclass(frozen=True, eq=False, slots=True)
class Receipts:
    """The items and files that one rank has stored; iterates as DCP's results.

    Attributes:
        own_names: ``names``, unless another rank has sent them.
        dimensions: By item; -1 for an object.
        hints: ``MetadataIndex.index`` by item; 0 for an object.
        offsets: Of the item's chunk.
        files: Names of files.
        places: By item: index in ``files``, offset and length in bytes.
        lines: The files.
        sent: What another rank has sent of all but the files.
    """

    own_names: tuple[str, ...]
    dimensions: Integers
    hints: Integers
    offsets: Integers
    files: tuple[str, ...]
    places: Integers
    lines: tuple[FileLine, ...]
    sent: tuple[bytes, bytes] | None = None

    @classmethod
    def of(cls, results: Iterable[WriteResult]) -> Receipts | None:
        """Return the receipts of DCP's results, or None if one has another form than ``write_data`` gives it."""
        items = []
        lines = []
        for result in results:
            if isinstance(result.storage_data, File):
                lines.append(FileLine(result.storage_data, result.size_in_bytes))
            elif _is_usual(result):
                items.append(result)
            else:
                return None
        places = [_place(item) for item in items]
        files = {name: number for number, name in enumerate(dict.fromkeys(place.relative_path for place in places))}
        names = tuple(item.index.fqn for item in items)
        dimensions = integers(-1 if item.index.offset is None else len(item.index.offset) for item in items)
        hints = integers(item.index.index or 0 for item in items)
        offsets = padded([item.index.offset or () for item in items])
        stored = padded([(files[place.relative_path], place.offset, place.length) for place in places], width=3)
        return cls(names, dimensions, hints, offsets, tuple(files), stored, tuple(lines))

    @property
    def names(self) -> tuple[str, ...]:
        """By item. Unpacked for each call: where everything lies as in the save before, they are not needed."""
        return self.own_names if self.sent is None else unpack_texts(self.sent[0])

    def __iter__(self) -> Iterator[WriteResult]:
        columns = (each.tolist() for each in (self.dimensions, self.hints, self.offsets, self.places))
        for name, dimensions, hint, offsets, (file, start, length) in zip(self.names, *columns, strict=True):
            index = MetadataIndex(name) if dimensions < 0 else MetadataIndex(name, offsets[:dimensions], hint)
            yield WriteResult(index, length, _StorageInfo(self.files[file], start, length))
        for line in self.lines:
            yield WriteResult(MetadataIndex(line.file.name), line.sent, line.file)

    def packed(self) -> tuple[bytes, bytes]:
        """Return all but the files, as they travel."""
        if self.sent is not None:
            return self.sent
        rows = np.column_stack([self.places, self.dimensions, self.hints, self.offsets])
        return pack_texts(self.names), pack_rows(rows)

    @classmethod
    def received(cls, packed: tuple[bytes, bytes], files: tuple[str, ...], lines: bytes) -> Receipts:
        """Return the receipts that another rank has sent."""
        unpacked = unpack_rows(packed[1])
        places, dimensions, hints, offsets = unpacked[:, :3], unpacked[:, 3], unpacked[:, 4], unpacked[:, 5:]
        found = msgspec.msgpack.decode(lines, type=tuple[FileLine, ...])
        return cls((), dimensions, hints, offsets, files, places, found, packed)

    def __reduce__(self) -> Any:
        return Receipts.received, (self.packed(), self.files, msgspec.msgpack.encode(self.lines))


class Results(list[WriteResult]):
    """DCP's results of one rank, which travel as receipts."""

    def __reduce__(self) -> Any:
        receipts = Receipts.of(self)
        return (list, (list(self),)) if receipts is None else receipts.__reduce__()


def placed(contents: Inventory, ranks: Sequence[Receipts]) -> Inventory | None:
    """Return contents with the places where they were stored, or None if these are others than planned."""
    numbers = {name: number for number, name in enumerate(contents.names)}
    stored = [receipts.names for receipts in ranks]
    of_names: dict[int, Integers] = {}
    for names in stored:
        if id(names) not in of_names:
            of_names[id(names)] = integers(numbers.get(name, -1) for name in names)
    number = np.concatenate([of_names[id(names)] for names in stored])
    hint = np.concatenate([receipts.hints for receipts in ranks])
    total = len(contents.offsets)
    if len(number) != total or (number < 0).any() or (hint >= contents.counts[number]).any():
        return None
    row = contents.begins[number] + hint
    at = 0
    for receipts in ranks:
        offsets, rows = receipts.offsets, row[at : at + len(receipts.hints)]
        width = offsets.shape[1]
        if width > contents.offsets.shape[1] or (contents.offsets[rows, :width] != offsets).any():
            return None
        at += len(rows)
    if (np.bincount(row, minlength=total) != 1).any():
        return None
    files: dict[str, int] = {}
    places = [receipts.places.copy() for receipts in ranks]
    for receipts, place in zip(ranks, places, strict=True):
        known = integers(files.setdefault(name, len(files)) for name in receipts.files)
        if len(place):
            place[:, 0] = known[place[:, 0]]
    together = np.empty((total, 3), np.int64)
    together[row] = np.concatenate([place for place in places if len(place)] or [together])
    file, start, length = together.T
    return replace(contents, files=tuple(files), file=file, start=start, length=length)


def stored_inventory(metadata: Metadata, results: Sequence[Iterable[WriteResult]]) -> Inventory | None:
    """Return the inventory of planned metadata and all ranks' results, or None if they have more to say."""
    contents = Inventory.planned(metadata)
    receipts = [each if isinstance(each, Receipts) else Receipts.of(each) for each in results]
    known = [each for each in receipts if each is not None]
    if contents is None or len(known) < len(results):
        return None
    if len(known) == 1:
        return placed(contents, known)  # as in ``global_plan``
    stored = chain.from_iterable((*each.packed(), msgspec.msgpack.encode(each.files)) for each in known)
    return _inventories(contents).get(digest_of(stored), lambda: placed(contents, known))


@once_for_each
def _inventories(contents: Inventory) -> Recent[Inventory | None]:
    """Return where contents were stored in the save before."""
    del contents
    return Recent(1)


def lines_of(results: Iterable[WriteResult]) -> Sequence[FileLine]:
    """Return the files among one rank's results."""
    if isinstance(results, Receipts):
        return results.lines
    return [
        FileLine(result.storage_data, result.size_in_bytes)
        for result in results
        if isinstance(result.storage_data, File)
    ]


def _is_usual(result: WriteResult) -> bool:
    index, place = result.index, result.storage_data
    hinted = index.index is not None if index.offset is not None else index.index is None
    return hinted and type(place) is _StorageInfo and not getattr(place, "transform_descriptors", None)


def _place(result: WriteResult) -> _StorageInfo:
    place: _StorageInfo = result.storage_data
    return place
