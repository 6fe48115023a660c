"""The attempt whose checkpoints torch_checkpointing writes, as all processes that write for it know it."""

from __future__ import annotations

from dataclasses import dataclass

from checkpoint_sidecar.attempt.session import AttemptSession, Defaults
from checkpoint_sidecar.core.layout import SaveFolder, shared_nonce
from checkpoint_sidecar.core.owner import Owner
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.opening import open_store


@dataclass
class SharedAttempt:
    """An attempt that has started, and this rank in it. Pickled to processes that save.

    Attributes:
        settings: Where the run is.
        identity: The run's, as in the names of folders.
        token: The same on all ranks of the attempt, so that they agree on the folders of saves.
    """

    settings: StoreSettings
    owner: Owner
    identity: str
    attempt: int
    token: str
    rank: int
    world_size: int

    def open_session(self) -> AttemptSession:
        """Return a session that reads the run and commits as this attempt, but does not watch the log."""
        session = AttemptSession(open_store(self.settings), self.owner, Defaults())
        session.attempt = self.attempt
        return session

    def folder(self, step: int) -> SaveFolder:
        """Return the folder of the save of a step."""
        return SaveFolder(step, self.attempt, shared_nonce(f"{self.token} {step}"), self.identity)
