"""The header of a safetensors file: which tensor lies where. Pure.

A file is the length of the header in 8 bytes, the header as JSON, and the bytes of all tensors without gaps. Source:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

MAX_HEADER_BYTES = 100_000_000
"""Maximum that the format's own reader accepts."""

LENGTH_BYTES = 8
_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class StoredDtype:
    """A dtype as bytes.

    Attributes:
        bytes: Size of an element.
        code: Its name in safetensors; empty if the format does not have it.
        floating: Whether a cast to another floating-point dtype applies to it.
    """

    bytes: int
    code: str = ""
    floating: bool = False


DTYPES: Mapping[str, StoredDtype] = {
    "bool": StoredDtype(1, "BOOL"),
    "uint8": StoredDtype(1, "U8"),
    "int8": StoredDtype(1, "I8"),
    "uint16": StoredDtype(2, "U16"),
    "int16": StoredDtype(2, "I16"),
    "uint32": StoredDtype(4, "U32"),
    "int32": StoredDtype(4, "I32"),
    "uint64": StoredDtype(8, "U64"),
    "int64": StoredDtype(8, "I64"),
    "float8_e4m3fn": StoredDtype(1, "F8_E4M3"),
    "float8_e4m3fnuz": StoredDtype(1, "F8_E4M3FNUZ"),
    "float8_e5m2": StoredDtype(1, "F8_E5M2"),
    "float8_e5m2fnuz": StoredDtype(1, "F8_E5M2FNUZ"),
    "float8_e8m0fnu": StoredDtype(1, "F8_E8M0"),
    "float16": StoredDtype(2, "F16", floating=True),
    "bfloat16": StoredDtype(2, "BF16", floating=True),
    "float32": StoredDtype(4, "F32", floating=True),
    "float64": StoredDtype(8, "F64", floating=True),
    "complex32": StoredDtype(4),
    "complex64": StoredDtype(8, "C64"),
    "complex128": StoredDtype(16),
}
"""By torch's names."""

_BY_CODE = {dtype.code: name for name, dtype in DTYPES.items() if dtype.code}


class MalformedHeaderError(Exception):
    """The bytes are not the header of a safetensors file; the message says why."""


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """One tensor of a file.

    Attributes:
        dtype: Torch's name of it.
        start: Position of its first byte behind the header.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def length(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].bytes


def encode_header(tensors: Sequence[TensorSpan], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes before the tensors, with the length. They are a multiple of 8, so that tensors are aligned.

    Args:
        tensors: In the order of their positions.
        metadata: Free text for readers.

    Raises:
        ValueError: A dtype does not exist in the format.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    for each in tensors:
        if not DTYPES[each.dtype].code:
            raise ValueError(f"{each.name} has the dtype {each.dtype}, which safetensors does not have")
        span = [each.start, each.start + each.length]
        header[each.name] = {"dtype": DTYPES[each.dtype].code, "shape": each.shape, "data_offsets": span}
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text


def header_length(beginning: bytes) -> int:
    """Return the length of the header that follows the first 8 bytes.

    Raises:
        MalformedHeaderError: It cannot be one.
    """
    if len(beginning) < LENGTH_BYTES:
        raise MalformedHeaderError("it is shorter than the length of a header")
    (length,) = _LENGTH.unpack_from(beginning)
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise MalformedHeaderError(f"its header has {length} bytes")
    return int(length)


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def decode_header(text: bytes, *, data_bytes: int) -> tuple[tuple[TensorSpan, ...], dict[str, str]]:
    """Return the tensors by position, and the metadata.

    Args:
        text: The header without its length.
        data_bytes: Size of the data after the header.

    Raises:
        MalformedHeaderError: It is damaged, or refers to bytes that do not exist.
    """
    try:
        found = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(found.pop(_METADATA, b"{}"), type=dict[str, str])
        entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in found.items()}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedHeaderError(f"its header is not a table of tensors: {error}") from None
    tensors = []
    for name, entry in entries.items():
        dtype = _BY_CODE.get(entry.dtype)
        if dtype is None:
            raise MalformedHeaderError(f"{name} has the dtype {entry.dtype}, which this version does not know")
        tensor = TensorSpan(name, dtype, entry.shape, entry.data_offsets[0])
        if min((tensor.start, *entry.shape)) < 0 or entry.data_offsets[1] != tensor.start + tensor.length:
            raise MalformedHeaderError(f"the bytes of {name} do not have the size of its shape")
        if tensor.start + tensor.length > data_bytes:
            raise MalformedHeaderError(f"the bytes of {name} lie behind the end of the file")
        tensors.append(tensor)
    return tuple(sorted(tensors, key=lambda tensor: (tensor.start, tensor.name))), metadata
