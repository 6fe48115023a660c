"""Lays out the files of an export: which tensor is in which file, and where. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, TypeAlias

import msgspec

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.engine.safetensors import DTYPES, TensorSpan, encode_header
from checkpoint_sidecar.exports.choosing import ExportedTensor
from checkpoint_sidecar.store.base import LEAST_PART_BYTES

ExportFormat: TypeAlias = Literal["hf", "safetensors", "pt"]

SHARD_BYTES = 5 * 1000**3
"""Size of a shard of ``hf`` by default, as transformers has it."""
INDEX_NAME = "model.safetensors.index.json"
PT_NAME = "model.pt"

FilePiece: TypeAlias = bytes | ExportedTensor


@dataclass(frozen=True)
class ExportFile:
    """A file of tensors.

    Attributes:
        pieces: Its contents, one after the other.
        describes_itself: Whether the first piece says which snapshot it was made of, so that equal ones are the same.
    """

    name: str
    pieces: tuple[FilePiece, ...]
    describes_itself: bool = False

    @property
    def ends(self) -> list[int]:
        """Where each piece ends, in bytes."""
        return list(accumulate(map(size_of, self.pieces)))

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(map(size_of, self.pieces))

    def within(self, start: int, stop: int) -> Iterator[tuple[FilePiece, int, int, int]]:
        """Yield the pieces in a span of the file.

        Yields:
            The piece, the first of its bytes and the one behind the last in the span, and the position of its first
            byte in the file.
        """
        ends = self.ends
        for number in range(bisect_right(ends, start), len(ends)):
            begins = ends[number] - size_of(self.pieces[number])
            if begins >= stop:
                return
            yield self.pieces[number], max(start - begins, 0), min(stop, ends[number]) - begins, begins


def size_of(piece: FilePiece) -> int:
    """Return the bytes of a piece."""
    return len(piece) if isinstance(piece, bytes) else piece.bytes


def shards(tensors: Sequence[ExportedTensor], limit: int | None) -> list[list[ExportedTensor]]:
    """Divide tensors into files of at most ``limit`` bytes, or of one tensor, in their order."""
    found: list[list[ExportedTensor]] = [[]]
    size = 0
    for each in tensors:
        if limit is not None and found[-1] and size + each.bytes > limit:
            found.append([])
            size = 0
        found[-1].append(each)
        size += each.bytes
    return found


def safetensors_files(
    tensors: Sequence[ExportedTensor], *, limit: int | None, metadata: Mapping[str, str], subject: str
) -> list[ExportFile]:
    """Return the files of an export as safetensors.

    Args:
        limit: Size of a file in bytes; None for one file.
        metadata: Describes the snapshot, in the header of each file.
        subject: Name of the snapshot in errors.

    Raises:
        ConfigurationError: The format does not have a dtype.
    """
    groups = shards(tensors, limit)
    files = []
    for number, group in enumerate(groups, start=1):
        ordered = sorted(group, key=_order)
        starts = [0, *accumulate(each.bytes for each in ordered)]
        spans = [
            TensorSpan(each.name, each.dtype, each.stored.shape, start)
            for each, start in zip(ordered, starts, strict=False)
        ]
        # As safetensors.torch.save_model records them.
        ties = {name: each.name for each in ordered for name in each.ties}
        try:
            header = encode_header(spans, {**ties, **metadata})
        except ValueError as error:
            raise ConfigurationError(
                "export", subject, str(error), "Export it as pt, or choose another part."
            ) from None
        files.append(ExportFile(_shard_name(number, len(groups)), (header, *ordered), describes_itself=True))
    return files


def index_of(files: Sequence[ExportFile], metadata: Mapping[str, Any]) -> bytes:
    """Return the index of several files, which says where each tensor is, as transformers reads it."""
    places = {each.name: file.name for file in files for each in file.pieces if isinstance(each, ExportedTensor)}
    total = sum(each.bytes for file in files for each in file.pieces if isinstance(each, ExportedTensor))
    index = {"metadata": {"total_size": total, **metadata}, "weight_map": dict(sorted(places.items()))}
    return msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n"


def largest_run(tensor: ExportedTensor) -> int:
    """Return the most bytes that follow each other both in a shard and in the export."""
    if tensor.is_cast:
        return 0
    return max((shard.box.run for shard in tensor.stored.shards), default=0) * DTYPES[tensor.dtype].bytes


def _order(tensor: ExportedTensor) -> tuple[int, bool]:
    """Large elements first, so that each is aligned; then what a store cannot copy, beside the header, which it cannot.

    The order of tensors in a file means nothing to its readers.
    """
    return -DTYPES[tensor.dtype].bytes, largest_run(tensor) >= LEAST_PART_BYTES


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
