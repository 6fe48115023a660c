"""The contents of a snapshot by name. Needs torch, which wrote its metadata; it is imported here only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from checkpoint_cli.exits import CommandRefusedError, ExitStatus
from checkpoint_cli.records import ItemRecord

if TYPE_CHECKING:
    from checkpoint_cli.bucket.door import AddressedRun
    from checkpoint_sidecar.core.run import Snapshot

_GROUP_BYTES = 256 * 1024 * 1024
"""Tensors of about this size are compared at a time."""


def items_of(at: AddressedRun, snapshot: Snapshot, verb: str) -> dict[str, ItemRecord]:
    """Return the tensors, other values and files of a snapshot, by name.

    Raises:
        CommandRefusedError: torch is missing.
        CorruptSnapshotError: The metadata differs from what was committed.
    """
    metadata = _reader(at, snapshot, verb).open()
    from checkpoint_sidecar.engine.folders.reading import read_index
    from checkpoint_sidecar.engine.limits import EngineSettings
    from checkpoint_sidecar.engine.verify import read_manifest
    from checkpoint_sidecar.training.state.contents import FORM

    items = sorted(metadata.state_dict_metadata.items())
    # How a module's state is put together again is of no use to a reader.
    found = {name: _item(name, stored) for name, stored in items if FORM not in name.split(".")}
    path, manifest = snapshot.commit.path, read_manifest(at.store, snapshot.commit)
    settings = EngineSettings.from_environment()
    index = read_index(at.store, path, manifest, level="Checksums", settings=settings)
    for entry in index.entries if index else ():
        name = f"files/{entry.path}"
        found[name] = ItemRecord(name=name, type="file", bytes=entry.size if entry.kind == "File" else None)
    return found


def _item(name: str, stored: Any) -> ItemRecord:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    if not isinstance(stored, TensorStorageMetadata):
        return ItemRecord(name=name, type="value")
    dtype = stored.properties.dtype
    return ItemRecord(
        name=name,
        type="tensor",
        shape=tuple(stored.size),
        dtype=str(dtype).removeprefix("torch."),
        tensors=1,
        bytes=stored.size.numel() * dtype.itemsize,
    )


def changed_values(
    runs: tuple[AddressedRun, AddressedRun], snapshots: tuple[Snapshot, Snapshot], items: list[ItemRecord]
) -> Iterator[tuple[str, float, float, float]]:
    """Yield each tensor's name, its norm in each of two snapshots, and the norm of their difference.

    Reads both snapshots in groups of tensors, so memory does not grow with their size.

    Args:
        items: Tensors that both have, with one shape and dtype.
    """
    import torch

    for group in _groups(items):
        left, right = (_load(run, snapshot, group) for run, snapshot in zip(runs, snapshots, strict=True))
        for item in group:
            one, other = (_comparable(side[item.name], torch) for side in (left, right))
            norms = (torch.linalg.vector_norm(each).item() for each in (one, other, one - other))
            yield (item.name, *norms)


def _groups(items: list[ItemRecord]) -> Iterator[list[ItemRecord]]:
    group: list[ItemRecord] = []
    size = 0
    for item in items:
        if group and size + (item.bytes or 0) > _GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(item)
        size += item.bytes or 0
    if group:
        yield group


def _comparable(tensor: Any, torch: Any) -> Any:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _load(at: AddressedRun, snapshot: Snapshot, items: list[ItemRecord]) -> dict[str, Any]:
    import torch
    from torch.distributed.checkpoint import state_dict_loader

    state: dict[str, Any] = {
        item.name: torch.empty(item.shape or (), dtype=getattr(torch, item.dtype or "float32")) for item in items
    }
    with warnings.catch_warnings():
        # DCP warns about a single process, which is intended here.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        state_dict_loader.load(state, storage_reader=_reader(at, snapshot, "diff"), no_dist=True)
    return state


def _reader(at: AddressedRun, snapshot: Snapshot, verb: str) -> Any:
    try:
        from checkpoint_sidecar.training.dcp.reader import SnapshotReader
    except ImportError as error:
        if error.name not in ("torch", "numpy"):
            raise
        raise CommandRefusedError(
            verb,
            f"{at.url}@{snapshot.id}",
            "this needs torch, which is not installed",
            "Run: pip install 'checkpoint-operator[torch]'",
            status=ExitStatus.USAGE,
        ) from error
    from checkpoint_sidecar.engine.verify import read_manifest

    return SnapshotReader(at.store, snapshot.commit.path, read_manifest(at.store, snapshot.commit))
