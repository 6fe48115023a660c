"""What the stock ``.metadata`` pointer of each step should show: one rule for who publishes and for who repairs."""

from __future__ import annotations

from collections.abc import Iterator

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
