"""Bringing stored items to where they belong, each by the shortest way there is.

A slice without gaps lands in its destination's own memory, or goes to its device as it arrives. Everything else comes
into host memory first, no more of it at a time than the budget allows: slices with gaps, destinations with strides,
objects, and archives that are not framed as this version of torch frames them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from checkpoint_sidecar.engine.budget import groups_within
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.read import Destination, Files, Want
from checkpoint_sidecar.engine.requests import ByteRange
from checkpoint_sidecar.training.dcp.frames import Frame, frame, payload_matches
from checkpoint_sidecar.training.dcp.memory import as_buffer, as_bytes, is_plain, lies_in_order
from checkpoint_sidecar.training.dcp.slices import Slice

PIECE_BYTES = 16 * 1024 * 1024
"""What is put together in host memory is put together in pieces of at most this size."""

_ALIGNMENT = 64
"""Of staged bytes, in memory: enough for every dtype."""


@dataclass(frozen=True, slots=True)
class WantedPart:
    """What is wanted of a stored tensor.

    Attributes:
        box: In the stored tensor.
        target: Where it goes: of the stored dtype, shaped like the box.
    """

    box: Slice
    target: torch.Tensor


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to load.

    Attributes:
        name: Of the file it is in.
        span: Of the archive that ``torch.save`` made of it.
        part: None for what is no tensor.
        unpack: Delivers it, given the whole archive.
    """

    name: str
    span: ByteRange
    part: WantedPart | None
    unpack: Callable[[memoryview], None]


def bring(files: Files, items: Sequence[Item], *, staging_bytes: int, progress: TransferMeter | None = None) -> None:
    """Load items.

    Args:
        staging_bytes: Of host memory for what cannot go to its destination directly; a larger item gets what it needs.
        progress: Told of bytes to come and of bytes delivered.

    Raises:
        CorruptSnapshotError, StoreError: See ``Files.read``. Then the contents of any target are undefined.
    """
    heads: dict[tuple[str, int], _Head] = {}
    wants: list[Want] = []
    staged: list[_Staged] = []
    shared = _sharing_memory(items)
    for number, item in enumerate(items):
        part, expected = item.part, _frame_of(item)
        if part is None or expected is None:
            staged.append(_Staged(item.name, item.span, item.unpack))
            continue
        if not part.box.count:
            continue
        key = (item.name, item.span.start)
        head = heads.get(key) or heads.setdefault(key, _Head(item, expected))
        head.items.append(item)
        destination = None if number in shared else _destination(part.target)
        if destination is None or not part.box.contiguous:
            staged.extend(_pieces(item, part, head))
        else:
            wants.append(Want(item.name, _payload(item, part.box, part.target, expected), destination))
    _read(files, [*(head.want for head in heads.values()), *wants], staged, staging_bytes, progress)
    foreign = [item for head in heads.values() if not head.matches for item in head.items]
    _read(files, [], [_Staged(item.name, item.span, item.unpack) for item in foreign], staging_bytes, progress)


class _Head:
    """The beginning of an archive, read along with what is wanted of its payload."""

    def __init__(self, item: Item, expected: Frame) -> None:
        self.items: list[Item] = []
        self.expected = expected
        self._data = bytearray(len(expected.head))
        self.want = Want(item.name, ByteRange(item.span.start, len(self._data)), memoryview(self._data))

    @property
    def matches(self) -> bool:
        return payload_matches(memoryview(self._data), self.expected)


@dataclass(frozen=True, slots=True)
class _Staged:
    """Bytes that come into host memory and are delivered from there, unless their archive has another head."""

    name: str
    span: ByteRange
    deliver: Callable[[memoryview], None]
    head: _Head | None = None

    @property
    def footprint(self) -> int:
        """Bytes it takes in memory for the next one to be aligned."""
        return self.span.length + -self.span.length % _ALIGNMENT


class _DeviceMemory:
    """A contiguous tensor elsewhere than in host memory, filled as its bytes arrive."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._bytes = as_bytes(tensor)

    def accept(self, offset: int, data: memoryview) -> None:
        self._bytes[offset : offset + len(data)].copy_(torch.frombuffer(data, dtype=torch.uint8))


def _destination(target: torch.Tensor) -> Destination | None:
    """Where bytes may go directly; None if they have to be put together first."""
    if not (is_plain(target) and lies_in_order(target)):
        return None
    return as_buffer(target) if _in_host_memory(target) else _DeviceMemory(target)


def _in_host_memory(target: torch.Tensor) -> bool:
    return target.device.type == "cpu"


def _pieces(item: Item, part: WantedPart, head: _Head) -> Iterator[_Staged]:
    itemsize = part.target.dtype.itemsize
    for box in part.box.split(PIECE_BYTES // itemsize):

        def deliver(data: memoryview, box: Slice = box) -> None:
            target = part.target
            for dimension, length in enumerate(box.lengths):
                target = target.narrow(dimension, box.offsets[dimension] - part.box.offsets[dimension], length)
            stored = torch.frombuffer(data, dtype=target.dtype)
            target.copy_(stored.as_strided(box.lengths, box.strides))

        yield _Staged(item.name, _payload(item, box, part.target, head.expected), deliver, head)


def _payload(item: Item, box: Slice, target: torch.Tensor, expected: Frame) -> ByteRange:
    itemsize = target.dtype.itemsize
    return ByteRange(item.span.start + len(expected.head) + box.first * itemsize, box.extent * itemsize)


def _read(
    files: Files, wants: Sequence[Want], staged: Sequence[_Staged], staging_bytes: int, progress: TransferMeter | None
) -> None:
    """Read what needs no staging, along with as much as the staging memory takes; then the rest, wave by wave."""
    if progress:
        progress.expect(sum(span.length for span in (*(w.span for w in wants), *(s.span for s in staged))))
    waves = list(groups_within(staging_bytes, staged, lambda each: each.footprint)) or [[]]
    memory = memoryview(bytearray(max(sum(each.footprint for each in wave) for wave in waves)))
    for wave in waves:
        position = 0
        arrivals: list[memoryview] = []
        for each in wave:
            arrivals.append(memory[position : position + each.span.length])
            position += each.footprint
        arriving = [Want(each.name, each.span, data) for each, data in zip(wave, arrivals, strict=True)]
        files.read([*wants, *arriving], reserved_bytes=len(memory), progress=progress)
        for each, data in zip(wave, arrivals, strict=True):
            if each.head is None or each.head.matches:
                each.deliver(data)
        wants = []


def _frame_of(item: Item) -> Frame | None:
    """The frame the item's archive has if this version of torch made it; None if it cannot have that."""
    if item.part is None or not is_plain(item.part.target):
        return None
    expected = frame(item.part.target.dtype, torch.Size(item.part.box.sizes))
    return expected if expected.size == item.span.length else None


def _sharing_memory(items: Iterable[Item]) -> set[int]:
    """Items that write into memory which another one writes into: tied weights under two names.

    Landing there directly they would overwrite each other between arrival and verification.
    """
    occupied = sorted(
        (str(part.target.device), part.target.data_ptr(), part.target.data_ptr() + part.target.nbytes, number)
        for number, item in enumerate(items)
        if (part := item.part) and part.box.count and is_plain(part.target)
    )
    shared: set[int] = set()
    reach_device, reach, holder = "", 0, -1
    for device, start, end, number in occupied:
        if device == reach_device and start < reach:
            shared |= {holder, number}
        if device != reach_device or end > reach:
            reach_device, reach, holder = device, end, number
    return shared
