"""Finds what ``torch.save`` put into an archive, without torch. Pure.

Each item of a snapshot is an archive of its own: a zip file without compression, with the pickled description of a
tensor first and its bytes in a record of their own. Source: ``torch/serialization.py``, ``_save``.
"""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

from checkpoint_sidecar.core.pickles import MalformedError, RefusedError, read

HEAD_BYTES = 4096
"""Size of the read that finds the tensor's bytes in an archive; what precedes them is shorter."""

_SIGNATURE = b"PK\x03\x04"
_RECORD = struct.Struct("<26xHH")
"""A record's local header: the lengths of its name and of further fields are at its end."""


def payload_offset(head: bytes, shape: tuple[int, ...]) -> int:
    """Return where the bytes of a tensor begin in its archive.

    Args:
        head: The first ``HEAD_BYTES`` of the archive, or all of it.
        shape: Of the tensor.

    Raises:
        MalformedError: ``torch.save`` did not write it, or not in row-major order.
    """
    try:
        return _payload_offset(head, shape)
    except RefusedError as error:
        raise MalformedError(str(error)) from error


def _payload_offset(head: bytes, shape: tuple[int, ...]) -> int:
    description, big_endian = None, False
    at = 0
    while at >= 0:
        name, begins = _record(head, at)
        leaf = name.partition("/")[2]
        if leaf == "data.pkl":
            description = read(head[begins:], _Description())
        elif leaf == "byteorder":
            big_endian = head.startswith(b"big", begins)
        elif leaf.startswith("data/"):
            if big_endian:
                raise MalformedError("its bytes are in big-endian order")
            if description != (0, shape, _strides(shape)):
                raise MalformedError("its tensor is not in row-major order, or has another shape")
            return begins
        at = head.find(_SIGNATURE, begins)
    raise MalformedError("it has no record for the bytes of a tensor")


def packed_bytes(archive: bytes) -> bytes | None:
    """Return the bytes object in an archive; None if it holds something else.

    Raises:
        MalformedError: ``torch.save`` did not write it.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as records:
            name = next((each for each in records.namelist() if each.endswith("/data.pkl")), "")
            if not name or any(each.compress_type != zipfile.ZIP_STORED for each in records.infolist()):
                raise MalformedError("it is not an archive of torch.save")
            found = read(records.read(name), _Description())
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise MalformedError(str(error)) from error
    except RefusedError:
        return None
    return found if isinstance(found, bytes) else None


def _record(head: bytes, at: int) -> tuple[str, int]:
    """Return the name of the record at a position, and where its contents begin."""
    begins = at + _RECORD.size
    if not head.startswith(_SIGNATURE, at) or begins > len(head):
        raise MalformedError("it is not an archive of torch.save")
    name_bytes, further = _RECORD.unpack_from(head, at)
    return head[begins : begins + name_bytes].decode("utf-8", "replace"), begins + name_bytes + further


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    found, stride = [], 1
    for size in reversed(shape):
        found.append(stride)
        stride *= max(size, 1)
    return tuple(reversed(found))


class _Description:
    """Reads the pickled description of a plain tensor, or a bytes object."""

    unshared: frozenset[type] = frozenset()

    def find(self, module: str, name: str) -> str:
        return f"{module}.{name}"

    def make(self, function: Any, arguments: Any) -> Any:
        if function == "torch._utils._rebuild_tensor_v2":
            _, offset, shape, strides, *_ = arguments
            return offset, tuple(shape), tuple(strides)
        if function == "_codecs.encode" and type(arguments[0]) is str:
            # How protocol 2 writes bytes.
            return arguments[0].encode("latin1")
        return None

    def build(self, instance: Any, state: Any) -> Any:
        del state
        return instance

    def persistent(self, identifier: Any) -> None:
        del identifier

    def put(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        del target, keys, values

    def append(self, target: Any, items: list[Any]) -> None:
        del target, items
