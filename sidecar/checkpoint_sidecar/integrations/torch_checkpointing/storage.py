"""A storage of torch_checkpointing whose rename is the commit of a snapshot."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch_checkpointing.storage.base_storage import ReadArgs, Storage, StorageConfig

from checkpoint_sidecar.engine.files import Bytes
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.integrations.torch_checkpointing.attempt import SharedAttempt
from checkpoint_sidecar.integrations.torch_checkpointing.commit import FilesCommit
from checkpoint_sidecar.integrations.torch_checkpointing.committed import CommittedSnapshots
from checkpoint_sidecar.integrations.torch_checkpointing.lent import LentMemory
from checkpoint_sidecar.integrations.torch_checkpointing.paths import CheckpointPath, CheckpointPaths
from checkpoint_sidecar.integrations.torch_checkpointing.streams import CommittedFile, PendingFile
from checkpoint_sidecar.integrations.torch_checkpointing.written import WrittenFiles


@dataclass
class SnapshotStorageConfig(SharedAttempt, StorageConfig):
    """Where the checkpoints of one attempt are; made by ``SnapshotRun``.

    Attributes:
        root: The folder in which torch_checkpointing sees the checkpoints, ``step-<N>``. It exists nowhere else.
        chosen: Snapshots by step that a restore has chosen, where they are not those of the newest lineage.
    """

    root: Path = Path("/run")
    chosen: dict[int, str] = field(default_factory=dict)

    def create_storage(self) -> SnapshotStorage:
        return SnapshotStorage(self)


class SnapshotStorage(Storage):
    """Reads committed snapshots, verified, and writes files that the rename of their folder commits."""

    def __init__(self, config: SnapshotStorageConfig) -> None:
        self._config = config
        self._paths = CheckpointPaths(config.root)
        session, settings = config.open_session(), EngineSettings.from_environment()
        self._written = WrittenFiles(session.store, config, settings)
        self._committed = CommittedSnapshots(session, settings, config.chosen)
        self._commit = FilesCommit(session, config, self._written)

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
        place = self._paths.pending(path)
        self._written.write(place.step, place.inside, contents)

    def mkdir(self, path: Path, recursive: bool = True) -> None:
        """Check that the folder can become a checkpoint. Buckets have no folders."""
        del recursive
        self._paths.inside(path)

    def rename(
        self, src_path: Path, dst_path: Path, is_directory: bool = False, background_cleanup: bool = False
    ) -> None:
        """Commit what all ranks have written below ``src_path`` as the snapshot of ``dst_path``.

        Raises:
            FileExistsError: The step is saved.
            FileNotFoundError: Nothing was written.
            FencedError: A later attempt has started.
        """
        del is_directory, background_cleanup
        self._commit.run(self._paths.renamed(src_path, dst_path))

    def delete(self, path: Path) -> None:
        """Delete a file that is not committed yet."""
        place = self._paths.pending(path)
        self._written.discard(place.step, place.inside)

    def rmdir(self, path: Path) -> None:
        """Delete what was written for a checkpoint and not committed."""
        place = self._paths.inside(path)
        if not place.pending:
            raise PermissionError(errno.EPERM, "committed snapshots are deleted by the run's retention", str(path))
        if place.inside:
            raise OSError(errno.EINVAL, "only a whole checkpoint can be deleted", str(path))
        if not self._committed.holds(self._config.folder(place.step).path):
            self._written.discard_all(place.step)

    # Reading

    def stream_read(self, path: Path, read_args: ReadArgs | None = None) -> io.RawIOBase:
        """Return a stream over a committed file, or over all of it in memory; every byte is compared with checksums.

        Raises:
            FileNotFoundError: No snapshot has it.
            CorruptSnapshotError: Its bytes are not those that were committed.
        """
        stream = self._open(path)
        if read_args is not None and not read_args.pre_read_full_file:
            return stream
        return io.BytesIO(stream.readall())  # type: ignore[return-value]

    def getsize(self, path: Path) -> int:
        return self._open(path).size

    def _open(self, path: Path) -> CommittedFile:
        place = self._paths.inside(path)
        files = None if place.pending else self._committed.at(place.step)
        stream = files.open(place.inside) if files else None
        if stream is None:
            raise FileNotFoundError(errno.ENOENT, "no committed snapshot has it", str(path))
        return stream

    def exists(self, path: Path) -> bool:
        place = self._paths.parse(path)
        if place is None:
            return True
        if place.pending and not place.inside:
            return self._written.any_of(place.step)
        return place.among(self._names(place))

    def isdir(self, path: Path) -> bool:
        return path == self._config.root or bool(self._below(path))

    def ls(self, path: Path) -> list[str]:
        """List the checkpoints that can be restored, or the files and folders right below a path of one."""
        found = self._below(path)
        if not found and path != self._config.root:
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(path))
        return found

    def _below(self, path: Path) -> list[str]:
        place = self._paths.parse(path)
        return place.below(self._names(place)) if place else [f"step-{step}" for step in self._committed.steps]

    def _names(self, place: CheckpointPath) -> list[str]:
        """Return the paths of the files of a checkpoint; none if it does not exist."""
        if place.pending:
            return [each.path for each in self._written.of_all_ranks(place.step).values()]
        files = self._committed.at(place.step)
        return files.names if files else []

    def remap_path(self, path: Path) -> str:
        return f"{self._config.settings.url}/{path.relative_to(self._config.root)}"
