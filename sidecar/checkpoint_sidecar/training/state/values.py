"""Packs Python values that are not sharded into bytes that can be read back without running code.

A packed value is a magic word and MessagePack. Scalars stand for themselves; everything else is a list that begins
with a tag from the tables below. Packing accepts exactly the types that it can rebuild, so that a packed value is
restored equal and with the same type. It refuses all others and names their place in the value. A tensor may be stored
as a separate item; a reference then takes its place.
"""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import fractions
import importlib
import io
import pathlib
import pickle
import random
import sys
import uuid
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, TypeAlias, TypeVar

import msgspec
import torch

from checkpoint_sidecar.core.errors import IncompatibleSnapshotError, UntrustedSnapshotError
from checkpoint_sidecar.training.dcp.memory import as_buffer
from checkpoint_sidecar.training.state.forms import Form, describe

T = TypeVar("T")

Path: TypeAlias = tuple[Any, ...]
Place: TypeAlias = Callable[[Path, torch.Tensor, Form], "tuple[str, Form] | None"]
Find: TypeAlias = Callable[[str, Form], Any]

MAGIC = b"CKPTVAL1"

_DEEPEST = 100
_INT64 = range(-(1 << 63), 1 << 64)
_SCALARS = frozenset({type(None), bool, float, str, bytes})
_FACTORIES: dict[str, type] = {each.__name__: each for each in (int, float, str, bool, bytes, list, dict, set, tuple)}
_PATHS: dict[str, type] = {each.__name__: each for each in (pathlib.PurePosixPath, pathlib.PureWindowsPath)}
_BIT_GENERATORS = frozenset({"MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"})


class Unsupported(Exception):  # noqa: N818 - what is raised is the answer to a question
    """Raised for a value that could not be restored.

    Attributes:
        path: Keys and positions that lead to it.
        cause: The reason, as the rest of a sentence that begins with the place.
    """

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(path, cause)
        self.path = path
        self.cause = cause

    @property
    def place(self) -> str:
        """The path as text, separated by dots."""
        return ".".join(map(str, self.path))


