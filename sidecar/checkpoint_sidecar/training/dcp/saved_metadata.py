"""The metadata of a committed save as DCP sends it from rank 0 to all ranks: its address instead of every chunk.

DCP ends each save with a broadcast of the whole ``Metadata``, which at a thousand ranks and tensors is 181 MB and a
minute of unpickling on each rank, beside training, for a value that hardly any program reads.
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from typing import Any, Protocol, Self

from crc32c import crc32c
from torch.distributed.checkpoint.metadata import Metadata

from checkpoint_sidecar.core.errors import CorruptSnapshotError, ObjectNotFoundError, RestoreError
from checkpoint_sidecar.core.layout import METADATA_NAME
from checkpoint_sidecar.core.manifest import File
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.dcp.unpickler import load_metadata

_NAMES = tuple(field.name for field in dataclasses.fields(Metadata))
_OPERATION = "read the metadata of"


class HasStore(Protocol):
    """A writer of this process, whose store also reads what it has written on another rank."""

    _store: Store


_writers: weakref.WeakSet[Any] = weakref.WeakSet()


def remember(writer: HasStore) -> None:
    """Read metadata that this process receives through the writer's store, as long as the writer exists."""
    _writers.add(writer)


def _store_at(url: str) -> Store | None:
    return next((each._store for each in _writers if each._store.url == url), None)


class SavedMetadata(Metadata):
    """The metadata of a committed save. Any process reads what it does not have when it uses a field.

    Another process receives the address only; rank 0 has what its planner has made of objects.

    What is read has no strides, as ``metadata_pickle.metadata_bytes`` says.

    Raises (when a field is used):
        RestoreError: The snapshot was deleted meanwhile.
        CorruptSnapshotError: What is stored differs from what was saved.
        StoreError: The store failed.
    """

    @classmethod
    def of(cls, metadata: Metadata, url: str, folder: str, file: File) -> None:
        """Turn metadata that DCP is about to send into metadata that travels as an address.

        Args:
            metadata: Complete; it keeps its identity, because DCP sends the object that it has passed to the writer.
            url: Root of the run.
            folder: ``SaveFolder.path``.
            file: The manifest's line of the stored ``.metadata``.
        """
        values = metadata.__dict__
        values["_address"] = (url, folder, file.size, file.crc32c)
        values["_source"] = _store_at(url)
        # What was only planned in arrays is read here, too, when it is used.
        values.pop("contents", None)
        if values.get("storage_data") is None:
            values.pop("storage_data", None)
        metadata.__class__ = cls

    @classmethod
    def at(cls, url: str, folder: str, size: int, checksum: int) -> Self:
        """Return metadata that is not read yet."""
        metadata = cls.__new__(cls)
        metadata.__dict__["_address"] = (url, folder, size, checksum)
        # Found now, because the writer may be gone when a field is used.
        metadata.__dict__["_source"] = _store_at(url)
        return metadata

    def __reduce__(self) -> Any:
        return SavedMetadata.at, self.__dict__["_address"]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Metadata):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _NAMES)

    __hash__ = None  # type: ignore[assignment]

    def __copy__(self) -> Metadata:
        return Metadata(**{name: getattr(self, name) for name in _NAMES})

    def __deepcopy__(self, memo: dict[int, Any]) -> Metadata:
        return copy.deepcopy(self.__copy__(), memo)

    def _field(self, name: str) -> Any:
        values = self.__dict__
        if name not in values:
            values.update({**vars(self._read()), **values})
            del values["_source"]
        return values[name]

    def _read(self) -> Metadata:
        url, folder, size, checksum = self.__dict__["_address"]
        subject = f"{url}/{folder}/{METADATA_NAME}"
        store = self.__dict__["_source"] or open_store(StoreSettings(url))
        try:
            data = store.get(f"{folder}/{METADATA_NAME}", max_bytes=size).data
        except ObjectNotFoundError as error:
            cause = "the snapshot was deleted after it was saved"
            raise RestoreError(_OPERATION, subject, cause, "Use what dcp.save returns right away.") from error
        if len(data) != size or crc32c(data) != checksum:
            cause = "it differs from what was saved"
            raise CorruptSnapshotError(_OPERATION, subject, cause, evidence="ChecksumMismatch")
        # These are the bytes that rank 0 of this program wrote.
        return load_metadata(data, subject=subject, trusted=True)


def _field_of(name: str) -> property:
    def get(self: SavedMetadata) -> Any:
        return self._field(name)

    def put(self: SavedMetadata, value: Any) -> None:
        self.__dict__[name] = value

    return property(get, put)


# Set afterwards, because fields of a dataclass are class attributes: a default would otherwise hide that one is unread.
for _name in _NAMES:
    setattr(SavedMetadata, _name, _field_of(_name))
