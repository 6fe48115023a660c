"""Deletes a snapshot that a user has named: retire, announce, delete, record."""

from __future__ import annotations

from dataclasses import dataclass

from checkpoint_sidecar.core import removal
from checkpoint_sidecar.core.errors import ChangeRefusedError
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.manage.changes import RunChange, append, check_changeable
from checkpoint_sidecar.manage.pruning import finish_purge, release
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store

_REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Removal:
    """How to delete; see ``StoredRun.remove``."""

    force: bool = False
    without_operator: bool = False
    dry_run: bool = False


def remove(log: RunLog, store: Store, snapshot: str, how: Removal) -> RunChange:
    """Delete one snapshot; see ``StoredRun.remove``."""

    def refused(run: Run) -> str:
        return removal.why_not_removed(run, snapshot, force=how.force)

    def check(run: Run) -> None:
        check_changeable(run, _REMOVE, subject=f"{log.store.url}@{snapshot}", without_operator=how.without_operator)

    entry = None
    # The second entry only follows where the first one still holds: a rollback may have come between.
    for compute in (removal.retire_for_removal, removal.start_removal):
        written = append(
            log,
            _REMOVE,
            lambda run, compute=compute: compute(run, snapshot),  # type: ignore[misc]
            snapshot=snapshot,
            refused=refused,
            without_operator=how.without_operator,
            dry_run=how.dry_run,
        )
        entry = written or entry
    if not how.dry_run and not finish_purge(log, store, snapshot, check=check):
        cause = "it was made a candidate again meanwhile"
        raise ChangeRefusedError(_REMOVE, f"{log.store.url}@{snapshot}", cause, "Try again.")
    if not how.dry_run:
        release(log, store, check=check)
    return RunChange(entry, snapshot)