class Packer:
    """Packs values.

    Args:
        place: Decides about each tensor, given its path and form: returns the name of a separate item and the form to
            record, or None to pack its bytes.
        pickles: Pickle types that are not on the allow-list, for readers that trust them, instead of refusing them.

    Attributes:
        kinds: Tags of all values packed so far.
    """

    def __init__(self, place: Place, *, pickles: bool = False) -> None:
        self._place = place
        self._pickles = pickles
        self.kinds: set[str] = set()

    def pack(self, value: Any, *, at: Path = ()) -> bytes:
        """Return the bytes of a value.

        Args:
            at: Path of the value, for errors and for ``place``.

        Raises:
            Unsupported: Part of it could not be restored.
        """
        return MAGIC + msgspec.msgpack.encode(self._node(value, at, ()))

    def _node(self, value: Any, path: Path, inside: tuple[int, ...]) -> Any:
        kind = type(value)
        if kind in _SCALARS and (kind is not str or value.isascii()):
            return value
        if kind is int:
            return value if value in _INT64 else self._tag("int", hex(value))
        if len(inside) > _DEEPEST or id(value) in inside:
            cause = "contains itself" if id(value) in inside else f"is nested more than {_DEEPEST} levels deep"
            raise Unsupported(path, cause)
        inside = (*inside, id(value))
        if isinstance(value, torch.Tensor) or hasattr(value, "local_shards"):
            return self._tensor(value, path)
        if kind in _SEQUENCES:
            return self._tag(_SEQUENCES[kind], self._all(value, path, inside))
        if kind in (dict, collections.OrderedDict, collections.Counter, collections.defaultdict):
            return self._mapping(value, path, inside)
        simple = _SIMPLE.get(kind)
        if simple is not None:
            tag, parts = simple
            return self._tag(tag, *(self._node(part, path, inside) for part in parts(value)))
        if kind in (set, frozenset):
            # Sorted by their bytes, so that equal sets have equal bytes in every process.
            members = (self._node(each, path, inside) for each in value)
            return self._tag(kind.__name__, sorted(members, key=msgspec.msgpack.encode))
        if kind is SimpleNamespace:
            return self._tag("namespace", self._node(vars(value), path, inside))
        if isinstance(value, pathlib.PurePath):
            return self._path(value, path)
        numpy = sys.modules.get("numpy")
        if numpy is not None and kind.__module__.partition(".")[0] == "numpy":
            packed = self._numpy(numpy, value, path, inside)
            if packed is not None:
                return packed
        return self._unknown(value, path)

    def _tag(self, tag: str, *parts: Any) -> list[Any]:
        self.kinds.add(tag)
        return [tag, *parts]

    def _all(self, values: Iterable[Any], path: Path, inside: tuple[int, ...]) -> list[Any]:
        values = list(values)
        # Sequences of numbers only, such as the order of a million samples, are not visited one by one.
        if set(map(type, values)) <= {int, float, bool} and all(
            value in _INT64 for value in _extremes(values) if type(value) is int
        ):
            return values
        return [self._node(each, (*path, index), inside) for index, each in enumerate(values)]

    def _mapping(self, value: Mapping[Any, Any], path: Path, inside: tuple[int, ...]) -> list[Any]:
        keys = [self._node(key, (*path, key), inside) for key in value]
        values = [self._node(each, (*path, key), inside) for key, each in value.items()]
        if isinstance(value, collections.defaultdict):
            factory = value.default_factory
            name = "" if factory is None else getattr(factory, "__name__", "?")
            if factory is not None and _FACTORIES.get(name) is not factory:
                return self._unknown(value, path, f"is a defaultdict of {name}, which is not a built-in type")
            return self._tag("defaultdict", name, keys, values)
        return self._tag(type(value).__name__, keys, values)

    def _path(self, value: pathlib.PurePath, path: Path) -> list[Any]:
        pure = _PATHS["PurePosixPath" if isinstance(value, pathlib.PurePosixPath) else "PureWindowsPath"]
        if type(value) is pure:
            return self._tag("purepath", pure.__name__, str(value))
        if type(value) is type(pathlib.Path()):
            return self._tag("path", str(value))
        return self._unknown(value, path)

    def _tensor(self, value: Any, path: Path, *, raw: bool = False) -> list[Any]:
        try:
            form = describe(value)._replace(raw=True) if raw else describe(value)
        except ValueError as error:
            raise Unsupported(path, str(error)) from error
        placed = self._place(path, value, form)
        if placed is not None:
            return self._tag("ref", placed[0], placed[1].encode())
        return self._tag("tensor", form.encode(), tensor_bytes(value))

    def _numpy(self, numpy: Any, value: Any, path: Path, inside: tuple[int, ...]) -> list[Any] | None:
        if isinstance(value, numpy.dtype):
            return self._tag("npdtype", self._dtype(numpy, value, path, inside))
        if isinstance(value, numpy.generic) or type(value) is numpy.ndarray:
            array = numpy.asarray(value)
            tag = "ndarray" if type(value) is numpy.ndarray else "npscalar"
            dtype = self._dtype(numpy, array.dtype, path, inside)
            order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
            flat = numpy.frombuffer(array.tobytes(order), numpy.uint8).copy()
            return self._tag(tag, dtype, list(array.shape), order, self._tensor(torch.from_numpy(flat), path, raw=True))
        if type(value) is numpy.random.RandomState:
            return self._tag("nprandomstate", self._node(value.get_state(legacy=False), path, inside))
        if type(value) is numpy.random.Generator and type(value.bit_generator).__name__ in _BIT_GENERATORS:
            return self._tag("npgenerator", self._node(value.bit_generator.state, path, inside))
        return None

    def _dtype(self, numpy: Any, dtype: Any, path: Path, inside: tuple[int, ...]) -> Any:
        if dtype.hasobject:
            raise Unsupported(path, f"is of NumPy's dtype {dtype}, which holds objects")
        written = dtype.descr if dtype.names is not None else dtype.str
        try:
            same = numpy.dtype(written) == dtype
        except (TypeError, ValueError):
            same = False
        if not same:
            raise Unsupported(path, f"is of the dtype {dtype}, which NumPy itself does not know")
        return self._node(written, path, inside)

    def _unknown(self, value: Any, path: Path, cause: str = "") -> list[Any]:
        kind = type(value)
        cause = cause or f"is a {kind.__module__}.{kind.__qualname__}, which a safe load does not rebuild"
        if not self._pickles:
            raise Unsupported(path, cause)
        try:
            return self._tag("pickle", f"{kind.__module__}.{kind.__qualname__}", pickle.dumps(value))
        except Exception as error:
            raise Unsupported(path, f"cannot be pickled: {type(error).__name__}: {error}") from error


