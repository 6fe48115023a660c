"""Checks that a checkpoint is complete and compatible with its destinations, before any tensor is written. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from checkpoint_sidecar.core.errors import (
    ConfigurationError,
    CorruptSnapshotError,
    IncompatibleSnapshotError,
)
from checkpoint_sidecar.engine.boxes import tiles
from checkpoint_sidecar.training.dcp.coverage import uncovered
from checkpoint_sidecar.training.dcp.inventory import Inventory
from checkpoint_sidecar.training.dcp.transforms import READABLE

_OPERATION = "load the checkpoint"


def check_complete(metadata: Metadata, sizes: Mapping[str, int] | None, *, subject: str) -> None:
    """Check that every part of every tensor is stored, inside the files there are.

    DCP itself loads a half-saved tensor without a word and leaves the other half as it was.

    Args:
        sizes: Bytes of each file by name, from the manifest; None when there is none.
        subject: What to name in errors.

    Raises:
        CorruptSnapshotError: A part is missing or lies outside its file.
        ConfigurationError: It was written through stream extensions that cannot be undone.
    """
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            if not tiles(entry.size, entry.chunks):
                raise _incomplete(subject, f"the saved chunks of {name} do not cover its shape {list(entry.size)}")
            wanted = [MetadataIndex(name, chunk.offsets) for chunk in entry.chunks]
        else:
            wanted = [MetadataIndex(name)]
        for index in wanted:
            if index not in metadata.storage_data:
                raise _incomplete(subject, f"the metadata lists {name} at {index.offset}, but it was never stored")
    files: set[str] = set()
    for index, info in metadata.storage_data.items():
        if info.relative_path not in files:
            _check_path(index, info.relative_path, subject)
            files.add(info.relative_path)
        _check_place(index, info, sizes, subject)


def check_inventory(inventory: Inventory, sizes: Mapping[str, int], *, subject: str) -> None:
    """Check an inventory as ``check_complete`` checks metadata.

    Raises:
        CorruptSnapshotError: A part is missing or lies outside its file.
    """
    for number in uncovered(inventory):
        kind = inventory.kinds[number]
        assert kind is not None
        cause = f"the saved chunks of {inventory.names[number]} do not cover its shape {list(kind.size)}"
        raise _incomplete(subject, cause)
    room = np.array([sizes.get(name, -1) for name in inventory.files], np.int64)
    left = room[inventory.file]
    left -= inventory.start
    outside = np.flatnonzero(inventory.length > left)
    if len(outside):
        row = int(outside[0])
        index = MetadataIndex(inventory.names[int(np.searchsorted(inventory.ends, row, side="right"))])
        _check_place(index, inventory.place(row), sizes, subject)


def check_types(state_dict: Mapping[str, Any], metadata: Metadata, *, subject: str) -> None:
    """Check that items have the dtype, or the kind, of their destinations.

    Args:
        state_dict: Destinations by the name under which they were saved.

    Raises:
        IncompatibleSnapshotError: DCP would cast silently, or replace a tensor by an object.
    """
    for name, value in state_dict.items():
        entry = metadata.state_dict_metadata.get(name)
        if not isinstance(value, torch.Tensor):
            continue
        if isinstance(entry, TensorStorageMetadata) and entry.properties.dtype != value.dtype:
            raise IncompatibleSnapshotError(
                _OPERATION,
                subject,
                f"{name} was saved as {entry.properties.dtype} and would be loaded into {value.dtype}",
                "Load it into a tensor of the saved dtype and convert that.",
            )
        if isinstance(entry, BytesStorageMetadata):
            raise IncompatibleSnapshotError(
                _OPERATION, subject, f"{name} was saved as an object and would be loaded into a tensor"
            )


def _check_path(index: MetadataIndex, name: str, subject: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "://" in name:
        raise _incomplete(subject, f"{index.fqn} is said to be in {name!r}, outside the checkpoint")


def _check_place(index: MetadataIndex, info: Any, sizes: Mapping[str, int] | None, subject: str) -> None:
    if not READABLE.issuperset(getattr(info, "transform_descriptors", None) or ()):
        raise ConfigurationError(
            _OPERATION,
            subject,
            f"{index.fqn} was written through the stream extensions {list(info.transform_descriptors)}",
            "Load it with torch's own reader.",
        )
    if sizes is not None and not 0 <= info.offset <= info.offset + info.length <= sizes.get(info.relative_path, -1):
        raise _incomplete(
            subject, f"{index.fqn} is said to be in {info.relative_path!r}, where the manifest has no room"
        )


def _incomplete(subject: str, cause: str) -> CorruptSnapshotError:
    return CorruptSnapshotError(_OPERATION, subject, cause, evidence="MissingObject")
