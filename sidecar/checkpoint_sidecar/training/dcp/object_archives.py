"""Writes objects with ``torch.save`` in as many bytes as in the save before.

The pickle of an object that grows by one byte moves everything behind it in its file: then places, ``.metadata`` and
the index are made anew, for all ranks. The states of random number generators and data loaders have a slightly other
size in most saves. Zeros behind a pickle's last opcode, which every reader ignores, make up for that.
"""

from __future__ import annotations

import io
import pickle
from types import SimpleNamespace
from typing import Any, Protocol

import torch

_SPARE_BYTES = 32
_SPARE_PART = 32
"""What a pickle may grow by: these bytes, and this part of it. Among a thousand ranks, no pickle should grow by more.

Random bytes take one or two bytes each. Ten thousand of them vary by 50 (one standard deviation); this leaves 500.
"""
_UNIT_BYTES = 64
"""Least unit of sizes. The records of an archive are aligned to as much anyway."""
_MOST = 2
"""How many times its own size a pickle may take, before what it took in an earlier save is forgotten."""


class PickleSizes:
    """The sizes of the pickles of one process's saves, by name of the object."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}

    def filled(self, name: str, size: int) -> int:
        """Return the size to write for a pickle of ``size`` bytes: that of the save before, if it is large enough."""
        known = self._sizes.get(name, 0)
        if not size <= known <= _MOST * size:
            unit = max(1 << (size // _SPARE_PART).bit_length(), _UNIT_BYTES)
            known = self._sizes[name] = -(-(size + _SPARE_BYTES + size // _SPARE_PART) // unit) * unit
        return known


def archive_of(name: str, value: Any, sizes: PickleSizes) -> io.BytesIO:
    """Return what ``torch.save`` writes for a value, with zeros behind its pickle.

    Args:
        name: Of the object.
    """

    class Filling(pickle.Pickler):
        def __init__(self, file: _Stream, **options: Any) -> None:
            super().__init__(file, **options)
            self._file = file

        def dump(self, value: Any, /) -> None:
            super().dump(value)
            size = self._file.tell()
            self._file.write(bytes(sizes.filled(name, size) - size))

    stream = io.BytesIO()
    torch.save(value, stream, pickle_module=SimpleNamespace(__name__=__name__, Pickler=Filling))
    return stream


class _Stream(Protocol):
    def tell(self) -> int: ...
    def write(self, data: bytes, /) -> object: ...
