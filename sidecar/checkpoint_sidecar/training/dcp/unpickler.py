"""Reads pickles from a bucket without running the code that they contain.

A pickle is a program. DCP reads ``.metadata`` with plain ``pickle.load``, so that anyone who can write to the bucket
can run code in the training job. This module builds only the classes of DCP's ``Metadata``, from fields of the right
types.
"""

from __future__ import annotations

import io
import pathlib
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.serialization import _get_layout

from checkpoint_sidecar.core.errors import CorruptSnapshotError, UntrustedSnapshotError
from checkpoint_sidecar.core.garbage import collection_paused
from checkpoint_sidecar.core.pickles import MalformedError, RefusedError, read

TRUST_HINT = 'If you trust everyone who can write to this bucket, load it with trust="full".'

_METADATA = "torch.distributed.checkpoint.metadata"
_PATHS = {
    "PosixPath": pathlib.PurePosixPath,
    "PurePosixPath": pathlib.PurePosixPath,
    "WindowsPath": pathlib.PureWindowsPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
}
_MOST_DIMENSIONS = 1024

# By exact name. FileSystemWriter records its checkpoint_id as a path; a path class of another operating system cannot
# be instantiated here.
ALLOWED: dict[tuple[str, str], Any] = {
    **{
        (_METADATA, kind.__name__): kind
        for kind in (
            Metadata,
            MetadataIndex,
            TensorStorageMetadata,
            BytesStorageMetadata,
            ChunkStorageMetadata,
            TensorProperties,
            StorageMeta,
            _MEM_FORMAT_ENCODING,
        )
    },
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("collections", "OrderedDict"): OrderedDict,
    **{(module, name): kind for module in ("pathlib", "pathlib._local") for name, kind in _PATHS.items()},
}


def load_metadata(data: bytes | memoryview, *, subject: str, trusted: bool = False) -> Metadata:
    """Unpickle DCP's metadata.

    Args:
        data: The bytes of ``.metadata``.
        subject: Name in errors, usually the key.
        trusted: Allow every class, as torch does.

    Raises:
        UntrustedSnapshotError: It holds classes that are not part of metadata; none of its code was executed.
        CorruptSnapshotError: It is not a pickle of a ``Metadata``.
    """
    operation = "read the metadata"
    try:
        with collection_paused():
            metadata = _OfAnyVersion(io.BytesIO(data)).load() if trusted else read(bytes(data), _MetadataOnly())
    except RefusedError as refused:
        raise UntrustedSnapshotError(operation, subject, str(refused), TRUST_HINT) from None
    except MalformedError as malformed:
        raise CorruptSnapshotError(
            operation, subject, f"it is not a pickle: {malformed}", evidence="ManifestMismatch"
        ) from None
    except Exception as error:
        # Trusted classes may raise anything.
        raise CorruptSnapshotError(
            operation, subject, f"it cannot be unpickled: {type(error).__name__}: {error}", evidence="ManifestMismatch"
        ) from error
    if not isinstance(metadata, Metadata):
        raise CorruptSnapshotError(
            operation, subject, f"it holds a {type(metadata).__name__}, not Metadata", evidence="ManifestMismatch"
        )
    return metadata


