"""DCP's metadata of a snapshot that was read from its index: entries are made when they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner_helpers import _create_chunk_list

from checkpoint_sidecar.training.dcp.compatibility import check_inventory
from checkpoint_sidecar.training.dcp.inventory import Inventory, TensorKind
from checkpoint_sidecar.training.dcp.metadata_pickle import VERSION
from checkpoint_sidecar.training.dcp.stored_items import StoredChunk, StoredItems


class IndexedMetadata(Metadata, StoredItems):
    """DCP's metadata of a stored inventory, of which each entry is made when it is used."""

    contents: Inventory
    numbers: dict[str, int]

    @classmethod
    def of(cls, contents: Inventory, storage_meta: StorageMeta) -> IndexedMetadata:
        made = cls.__new__(cls)
        made.contents = contents
        made.numbers = {name: number for number, name in enumerate(contents.names)}
        made.planner_data = contents.planner_data
        made.storage_meta = storage_meta
        made.version = VERSION
        return made

    @property
    def state_dict_metadata(self) -> Mapping[str, STORAGE_TYPES]:  # type: ignore[override]
        return _Entries(self)

    @property
    def storage_data(self) -> Mapping[MetadataIndex, _StorageInfo]:
        return _Places(self)

    def kind(self, name: str) -> TensorKind:
        """Return what all chunks of a tensor have in common."""
        kind = self.contents.kinds[self.numbers[name]]
        assert kind is not None
        return kind

    def kinds(self) -> dict[str, TensorKind | None]:
        return dict(zip(self.contents.names, self.contents.kinds, strict=True))

    def place(self, index: MetadataIndex) -> _StorageInfo:
        return self.contents.place(self._row(index))

    def chunk(self, index: MetadataIndex) -> StoredChunk:
        kind, row = self.kind(index.fqn), self._row(index)
        sizes = torch.Size(self.contents.sizes[row, : len(kind.size)].tolist())
        return StoredChunk(row, kind, sizes, self.contents.place(row))

    def check(self, sizes: Mapping[str, int] | None, *, subject: str) -> None:
        check_inventory(self.contents, sizes or {}, subject=subject)

    def needed_by(self, state_dict: Mapping[str, Any]) -> Metadata:
        contents = self.contents
        found: dict[str, STORAGE_TYPES] = {}
        for name, value in state_dict.items():
            number = self.numbers.get(name)
            if number is None:
                continue
            kind = contents.kinds[number]
            if kind is None or not isinstance(value, torch.Tensor | ShardedTensor):
                found[name] = contents.stored(number)
            elif value.dim() != len(kind.size):
                found[name] = TensorStorageMetadata(*kind, [])  # torch says that the sizes differ
            else:
                rows = contents.overlapping(number, _create_chunk_list(value))
                found[name] = TensorStorageMetadata(*kind, contents.chunks(number, rows))
        return Metadata(found, self.planner_data, None, self.storage_meta)

    def _row(self, index: MetadataIndex) -> int:
        return self.contents.row(self.numbers[index.fqn], index.offset, index.index)


class _Entries(Mapping[str, STORAGE_TYPES]):
    def __init__(self, metadata: IndexedMetadata) -> None:
        self._metadata = metadata

    def __getitem__(self, name: str) -> STORAGE_TYPES:
        return self._metadata.contents.stored(self._metadata.numbers[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._metadata.numbers)

    def __len__(self) -> int:
        return len(self._metadata.numbers)


class _Places(Mapping[MetadataIndex, _StorageInfo]):
    def __init__(self, metadata: IndexedMetadata) -> None:
        self._metadata = metadata

    def __getitem__(self, index: MetadataIndex) -> _StorageInfo:
        return self._metadata.place(index)

    def __iter__(self) -> Iterator[MetadataIndex]:
        contents = self._metadata.contents
        for number, (name, kind) in enumerate(zip(contents.names, contents.kinds, strict=True)):
            if kind is None:
                yield MetadataIndex(name)
            else:
                yield from (
                    MetadataIndex(name, each.offsets, hint) for hint, each in enumerate(contents.chunks(number))
                )

    def __len__(self) -> int:
        return len(self._metadata.contents.offsets)
