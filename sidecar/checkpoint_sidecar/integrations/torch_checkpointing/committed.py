"""Finds committed snapshots and their files by step, as the paths of torch_checkpointing name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from checkpoint_sidecar.attempt.session import AttemptSession
from checkpoint_sidecar.core.folder_index import FolderIndex, IndexEntry
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.core.overwrite import existing_save
from checkpoint_sidecar.engine.folders.reading import read_index
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.verify import read_manifest
from checkpoint_sidecar.integrations.torch_checkpointing.streams import CommittedFile
from checkpoint_sidecar.store.base import Store


@dataclass(frozen=True)
class CommittedFiles:
    """The files of a snapshot.

    Attributes:
        folder: ``SaveFolder.path``.
    """

    folder: str
    manifest: Manifest
    index: FolderIndex

    @property
    def names(self) -> list[str]:
        return [entry.path for entry in self.index.entries]

    def entry(self, path: str) -> IndexEntry | None:
        return next((each for each in self.index.entries if each.path == path), None)


class CommittedSnapshots:
    """The snapshots of the newest lineage.

    Args:
        chosen: Snapshots by step that a restore has chosen, where they are others.
    """

    def __init__(
        self, store: Store, session: AttemptSession, settings: EngineSettings, chosen: Mapping[int, str]
    ) -> None:
        self._store = store
        self._session = session
        self._settings = settings
        self._chosen = chosen
        self._opened: dict[str, CommittedFiles] = {}

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored."""
        run = self._session.log.refresh()
        steps = {each.step for each in run.snapshots.values()}
        return [step for step in sorted(steps) if existing_save(run, run.newest or "", step)]

    def at(self, step: int) -> CommittedFiles | None:
        """Return the files of the snapshot of a step, if there is one.

        Raises:
            CorruptSnapshotError: What describes them is damaged.
            StoreError: The store failed.
        """
        run = self._session.log.refresh()
        snapshot = run.snapshots.get(self._chosen.get(step, "")) or existing_save(run, run.newest or "", step)
        if snapshot is None:
            return None
        folder = snapshot.commit.path
        if folder not in self._opened:
            manifest = read_manifest(self._store, snapshot.commit)
            index = read_index(self._store, folder, manifest, level="Checksums", settings=self._settings)
            self._opened[folder] = CommittedFiles(folder, manifest, index or FolderIndex(((0,),), ()))
        return self._opened[folder]

    def holds(self, folder: str) -> bool:
        """Return whether a folder of a save is that of a snapshot."""
        return any(each.commit.path == folder for each in self._session.log.refresh().snapshots.values())

    def stream(self, files: CommittedFiles, entry: IndexEntry) -> CommittedFile:
        """Return a stream over a file, which compares every byte with checksums."""
        return CommittedFile(Files(self._store, files.folder, files.manifest, settings=self._settings), entry)