class _Properties(TensorProperties):
    """Tensor properties that ignore the additions of later versions of torch, instead of failing on them."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        super().__setstate__(state[:_KNOWN_PROPERTIES])  # type: ignore[no-untyped-call]
        self.__class__ = TensorProperties  # type: ignore[assignment]


_KNOWN_PROPERTIES = len(TensorProperties().__getstate__())


class _OfAnyVersion(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return _Properties if found is TensorProperties else found


class _MetadataOnly:
    """Interprets a pickle and builds nothing but ``Metadata``."""

    # A value that was checked when it became part of another must not change afterwards.
    unshared = frozenset({list, dict, Metadata, TensorStorageMetadata, StorageMeta})

    def find(self, module: str, name: str) -> Any:
        found = ALLOWED.get((module, name))
        if found is None and module == "torch":
            # A dtype is pickled as a global of the module torch.
            found = torch.__dict__.get(name)
            found = found if isinstance(found, torch.dtype) else None
        if found is None:
            raise RefusedError(f"it needs {module}.{name}, which is not on the allow-list")
        return found

    def make(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if function is torch.Size:
            (sizes,) = arguments
            if type(sizes) not in (tuple, list) or len(sizes) > _MOST_DIMENSIONS:
                raise RefusedError("it holds a shape of too many dimensions, or of none")
            return torch.Size(sizes)
        if type(function) is type and function in _FIELDS and not arguments:
            return object.__new__(function)
        if function is _get_layout or function is _MEM_FORMAT_ENCODING:
            (value,) = arguments
            if type(value) not in (str, int):
                raise RefusedError("it calls an allowed function with other arguments than numbers and strings")
            return function(value)
        if function is OrderedDict and not arguments:
            return {}
        if type(function) is type and function in _PATHS.values() and all(type(part) is str for part in arguments):
            return function(*arguments)
        raise RefusedError("it calls something that metadata does not call")

    def build(self, instance: Any, state: Any) -> Any:
        kind = type(instance)
        if kind is TensorProperties:
            _set_properties(instance, state)
            return instance
        fields = _FIELDS.get(kind)
        if fields is None or instance.__dict__:
            raise RefusedError("it sets the state of something that is not a new part of the metadata")
        if type(state) is not dict:
            raise RefusedError(f"the state of a {kind.__name__} is not a dict")
        known = instance.__dict__
        for name, value in state.items():
            allowed = fields.get(name)
            # Later versions of torch may have more of them.
            if allowed is None:
                continue
            if type(value) not in allowed:
                raise RefusedError(f"a {kind.__name__} has a {type(value).__name__} for {name}")
            known[name] = value
        if kind in _CONTAINERS and not _CONTAINERS[kind](instance):
            raise RefusedError(f"a {kind.__name__} holds something that does not belong there")
        return instance

    def persistent(self, identifier: Any) -> Any:
        del identifier
        raise RefusedError("it refers to something outside of itself")

    def put(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        if type(target) is not dict or not _KEYS.issuperset(map(type, keys)):
            raise RefusedError(f"it sets items of a {type(target).__name__}, or under other keys than names")
        target.update(zip(keys, values, strict=True))

    def append(self, target: Any, items: list[Any]) -> None:
        if type(target) is not list:
            raise RefusedError(f"it appends to a {type(target).__name__}")
        target += items


def _set_properties(instance: TensorProperties, state: Any) -> None:
    # Later versions of torch add fields.
    known = state[:_KNOWN_PROPERTIES] if type(state) is tuple else ()
    if not known or type(known[0]) is not torch.dtype or not all(map(_is_property, known)):
        raise RefusedError("a tensor's properties are not those of a tensor")
    instance.__setstate__(known)


def _is_property(value: Any) -> bool:
    return type(value) in (
        torch.dtype,
        torch.layout,
        bool,
        int,
        type(None),
        _MEM_FORMAT_ENCODING,
        torch.Size,
    ) or _is_tuple_of(int)(value)


def _is_tuple_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in (tuple, list) and all(type(each) in kinds for each in value)


_KEYS = frozenset({str, int, MetadataIndex})
_NONE = type(None)
_PATH = _is_tuple_of(str, int)
_NAMES = _is_tuple_of(str)

# The types of each class's fields. Other names are ignored.
_TYPES: dict[type, dict[str, tuple[type, ...]]] = {
    Metadata: {
        "state_dict_metadata": (dict,),
        "planner_data": (dict, _NONE),
        "storage_data": (dict, _NONE),
        "storage_meta": (StorageMeta, _NONE),
        "version": (str, _NONE),
    },
    MetadataIndex: {"fqn": (str,), "offset": (torch.Size, _NONE), "index": (int, _NONE)},
    TensorStorageMetadata: {"properties": (TensorProperties,), "size": (torch.Size,), "chunks": (list,)},
    BytesStorageMetadata: {},
    ChunkStorageMetadata: {"offsets": (torch.Size,), "sizes": (torch.Size,)},
    TensorProperties: {},
    StorageMeta: {
        "checkpoint_id": (str, _NONE, pathlib.PurePosixPath, pathlib.PureWindowsPath),
        "save_id": (str, _NONE),
        "load_id": (str, _NONE),
        "modules": (list, tuple),
    },
    _StorageInfo: {
        "relative_path": (str,),
        "offset": (int,),
        "length": (int,),
        "transform_descriptors": (list, tuple, _NONE),
    },
}
_FIELDS = {kind: {name: frozenset(types) for name, types in fields.items()} for kind, fields in _TYPES.items()}


def _is_metadata(metadata: Metadata) -> bool:
    # The stored attributes: a class may have defaults for missing ones.
    stored = metadata.__dict__
    tensors = stored.get("state_dict_metadata", {})
    paths = stored.get("planner_data") or {}
    places = stored.get("storage_data") or {}
    return (
        {str}.issuperset(map(type, tensors))
        and {TensorStorageMetadata, BytesStorageMetadata}.issuperset(map(type, tensors.values()))
        and {str}.issuperset(map(type, paths))
        and all(map(_PATH, paths.values()))
        and {MetadataIndex}.issuperset(map(type, places))
        and {_StorageInfo}.issuperset(map(type, places.values()))
    )


# The types that containers among the fields may hold.
_CONTAINERS: dict[type, Callable[[Any], bool]] = {
    Metadata: _is_metadata,
    TensorStorageMetadata: lambda tensor: {ChunkStorageMetadata}.issuperset(
        map(type, tensor.__dict__.get("chunks", ()))
    ),
    StorageMeta: lambda meta: _NAMES(meta.__dict__.get("modules", ())),
    _StorageInfo: lambda info: _NAMES(info.__dict__.get("transform_descriptors") or ()),
}
