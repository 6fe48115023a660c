"""DCP storage that saves one snapshot: stock files with checksums, in a new folder, committed last.

The bytes are those of torch's own ``FileSystemWriter``: consecutive ``torch.save`` archives, one for each item, and a
pickled ``Metadata`` of torch's own classes. The transfer differs, and so does the moment of the commit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from checkpoint_sidecar.attempt.run_save import NewSave, SaveTarget
from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core.errors import (
    CheckpointExistsError,
    ConfigurationError,
    FencedError,
    PrefixClaimedError,
    SharedFilesLostError,
    StoreError,
)
from checkpoint_sidecar.core.folder_index import INDEX_NAME
from checkpoint_sidecar.core.garbage import CollectionPause
from checkpoint_sidecar.core.layout import METADATA_NAME, STOCK_METADATA_NAME, SaveFolder
from checkpoint_sidecar.core.manifest import File, Manifest
from checkpoint_sidecar.core.metadata_index import with_index
from checkpoint_sidecar.core.pointers import Origin
from checkpoint_sidecar.core.policy import UnchangedPolicy
from checkpoint_sidecar.core.shared_files import most_files_of
from checkpoint_sidecar.core.stock_paths import root_of
from checkpoint_sidecar.core.unchanged import SettledFile
from checkpoint_sidecar.engine.files import FilePlan
from checkpoint_sidecar.engine.folders.sending import FolderShare
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.unchanged import TensorArchive, UnchangedFiles
from checkpoint_sidecar.engine.upload import upload_bytes, upload_files
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.parts import write_object
from checkpoint_sidecar.training.dcp.archives import ItemArchive, archived, lay_out
from checkpoint_sidecar.training.dcp.array_plan import ArrayPlan, plan_bytes, with_storage_data
from checkpoint_sidecar.training.dcp.errors import never_reached_commit, upload_failed
from checkpoint_sidecar.training.dcp.index import encode
from checkpoint_sidecar.training.dcp.inventory import Inventory
from checkpoint_sidecar.training.dcp.metadata_pickle import VERSION, metadata_pickles
from checkpoint_sidecar.training.dcp.receipts import Results, lines_of, stored_inventory
from checkpoint_sidecar.training.dcp.restricted import Trust
from checkpoint_sidecar.training.dcp.saved_metadata import SavedMetadata, remember

logger = logging.getLogger(__name__)

REFUSALS = (CheckpointExistsError, FencedError, PrefixClaimedError, SharedFilesLostError)
"""What ``SaveTarget.commit`` raises when the snapshot certainly was not and will not be committed."""


class SnapshotWriter(StorageWriter):
    """Saves into the folder its target picks and lets the target commit.

    After DCP raised, call ``discard`` on every rank: only that exception tells a rank that another one failed. However
    the save ended, call ``ended``, if ``pauses_collection`` is set.

    Args:
        store: Opened at the run's root.
        target: Admits and commits the save; needed on the coordinator rank only.
        progress: Counts this rank's bytes.
        settings: Connections and memory; by default those of the environment.
        trust: The trust of later loads. Under ``safe``, tensors that could not be loaded are refused, objects reported.

    Attributes:
        pauses_collection: Pause the garbage collector while DCP sends plans and results between ranks.
        folder_share: What this rank stores of a trainer's folder besides; set it before the save.
        unchanged: What this rank knows from earlier saves, if unchanged files may be copied; set it before the save.
        frozen: Names of parameters that take no gradient.
        saved_in: The save's folder, after this rank has uploaded.
        manifest: On the coordinator, once it is stored.
    """

    pauses_collection = False

    def __init__(
        self,
        store: Store,
        target: SaveTarget | None,
        *,
        progress: TransferMeter | None = None,
        settings: EngineSettings | None = None,
        trust: Trust = "full",
    ) -> None:
        super().__init__()
        self._store = store
        self._target = target
        self._progress = progress
        self._settings = settings or EngineSettings.from_environment()
        self._trust = trust
        self._running: tuple[SaveTarget, NewSave] | None = None
        self._written: list[str] = []
        self._block_bytes = manifests.BLOCK_BYTES
        self._save_id = uuid.uuid4().hex
        self._pause = CollectionPause()
        remember(self)
        self.folder_share: FolderShare | None = None
        self.unchanged: UnchangedFiles | None = None
        self.frozen: AbstractSet[str] = frozenset()
        self.saved_in = ""
        self.manifest: Manifest | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """DCP's start of a save by ``checkpoint_id``, which this writer does not take: its target picks the folder.

        Raises:
            ConfigurationError: A ``checkpoint_id`` was given.
        """
        if checkpoint_id:
            raise ConfigurationError(
                "save a snapshot to",
                str(checkpoint_id),
                "this writer saves to the folder that the run log assigns",
                "Leave out checkpoint_id, or use CheckpointWriter.",
            )

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(checkpoint_id=self._store.url, save_id=self._save_id)

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **kwargs: Any) -> None:
        """Start of a save, on every rank.

        Raises:
            ConfigurationError: ``use_collectives=False``, which makes one checkpoint per rank.
        """
        if not kwargs.get("use_collectives", True):
            raise ConfigurationError(
                "save a snapshot to",
                self._store.url,
                "use_collectives=False saves one checkpoint per rank, which cannot be committed as one",
                "Leave it at True.",
            )
        del is_coordinator
        self._running, self._written, self._save_id = None, [], uuid.uuid4().hex
        remember(self)  # one that was sent here from another process has not been constructed here
        _forget_cached_plans()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        self._pause_collection()
        # Another class of plan may have more to say.
        return ArrayPlan.of(plan) if type(plan) is SavePlan else plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Let the target admit the save, and tell every rank its folder.

        Raises:
            ConfigurationError: There is no target, or the planner skips planning.
        """
        if not all(getattr(plan, "usable", True) for plan in plans):
            raise ConfigurationError(
                "save a snapshot to",
                self._store.url,
                "the planner reuses the plan of an earlier save, and with it that save's folder",
                "Turn enable_plan_caching off.",
            )
        target = self._target_for(len(plans))
        save = target.begin()
        self._running = target, save
        total = self.folder_share.total_bytes if self.folder_share else 0
        total += sum(map(plan_bytes, plans))
        self._block_bytes = manifests.block_bytes_for(total)
        shares = (
            _Share(save.folder, rank, self._block_bytes, save.unchanged, save.copy_from, len(plans))
            for rank in range(len(plans))
        )
        return [with_storage_data(plan, share) for plan, share in zip(plans, shares, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Upload this rank's items; the manifest's lines for its files travel with the results."""
        self.ended()
        share: _Share = plan.storage_data
        meter = self._progress or TransferMeter()
        try:
            # Objects are serialized here, so that every size is known.
            data = ((item, planner.resolve_data(item)) for item in _bytes_first(plan.items))
            archives = archived(data, trust=self._trust)
            layout = lay_out(archives, rank=share.rank, settled=self._settled(share, archives, meter))
            self.saved_in = share.folder.path
            extra = self.folder_share.names if self.folder_share else []
            names = [*(file.name for file in layout.files), *extra]
            self._written = [f"{share.folder.path}/{name}" for name in names]
            copied = self._copied(share, meter)
            plans = self._left_to_send(layout.files, copied)
            files = upload_files(
                self._store,
                share.folder.path,
                plans,
                block_bytes=share.block_bytes,
                settings=self._settings,
                progress=meter,
            )
            files += copied
            if self.folder_share:
                self.folder_share.check()
            if self.unchanged:
                self.unchanged.stored(files)
        except BaseException as error:
            self._abandon()
            raise upload_failed(share.rank, error) from error
        done: Future[list[WriteResult]] = Future()
        sent = {plan.name for plan in plans}
        lines = [WriteResult(MetadataIndex(file.name), file.size * (file.name in sent), file) for file in files]
        done.set_result(Results([*layout.results, *lines]))
        self._pause_collection()
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Store what describes the data, then commit: the last step on the coordinator, after every rank uploaded."""
        assert self._running is not None  # DCP finishes only what it planned, on the same rank
        target, save = self._running
        lines = [line for rank in results for line in lines_of(rank)]
        files = [line.file for line in lines]
        copied = sum(line.file.size - line.sent for line in lines if not line.file.shared_in)
        save = replace(save, copied_bytes=copied)
        inventory = stored_inventory(metadata, results)
        if inventory is None:
            everything = [result for rank in results for result in rank]
            metadata.storage_data = {
                result.index: result.storage_data for result in everything if not isinstance(result.storage_data, File)
            }
        metadata.version = VERSION
        metadata.storage_meta = StorageMeta(
            checkpoint_id=f"{self._store.url}/{save.folder.path}", save_id=save.snapshot
        )
        # Every rank has finished uploading, so that the coordinator can clean up for all of them.
        self._written = [f"{save.folder.path}/{file.name}" for file in files if not file.shared_in]
        try:
            manifest, digest = self._describe(save, metadata, inventory, files, world_size=len(results))
        except BaseException:
            self._abandon()
            self._delete_written()
            raise
        self._running, self.manifest = None, manifest
        try:
            target.commit(save, manifest, digest)
        except REFUSALS:
            self._delete_written()
            raise
        # After any other failure the commit may have been made or may still arrive, so nothing is deleted.
        stored = manifest.file(METADATA_NAME)
        assert stored is not None
        SavedMetadata.of(metadata, self._store.url, save.folder.path, stored)

    def ended(self) -> None:
        """Let the garbage collector run again."""
        self._pause.end()

    def discard(self, failure: BaseException) -> None:
        """Delete what this rank uploaded for a save that certainly was not committed; never raises.

        Leftovers that stay are harmless, and found later by the attempt number in their path.

        Args:
            failure: What DCP raised.
        """
        self._abandon()
        if never_reached_commit(failure):
            self._delete_written()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Always False: DCP must not pick this writer by a path."""
        del checkpoint_id
        return False

    def _pause_collection(self) -> None:
        if self.pauses_collection:
            self._pause.begin()

    def _target_for(self, world_size: int) -> SaveTarget:
        del world_size
        if self._target is None:
            raise ConfigurationError(
                "save a snapshot to", self._store.url, "the coordinator's writer has no save folder"
            )
        return self._target

    def _settled(self, share: _Share, archives: list[ItemArchive], meter: TransferMeter) -> tuple[SettledFile, ...]:
        """Return the files of the tensors that have not changed for some saves."""
        if self.unchanged is None:
            return ()
        if share.unchanged == "Send":
            self.unchanged.forget()
            return ()
        return self.unchanged.arrange(
            [
                TensorArchive(each.part, each.segments, frozen=each.item.index.fqn in self.frozen)
                for each in archives
                if each.item.type is not WriteItemType.BYTE_IO
            ],
            store=self._store,
            rank=share.rank,
            copy_from=share.copy_from,
            sharing=share.unchanged == "Share",
            most_files=most_files_of(share.rank, share.world_size),
            block_bytes=share.block_bytes,
            settings=self._settings,
            meter=meter,
        )

    def _copied(self, share: _Share, meter: TransferMeter) -> list[File]:
        """Return the files that are not sent: what has not changed is shared, or copied by the store."""
        folder, copied = share.folder.path, list[File]()
        if self.unchanged is not None and share.unchanged == "Share":
            copied += self.unchanged.shared(self._store, self._settings)
        elif self.unchanged is not None:
            copied += self.unchanged.copied(self._store, share.rank, folder, self._settings, meter)
        if self.folder_share is not None:
            copied += self.folder_share.copy(self._store, folder, share.block_bytes, self._settings, meter)
        return copied

    def _left_to_send(self, files: list[FilePlan], copied: list[File]) -> list[FilePlan]:
        done = {file.name for file in copied}
        left = [plan for plan in files if plan.name not in done]
        if self.folder_share is not None:
            left += self.folder_share.plans([each for each in self.folder_share.objects if each.name not in done])
        return left

    def _abandon(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            target, save = running
            target.abandon(save)

    def _delete_written(self) -> None:
        keys, self._written = self._written, []
        try:
            self._store.delete(keys)
        except StoreError as error:
            logger.warning("leftovers of a failed save stay for now: %s", error)

    def _describe(
        self, save: NewSave, metadata: Metadata, inventory: Inventory | None, files: list[File], *, world_size: int
    ) -> tuple[Manifest, str]:
        prefix = save.folder.path.rpartition("/")[2]
        root = root_of(self._store.url)
        shared = {file.name: f"{root}/{file.key(save.folder.path)}" for file in files if file.shared_in}
        here, above = metadata_pickles(metadata, inventory, ["", prefix], elsewhere=shared)
        described = [(METADATA_NAME, _indexed(here, inventory)), (STOCK_METADATA_NAME, above + _origin_of(save))]
        if self.folder_share:
            described.append((INDEX_NAME, self.folder_share.index))
        for name, data in described:
            self._written.append(f"{save.folder.path}/{name}")
            files.append(upload_bytes(self._store, self._written[-1], data, block_bytes=self._block_bytes))
        manifest = Manifest(
            snapshot=save.snapshot,
            step=save.step,
            attempt=save.folder.attempt,
            world_size=world_size,
            files=tuple(sorted(files, key=lambda file: file.name)),
            versions={"torch": str(torch.__version__), "checkpoint-operator": version("checkpoint-operator")},
            block_bytes=self._block_bytes,
            format=self._format(sharing=bool(shared)),
        )
        encoded = manifests.encode(manifest)
        self._written.append(save.folder.manifest)
        write_object(self._store, save.folder.manifest, encoded)
        return manifest, manifests.digest(encoded)

    def _format(self, *, sharing: bool) -> int:
        if sharing:
            return manifests.SHARING_FORMAT
        return manifests.FILES_FORMAT if self.folder_share else manifests.FORMAT


@dataclass(frozen=True, slots=True)
class _Share:
    """A rank's plan: the folder and block size of the save, and ``NewSave``'s word on unchanged tensors."""

    folder: SaveFolder
    rank: int
    block_bytes: int
    unchanged: UnchangedPolicy = "Send"
    copy_from: str = ""
    world_size: int = 1


def _origin_of(save: NewSave) -> bytes:
    """Return bytes that follow the pickle, which torch's reader does not read."""
    return Origin(save.folder.run, save.snapshot).encode() if save.folder.run else b""


def _indexed(pickled: bytes, inventory: Inventory | None) -> bytes:
    index = None if inventory is None else encode(inventory)
    return pickled if index is None else with_index(pickled, index)


def _bytes_first(items: Iterable[WriteItem]) -> list[WriteItem]:
    return sorted(items, key=lambda item: item.type is not WriteItemType.BYTE_IO)


def _forget_cached_plans() -> None:
    """Make planners with ``enable_plan_caching`` plan anew: a reused plan names the *earlier* save's folder.

    The caches are class attributes of torch's planner, keyed by planner class; versions before 2.7 have none.
    """
    for name in ("_cached_save_plan", "_cached_all_plans"):
        with contextlib.suppress(AttributeError):
            getattr(SavePlanner, name).clear()
