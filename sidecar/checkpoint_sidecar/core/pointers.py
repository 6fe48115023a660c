"""Decides which snapshot each step's stock ``.metadata`` pointer shows: one rule for publishing and repairing.

A pointer names its owner, since torch's own checkpoints use the same file name. After the pickle, where torch's reader
has stopped, there is one line: ``checkpoint-operator <short identity of the run> <snapshot id>``. Pointers of version
0.1.0 lack it; they belong to a run if they name the folder of a save in its log, or are equal to the bytes in such a
folder that are to be published.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.lineage import quarantined, walk
from checkpoint_sidecar.core.run import Run, Snapshot


def published(run: Run) -> Iterator[Snapshot]:
    """Yield the snapshots that pointers may show, newest first; a step's pointer shows the step's first one."""
    return (s for s in walk(run, run.newest) if s.live and not quarantined(run, s))


def published_for(run: Run, step: int | None) -> Snapshot | None:
    """Return the snapshot that the pointer of one step should show.

    Args:
        step: The step; None for a drop-in directory, whose single pointer shows the newest snapshot.
    """
    return next((s for s in published(run) if step is None or s.step == step), None)


def published_steps(run: Run) -> dict[int, str]:
    """Return the snapshot that each step's pointer should show, newest steps first."""
    shown: dict[int, str] = {}
    for snapshot in published(run):
        shown.setdefault(snapshot.step, snapshot.id)
    return shown


MAX_ORIGIN_BYTES = 128
_ORIGIN = re.compile(rb"\ncheckpoint-operator ([0-9a-f]{8}) ([0-9a-z-]{1,64})\n\Z")


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a pointer.

    Attributes:
        run: Short identity of the run.
        snapshot: The snapshot that the pointer shows.
    """

    run: str
    snapshot: str

    def encode(self) -> bytes:
        """Return the bytes after the pickle."""
        return f"\ncheckpoint-operator {self.run} {self.snapshot}\n".encode()

    @classmethod
    def find(cls, tail: bytes) -> Origin | None:
        """Return the origin at the end of a pointer's bytes, or None without one."""
        match = _ORIGIN.search(tail)
        return cls(match[1].decode(), match[2].decode()) if match else None


def saves_of(run: Run, step: int | None) -> tuple[SaveFolder, ...]:
    """Return the saves that a pointer may show. The last part of each path has 40 unique random bits."""
    folders = (
        layout.parse_save_folder(s.commit.path) for s in run.snapshots.values() if "InvalidPath" not in s.reasons
    )
    return tuple(folder for folder in folders if folder.step == step)
