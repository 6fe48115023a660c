"""The bytes that ``torch.save`` puts around a tensor's own: they depend on its dtype and shape alone.

A tensor in a ``.distcp`` file is an archive of its own. Knowing its frame, a writer sends the tensor's memory as it is
and a reader puts it where it belongs, both without torch's archive reader and writer in between.
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
    """What ``torch.save`` writes for a contiguous tensor in host memory, but for the tensor's bytes.

    Attributes:
        head: Comes before the payload.
        payload_bytes: The tensor's memory.
        tail: Comes after it. The archive's own checksum of the payload in it is 0, which torch never reads.
    """

    head: bytes
    payload_bytes: int
    tail: bytes

    @property
    def size(self) -> int:
        """Bytes of the whole archive."""
        return len(self.head) + self.payload_bytes + len(self.tail)


@lru_cache(maxsize=8192)
def frame(dtype: torch.dtype, shape: torch.Size) -> Frame:
    """The frame of a plain tensor that requires no gradient, by the running version of torch.

    Costs no memory of the tensor's size, and a fraction of a millisecond at the first call.
    """
    # Its pages are never touched, so the system never provides them.
    storage = torch.UntypedStorage(shape.numel() * dtype.itemsize)
    stride = torch.empty(shape, dtype=dtype, device="meta").stride()
    tensor = torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, shape, stride)
    archive = _ArchiveWithoutPayload()
    with skip_data():
        torch.save(tensor, archive)  # type: ignore[arg-type]
    return Frame(bytes(archive.head), storage.nbytes(), bytes(archive.tail))


def payload_matches(head: memoryview, expected: Frame) -> bool:
    """Whether a stored archive begins like this frame, so that its payload follows at ``len(expected.head)``.

    The archive's checksums of its own small records are ignored, since they may be switched off in torch. Of an empty
    tensor the head is the whole archive, and only matches where they are not.

    Args:
        head: At least ``len(expected.head)`` bytes of the archive.
    """
    stored = bytes(head[: len(expected.head)])
    return _without_checksums(stored) == _without_checksums(expected.head)


def _without_checksums(archive: bytes) -> bytes:
    return _CHECKSUM_OF_A_RECORD.sub(bytes(4), archive)


class _ArchiveWithoutPayload:
    """A stream for ``torch.save`` under ``skip_data``, which seeks over the payload unless it is empty."""

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
        """``torch.save`` expects it of a stream."""
