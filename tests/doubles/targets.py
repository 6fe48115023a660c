"""Save targets for tests that are about the bytes and not about the log."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.storage import StorageReader

from checkpoint_sidecar.attempt.run_save import NewSave
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.training.dcp.errors import raising_ours
from checkpoint_sidecar.training.dcp.load_planner import StrictLoadPlanner
from checkpoint_sidecar.training.dcp.reader import SnapshotReader
from checkpoint_sidecar.training.dcp.writer import SnapshotWriter


@dataclass
class RecordingTarget:
    """Admits every save of one step and remembers what became of it."""

    step: int = 7
    committed: list[tuple[NewSave, Manifest, str]] = field(default_factory=list)
    abandoned: list[NewSave] = field(default_factory=list)
    refuse_begin: Exception | None = None
    refuse_commit: Exception | None = None

    def begin(self) -> NewSave:
        if self.refuse_begin:
            raise self.refuse_begin
        return NewSave(SaveFolder(self.step, 1, layout.new_nonce()), self.step)

    def commit(self, save: NewSave, manifest: Manifest, digest: str) -> None:
        if self.refuse_commit:
            raise self.refuse_commit
        self.committed.append((save, manifest, digest))

    def abandon(self, save: NewSave) -> None:
        self.abandoned.append(save)


@dataclass(frozen=True)
class Saved:
    """One committed save."""

    store: Store
    save: NewSave
    manifest: Manifest

    @property
    def data_key(self) -> str:
        return f"{self.save.folder.path}/__0_0.distcp"

    def reader(self, **options: Any) -> SnapshotReader:
        return SnapshotReader(self.store, self.save.folder.path, self.manifest, **options)


def save(store: Store, state: dict[str, Any], *, step: int = 7, **options: Any) -> Saved:
    """Save in this process alone."""
    target = RecordingTarget(step)
    with warnings.catch_warnings(), raising_ours("save"):
        warnings.simplefilter("ignore")  # torch warns that there is no process group
        state_dict_saver.save(state, storage_writer=SnapshotWriter(store, target), **options)
    ((new, manifest, _),) = target.committed
    return Saved(store, new, manifest)


def load(state: dict[str, Any], reader: StorageReader, **options: Any) -> None:
    """Load in this process alone; failures are ours."""
    with warnings.catch_warnings(), raising_ours("load"):
        warnings.simplefilter("ignore")
        state_dict_loader.load(state, storage_reader=reader, **{"planner": StrictLoadPlanner(), **options})
