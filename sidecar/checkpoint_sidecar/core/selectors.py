"""Finds the snapshot that a user means by ``latest``, ``best``, a step, or an id or the start of one. Pure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

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


class Selectable(Protocol):
    """A snapshot, as far as selectors look at it."""

    @property
    def id(self) -> str: ...

    @property
    def step(self) -> int: ...


AnySnapshot = TypeVar("AnySnapshot", bound=Selectable)


def snapshot_at(run: Run, step: int) -> Snapshot | None:
    """Return the snapshot of a step, or None if there was none.

    If there are several, one of the lineage is preferred, then a live one, then the newest.
    """
    found = [s for s in run.snapshots.values() if s.step == step]
    return _preferred(run, found) if found else None


def _preferred(run: Run, found: Sequence[Snapshot]) -> Snapshot:
    if len(found) == 1:
        return found[0]
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
    return choose(
        tuple(run.snapshots.values()),
        str(selector),
        run=url,
        latest=latest_snapshot(run),
        best=best_snapshot(run),
        without_best=_without_best(run),
        preferred=functools.partial(_preferred, run),
    )


def choose(
    snapshots: Sequence[AnySnapshot],
    selector: str,
    *,
    run: str,
    latest: AnySnapshot | None,
    best: AnySnapshot | None,
    without_best: str,
    preferred: Callable[[Sequence[AnySnapshot]], AnySnapshot],
) -> AnySnapshot:
    """Return the snapshot that a selector means, wherever the snapshots are known from.

    Args:
        selector: See ``find_snapshot``.
        run: The run, for the error.
        without_best: Why there is no best one.
        preferred: Chooses one of several of the same step.

    Raises:
        SnapshotNotFoundError: There is none.
        AmbiguousSelectorError: Several ids begin with it.
    """
    subject = f"{run}@{selector or LATEST}"
    if selector in ("", LATEST):
        return _existing(latest, subject, "nothing was committed yet, or nothing committed is left")
    if selector == BEST:
        return _existing(best, subject, without_best, _BEST_HINT)
    if selector.isdecimal():
        of_step = [s for s in snapshots if s.step == int(selector)]
        return _existing(preferred(of_step) if of_step else None, subject, "no snapshot has this step", _LIST_HINT)
    found = [s for s in snapshots if s.id == selector] or [s for s in snapshots if s.id.startswith(selector)]
    if len(found) > 1:
        names = ", ".join(s.id for s in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise AmbiguousSelectorError(
            _OPERATION, subject, f"several ids begin with it: {names}{more}", "Write more characters of the id."
        )
    return _existing(found[0] if found else None, subject, "no snapshot has an id that begins with it", _LIST_HINT)


def _existing(found: AnySnapshot | None, subject: str, cause: str, hint: str = "") -> AnySnapshot:
    if found is None:
        raise SnapshotNotFoundError(_OPERATION, subject, cause, hint)
    return found


def _without_best(run: Run) -> str:
    if run.policy.retention and run.policy.retention.keep_best:
        return f"no live snapshot has the metric {run.policy.retention.keep_best[0].metric}"
    return "the run has no policy with keepBest, which defines the best"


_BEST_HINT = "Name the step or the id instead."
_LIST_HINT = "List the snapshots of the run for the steps and ids that exist."
