"""Estimates the cost of loading a value that ``torch.save`` wrote, before torch loads it.

``torch.load(weights_only=True)`` restricts the classes of a value, but not the cost of building it: a compressed record
inflates to a thousand times its size, ``bytearray`` takes a length, ``codecs.encode`` doubles its input, and a tuple
nested in itself takes years to hash.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from typing import Any

from checkpoint_sidecar.core.pickles import MalformedError, RefusedError, read

_ALLOCATING = re.compile(r"torch\.(\w+\.)*\w*(Tensor|Storage)|numpy\.ndarray")
"""Classes that take the number of elements to allocate; pickles name them but do not call them."""
_OF_ATOMS = re.compile(r"(builtins|__builtin__)\.(int|float|bool|str|bytes|bytearray)|fractions\.Fraction")
"""Types that may be made of numbers and strings; made of other values, they may take long to build."""
_COPIES_PER_BYTE = 64
"""Bytes and elements that calls may copy for each byte of a pickle, beyond a million."""
_MOST_DIGITS = 4000
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")


def inspect(stream: io.BytesIO) -> None:
    """Check an archive and the pickle in it, and rewind the stream.

    Raises:
        RefusedError: Loading it could take far more time or memory than its size justifies, or change this process.
        MalformedError: ``torch.save`` did not write it.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            records = _records(archive, stream)
            prefix = records[0].filename.partition("/")[0]
            if len({record.filename.lower() for record in records}) < len(records):
                raise MalformedError("two records of the archive have one name")
            if any(not record.filename.startswith(f"{prefix}/") for record in records):
                raise MalformedError("its records lie in several folders")
            content = archive.read(f"{prefix}/data.pkl")
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, RuntimeError, IndexError, EOFError) as error:
        raise MalformedError(str(error)) from error
    read(content, _Inspection(len(content)))
    stream.seek(0)


def _records(archive: zipfile.ZipFile, stream: io.BytesIO) -> list[zipfile.ZipInfo]:
    """Return the records, after checking that they are uncompressed and the ones that torch's own reader finds."""
    size = len(stream.getbuffer())
    end = size - _END.size
    if end < 0:
        raise MalformedError("the archive is too short")
    signature, *_, directory_bytes, directory, comment = _END.unpack_from(stream.getbuffer(), end)
    if signature != b"PK\x05\x06" or comment:
        raise MalformedError("the archive does not end with its directory")
    locator = end - _LOCATOR.size
    if locator >= 0 and bytes(stream.getbuffer()[locator : locator + 4]) == b"PK\x06\x07":
        end = locator - _END_64.size
        if end < 0 or _LOCATOR.unpack_from(stream.getbuffer(), locator)[2] != end:
            raise MalformedError("the archive's directory is not where it is said to be")
        *_, directory_bytes, directory = _END_64.unpack_from(stream.getbuffer(), end)
    if directory + directory_bytes != end:
        raise MalformedError("the archive's directory is not where it is said to be")
    records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1 for record in records):
        raise RefusedError("a record of its archive is compressed or encrypted, as torch.save never writes them")
    if any(record.file_size != record.compress_size for record in records):
        raise MalformedError("a record of the archive has two sizes")
    if sum(record.file_size for record in records) > size:
        raise RefusedError("the records of its archive overlap")
    return records


class _Name(str):
    """A placeholder for a class or function."""

    __slots__ = ()


class _Made:
    """A placeholder for the result of a call.

    Attributes:
        size: Number of elements.
    """

    __slots__ = ("size",)

    def __init__(self, size: int = 0) -> None:
        self.size = size


class _Inspection:
    """Interprets a pickle without calling anything, and checks each call that it would make."""

    unshared: frozenset[type] = frozenset()

    def __init__(self, size: int) -> None:
        self._copies = size * _COPIES_PER_BYTE + 1_000_000

    def find(self, module: str, name: str) -> _Name:
        return _Name(f"{module}.{name}")

    def make(self, function: Any, arguments: tuple[Any, ...]) -> _Made:
        self._check_call(function, arguments)
        size = sum(map(_size, arguments))
        self._copies -= size
        if self._copies < 0:
            raise RefusedError("it copies far more than it holds")
        if function in ("builtins.range", "__builtin__.range", "__builtin__.xrange"):
            size = len(range(*arguments))
        return _Made(size)

    def build(self, instance: Any, state: Any) -> Any:
        del state
        if type(instance) is not _Made:
            raise RefusedError("it sets the state of something that it did not make")
        return instance

    def persistent(self, identifier: Any) -> _Made:
        del identifier
        return _Made()

    def put(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        if type(target) is dict:
            target.update(zip(keys, values, strict=True))
        elif type(target) is _Made:
            target.size += len(keys)
        else:
            raise RefusedError(f"it sets items of a {type(target).__name__}")

    def append(self, target: Any, items: list[Any]) -> None:
        if type(target) is list:
            target += items
        elif type(target) is set:
            target.update(items)
        elif type(target) is _Made:
            target.size += len(items)
        else:
            raise RefusedError(f"it appends to a {type(target).__name__}")

    def _check_call(self, function: Any, arguments: tuple[Any, ...]) -> None:
        if type(function) is not _Name:
            raise RefusedError("it calls something that is no name")
        allowed = True
        if function == "torch._tensor._rebuild_from_type_v2":
            self._check_call(arguments[0], arguments[2] if type(arguments[2]) is tuple else ())
        elif _ALLOCATING.fullmatch(function) and function != "torch.nn.parameter.Parameter":
            allowed = not arguments
        elif _OF_ATOMS.fullmatch(function):
            allowed = _are_short(function, arguments)
        elif function == "_codecs.encode":
            allowed = len(arguments) == 2 and type(arguments[0]) is str and arguments[1] in ("latin1", "latin-1")
        elif function.endswith(".multiarray._reconstruct"):
            allowed = len(arguments) == 3 and arguments[1] == (0,)
        if not allowed:
            raise RefusedError(f"it calls {function} so that it allocates memory that the item does not fill")


def _are_short(function: str, arguments: tuple[Any, ...]) -> bool:
    """Return whether a value made of these is about as large as they are."""
    if function.endswith(("bytes", "bytearray")):
        return all(type(each) in (str, bytes, list) or type(each) is _Made for each in arguments)
    if function.endswith("str"):
        return all(type(each) is str for each in arguments)
    # An exponent in a string makes a huge number from a few digits.
    return all(type(each) in (int, float, bool) or (type(each) is str and _is_short(each)) for each in arguments)


def _is_short(number: str) -> bool:
    return len(number) <= _MOST_DIGITS and "e" not in number.lower()


def _size(value: Any) -> int:
    if type(value) is _Made:
        return value.size
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | set) else 0
