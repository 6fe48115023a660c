"""One directory that holds everything of a cluster, and the certainty that all that was started from it can be ended.

What exists outside the directory is found again through it: daemons by their records, everything that runs on a node
by a control group named after the directory. Mounts need no cleaning up: a node lives in a mount namespace of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from localcluster import cgroups
from localcluster.processes import Daemons, Identity, record_process, stop_all

OWNER = "owner"


def state_folder() -> Path:
    root = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return root / "checkpoint-operator" / "localcluster"


class Workspace:
    """The directory of one cluster (or of a part of one: an object store, a control plane)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.daemons = Daemons(self.directory)

    @property
    def cgroup(self) -> str:
        """The name of the control group, directly below the root, that holds all nodes."""
        return f"localcluster-{hashlib.sha256(bytes(self.directory)).hexdigest()[:10]}"

    def create(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def erase(self) -> None:
        """End everything that was started here and remove the directory. Safe to repeat, and after any crash.

        Raises `ProcessError` if something survives SIGKILL.
        """
        # No grace: whatever they would write on the way out is deleted next.
        stop_all([identity for daemon in self.daemons.all() if (identity := daemon.identity)], grace=0)
        cgroups.remove(self.cgroup)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def temporary(purpose: str) -> Iterator[Workspace]:
    """A workspace that is erased at the end, or by the next user of `temporary` if this process is killed before."""
    folder = state_folder() / "temporary"
    erase_abandoned(folder)
    workspace = Workspace(folder / f"{purpose}-{secrets.token_hex(4)}")
    workspace.create()
    record_process(workspace.directory / OWNER, os.getpid())
    try:
        yield workspace
    finally:
        workspace.erase()


def erase_abandoned(folder: Path) -> list[Path]:
    """Erase the workspaces in `folder` whose owner died; return their directories."""
    abandoned = [directory for directory in sorted(folder.glob("*")) if not _owned(directory)]
    for directory in abandoned:
        Workspace(directory).erase()
    return abandoned


def _owned(directory: Path) -> bool:
    owner = Identity.recorded(directory / OWNER)
    return owner is not None and owner.alive()
