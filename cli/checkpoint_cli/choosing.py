"""Finds the snapshot that a selector means, among records. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from checkpoint_cli.exits import CommandRefusedError, ExitStatus
from checkpoint_cli.records import SnapshotRecord

_OPERATION = "find a snapshot of"


def choose(
    snapshots: Sequence[SnapshotRecord], selector: str, *, run: str, latest: str | None, best: str | None
) -> SnapshotRecord:
    """Return the snapshot that a selector means.

    Args:
        snapshots: Newest first.
        selector: ``latest``, ``best``, a step, or an id or the start of one. Empty means ``latest``.
        latest, best: Ids, or None if there is none.

    Raises:
        CommandRefusedError: None fits (NOT_FOUND), or several do (USAGE).
    """
    if selector in ("", "latest", "best"):
        wanted = best if selector == "best" else latest
        found = [each for each in snapshots if each.id == wanted]
        hint = "Set spec.retention.keepBest to define it." if selector == "best" else "Nothing was committed yet."
        cause = f"it has no {selector or 'latest'} snapshot"
    elif selector.isdecimal():
        of_step = [each for each in snapshots if each.step == int(selector)]
        found = ([each for each in of_step if each.state == "Live"] or of_step)[:1]
        cause, hint = f"no snapshot has step {selector}", "List them with the verb ls --all."
    else:
        found = [each for each in snapshots if each.id == selector] or [
            each for each in snapshots if each.id.startswith(selector)
        ]
        cause, hint = f"no snapshot has an id that begins with {selector}", "List them with the verb ls --all."
    if len(found) > 1:
        names = ", ".join(each.id for each in found[:4])
        raise CommandRefusedError(
            _OPERATION,
            run,
            f"{len(found)} snapshots have an id that begins with {selector}: {names}",
            "Write more characters of the id.",
            status=ExitStatus.USAGE,
        )
    if not found:
        raise CommandRefusedError(_OPERATION, run, cause, hint, status=ExitStatus.NOT_FOUND)
    return found[0]
