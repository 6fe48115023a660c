"""What the stock ``.metadata`` pointer of each step should show: one rule for publishing and repairing.

A pointer says whose it is, since torch's own checkpoints have theirs under the same name. Behind the pickle, where
torch's reader has stopped reading, stands one line: ``checkpoint-operator <short identity of the run> <snapshot id>``.
Pointers of version 0.1.0 lack it; they are a run's if they name the folder of a save that its log names, or are what
lies there to be published.
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
    """The snapshots that pointers may show, newest first; that of a step shows the first one of the step."""
    return (s for s in walk(run, run.newest) if s.live and not quarantined(run, s))


def published_for(run: Run, step: int | None) -> Snapshot | None:
    """What the pointer of one step should show.

    Args:
        step: None for a drop-in directory, whose single pointer shows the newest snapshot of all.
    """
    return next((s for s in published(run) if step is None or s.step == step), None)


def published_steps(run: Run) -> dict[int, str]:
    """What the pointer of every step should show, newest steps first."""
    shown: dict[int, str] = {}
    for snapshot in published(run):
        shown.setdefault(snapshot.step, snapshot.id)
    return shown


MAX_ORIGIN_BYTES = 128
_ORIGIN = re.compile(rb"\ncheckpoint-operator ([0-9a-f]{8}) ([0-9a-z-]{1,64})\n\Z")


@dataclass(frozen=True, slots=True)
class Origin:
    """Who wrote a pointer.

    Attributes:
        run: Short identity of the run.
        snapshot: What the pointer shows.
    """

    run: str
    snapshot: str

    def encode(self) -> bytes:
        """What stands behind the pickle."""
        return f"\ncheckpoint-operator {self.run} {self.snapshot}\n".encode()

    @classmethod
    def find(cls, tail: bytes) -> Origin | None:
        """The origin at the end of a pointer's bytes, or None if there is none."""
        match = _ORIGIN.search(tail)
        return cls(match[1].decode(), match[2].decode()) if match else None


def saves_of(run: Run, step: int | None) -> tuple[SaveFolder, ...]:
    """The saves that a pointer may show. The last part of each one's path has 40 random bits of its own."""
    folders = (
        layout.parse_save_folder(s.commit.path) for s in run.snapshots.values() if "InvalidPath" not in s.reasons
    )
    return tuple(folder for folder in folders if folder.step == step)