def unpack(data: bytes, find: Find, *, subject: str, trusted: bool = False) -> Any:
    """Return the value that was packed.

    Args:
        find: Returns the value for a tensor that was stored as a separate item, given its name and form.
        subject: Name of the value in errors.
        trusted: Unpickle pickled parts, which runs any code that they name.

    Raises:
        UntrustedSnapshotError: It holds pickled objects, and ``trusted`` is False.
        IncompatibleSnapshotError: This version cannot rebuild it.
    """
    if not data.startswith(MAGIC):
        raise IncompatibleSnapshotError("unpack", subject, "it lacks the header of packed values")
    try:
        return _Unpacker(find, subject, trusted).of(msgspec.msgpack.decode(data[len(MAGIC) :]))
    except (UntrustedSnapshotError, IncompatibleSnapshotError):
        raise
    except Exception as error:
        # Bytes that this module did not pack may fail anywhere.
        raise IncompatibleSnapshotError(
            "unpack", subject, f"it cannot be rebuilt: {type(error).__name__}: {error}"
        ) from error


class _Unpacker:
    def __init__(self, find: Find, subject: str, trusted: bool) -> None:
        self._find = find
        self._subject = subject
        self._trusted = trusted

    def of(self, node: Any) -> Any:
        if type(node) is not list:
            return node
        tag, *parts = node
        if tag in _REBUILD:
            return _REBUILD[tag](*map(self.of, parts))
        rebuild = getattr(self, f"_{tag}", None) if tag in _STRUCTURED else None
        if rebuild is None:
            raise IncompatibleSnapshotError(
                "unpack",
                self._subject,
                f"it holds a {tag!r}, which this version does not support",
                "Load it with the version that saved it, or a later one.",
            )
        return rebuild(*parts)

    def _all(self, nodes: list[Any]) -> list[Any]:
        return nodes if list not in set(map(type, nodes)) else list(map(self.of, nodes))

    def _list(self, nodes: list[Any]) -> list[Any]:
        return self._all(nodes)

    def _tuple(self, nodes: list[Any]) -> tuple[Any, ...]:
        return tuple(self._all(nodes))

    def _size(self, nodes: list[Any]) -> torch.Size:
        return torch.Size(nodes)

    def _dict(self, keys: list[Any], values: list[Any]) -> dict[Any, Any]:
        return dict(zip(self._all(keys), self._all(values), strict=True))

    def _OrderedDict(self, keys: list[Any], values: list[Any]) -> dict[Any, Any]:  # noqa: N802 - the type's name
        return collections.OrderedDict(zip(self._all(keys), self._all(values), strict=True))

    def _Counter(self, keys: list[Any], values: list[Any]) -> dict[Any, Any]:  # noqa: N802 - the type's name
        return collections.Counter(self._dict(keys, values))

    def _defaultdict(self, factory: str, keys: list[Any], values: list[Any]) -> dict[Any, Any]:
        return collections.defaultdict(_FACTORIES[factory] if factory else None, self._dict(keys, values))

    def _set(self, nodes: list[Any]) -> set[Any]:
        return set(self._all(nodes))

    def _frozenset(self, nodes: list[Any]) -> frozenset[Any]:
        return frozenset(self._all(nodes))

    def _namespace(self, node: list[Any]) -> SimpleNamespace:
        return SimpleNamespace(**self.of(node))

    def _tensor(self, form: dict[str, Any], data: bytes) -> torch.Tensor:
        known = Form.decode(form)
        return known.finish(tensor_of(data, known.torch_dtype, known.shape))

    def _ref(self, name: str, form: dict[str, Any]) -> Any:
        known = Form.decode(form)
        found = self._find(name, known)
        return known.finish(found) if isinstance(found, torch.Tensor) else found

    def _npdtype(self, dtype: Any) -> Any:
        return _numpy_dtype(self.of(dtype))

    def _ndarray(self, dtype: Any, shape: list[int], order: str, data: list[Any]) -> Any:
        bytes_of = self.of(data)
        if not isinstance(bytes_of, torch.Tensor):
            # The caller's value for a tensor.
            return bytes_of
        flat = bytes_of.numpy()
        return flat.view(_numpy_dtype(self.of(dtype))).reshape(shape, order="F" if order == "F" else "C")

    def _npscalar(self, dtype: Any, shape: list[int], order: str, data: list[Any]) -> Any:
        array = self._ndarray(dtype, shape, order, data)
        return array[()] if hasattr(array, "dtype") else array

    def _nprandomstate(self, state: Any) -> Any:
        random_state = importlib.import_module("numpy.random").RandomState()
        random_state.set_state(self.of(state))
        return random_state

    def _npgenerator(self, packed: Any) -> Any:
        numpy, state = importlib.import_module("numpy.random"), self.of(packed)
        if state["bit_generator"] not in _BIT_GENERATORS:
            raise ValueError(f"unknown bit generator {state['bit_generator']!r}")
        bits = getattr(numpy, state["bit_generator"])()
        bits.state = state
        return numpy.Generator(bits)

    def _pickle(self, name: str, data: bytes) -> Any:
        if not self._trusted:
            raise UntrustedSnapshotError(
                "unpack",
                self._subject,
                f"it holds a pickled {name}",
                'If you trust everyone who can write to this bucket, pass trust="full".',
            )
        return pickle.loads(data)  # noqa: S301 - asked for by name


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the elements of a strided tensor on any device, in row-major order."""
    return bytes(as_buffer(tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()))


def tensor_of(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Rebuild, in host memory, the tensor that ``tensor_bytes`` was given."""
    if not data:
        return torch.empty(0, dtype=dtype).reshape(shape)
    # A copy, because a tensor over Python's memory cannot be resized.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).clone().view(dtype).reshape(shape)


