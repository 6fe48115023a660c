"""What only torch can do for an export: cast elements, and lay out a file as ``torch.save`` writes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.serialization import skip_data

from checkpoint_sidecar.training.dcp.memory import as_buffer


def cast(data: memoryview, source: str, target: str) -> memoryview:
    """Return elements in another dtype, rounded as ``tensor.to`` does.

    Args:
        data: Writable and aligned for its dtype, though it is not written to.
        source, target: Torch's names of both dtypes.
    """
    return as_buffer(torch.frombuffer(data, dtype=_dtype(source)).to(_dtype(target)))


def saved_layout(tensors: Sequence[tuple[tuple[str, ...], str, tuple[int, ...]]]) -> list[bytes | int]:
    """Return what ``torch.save`` writes for a state dict of tensors, without the elements.

    No memory for the elements is used.

    Args:
        tensors: Names, dtype and shape of each; several names share one storage.

    Returns:
        Bytes, and in between numbers of tensors, whose bytes belong there. Empty tensors have none.
    """
    state, positions = {}, []
    for number, (names, dtype, shape) in enumerate(tensors):
        size = torch.Size(shape)
        # The system allocates its pages when they are first written to, which they never are.
        storage = torch.UntypedStorage(size.numel() * _dtype(dtype).itemsize)
        stride = torch.empty(size, dtype=_dtype(dtype), device="meta").stride()
        tensor = torch.empty(0, dtype=_dtype(dtype), device="cpu").set_(storage, 0, size, stride)
        state.update(dict.fromkeys(names, tensor))
        if storage.nbytes():
            positions.append(number)
    archive = _ArchiveWithGaps()
    with skip_data():
        torch.save(state, archive)  # type: ignore[arg-type]
    found: list[bytes | int] = [bytes(archive.parts[0])]
    for number, part in zip(positions, archive.parts[1:], strict=True):
        found += [number, bytes(part)]
    return found


class _ArchiveWithGaps:
    """A stream for ``torch.save`` under ``skip_data``, which seeks past each storage that is not empty."""

    def __init__(self) -> None:
        self.parts = [bytearray()]

    def write(self, data: memoryview) -> int:
        self.parts[-1] += data
        return len(data)

    def seek(self, offset: int, whence: int) -> None:
        del offset, whence
        self.parts.append(bytearray())

    def flush(self) -> None:
        """Do nothing; ``torch.save`` requires this method."""


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype), name
    return found
