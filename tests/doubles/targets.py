"""Save targets for tests that are about the bytes and not about the log."""

from __future__ import annotations

from dataclasses import dataclass, field

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.training.saves import NewSave


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
