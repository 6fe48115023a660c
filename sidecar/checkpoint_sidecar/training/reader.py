"""DCP storage that loads one snapshot, or a stock checkpoint: checked first, verified, then copied into place."""

from __future__ import annotations

import io
import os
import pickle
import re
import uuid
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeAlias

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from checkpoint_sidecar.core.errors import (
    ConfigurationError,
    CorruptSnapshotError,
    IncompatibleSnapshotError,
    ObjectNotFoundError,
    UntrustedSnapshotError,
)
from checkpoint_sidecar.core.layout import METADATA_NAME
from checkpoint_sidecar.core.manifest import BLOCK_BYTES, File, Manifest
from checkpoint_sidecar.core.policy import VerifyLevel
from checkpoint_sidecar.engine.progress import Progress
from checkpoint_sidecar.engine.read import FileReader, Span, batches
from checkpoint_sidecar.engine.verify import check_sizes
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.pointer import MAX_METADATA_BYTES
from checkpoint_sidecar.training.failures import wrapped
from checkpoint_sidecar.training.fit import check_complete, check_types
from checkpoint_sidecar.training.unpickler import load_metadata

Trust: TypeAlias = Literal["safe", "full"]

_PARALLEL_REQUESTS = 4
_BATCH_BYTES = 64 * 1024 * 1024
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")


