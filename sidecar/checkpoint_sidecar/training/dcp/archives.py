"""Lays out ``.distcp`` files, a sequence of ``torch.save`` archives, one per item, before any byte is transferred."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from checkpoint_sidecar.core import settled_files
from checkpoint_sidecar.core.errors import CheckpointError, ConfigurationError
from checkpoint_sidecar.core.unchanged import SettledFile, TensorPart
from checkpoint_sidecar.engine.files import Bytes, FilePlan, Segment
from checkpoint_sidecar.training.dcp.frames import frame
from checkpoint_sidecar.training.dcp.memory import as_buffer, has_memory, is_plain, lies_in_order
from checkpoint_sidecar.training.dcp.restricted import Trust, load_restricted

logger = logging.getLogger(__name__)

FILE_BYTES = 4 * 1024**3
"""Size at which a file is finished and another one begins."""


@dataclass(slots=True)
class Layout:
    """The files of one rank.

    Attributes:
        files: The files to write.
        results: The place of each item, in DCP's form.
    """

    files: list[FilePlan] = field(default_factory=list)
    results: list[WriteResult] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ItemArchive:
    """An item as its file has it.

    Attributes:
        segments: The output of ``torch.save``.
    """

    item: WriteItem
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)

    @property
    def part(self) -> TensorPart:
        """The name and the place of a tensor."""
        return self.item.index.fqn, tuple(self.item.index.offset or ())


def archived(
    items: Iterable[tuple[WriteItem, torch.Tensor | io.BytesIO]], *, trust: Trust = "full"
) -> list[ItemArchive]:
    """Return the archives of items, in order. Plain tensors are not copied.

    Args:
        trust: Trust of later loads. ``safe`` checks that tensors which are not plain can be loaded, and warns of
            objects that cannot.

    Raises:
        ConfigurationError: A tensor cannot be saved, or cannot be loaded again.
    """
    return [ItemArchive(item, tuple(_archive(item.index.fqn, data, trust))) for item, data in items]


def lay_out(archives: Iterable[ItemArchive], *, rank: int, settled: Iterable[SettledFile] = ()) -> Layout:
    """Place items in a rank's files, in this order.

    Args:
        settled: Files of some of the tensors, see ``core.unchanged``; all other items follow in files of their own.
    """
    layout = Layout()
    remaining = {each.part: each for each in archives}
    for file in settled:
        members = [remaining.pop(each.part) for each in file.parts]
        _place(layout, file.name, members, end=settled_files.encode(file.parts))
    members, size, number = [], 0, 0
    for each in remaining.values():
        if size >= FILE_BYTES:
            _place(layout, _name(rank, number), members)
            members, size, number = [], 0, number + 1
        members.append(each)
        size += each.size
    if members:
        _place(layout, _name(rank, number), members)
    return layout


def _place(layout: Layout, name: str, archives: Iterable[ItemArchive], *, end: bytes = b"") -> None:
    """Add a file of these archives, one after the other."""
    segments: list[Segment] = []
    position = 0
    for each in archives:
        length = each.size
        layout.results.append(WriteResult(each.item.index, length, _StorageInfo(name, position, length)))
        segments += each.segments
        position += length
    layout.files.append(FilePlan(name, (*segments, Bytes(end)) if end else tuple(segments)))


def payload_bytes(item: WriteItem) -> int:
    """Return the size of an item's tensor from its plan, in bytes; 0 for an object, which is not serialized yet."""
    tensor = item.tensor_data
    return tensor.chunk.sizes.numel() * tensor.properties.dtype.itemsize if tensor else 0