def _numpy_dtype(written: Any) -> Any:
    dtype = importlib.import_module("numpy").dtype(written)
    if dtype.hasobject:
        raise ValueError(f"the dtype {dtype} holds objects")
    return dtype


def _extremes(values: list[Any]) -> Iterable[Any]:
    whole = [value for value in values if type(value) is int]
    return (min(whole), max(whole)) if whole else ()


def _datetime(*parts: Any) -> dt.datetime:
    return dt.datetime(*parts[:-1]).replace(fold=parts[-1])


def _time(*parts: Any) -> dt.time:
    return dt.time(*parts[:-1]).replace(fold=parts[-1])


def _generator(device: str, state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator(device)
    generator.set_state(state)
    return generator


def _of(kind: type[T], value: Any) -> T:
    """Return the value after checking its type: from other types a constructor may make a huge object."""
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} instead of a {kind.__name__}")
    return value


def _random(state: Any) -> random.Random:
    rebuilt = random.Random()  # noqa: S311 - the user's generator, not a secret
    rebuilt.setstate(state)
    return rebuilt


def _torch_constant(name: str) -> Any:
    found = torch.__dict__.get(name)
    if not isinstance(found, torch.dtype | torch.layout | torch.memory_format):
        raise TypeError(f"torch.{name} is not a constant")
    return found


