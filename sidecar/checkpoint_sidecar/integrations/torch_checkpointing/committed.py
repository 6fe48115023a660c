"""Finds committed snapshots and their files by step, as the paths of torch_checkpointing name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from checkpoint_sidecar.attempt.session import AttemptSession
from checkpoint_sidecar.core.folder_index import IndexEntry
from checkpoint_sidecar.core.overwrite import existing_save
from checkpoint_sidecar.core.run import Snapshot
from checkpoint_sidecar.engine.folders.reading import read_index
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.verify import read_manifest
from checkpoint_sidecar.integrations.torch_checkpointing.streams import CommittedFile


class CommittedFiles:
    """The files of a snapshot."""

    def __init__(self, entries: Iterable[IndexEntry], contents: Files) -> None:
        self._entries = {entry.path: entry for entry in entries}
        self._contents = contents

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def open(self, path: str) -> CommittedFile | None:
        """Return a stream over a file, if there is one; it compares every byte with checksums."""
        entry = self._entries.get(path)
        return CommittedFile(self._contents, entry) if entry else None


class CommittedSnapshots:
    """The snapshots of the newest lineage.

    Args:
        chosen: Snapshots by step that a restore has chosen, where they are others.
    """

    def __init__(self, session: AttemptSession, settings: EngineSettings, chosen: Mapping[int, str]) -> None:
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
        if snapshot.id not in self._opened:
            self._opened[snapshot.id] = self._open(snapshot)
        return self._opened[snapshot.id]

    def holds(self, folder: str) -> bool:
        """Return whether a folder of a save is that of a snapshot."""
        return any(each.commit.path == folder for each in self._session.log.refresh().snapshots.values())

    def _open(self, snapshot: Snapshot) -> CommittedFiles:
        store, folder, settings = self._session.store, snapshot.commit.path, self._settings
        manifest = read_manifest(store, snapshot.commit)
        index = read_index(store, folder, manifest, level="Checksums", settings=settings)
        return CommittedFiles(index.entries if index else (), Files(store, folder, manifest, settings=settings))
