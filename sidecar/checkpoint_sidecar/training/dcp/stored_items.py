"""What a snapshot stores and where, behind one interface, whether its metadata came from an index or from a pickle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from checkpoint_sidecar.training.dcp.compatibility import check_complete
from checkpoint_sidecar.training.dcp.inventory import TensorKind


class StoredChunk(NamedTuple):
    """A chunk of a tensor.

    Attributes:
        number: Its number in the snapshot, the same on every rank.
        kind: What all chunks of the tensor have in common.
        sizes: Its shape.
        place: Where it is stored.
    """

    number: int
    kind: TensorKind
    sizes: torch.Size
    place: _StorageInfo


class StoredItems(ABC):
    """The tensors and objects of a snapshot."""

    @abstractmethod
    def kinds(self) -> dict[str, TensorKind | None]:
        """Return what all chunks of each tensor have in common, by name; None for an object."""

    @abstractmethod
    def place(self, index: MetadataIndex) -> _StorageInfo:
        """Return where a chunk or an object is stored, or raise KeyError."""

    @abstractmethod
    def chunk(self, index: MetadataIndex) -> StoredChunk:
        """Return a chunk of a tensor, or raise KeyError."""

    @abstractmethod
    def needed_by(self, state_dict: Mapping[str, Any]) -> Metadata:
        """Return torch's own metadata of the chunks that a state dict needs, and perhaps of more."""

    @abstractmethod
    def check(self, sizes: Mapping[str, int] | None, *, subject: str) -> None:
        """Check that everything is stored; see ``compatibility.check_complete``."""


class PickledItems(StoredItems):
    """Those of DCP's own metadata."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def kinds(self) -> dict[str, TensorKind | None]:
        return {
            name: TensorKind(entry.properties, entry.size) if isinstance(entry, TensorStorageMetadata) else None
            for name, entry in self._metadata.state_dict_metadata.items()
        }

    def place(self, index: MetadataIndex) -> _StorageInfo:
        place: _StorageInfo = self._metadata.storage_data[index]
        return place

    def chunk(self, index: MetadataIndex) -> StoredChunk:
        entry = self._metadata.state_dict_metadata[index.fqn]
        assert isinstance(entry, TensorStorageMetadata)
        kind = TensorKind(entry.properties, entry.size)
        return StoredChunk(self._numbers[index], kind, _sizes(entry, index), self.place(index))

    def needed_by(self, state_dict: Mapping[str, Any]) -> Metadata:
        del state_dict
        return self._metadata

    def check(self, sizes: Mapping[str, int] | None, *, subject: str) -> None:
        check_complete(self._metadata, sizes, subject=subject)

    @cached_property
    def _numbers(self) -> dict[MetadataIndex, int]:
        return {index: number for number, index in enumerate(self._metadata.storage_data)}


def stored_items(metadata: Metadata) -> StoredItems:
    """Return what metadata says is stored."""
    return metadata if isinstance(metadata, StoredItems) else PickledItems(metadata)


def _sizes(entry: TensorStorageMetadata, index: MetadataIndex) -> torch.Size:
    """Return the shape of a chunk."""
    chunks = entry.chunks
    # Planners say which chunk they mean, but need not.
    if index.index is not None and index.index < len(chunks) and chunks[index.index].offsets == index.offset:
        return chunks[index.index].sizes
    return next(chunk.sizes for chunk in chunks if chunk.offsets == index.offset)
