"""Computes the bytes that ``torch.save`` puts around a tensor's own, which depend only on its dtype and shape.

Each tensor in a ``.distcp`` file is a separate archive. With its frame, a writer sends the tensor's memory directly and
a reader receives it in place, both without torch's archive reader and writer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.serialization import skip_data

_CHECKSUM_OF_A_RECORD = re.compile(rb"(?<=PK\x07\x08).{4}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Frame:
    """The output of ``torch.save`` for a contiguous tensor in host memory, without the tensor's bytes.

    Attributes:
        head: Bytes before the payload.
        payload_bytes: Size of the tensor's memory.
        tail: Bytes after the payload. They give the payload's checksum as 0; torch never reads it.
    """

    head: bytes
    payload_bytes: int
    tail: bytes

    @property
    def size(self) -> int:
        """Size of the whole archive in bytes."""
        return len(self.head) + self.payload_bytes + len(self.tail)


@lru_cache(maxsize=8192)
def frame(dtype: torch.dtype, shape: torch.Size) -> Frame:
    """Return the frame of a plain tensor that requires no gradient, as the running version of torch writes it.

    It allocates no memory of the tensor's size, and takes a fraction of a millisecond at the first call.
    """
    # Its pages are never touched, so the system never allocates them.
    storage = torch.UntypedStorage(shape.numel() * dtype.itemsize)
    stride = torch.empty(shape, dtype=dtype, device="meta").stride()
    tensor = torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, shape, stride)
    archive = _ArchiveWithoutPayload()
    with skip_data():
        torch.save(tensor, archive)  # type: ignore[arg-type]
    return Frame(bytes(archive.head), storage.nbytes(), bytes(archive.tail))


def payload_matches(head: memoryview, expected: Frame) -> bool:
    """Return whether a stored archive begins like this frame, so that its payload follows at ``len(expected.head)``.

    The archive's checksums of its small records are ignored, since torch can be configured to omit them. For an empty
    tensor, the head is the whole archive and matches only if they are present.

    Args:
        head: At least ``len(expected.head)`` bytes of the archive.
    """
    stored = bytes(head[: len(expected.head)])
    return _without_checksums(stored) == _without_checksums(expected.head)


def _without_checksums(archive: bytes) -> bytes:
    return _CHECKSUM_OF_A_RECORD.sub(bytes(4), archive)


class _ArchiveWithoutPayload:
    """A stream for ``torch.save`` under ``skip_data``, which seeks past the payload unless it is empty."""

    def __init__(self) -> None:
        self.head = bytearray()
        self.tail = bytearray()
        self._current = self.head

    def write(self, data: memoryview) -> int:
        self._current += data
        return len(data)

    def seek(self, offset: int, whence: int) -> None:
        del offset, whence
        self._current = self.tail

    def flush(self) -> None:
        """Do nothing; ``torch.save`` requires this method."""
