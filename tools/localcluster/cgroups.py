"""Control groups, on machines with version 1 (one hierarchy per controller), version 2, or both side by side."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from localcluster.processes import POLL_SECONDS, ProcessError

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = {"cpu", "cpuset", "hugetlb", "memory", "pids"}
"""What the kubelet insists on having below its group in version 2, as far as the machine has it."""
REMOVAL_SECONDS = 10.0


def hierarchies() -> list[Path]:
    """The top folder of every mounted hierarchy."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return sorted({Path(mount[1]) for mount in mounts if mount[2] in {"cgroup", "cgroup2"} and _below_root(mount[1])})


def _below_root(folder: str) -> bool:
    return Path(folder).is_relative_to(ROOT)


def create(path: str) -> None:
    """Make the control group `path` (relative to the top) in every hierarchy, ready to have children."""
    for top in hierarchies():
        folder = top
        for part in Path(path).parts:
            _delegate(folder)
            folder /= part
            folder.mkdir(exist_ok=True)
            _inherit_cpuset(folder)
        _delegate(folder)


def _delegate(folder: Path) -> None:
    """Version 2: let the children of `folder` have controllers."""
    control = folder / "cgroup.subtree_control"
    if control.exists():
        available = (folder / "cgroup.controllers").read_text().split()
        for controller in sorted(CONTROLLERS & set(available)):
            try:
                control.write_text(f"+{controller}")
            except OSError as error:
                why = f"{error.strerror} when enabling {controller} (do processes live directly in this group?)"
                raise OSError(error.errno, why, str(control)) from None


def _inherit_cpuset(folder: Path) -> None:
    """Version 1: a fresh cpuset is empty, and nothing can run in it."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        own = folder / name
        if own.exists() and not own.read_text().strip() and (inherited := (folder.parent / name).read_text().strip()):
            own.write_text(inherited)


def daemons_folder(path: str) -> Path:
    """A leaf below `path` for daemons to join (version 2 allows no process in a group that has children).

    Joining one hierarchy is enough to be found by `processes`; with version 1 that is the one that counts processes.
    """
    top = ROOT / "pids" if (ROOT / "pids").is_dir() else ROOT
    folder = top / path / "daemons"
    folder.mkdir(exist_ok=True)
    return folder


def processes(path: str) -> set[int]:
    """The ids of all processes in `path` and below, whichever hierarchy they are in."""
    found: set[int] = set()
    for top in hierarchies():
        for procs in (top / path).rglob("cgroup.procs"):
            with contextlib.suppress(OSError):  # the group vanished meanwhile
                found.update(map(int, procs.read_text().split()))
    return found - {0}  # stands for a process outside of our own process namespace; to `kill` it means ourselves


def remove(path: str) -> None:
    """End every process in `path` and below, then remove the groups. Nothing to do is fine.

    Raises `ProcessError` if something stays.
    """
    deadline = time.monotonic() + REMOVAL_SECONDS
    while True:
        for pid in processes(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        left = [folder for top in hierarchies() if (folder := top / path).is_dir() and not _removed(folder)]
        if not left:
            return
        if time.monotonic() > deadline:
            raise ProcessError(f"control groups {left} cannot be removed; processes in them: {processes(path)}")
        time.sleep(POLL_SECONDS)


def _removed(folder: Path) -> bool:
    """Remove `folder` and its children, as far as the kernel lets go of them."""
    for parent, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            Path(parent).rmdir()
    return not folder.exists()
