"""Delivers stored items to tensors and planners: says what each destination can take, and reads.

The engine plans how bytes reach a destination; see ``engine.delivery``. A slice without gaps is delivered to the memory
of its tensor, or to its device as bytes arrive. Everything else is assembled in host memory first: slices with gaps,
tensors with strides, objects, and archives that this version of torch would frame in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from checkpoint_sidecar.engine.delivery import Assembly, Sink, Want
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.requests import ByteRange
from checkpoint_sidecar.training.dcp.frames import Frame, frame, payload_matches
from checkpoint_sidecar.training.dcp.memory import as_buffer, as_bytes, is_plain, lies_in_order
from checkpoint_sidecar.training.dcp.slices import Slice

PIECE_BYTES = 16 * 1024 * 1024
"""Maximum size of one assembled piece of a tensor."""


@dataclass(frozen=True, slots=True)
class WantedPart:
    """A part of a stored tensor, and the tensor to load it into.

    Attributes:
        box: The part's position in the stored tensor.
        target: A tensor of the stored dtype, shaped like the box.
    """

    box: Slice
    target: torch.Tensor


@dataclass(frozen=True, slots=True)
class Item:
    """A stored tensor or object to load.

    Attributes:
        name: The file that holds it.
        span: Position of the archive that ``torch.save`` made of it.
        part: The wanted part of a tensor; None for an object.
        unpack: Delivers it, given the whole archive.
    """

    name: str
    span: ByteRange
    part: WantedPart | None
    unpack: Callable[[memoryview], None]


def deliver(files: Files, items: Sequence[Item], *, staging_bytes: int, progress: TransferMeter | None = None) -> None:
    """Load items into their targets.

    Args:
        staging_bytes: Host memory for items that have to be assembled; a larger item gets as much as it needs.
        progress: Counts expected and delivered bytes; may cancel the load.

    Raises:
        CorruptSnapshotError, StoreError: See ``Files.read``. The contents of all targets are then undefined.
    """
    heads: dict[tuple[str, int], _Head] = {}
    wants: list[Want] = []
    shared = _sharing_memory(items)
    for number, item in enumerate(items):
        part, expected = item.part, _frame_of(item)
        if part is None or expected is None:
            wants.append(_whole(item))
        elif part.box.count:
            key = (item.name, item.span.start)
            head = heads.get(key) or heads.setdefault(key, _Head(item, expected))
            head.items.append(item)
            wants += _payload_wants(item, part, head, alone=number not in shared)
    _read(files, [*(head.want for head in heads.values()), *wants], staging_bytes, progress)
    foreign = [item for head in heads.values() if not head.matches for item in head.items]
    _read(files, list(map(_whole, foreign)), staging_bytes, progress)


class _Head:
    """The beginning of an archive, read together with the wanted parts of its payload."""

    def __init__(self, item: Item, expected: Frame) -> None:
        self.items: list[Item] = []
        self.expected = expected
        self._data = bytearray(len(expected.head))
        self.want = Want(item.name, ByteRange(item.span.start, len(self._data)), memoryview(self._data))

    @property
    def matches(self) -> bool:
        return payload_matches(memoryview(self._data), self.expected)


class _DeviceMemory:
    """A contiguous tensor on a device, filled as its bytes arrive."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._bytes = as_bytes(tensor)

    def accept(self, offset: int, data: memoryview) -> None:
        self._bytes[offset : offset + len(data)].copy_(torch.frombuffer(data, dtype=torch.uint8))


def _whole(item: Item) -> Want:
    return Want(item.name, item.span, Assembly(item.unpack))


def _payload_wants(item: Item, part: WantedPart, head: _Head, *, alone: bool) -> Iterator[Want]:
    """Yield what to read of a tensor's payload.

    Args:
        alone: Whether no other item is loaded into the same memory.
    """
    direct = _arrival(part.target) if alone and part.box.contiguous else None
    if direct is not None:
        yield Want(item.name, _payload(item, part.box, part.target, head.expected), direct)
        return
    for box in part.box.split(PIECE_BYTES // part.target.dtype.itemsize):

        def copy(data: memoryview, box: Slice = box) -> None:
            if not head.matches:
                return
            target = part.target
            for dimension, length in enumerate(box.lengths):
                target = target.narrow(dimension, box.offsets[dimension] - part.box.offsets[dimension], length)
            stored = torch.frombuffer(data, dtype=target.dtype)
            target.copy_(stored.as_strided(box.lengths, box.strides))

        yield Want(item.name, _payload(item, box, part.target, head.expected), Assembly(copy))


def _arrival(target: torch.Tensor) -> memoryview | Sink | None:
    """Return where a tensor can take bytes as they arrive; None if it cannot."""
    if not (is_plain(target) and lies_in_order(target)):
        return None
    return as_buffer(target) if _in_host_memory(target) else _DeviceMemory(target)


def _in_host_memory(target: torch.Tensor) -> bool:
    return target.device.type == "cpu"


def _payload(item: Item, box: Slice, target: torch.Tensor, expected: Frame) -> ByteRange:
    itemsize = target.dtype.itemsize
    return ByteRange(item.span.start + len(expected.head) + box.first * itemsize, box.extent * itemsize)


def _read(files: Files, wants: Sequence[Want], staging_bytes: int, progress: TransferMeter | None) -> None:
    if progress:
        progress.expect(sum(want.span.length for want in wants))
    files.read(wants, staging_bytes=staging_bytes, progress=progress)


def _frame_of(item: Item) -> Frame | None:
    """Return the frame that this version of torch gives the item's archive; None if the archive cannot have it."""
    if item.part is None or not is_plain(item.part.target):
        return None
    expected = frame(item.part.target.dtype, torch.Size(item.part.box.sizes))
    return expected if expected.size == item.span.length else None


def _sharing_memory(items: Iterable[Item]) -> set[int]:
    """Return the items that are loaded into memory of another item, such as tied weights under two names.

    Delivered directly, they would overwrite each other between arrival and verification.
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