class TensorBytes:
    """The memory of a plain tensor on any device, in row-major order: a ``Segment``."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._memory: memoryview | None = None
        if tensor.device.type == "cpu" and lies_in_order(tensor):
            self._memory = as_buffer(tensor)

    @property
    def size(self) -> int:
        return self._tensor.nbytes

    @property
    def in_memory(self) -> bool:
        return self._memory is not None

    def view(self, start: int, stop: int) -> memoryview:
        if self._memory is not None:
            return self._memory[start:stop]
        item = self._tensor.itemsize
        first, last = start // item, -(-stop // item)
        copied = torch.empty(
            last - first, dtype=self._tensor.dtype, device="cpu", pin_memory=self._tensor.device.type == "cuda"
        )
        _copy_range(self._tensor, first, copied)
        return as_buffer(copied)[start - first * item : stop - first * item]


def _archive(name: str, data: torch.Tensor | io.BytesIO, trust: Trust) -> list[Segment]:
    if isinstance(data, io.BytesIO):
        if trust == "safe" and name not in _REPORTED:
            _report(name, data)
        return [Bytes(data.getbuffer())]
    tensor = data.detach()
    if tensor.is_meta:
        raise _unsavable(name, "it is on the meta device and has no elements", "Move its module with to_empty() first.")
    if not is_plain(tensor):
        return [Bytes(_saved(name, tensor, trust))]
    around = frame(tensor.dtype, tensor.shape)
    return [Bytes(around.head), TensorBytes(tensor), Bytes(around.tail)]


def _saved(name: str, tensor: torch.Tensor, trust: Trust) -> memoryview:
    stream = io.BytesIO()
    try:
        tensor = tensor.cpu()
        if tensor.layout is torch.strided and has_memory(tensor) and tensor.untyped_storage().size() != tensor.nbytes:
            # For a view of a larger storage, torch saves the whole storage.
            tensor = tensor.clone()
        torch.save(tensor, stream)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, pickle.PicklingError) as error:
        raise _unsavable(name, f"torch.save cannot save this {_kind(tensor)}: {error}") from error
    kind = (type(tensor), tensor.layout, tensor.dtype)
    if trust == "safe" and kind not in _LOADABLE:
        stream.seek(0)
        try:
            load_restricted(stream, subject=name, trust="safe")
        except CheckpointError as error:
            raise _unsavable(
                name,
                f"this {_kind(tensor)} could not be loaded again: {error.cause}",
                "Allow its class with torch.serialization.add_safe_globals, convert it to a plain tensor, or save and "
                'load with trust="full".',
            ) from error
        _LOADABLE.add(kind)
    return stream.getbuffer()


def _report(name: str, data: io.BytesIO) -> None:
    """Warn once that an object cannot be loaded again by default."""
    _REPORTED.add(name)
    try:
        load_restricted(io.BytesIO(data.getbuffer()), subject=name, trust="safe")
    except CheckpointError as error:
        logger.warning('%s is saved, but only a load with trust="full" accepts it: %s', name, error.cause)


def _unsavable(name: str, cause: str, hint: str = "Convert it to a plain tensor first.") -> ConfigurationError:
    return ConfigurationError("save tensor", name, cause, hint)


def _kind(tensor: torch.Tensor) -> str:
    layout = "" if tensor.layout is torch.strided else f" of layout {tensor.layout}"
    return f"{type(tensor).__module__}.{type(tensor).__qualname__}{layout}"


_LOADABLE: set[tuple[type, torch.layout, torch.dtype]] = set()
"""Kinds of tensors that this process has saved and loaded again."""
_REPORTED: set[str] = set()
"""Names of objects that were checked."""


def _copy_range(source: torch.Tensor, start: int, target: torch.Tensor) -> None:
    """Fill ``target``, of one dimension, with the elements of ``source`` from ``start`` in row-major order."""
    stop = start + target.numel()
    if source.is_contiguous():
        target.copy_(source.view(-1)[start:stop])
        return
    row = source[0].numel()
    first, last = -(-start // row), stop // row
    if first > last:
        _copy_range(source[last], start - last * row, target)
        return
    head, body = target[: first * row - start], target[first * row - start : last * row - start]
    if head.numel():
        _copy_range(source[first - 1], row - head.numel(), head)
    if first < last:
        rows = source[first:last]
        body.view(rows.shape).copy_(rows)
    if stop > last * row:
        _copy_range(source[last], 0, target[last * row - start :])


def _name(rank: int, number: int) -> str:
    return f"__{rank}_{number}.distcp"