class SnapshotReader(StorageReader):
    """Loads from one save folder.

    Use it with ``StrictLoadPlanner``, which lets all ranks refuse a misfit together; with other planners each rank
    checks its own share, before it writes into a tensor.

    Args:
        store: Opened at the run's root.
        folder_path: The save's folder, ``SaveFolder.path``; empty for the root.
        manifest: The committed manifest; None reads a stock checkpoint, which cannot be verified.
        verify: How far stored bytes are checked before they are used.
        trust: ``safe`` unpickles DCP's classes and what ``torch.load(weights_only=True)`` allows; ``full`` anything.
        progress: Told of this rank's bytes.

    Raises (from DCP, wrapped; see ``failures.raising_ours``):
        CorruptSnapshotError: Stored bytes are not what was committed; ``evidence`` says how.
        IncompatibleSnapshotError: The snapshot does not fit the state dict.
        UntrustedSnapshotError: It holds a class that ``trust="safe"`` refuses.
    """

    def __init__(
        self,
        store: Store,
        folder_path: str,
        manifest: Manifest | None,
        *,
        verify: VerifyLevel = "Checksums",
        trust: Trust = "safe",
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self._store = store
        self._progress = progress
        self._open(folder_path, manifest)
        self._verify: VerifyLevel = verify
        self._trust: Trust = trust
        self._load_id = uuid.uuid4().hex
        self._metadata = Metadata({})

    def _open(self, folder_path: str, manifest: Manifest | None) -> None:
        self._folder = folder_path
        self._block_bytes = manifest.block_bytes if manifest else BLOCK_BYTES
        self._files = {file.name: file for file in manifest.files} if manifest else None

    @property
    def _subject(self) -> str:
        return f"{self._store.url}/{self._folder}".rstrip("/")

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """DCP's start of a load by ``checkpoint_id``, which this reader does not take.

        Raises:
            ConfigurationError: A ``checkpoint_id`` was given.
        """
        if checkpoint_id:
            raise ConfigurationError(
                "load a snapshot",
                str(checkpoint_id),
                "this reader loads the snapshot it was made for",
                "Leave out checkpoint_id, or use CheckpointReader.",
            )

    def read_metadata(self, *_: Any, **kwargs: Any) -> Metadata:
        """The snapshot's metadata, verified and safely unpickled.

        Only a stock checkpoint saved rank by rank raises an ordinary exception: DCP then looks for ``rank``'s own.
        Anything else must reach every rank, instead of sending this one alone on that search, in which several
        versions of torch forget what went wrong.
        """
        rank = kwargs.get("rank")
        name = METADATA_NAME if rank is None else f"__{rank}{METADATA_NAME}"
        try:
            self._locate()
            metadata = load_metadata(
                self._metadata_bytes(name), subject=f"{self._subject}/{name}", trusted=self._trust == "full"
            )
        except ObjectNotFoundError as error:
            if rank is None and self._store.stat(self._key(f"__0{METADATA_NAME}")) is None:
                raise wrapped("read metadata", 0, error) from error
            raise
        except Exception as error:
            raise wrapped("read metadata", rank or 0, error) from error
        # Checkpoints of old versions of torch have no such attribute.
        metadata.storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        metadata.storage_meta.load_id = self._load_id
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **kwargs: Any) -> None:
        """Check, before anything is planned, that the checkpoint is all there."""
        del is_coordinator, kwargs
        sizes = None if self._files is None else {name: file.size for name, file in self._files.items()}
        check_complete(metadata, sizes, subject=self._subject)
        self._metadata = metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Check the sizes of the files this rank needs, so that all ranks learn of a damaged one before any loads."""
        if self._files is not None:
            needed = {self._place(item.storage_index).relative_path for item in plan.items}
            check_sizes(self._store, self._folder, [self._files[name] for name in sorted(needed)], level=self._verify)
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read, verify and deliver this rank's items, file by file in order of position."""
        self._check_destinations(plan, planner)
        by_file: dict[str, dict[Span, list[ReadItem]]] = defaultdict(lambda: defaultdict(list))
        for item in plan.items:
            place = self._place(item.storage_index)
            by_file[place.relative_path][Span(place.offset, place.length)].append(item)
        with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="load") as pool:
            for name, items in by_file.items():
                reader = self._reader(name, pool)
                for group in batches(items, gap=self._block_bytes, budget=_BATCH_BYTES):
                    start = group[0].start
                    data = reader.read(Span(start, max(span.end for span in group) - start))
                    for span in group:
                        for item in items[span]:
                            self._deliver(item, data[span.start - start : span.end - start], planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Always False: DCP must not pick this reader by a path."""
        del checkpoint_id
        return False

    def _locate(self) -> None:
        """Find the snapshot, at the start of each load; here it is given."""

    def _key(self, name: str) -> str:
        return f"{self._folder}/{name}" if self._folder else name

    def _place(self, index: MetadataIndex) -> _StorageInfo:
        place: _StorageInfo = self._metadata.storage_data[index]
        return place

    def _reader(self, name: str, pool: ThreadPoolExecutor) -> FileReader:
        file = self._files[name] if self._files is not None and self._verify == "Checksums" else None
        return FileReader(self._store, self._key(name), file, pool=pool, block_bytes=self._block_bytes)

    def _metadata_bytes(self, name: str) -> bytes | memoryview:
        if self._files is None:
            return self._store.get(self._key(name), max_bytes=MAX_METADATA_BYTES).data
        file = self._listed(name)
        check_sizes(self._store, self._folder, [file], level=self._verify)
        with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="load") as pool:
            return self._reader(name, pool).read(Span(0, file.size))

    def _listed(self, name: str) -> File:
        assert self._files is not None
        if name not in self._files:
            raise CorruptSnapshotError(
                "load a snapshot", self._subject, f"its manifest has no {name}", evidence="ManifestMismatch"
            )
        return self._files[name]

    def _check_destinations(self, plan: LoadPlan, planner: LoadPlanner) -> None:
        # ``lookup_tensor`` is an extension of DefaultLoadPlanner; others are checked when each tensor is delivered.
        lookup = getattr(planner, "lookup_tensor", None)
        if lookup is not None:
            tensors = [item for item in plan.items if item.type is not LoadItemType.BYTE_IO]
            check_types(
                {item.storage_index.fqn: lookup(item.dest_index) for item in tensors},
                self._metadata,
                subject=self._subject,
            )

    def _deliver(self, item: ReadItem, data: memoryview, planner: LoadPlanner) -> None:
        if item.type is LoadItemType.BYTE_IO:
            planner.load_bytes(item, io.BytesIO(data) if self._trust == "full" else self._sanitized(item, data))
            return
        saved = narrow_tensor_by_index(self._load(item, data), item.storage_offsets, item.lengths)
        target = planner.resolve_tensor(item).detach()
        if target.shape != saved.shape or target.dtype != saved.dtype:
            raise IncompatibleSnapshotError(
                "load a tensor",
                f"{item.storage_index.fqn} of {self._subject}",
                f"{saved.dtype} {list(saved.shape)} was saved, the destination is {target.dtype} {list(target.shape)}",
            )
        target.copy_(saved)
        planner.commit_tensor(item, target)

    def _sanitized(self, item: ReadItem, data: memoryview) -> io.BytesIO:
        """The item as our own pickle of what a restricted unpickler made of it: planners load without restriction."""
        clean = io.BytesIO()
        torch.save(self._load(item, data, map_location=None), clean)
        clean.seek(0)
        return clean

    def _load(self, item: ReadItem, data: memoryview, map_location: str | None = "cpu") -> Any:
        try:
            return torch.load(io.BytesIO(data), map_location=map_location, weights_only=self._trust == "safe")
        except pickle.UnpicklingError as error:
            refused = _REFUSED_GLOBAL.search(str(error))
            raise UntrustedSnapshotError(
                "load an item",
                f"{item.storage_index.fqn} of {self._subject}",
                f"torch.load(weights_only=True) refuses {refused[1] if refused else 'its contents'}",
                'Allow the class with torch.serialization.add_safe_globals, or load with trust="full" if you trust '
                "whoever can write to this bucket.",
            ) from error
