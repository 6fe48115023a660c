"""Looks at the destination of an export: what is there already, and what is in the way."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from checkpoint_sidecar.core.errors import CheckpointExistsError, ObjectNotFoundError, ObjectTooLargeError
from checkpoint_sidecar.exports.files import INDEX_NAME, ExportFile
from checkpoint_sidecar.exports.record import (
    MAX_RECORD_BYTES,
    RECORD_NAME,
    ExportRecord,
    decode_record,
    is_same_export,
)
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.ranges import read_range


@dataclass(frozen=True, slots=True)
class DestinationState:
    """What the destination has.

    Attributes:
        kept: Names of files of this export that are complete.
        replaced: Names that are in the way, in the order in which to delete them.
        record: That of the same export, if it is complete.
    """

    kept: frozenset[str]
    replaced: tuple[str, ...] = ()
    record: ExportRecord | None = None


def look_at(
    target: Store,
    files: Sequence[ExportFile],
    small: Mapping[str, bytes],
    planned: ExportRecord,
    *,
    overwrite: bool,
) -> DestinationState:
    """Return what the destination has of an export.

    Raises:
        CheckpointExistsError: It has other files of the same names, and they must not be replaced.
        StoreError: The store failed.
    """
    sizes = {name: info.size for name in _names(files, small) if (info := target.stat(name)) is not None}
    earlier = _earlier_record(target) if RECORD_NAME in sizes else None
    same = earlier is not None and is_same_export(earlier, planned)
    if same and all(sizes.get(file.name) == file.size for file in files) and all(name in sizes for name in small):
        return DestinationState(frozenset(file.name for file in files), record=earlier)
    kept = frozenset(file.name for file in files if sizes.get(file.name) == file.size and _is_same_file(target, file))
    matching = {name for name, data in small.items() if name in sizes and _has(target, name, data)}
    conflicts = [name for name in sizes if name not in kept | matching]
    if conflicts and not overwrite:
        raise CheckpointExistsError(
            "export to",
            f"{target.url}/{conflicts[0]}",
            "it exists already, and is not of this export",
            "Choose another folder, or replace it with overwrite=True (--overwrite).",
        )
    old = {file.name for file in earlier.files} if earlier and conflicts else set()
    # What a reader begins with goes first, so that it never leads to files of two exports.
    first = [name for name in (RECORD_NAME, INDEX_NAME) if name in conflicts]
    return DestinationState(kept, (*first, *sorted((old | set(conflicts)) - kept - set(first))))


def _names(files: Sequence[ExportFile], small: Mapping[str, bytes]) -> list[str]:
    return [RECORD_NAME, *dict.fromkeys([INDEX_NAME, *small, *(file.name for file in files)])]


def _earlier_record(target: Store) -> ExportRecord | None:
    try:
        return decode_record(target.get(RECORD_NAME, max_bytes=MAX_RECORD_BYTES).data)
    except (ObjectNotFoundError, ObjectTooLargeError):
        return None


def _is_same_file(target: Store, file: ExportFile) -> bool:
    """Return whether a stored file begins with the same description. Files are never stored in part."""
    head = file.pieces[0]
    return file.describes_itself and isinstance(head, bytes) and read_range(target, file.name, 0, len(head)) == head


def _has(target: Store, name: str, data: bytes) -> bool:
    with contextlib.suppress(ObjectNotFoundError, ObjectTooLargeError):
        return target.get(name, max_bytes=len(data)).data == data
    return False
