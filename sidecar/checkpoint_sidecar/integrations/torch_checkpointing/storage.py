"""A storage of torch_checkpointing whose rename is the commit of a snapshot."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import re
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch_checkpointing.storage.base_storage import ReadArgs, Storage, StorageConfig

from checkpoint_sidecar.attempt.run_save import NewSave
from checkpoint_sidecar.attempt.save_target import Draft, RunTarget
from checkpoint_sidecar.attempt.session import AttemptSession, Defaults
from checkpoint_sidecar.core import folder_index, layout
from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core.errors import CheckpointExistsError
from checkpoint_sidecar.core.folder_index import INDEX_NAME, FolderIndex, IndexEntry
from checkpoint_sidecar.core.manifest import FILES_FORMAT, Manifest
from checkpoint_sidecar.core.overwrite import existing_save
from checkpoint_sidecar.core.owner import Owner
from checkpoint_sidecar.core.pointers import Origin
from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.engine.folders.reading import read_index
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.upload import upload_bytes
from checkpoint_sidecar.engine.verify import read_manifest
from checkpoint_sidecar.integrations.torch_checkpointing.streams import CommittedFile, PendingFile
from checkpoint_sidecar.integrations.torch_checkpointing.written import BLOCK_BYTES, Receipt, WrittenFiles
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.common.parts import write_object
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.dcp.metadata_pickle import metadata_bytes

_NAME = re.compile(r"(?P<prefix>.*?)step-(?P<step>0|[1-9][0-9]{0,18})")


@dataclass
class SnapshotStorageConfig(StorageConfig):
    """Where the checkpoints of one attempt are; made by ``SnapshotRun``, and pickled to processes that save.

    Attributes:
        root: The folder in which torch_checkpointing sees the checkpoints, ``step-<N>``. It exists nowhere else.
        token: The same on all ranks of an attempt, so that they agree on the folders of saves.
        chosen: Snapshots by step that a restore has chosen, where they are not those of the newest lineage.
    """

    settings: StoreSettings
    owner: Owner
    attempt: int
    rank: int
    world_size: int
    token: str
    identity: str
    root: Path = Path("/run")
    chosen: dict[int, str] = field(default_factory=dict)

    def create_storage(self) -> SnapshotStorage:
        return SnapshotStorage(self)


@dataclass(frozen=True)
class _Place:
    """A path below the root: of a checkpoint, or of a file in one."""

    step: int
    pending: bool
    path: str


class SnapshotStorage(Storage):
    """Reads committed snapshots, verified, and writes files that the rename of their folder commits."""

    def __init__(self, config: SnapshotStorageConfig) -> None:
        self._config = config
        self._store = open_store(config.settings)
        self._settings = EngineSettings.from_environment()
        self._session = AttemptSession(self._store, config.owner, Defaults(SavePolicy(), "Never"))
        self._session.attempt = config.attempt
        self._written = WrittenFiles(self._store, config.rank, self._settings)
        self._opened: dict[str, tuple[Manifest, FolderIndex]] = {}

    # Writing

    def stream_write(self, path: Path) -> io.IOBase:
        """Return a stream that holds the file in memory, and stores it when it is closed."""
        return PendingFile(lambda data: self.write(path, data))

    def write(self, path: Path, data: Any) -> None:
        place = self._pending_file(path)
        self._written.write(self._folder(place.step).path, place.path, data)

    def mkdir(self, path: Path, recursive: bool = True) -> None:
        """Check that the folder can become a checkpoint. Buckets have no folders."""
        del recursive
        self._place(path)

    def rename(
        self, src_path: Path, dst_path: Path, is_directory: bool = False, background_cleanup: bool = False
    ) -> None:
        """Commit what all ranks have written below ``src_path`` as the snapshot of ``dst_path``.

        Raises:
            FileExistsError: The step is saved.
            FencedError: A later attempt has started.
        """
        del is_directory, background_cleanup
        source, target = self._place(src_path), self._place(dst_path)
        if source.path or target.path or not source.pending or target.pending or source.step != target.step:
            raise OSError(
                errno.EXDEV, "only the folder of a checkpoint can be renamed, which commits it", str(src_path)
            )
        began = time.monotonic()
        receipts = self._written.of_all_ranks(self._folder(target.step).path)
        if not receipts:
            raise FileNotFoundError(errno.ENOENT, "nothing was written below it", str(src_path))
        save = NewSave(self._folder(target.step), target.step)
        self._session.log.refresh()
        commit = RunTarget(self._session, Draft(target.step, "Manual", began=began))
        try:
            self._session.admit(target.step, "Manual")
            self._check_new(save)
            manifest = self._described(save, sorted(receipts.values(), key=lambda each: each.path))
            encoded = manifests.encode(manifest)
            write_object(self._store, save.folder.manifest, encoded)
            commit.commit(save, manifest, manifests.digest(encoded))
        except CheckpointExistsError as error:
            self._written.delete([*receipts, *(f"{save.folder.path}/{each.file.name}" for each in receipts.values())])
            raise FileExistsError(
                errno.ENOTEMPTY, f"refusing to replace a checkpoint: {error}", str(dst_path)
            ) from error
        self._written.delete(receipts)

    def _check_new(self, save: NewSave) -> None:
        """Refuse to write a manifest twice: a commit of the first one may be under way, and names its digest."""
        if self._store.stat(save.folder.manifest) is not None:
            cause = "an earlier save of the step may still be committed"
            raise CheckpointExistsError("save", f"step {save.step}", cause, "Save another step.")

    def _described(self, save: NewSave, receipts: list[Receipt]) -> Manifest:
        ranks = tuple(range(self._config.world_size))
        entries = (
            IndexEntry(each.path, size=each.file.size, object=each.file.name if each.file.size else "")
            for each in receipts
        )
        # Also DCP's metadata of a snapshot without tensors, which every reader of snapshots expects.
        metadata = metadata_bytes(Metadata({}), None)
        derived = {
            INDEX_NAME: folder_index.encode(FolderIndex((ranks,), tuple(entries))),
            layout.METADATA_NAME: metadata,
            layout.STOCK_METADATA_NAME: metadata + Origin(save.folder.run, save.snapshot).encode(),
        }
        files = [each.file for each in receipts]
        for name, data in derived.items():
            files.append(upload_bytes(self._store, f"{save.folder.path}/{name}", data, block_bytes=BLOCK_BYTES))
        return Manifest(
            snapshot=save.snapshot,
            step=save.step,
            attempt=save.folder.attempt,
            world_size=self._config.world_size,
            files=tuple(sorted(files, key=lambda file: file.name)),
            versions={each: version(each) for each in ("torch", "torch-checkpointing", "checkpoint-operator")},
            block_bytes=BLOCK_BYTES,
            format=FILES_FORMAT,
        )

    def delete(self, path: Path) -> None:
        """Delete a file that is not committed yet."""
        place = self._pending_file(path)
        self._written.discard(self._folder(place.step).path, place.path)

    def rmdir(self, path: Path) -> None:
        """Delete what was written for a checkpoint and not committed."""
        place = self._place(path)
        if not place.pending:
            raise PermissionError(errno.EPERM, "committed snapshots are deleted by the run's retention", str(path))
        folder = self._folder(place.step).path
        if all(each.commit.path != folder for each in self._session.log.refresh().snapshots.values()):
            self._store.delete([info.key for info in self._store.list(f"{folder}/")])

    # Reading

    def stream_read(self, path: Path, read_args: ReadArgs | None = None) -> io.RawIOBase:
        """Return a stream over a committed file, or over all of it in memory; every byte is compared with checksums.

        Raises:
            FileNotFoundError: No snapshot has it.
            CorruptSnapshotError: Its bytes are not those that were committed.
        """
        folder, manifest, entry = self._committed_file(path)
        stream = CommittedFile(Files(self._store, folder, manifest, settings=self._settings), entry)
        if read_args is not None and not read_args.pre_read_full_file:
            return stream
        return io.BytesIO(stream.readall())  # type: ignore[return-value]

    def getsize(self, path: Path) -> int:
        return self._committed_file(path)[2].size

    def exists(self, path: Path) -> bool:
        place = self._place(path, root=True)
        if place is None:
            return True
        names = self._names(place)
        return names is not None and (not place.path or bool(_below(names, place.path)) or place.path in names)

    def isdir(self, path: Path) -> bool:
        place = self._place(path, root=True)
        if place is None:
            return True
        names = self._names(place)
        return names is not None and (not place.path or bool(_below(names, place.path)))

    def ls(self, path: Path) -> list[str]:
        """List the checkpoints that can be restored, or the files of one."""
        place = self._place(path, root=True)
        if place is None:
            run = self._session.log.refresh()
            steps = {each.step for each in run.snapshots.values()}
            return [f"step-{step}" for step in sorted(steps) if existing_save(run, run.newest or "", step)]
        names = self._names(place)
        if names is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such checkpoint", str(path))
        return sorted({name.partition("/")[0] for name in _below(names, place.path)})

    def remap_path(self, path: Path) -> str:
        return f"{self._config.settings.url}/{path.relative_to(self._config.root)}"

    def _names(self, place: _Place) -> list[str] | None:
        """Return the paths of the files of a checkpoint; None if it does not exist."""
        if place.pending:
            return [each.path for each in self._written.of_all_ranks(self._folder(place.step).path).values()] or None
        found = self._snapshot(place.step)
        return None if found is None else [entry.path for entry in found[2].entries]

    def _committed_file(self, path: Path) -> tuple[str, Manifest, IndexEntry]:
        place = self._place(path)
        found = None if place.pending else self._snapshot(place.step)
        entry = next((each for each in found[2].entries if each.path == place.path), None) if found else None
        if found is None or entry is None:
            raise FileNotFoundError(errno.ENOENT, "no committed snapshot has it", str(path))
        return found[0], found[1], entry

    def _snapshot(self, step: int) -> tuple[str, Manifest, FolderIndex] | None:
        run = self._session.log.refresh()
        snapshot = run.snapshots.get(self._config.chosen.get(step, "")) or existing_save(run, run.newest or "", step)
        if snapshot is None:
            return None
        folder = snapshot.commit.path
        if folder not in self._opened:
            manifest = read_manifest(self._store, snapshot.commit)
            index = read_index(self._store, folder, manifest, level="Checksums", settings=self._settings)
            self._opened[folder] = manifest, index or FolderIndex(((0,),), ())
        return folder, *self._opened[folder]

    # Paths

    def _place(self, path: Path, *, root: bool = False) -> Any:
        """Return what a path means; None for the root itself, where that is allowed."""
        if not path.is_relative_to(self._config.root):
            raise OSError(errno.EXDEV, f"only paths below {self._config.root} are in the run", str(path))
        first, *rest = path.relative_to(self._config.root).parts or ("",)
        match = _NAME.fullmatch(first)
        if match is None:
            if root and not first:
                return None
            raise OSError(errno.EINVAL, "the name of a checkpoint must be step-<N>", str(path))
        return _Place(int(match["step"]), bool(match["prefix"]), "/".join(rest))

    def _pending_file(self, path: Path) -> _Place:
        place: _Place = self._place(path)
        problem = folder_index.check_path(place.path)
        if problem or not place.pending:
            cause = problem or "write_to_temp_dir must stay on, because the rename is the commit"
            raise OSError(errno.EINVAL, cause, str(path))
        return place

    def _folder(self, step: int) -> layout.SaveFolder:
        digest = hashlib.blake2b(f"{self._config.token} {step}".encode(), digest_size=5).digest()
        nonce = base64.b32encode(digest).decode().lower()
        return layout.SaveFolder(step, self._config.attempt, nonce, self._config.identity)


def _below(names: list[str], path: str) -> list[str]:
    """Return the paths below a folder, relative to it."""
    return [name[len(path) + 1 if path else 0 :] for name in names if not path or name.startswith(f"{path}/")]
