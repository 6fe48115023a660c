"""Finds the snapshot that a user means by ``latest``, ``best``, a step, or an id or the start of one. Pure."""

from __future__ import annotations

from checkpoint_sidecar.core.best import best_snapshot
from checkpoint_sidecar.core.errors import AmbiguousSelectorError, SnapshotNotFoundError
from checkpoint_sidecar.core.lineage import walk
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState

LATEST = "latest"
BEST = "best"

_OPERATION = "find"
_SHOWN = 4
_PREFERENCE = tuple(SnapshotState)
"""The states in order of use: live ones first, then those whose data may be there."""


def latest_snapshot(run: Run) -> Snapshot | None:
    """Return the newest live snapshot of the lineage, which the next start tries first; None without one."""
    return next((s for s in walk(run, run.newest) if s.live), None)


def snapshot_at(run: Run, step: int) -> Snapshot | None:
    """Return the snapshot of a step, or None if there was none.

    If there are several, one of the lineage is preferred, then a live one, then the newest.
    """
    found = [s for s in run.snapshots.values() if s.step == step]
    if len(found) < 2:
        return found[0] if found else None
    chain = {s.id for s in walk(run, run.newest)}
    return min(found, key=lambda s: (_PREFERENCE.index(s.state), s.id not in chain, -s.number))


def find_snapshot(run: Run, selector: str | int, *, url: str) -> Snapshot:
    """Return the snapshot that a selector means.

    Args:
        selector: ``latest`` (also if empty), ``best`` by the first rule of ``keepBest``, a step, or an id or the start
            of one. An id finds snapshots in every state, also those whose data was deleted.
        url: The run's URL, for the error.

    Raises:
        SnapshotNotFoundError: There is none.
        AmbiguousSelectorError: Several ids begin with it.
    """
    text = str(selector)
    subject = f"{url}@{text or LATEST}"
    if text in ("", LATEST):
        return _existing(latest_snapshot(run), subject, "nothing was committed yet, or nothing committed is left")
    if text == BEST:
        return _existing(best_snapshot(run), subject, _without_best(run), _BEST_HINT)
    if text.isdecimal():
        return _existing(snapshot_at(run, int(text)), subject, "no snapshot has this step", _LIST_HINT)
    if exact := run.snapshots.get(text):
        return exact
    found = [s for s in run.snapshots.values() if s.id.startswith(text)]
    if len(found) > 1:
        names = ", ".join(s.id for s in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise AmbiguousSelectorError(
            _OPERATION, subject, f"several ids begin with it: {names}{more}", "Write more characters of the id."
        )
    return _existing(found[0] if found else None, subject, "no snapshot has an id that begins with it", _LIST_HINT)


def _existing(found: Snapshot | None, subject: str, cause: str, hint: str = "") -> Snapshot:
    if found is None:
        raise SnapshotNotFoundError(_OPERATION, subject, cause, hint)
    return found


def _without_best(run: Run) -> str:
    if run.policy.retention and run.policy.retention.keep_best:
        return f"no live snapshot has the metric {run.policy.retention.keep_best[0].metric}"
    return "the run has no policy with keepBest, which defines the best"


_BEST_HINT = "Name the step or the id instead."
_LIST_HINT = "List the snapshots of the run for the steps and ids that exist."
