"""One directory that holds everything of a cluster, and the certainty that all that was started from it can be ended.

What exists outside the directory is found again through it: daemons by their records, everything that runs on a node
by a control group named after the directory. Mounts need no cleaning up: a node lives in a mount namespace of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from localcluster import cgroups
from localcluster.processes import Daemons, Identity, record_process, stop_all

MARKER = "localcluster"
"""Present in every workspace: no other folder is ever erased."""
OWNER = "owner"


class NotAWorkspaceError(Exception):
    """The folder holds something else."""


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
        """Make the directory, unless it is there. Raises `NotAWorkspaceError` if something else is in it."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(self.directory.iterdir()):
            self._check()
        (self.directory / MARKER).touch()

    def erase(self) -> None:
        """End everything that was started here and remove the directory. Safe to repeat, and after any crash.

        Raises `ProcessError` if something survives SIGKILL, `NotAWorkspaceError` if the directory is something else.
        """
        if self.directory.exists():
            self._check()
        # No grace: whatever they would write on the way out is deleted next.
        stop_all([identity for daemon in self.daemons.all() if (identity := daemon.identity)], grace=0)
        cgroups.remove(self.cgroup)
        if self.directory.exists():
            # The marker goes last, so that an erasure that was interrupted can be repeated; and the owner, so that
            # no other process takes the folder being erased for abandoned and erases it too.
            for entry in self.directory.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name not in (MARKER, OWNER):
                    entry.unlink()
            shutil.rmtree(self.directory)

    def _check(self) -> None:
        if any(self.directory.iterdir()) and not (self.directory / MARKER).exists():
            raise NotAWorkspaceError(f"{self.directory} holds something else than a cluster; choose another directory")


def temporary_folder() -> Path:
    return state_folder() / "temporary"


@contextlib.contextmanager
def temporary(purpose: str) -> Iterator[Workspace]:
    """A workspace that is erased at the end, or by the next user of `temporary` if this process is killed before."""
    folder = temporary_folder()
    erase_abandoned(folder)
    workspace = Workspace(folder / f"{purpose}-{secrets.token_hex(4)}")
    with _locked(folder):
        workspace.create()
        record_process(workspace.directory / OWNER, os.getpid())
    try:
        yield workspace
    finally:
        workspace.erase()


def erase_abandoned(folder: Path) -> list[Path]:
    """Erase the workspaces in `folder` whose owner died; return their directories."""
    with _locked(folder):
        abandoned = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not _owned(entry)]
        for directory in abandoned:
            Workspace(directory).erase()
    return abandoned


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others from taking a workspace that is being made for an abandoned one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _owned(directory: Path) -> bool:
    owner = Identity.recorded(directory / OWNER)
    return owner is not None and owner.alive()