def _constant_parts(value: Any) -> tuple[str]:
    return (str(value).removeprefix("torch."),)


_SEQUENCES: dict[Any, str] = {list: "list", tuple: "tuple", torch.Size: "size"}

# Types that consist of a few parts: the tag and the parts of each.
_SIMPLE: dict[type, tuple[str, Callable[[Any], Iterable[Any]]]] = {
    str: ("str", lambda value: (value.encode("utf-8", "surrogatepass"),)),
    complex: ("complex", lambda value: (value.real, value.imag)),
    bytearray: ("bytearray", lambda value: (bytes(value),)),
    io.BytesIO: ("bytesio", lambda value: (value.getvalue(),)),
    range: ("range", lambda value: (value.start, value.stop, value.step)),
    slice: ("slice", lambda value: (value.start, value.stop, value.step)),
    collections.deque: ("deque", lambda value: (list(value), value.maxlen)),
    dt.date: ("date", lambda value: (value.year, value.month, value.day)),
    dt.time: (
        "time",
        lambda value: (value.hour, value.minute, value.second, value.microsecond, value.tzinfo, value.fold),
    ),
    dt.datetime: (
        "datetime",
        lambda value: (
            *value.timetuple()[:6],
            value.microsecond,
            value.tzinfo,
            value.fold,
        ),
    ),
    dt.timedelta: ("timedelta", lambda value: (value.days, value.seconds, value.microseconds)),
    dt.timezone: ("timezone", lambda value: value.__getinitargs__()),
    zoneinfo.ZoneInfo: ("zoneinfo", lambda value: (value.key,)),
    decimal.Decimal: ("decimal", lambda value: (str(value),)),
    fractions.Fraction: ("fraction", lambda value: (value.numerator, value.denominator)),
    uuid.UUID: ("uuid", lambda value: (value.bytes,)),
    torch.dtype: ("constant", _constant_parts),
    torch.layout: ("constant", _constant_parts),
    torch.memory_format: ("constant", _constant_parts),
    torch.device: ("device", lambda value: (str(value),)),
    torch.Generator: ("generator", lambda value: (str(value.device), value.get_state())),
    random.Random: ("random", lambda value: (value.getstate(),)),
}

# Functions that rebuild values of these tags from their parts.
_REBUILD: dict[str, Callable[..., Any]] = {
    "int": lambda text: int(text, 16),
    "str": lambda data: data.decode("utf-8", "surrogatepass"),
    "complex": lambda real, imaginary: complex(_of(float, real), _of(float, imaginary)),
    "bytearray": lambda data: bytearray(_of(bytes, data)),
    "bytesio": io.BytesIO,
    "range": range,
    "slice": slice,
    "deque": collections.deque,
    "date": dt.date,
    "time": _time,
    "datetime": _datetime,
    "timedelta": dt.timedelta,
    "timezone": dt.timezone,
    "zoneinfo": zoneinfo.ZoneInfo,
    "decimal": decimal.Decimal,
    "fraction": lambda over, under: fractions.Fraction(_of(int, over), _of(int, under)),
    "uuid": lambda data: uuid.UUID(bytes=data),
    "constant": _torch_constant,
    "device": torch.device,
    "generator": _generator,
    "random": _random,
    "purepath": lambda kind, text: _PATHS[kind](text),
    "path": pathlib.Path,
}

_STRUCTURED = frozenset(
    {
        "list",
        "tuple",
        "size",
        "dict",
        "OrderedDict",
        "Counter",
        "defaultdict",
        "set",
        "frozenset",
        "namespace",
        "tensor",
        "ref",
        "npdtype",
        "ndarray",
        "npscalar",
        "nprandomstate",
        "npgenerator",
        "pickle",
    }
)
