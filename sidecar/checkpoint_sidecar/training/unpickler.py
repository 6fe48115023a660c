"""Reading pickles that come out of a bucket without running what is in them.

A pickle is a program. DCP reads ``.metadata`` with plain ``pickle.load``, so that whoever can write to the bucket can
run code in the training job. Here only the classes that make up DCP's ``Metadata`` can be built.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorProperties

from checkpoint_sidecar.core.errors import CorruptSnapshotError, UntrustedSnapshotError

_METADATA = "torch.distributed.checkpoint.metadata"
_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")

# Classes by module. Exact names only: pickle protocol 4 resolves dotted names, and ``Size.__init__.__globals__`` would
# lead out of any prefix rule.
ALLOWED: dict[str, frozenset[str]] = {
    _METADATA: frozenset(
        {
            "Metadata",
            "MetadataIndex",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch": frozenset({"Size"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "collections": frozenset({"OrderedDict"}),
    # FileSystemWriter records its checkpoint_id as a path.
    "pathlib": frozenset(_PATHS),
    "pathlib._local": frozenset(_PATHS),
}


def load_metadata(data: bytes | memoryview, *, subject: str, trusted: bool = False) -> Metadata:
    """Unpickle DCP's metadata.

    Args:
        data: The bytes of ``.metadata``.
        subject: What to name in errors, usually its key.
        trusted: Allow every class, as torch does.

    Raises:
        UntrustedSnapshotError: It needs a class that is not allowed; nothing of it was executed.
        CorruptSnapshotError: It is not a pickle of a ``Metadata``.
    """
    operation = "read the checkpoint's metadata"
    unpickler = _OfAnyVersion if trusted else _AllowListing
    try:
        metadata = unpickler(io.BytesIO(data)).load()
    except _RefusedError as refused:
        raise UntrustedSnapshotError(
            operation,
            subject,
            f"it needs {refused}, which is not on the allow-list",
            'If you trust whoever can write to this bucket, load it with trust="full".',
        ) from None
    except Exception as error:
        # A damaged pickle may raise anything.
        raise CorruptSnapshotError(
            operation, subject, f"it cannot be unpickled: {type(error).__name__}: {error}", evidence="ManifestMismatch"
        ) from error
    if not isinstance(metadata, Metadata):
        raise CorruptSnapshotError(
            operation, subject, f"it holds a {type(metadata).__name__}, not Metadata", evidence="ManifestMismatch"
        )
    return metadata


class _RefusedError(pickle.UnpicklingError):
    pass


class _Properties(TensorProperties):
    """Ignores what a later version of torch than this one says about a tensor, instead of choking on it."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        known = len(TensorProperties().__getstate__())  # type: ignore[no-untyped-call]
        super().__setstate__(state[:known])  # type: ignore[no-untyped-call]
        self.__class__ = TensorProperties  # type: ignore[assignment]


class _OfAnyVersion(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return _Properties if found is TensorProperties else found


class _AllowListing(_OfAnyVersion):
    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        # A dtype is pickled as a global of the module torch.
        if module == "torch" and isinstance(torch.__dict__.get(name), torch.dtype):
            return torch.__dict__[name]
        raise _RefusedError(f"{module}.{name}")
