"""A storage of torch_checkpointing whose rename is the commit of a snapshot."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch_checkpointing.storage.base_storage import ReadArgs, Storage, StorageConfig

from checkpoint_sidecar.attempt.run_save import NewSave
from checkpoint_sidecar.attempt.session import AttemptSession, Defaults
from checkpoint_sidecar.core.errors import CheckpointExistsError
from checkpoint_sidecar.core.folder_index import IndexEntry
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.owner import Owner
from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.engine.files import Bytes
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.integrations.torch_checkpointing import paths
from checkpoint_sidecar.integrations.torch_checkpointing.commit import FilesCommit
from checkpoint_sidecar.integrations.torch_checkpointing.committed import CommittedFiles, CommittedSnapshots
from checkpoint_sidecar.integrations.torch_checkpointing.lent import LentMemory
from checkpoint_sidecar.integrations.torch_checkpointing.streams import PendingFile
from checkpoint_sidecar.integrations.torch_checkpointing.written import WrittenFiles
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.opening import open_store


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

    def folder(self, step: int) -> SaveFolder:
        """Return the folder of the save of a step."""
        digest = hashlib.blake2b(f"{self.token} {step}".encode(), digest_size=5).digest()
        return SaveFolder(step, self.attempt, base64.b32encode(digest).decode().lower(), self.identity)


class SnapshotStorage(Storage):
    """Reads committed snapshots, verified, and writes files that the rename of their folder commits."""

    def __init__(self, config: SnapshotStorageConfig) -> None:
        self._config = config
        self._store = open_store(config.settings)
        settings = EngineSettings.from_environment()
        self._session = AttemptSession(self._store, config.owner, Defaults(SavePolicy(), "Never"))
        self._session.attempt = config.attempt
        self._written = WrittenFiles(self._store, config.rank, settings)
        self._committed = CommittedSnapshots(self._store, self._session, settings, config.chosen)

    # Writing

    def stream_write(self, path: Path) -> io.IOBase:
        """Return a stream that stores the file when it is closed. It holds a copy of the file until then."""
        return self.get_write_stream(path, None)

    def get_write_stream(self, path: Path, data: object) -> io.IOBase:
        """Return such a stream, which copies nothing that is in the memory of the tensors in ``data``."""
        return PendingFile(partial(self._store_file, path), LentMemory(data))

    def write(self, path: Path, data: Any) -> None:
        self._store_file(path, [Bytes(memoryview(data).cast("B"))])

    def _store_file(self, path: Path, contents: Iterable[Bytes]) -> None:
        place = paths.parse_pending(path, self._config.root)
        self._written.write(self._config.folder(place.step).path, place.inside, contents)

    def mkdir(self, path: Path, recursive: bool = True) -> None:
        """Check that the folder can become a checkpoint. Buckets have no folders."""
        del recursive
        paths.parse_below(path, self._config.root)

    def rename(
        self, src_path: Path, dst_path: Path, is_directory: bool = False, background_cleanup: bool = False
    ) -> None:
        """Commit what all ranks have written below ``src_path`` as the snapshot of ``dst_path``.

        Raises:
            FileExistsError: The step is saved.
            FencedError: A later attempt has started.
        """
        del is_directory, background_cleanup
        began = time.monotonic()
        step = paths.parse_rename(src_path, dst_path, self._config.root)
        save = NewSave(self._config.folder(step), step)
        receipts = self._written.of_all_ranks(save.folder.path)
        if not receipts:
            raise FileNotFoundError(errno.ENOENT, "nothing was written below it", str(src_path))
        try:
            FilesCommit(self._session, save, self._config.world_size, began).run(receipts.values())
        except CheckpointExistsError as error:
            self._written.delete([*receipts, *(f"{save.folder.path}/{each.file.name}" for each in receipts.values())])
            raise FileExistsError(
                errno.ENOTEMPTY, f"refusing to replace a checkpoint: {error}", str(dst_path)
            ) from error
        self._written.delete(receipts)

    def delete(self, path: Path) -> None:
        """Delete a file that is not committed yet."""
        place = paths.parse_pending(path, self._config.root)
        self._written.discard(self._config.folder(place.step).path, place.inside)

    def rmdir(self, path: Path) -> None:
        """Delete what was written for a checkpoint and not committed."""
        place = paths.parse_below(path, self._config.root)
        if not place.pending:
            raise PermissionError(errno.EPERM, "committed snapshots are deleted by the run's retention", str(path))
        folder = self._config.folder(place.step).path
        if not self._committed.holds(folder):
            self._store.delete([info.key for info in self._store.list(f"{folder}/")])

    # Reading

    def stream_read(self, path: Path, read_args: ReadArgs | None = None) -> io.RawIOBase:
        """Return a stream over a committed file, or over all of it in memory; every byte is compared with checksums.

        Raises:
            FileNotFoundError: No snapshot has it.
            CorruptSnapshotError: Its bytes are not those that were committed.
        """
        stream = self._committed.stream(*self._found(path))
        if read_args is not None and not read_args.pre_read_full_file:
            return stream
        return io.BytesIO(stream.readall())  # type: ignore[return-value]

    def getsize(self, path: Path) -> int:
        return self._found(path)[1].size

    def _found(self, path: Path) -> tuple[CommittedFiles, IndexEntry]:
        place = paths.parse_below(path, self._config.root)
        files = None if place.pending else self._committed.at(place.step)
        entry = files.entry(place.inside) if files else None
        if files is None or entry is None:
            raise FileNotFoundError(errno.ENOENT, "no committed snapshot has it", str(path))
        return files, entry

    def exists(self, path: Path) -> bool:
        place = paths.parse(path, self._config.root)
        if place is None:
            return True
        if place.pending and not place.inside:
            return self._written.any_of(self._config.folder(place.step).path)
        names = self._names(place)
        return names is not None and (place.inside in names or _is_folder(names, place))

    def isdir(self, path: Path) -> bool:
        place = paths.parse(path, self._config.root)
        if place is None:
            return True
        names = self._names(place)
        return names is not None and _is_folder(names, place)

    def ls(self, path: Path) -> list[str]:
        """List the checkpoints that can be restored, or the files of one."""
        place = paths.parse(path, self._config.root)
        if place is None:
            return [f"step-{step}" for step in self._committed.steps]
        names = self._names(place)
        if names is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such checkpoint", str(path))
        return sorted({name.partition("/")[0] for name in paths.names_below(names, place.inside)})

    def remap_path(self, path: Path) -> str:
        return f"{self._config.settings.url}/{path.relative_to(self._config.root)}"

    def _names(self, place: paths.CheckpointPath) -> list[str] | None:
        """Return the paths of the files of a checkpoint; None if it does not exist."""
        if place.pending:
            receipts = self._written.of_all_ranks(self._config.folder(place.step).path)
            return [each.path for each in receipts.values()] or None
        files = self._committed.at(place.step)
        return files.names if files else None


def _is_folder(names: list[str], place: paths.CheckpointPath) -> bool:
    return not place.inside or bool(paths.names_below(names, place.inside))
