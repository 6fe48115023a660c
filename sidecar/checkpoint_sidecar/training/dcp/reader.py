"""DCP storage that loads one snapshot, or a stock checkpoint: checked first, verified on the way into its place."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from checkpoint_sidecar.core.errors import (
    ConfigurationError,
    IncompatibleSnapshotError,
    ObjectNotFoundError,
)
from checkpoint_sidecar.core.failures import raising_portable
from checkpoint_sidecar.core.layout import METADATA_NAME
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.core.metadata_index import end_length, index_in
from checkpoint_sidecar.core.policy import VerifyLevel
from checkpoint_sidecar.engine.compared import ComparedBytes
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.pointer import MAX_METADATA_BYTES
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.requests import ByteRange
from checkpoint_sidecar.engine.verify import check_sizes, read_file
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.training.dcp.delivery import Item, WantedPart, deliver
from checkpoint_sidecar.training.dcp.errors import wrapped
from checkpoint_sidecar.training.dcp.index import decode
from checkpoint_sidecar.training.dcp.indexed_metadata import IndexedMetadata
from checkpoint_sidecar.training.dcp.memory import is_plain
from checkpoint_sidecar.training.dcp.read_once import (
    MINIMUM_BYTES,
    SharedReads,
    SharingPlan,
    all_succeeded,
    files_of,
    pass_on,
    with_shares,
)
from checkpoint_sidecar.training.dcp.restricted import Trust, load_restricted
from checkpoint_sidecar.training.dcp.shared_reads import NeededPart, SharedPart, packed_needs, shared_parts
from checkpoint_sidecar.training.dcp.slices import Slice
from checkpoint_sidecar.training.dcp.stored_items import StoredChunk, stored_items
from checkpoint_sidecar.training.dcp.transforms import expanded
from checkpoint_sidecar.training.dcp.unpickler import load_metadata

_MOST_FRAME_BYTES = 64 * 1024
"""What ``torch.save`` may add to a plain tensor, in any version."""

_END_BYTES = 256 * 1024
"""How much of ``.metadata`` is read first. Its index is at the end, and rarely longer."""


class SnapshotReader(StorageReader):
    """Loads from one save folder.

    Use it with ``StrictLoadPlanner``, which lets all ranks refuse an incompatible item together; with other planners
    each rank checks its own share, before it writes into a tensor.

    Args:
        store: Opened at the run's root.
        folder_path: The save's folder, ``SaveFolder.path``; empty for the root.
        manifest: The committed manifest; None reads a stock checkpoint, which cannot be verified.
        verify: How far stored bytes are checked before they are used.
        trust: ``safe`` unpickles DCP's classes and what ``torch.load(weights_only=True)`` allows; ``full`` anything.
        progress: Counts this rank's bytes.
        settings: Connections and memory; by default those of the environment.
        metadata: The bytes of ``.metadata``, verified, or of its index, where one rank has read them for all.
        sharing: A gloo group of all ranks that load, over which each passes on what it reads for others too.
        compared: Where to mark what this rank verified.

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
        progress: TransferMeter | None = None,
        settings: EngineSettings | None = None,
        metadata: bytes | None = None,
        sharing: dist.ProcessGroup | None = None,
        compared: ComparedBytes | None = None,
    ) -> None:
        super().__init__()
        self._compared = compared
        self._store = store
        self._progress = progress
        self._settings = settings or EngineSettings.from_environment()
        self._metadata_of_all = metadata
        self._sharing = sharing
        self._open(folder_path, manifest)
        self._verify: VerifyLevel = verify
        self._trust: Trust = trust
        self._load_id = uuid.uuid4().hex
        self._stored = stored_items(Metadata({}))
        self._items: list[ReadItem] = []
        self._shareable: list[ReadItem] = []
        self._opened: Metadata | None = None

    def _open(self, folder_path: str, manifest: Manifest | None) -> None:
        self._folder = folder_path
        self._manifest = manifest

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
                "load the snapshot",
                str(checkpoint_id),
                "this reader loads only the snapshot that it was created for",
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
        if self._opened is not None:
            return self._opened
        try:
            self._locate()
            metadata = self._opened_metadata(self._metadata_bytes(name), f"{self._subject}/{name}")
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

    def _opened_metadata(self, data: bytes, subject: str) -> Metadata:
        index = index_in(data)
        if index is None or self._manifest is None:
            return load_metadata(data, subject=subject, trusted=self._trust == "full")
        about = StorageMeta(checkpoint_id=self._subject, save_id=self._manifest.snapshot)
        return IndexedMetadata.of(decode(index, subject=subject), about)

    def open(self) -> Metadata:
        """The snapshot's metadata, checked; the load that follows does neither again."""
        metadata = self.read_metadata()
        self.set_up_storage_reader(metadata, is_coordinator=True)
        self._opened = metadata
        return metadata

    def load_objects(self, names: Sequence[str]) -> dict[str, Any]:
        """Load items that are not tensors, by name, before anything is planned. Call ``open`` first.

        Raises:
            CorruptSnapshotError, StoreError: They could not be read.
            UntrustedSnapshotError: One holds a class that ``trust="safe"`` refuses.
        """
        found: dict[str, Any] = {}

        def item(name: str) -> Item:
            place = self._stored.place(MetadataIndex(name))

            def unpack(data: memoryview) -> None:
                stored = self._expanded(MetadataIndex(name), data, self._settings.memory_bytes)
                found[name] = self._load(name, stored, map_location="cpu")

            return Item(place.relative_path, _span(place), None, unpack)

        if self._manifest:
            needed = {self._stored.place(MetadataIndex(name)).relative_path for name in names}
            check_sizes(
                self._store,
                self._folder,
                [file for file in self._manifest.files if file.name in needed],
                level=self._verify,
            )
        deliver(self._contents(), list(map(item, names)), staging_bytes=self._settings.memory_bytes // 2)
        return found

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **kwargs: Any) -> None:
        """Check, before anything is planned, that the checkpoint is all there."""
        del is_coordinator, kwargs
        if self._opened is not None:
            return
        sizes = {file.name: file.size for file in self._manifest.files} if self._manifest else None
        stored = stored_items(metadata)
        stored.check(sizes, subject=self._subject)
        self._stored = stored

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return this rank's plan: where ranks share reads, as rank 0 needs it."""
        if self._sharing is None:
            return plan
        self._items, self._shareable = plan.items, []
        needs, names = [], set()
        for item in plan.items:
            if item.type is LoadItemType.BYTE_IO:
                names.add(self._stored.place(item.storage_index).relative_path)
                continue
            chunk = self._stored.chunk(item.storage_index)
            names.add(chunk.place.relative_path)
            size = _bytes_to_pass_on(item, chunk)
            if size >= MINIMUM_BYTES:
                self._shareable.append(item)
                needs.append(NeededPart(chunk.number, size, item.storage_offsets, item.lengths))
        return SharingPlan.of(plan, packed_needs(needs), names)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Check the sizes of all files that any rank needs, and decide which rank reads what several need.

        All ranks learn of a damaged file before any loads.
        """
        shared = [plan for plan in plans if isinstance(plan, SharingPlan)]
        if self._manifest:
            items = (item for plan in plans for item in plan.items)
            needed = files_of(shared) | {self._stored.place(item.storage_index).relative_path for item in items}
            files = [file for file in self._manifest.files if file.name in needed]
            check_sizes(self._store, self._folder, files, level=self._verify)
        return with_shares(shared) if shared else plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read, verify and deliver this rank's items."""
        # DCP sends what is raised here to the other ranks; what cannot be sent would leave them waiting.
        with raising_portable("read a snapshot from", self._store.url):
            return self._read_data(plan, planner)

    def _read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        share = plan.storage_data
        if isinstance(share, SharedReads) and share.packed is not None:
            self._read_shared(shared_parts(share.packed), planner)
        else:
            items = self._items if isinstance(share, SharedReads) else plan.items
            self._read(items, self._targets(items, planner), planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_shared(self, parts: Sequence[SharedPart], planner: LoadPlanner) -> None:
        """Read what no other rank reads for this one, and exchange the rest."""
        group = self._sharing
        assert group is not None
        received = {self._shareable[part.position] for part in parts if part.source is not None}
        try:
            targets = self._targets(self._items, planner)
            self._read([item for item in self._items if item not in received], targets, planner)
        except BaseException:
            all_succeeded(False, group)
            raise
        # The error of a failed rank makes DCP raise on every rank.
        if all_succeeded(True, group):
            pass_on(parts, [targets[item] for item in self._shareable], group)
            for item in received:
                planner.commit_tensor(item, targets[item])

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Always False: DCP must not pick this reader by a path."""
        del checkpoint_id
        return False

    def _locate(self) -> None:
        """Find the snapshot, at the start of each load; here it is given."""

    def _key(self, name: str) -> str:
        return f"{self._folder}/{name}" if self._folder else name

    def _metadata_bytes(self, name: str) -> bytes:
        if self._metadata_of_all is not None:
            return self._metadata_of_all
        if self._manifest is None:
            return self._store.get(self._key(name), max_bytes=MAX_METADATA_BYTES).data
        read = partial(
            read_file, self._store, self._folder, self._manifest, name, level=self._verify, settings=self._settings
        )
        end = read(last=_END_BYTES)
        if len(end) < _END_BYTES or index_in(end) is not None:
            return end
        return read(last=end_length(end))

    def _contents(self) -> Files:
        return Files(
            self._store,
            self._folder,
            self._manifest,
            settings=self._settings,
            compared=self._compared,
            compare=self._verify == "Checksums",
        )

    def _targets(self, items: Sequence[ReadItem], planner: LoadPlanner) -> dict[ReadItem, torch.Tensor]:
        """Where each tensor goes; all of them are known to fit before anything is written into one."""
        targets: dict[ReadItem, torch.Tensor] = {}
        for item in items:
            if item.type is LoadItemType.BYTE_IO:
                continue
            target = planner.resolve_tensor(item)
            # A detached tensor that is more than its elements may get elements of its own when it is written to.
            target = target.detach() if is_plain(target.detach()) else target
            stored = self._stored.chunk(item.storage_index)
            self._check_compatible(item, target, stored.kind.properties.dtype, item.lengths)
            targets[item] = target
        return targets

    def _check_compatible(self, item: ReadItem, target: torch.Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
        if target.shape != shape or target.dtype != dtype:
            raise IncompatibleSnapshotError(
                "load tensor",
                f"{item.storage_index.fqn} of {self._subject}",
                f"{dtype} {list(shape)} was saved, but the destination is {target.dtype} {list(target.shape)}",
            )

    def _read(self, items: Sequence[ReadItem], targets: dict[ReadItem, torch.Tensor], planner: LoadPlanner) -> None:
        deliver(
            self._contents(),
            [self._item(item, targets.get(item), planner) for item in items],
            staging_bytes=self._settings.memory_bytes // 2,
            progress=self._progress,
        )
        for item in items:
            if item in targets:
                planner.commit_tensor(item, targets[item])

    def _item(self, item: ReadItem, target: torch.Tensor | None, planner: LoadPlanner) -> Item:
        if target is None:
            place = self._stored.place(item.storage_index)
            return Item(place.relative_path, _span(place), None, partial(self._unpack_object, item, planner))
        chunk = self._stored.chunk(item.storage_index)
        box = Slice(tuple(chunk.sizes), tuple(item.storage_offsets), tuple(item.lengths))
        unpack = partial(self._unpack_tensor, item, target)
        return Item(chunk.place.relative_path, _span(chunk.place), WantedPart(box, target), unpack)

    def _expanded(self, index: MetadataIndex, data: memoryview, most: int) -> memoryview:
        """Undo torch's compression of a stored item that may have at most so many bytes."""
        descriptors = getattr(self._stored.place(index), "transform_descriptors", None)
        if not descriptors:
            return data
        return expanded(data, descriptors, most=most, subject=f"{index.fqn} of {self._subject}")

    def _unpack_object(self, item: ReadItem, planner: LoadPlanner, data: memoryview) -> None:
        data = self._expanded(item.storage_index, data, self._settings.memory_bytes)
        planner.load_bytes(item, io.BytesIO(data) if self._trust == "full" else self._sanitized(item, data))

    def _unpack_tensor(self, item: ReadItem, target: torch.Tensor, data: memoryview) -> None:
        stored = self._stored.chunk(item.storage_index)
        most = stored.sizes.numel() * stored.kind.properties.dtype.itemsize + _MOST_FRAME_BYTES
        data = self._expanded(item.storage_index, data, most)
        saved = narrow_tensor_by_index(
            self._load(item.storage_index.fqn, data, "cpu"), item.storage_offsets, item.lengths
        )
        self._check_compatible(item, target, saved.dtype, saved.shape)
        with torch.no_grad():
            target.copy_(saved)

    def _sanitized(self, item: ReadItem, data: memoryview) -> io.BytesIO:
        """Load an item with restrictions and pickle it again, because planners unpickle without restrictions."""
        clean = io.BytesIO()
        torch.save(self._load(item.storage_index.fqn, data, None), clean)
        clean.seek(0)
        return clean

    def _load(self, name: str, data: memoryview, map_location: str | None) -> Any:
        return load_restricted(
            io.BytesIO(data), subject=f"{name} of {self._subject}", trust=self._trust, map_location=map_location
        )


def _span(place: _StorageInfo) -> ByteRange:
    return ByteRange(place.offset, place.length)


def _bytes_to_pass_on(item: ReadItem, chunk: StoredChunk) -> int:
    """Return the bytes that one rank can pass on to another; 0 if the item is more than the elements of a tensor."""
    itemsize = chunk.kind.properties.dtype.itemsize
    around = chunk.place.length - chunk.sizes.numel() * itemsize
    return item.lengths.numel() * itemsize if 0 <= around <= _MOST_FRAME_BYTES else 0
