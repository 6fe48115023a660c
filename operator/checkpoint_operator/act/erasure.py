"""Deletes a whole run. ``decide`` chose what to delete. Everything blocks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from checkpoint_operator.act.unfinished import discard, unfinished
from checkpoint_operator.gather.run_store import RunStore
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.belongings import Survey, belongings, describe, survey
from checkpoint_sidecar.core.compaction import span_of
from checkpoint_sidecar.core.errors import LogError, LogReplacedError
from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.engine.pointer import is_own_pointer
from checkpoint_sidecar.engine.removal import delete_data
from checkpoint_sidecar.runs.marker import is_marker
from checkpoint_sidecar.store.base import Store

BUDGET_SECONDS = 60.0
"""After this a call ends with its current snapshot, so that a pass never looks stuck."""

logger = logging.getLogger(__name__)


def erase(session: RunStore, owner: Owner) -> Survey | None:
    """Delete a run that was given up, as much as the budget allows; call until only its tombstone is left.

    Stock pointers go first, so that torch never reads half a checkpoint; then the snapshots, what was never committed,
    and the log up to its last entry. What the run did not write stays. After a kill anywhere, the next call continues.

    Args:
        owner: The former owner of the run.

    Returns:
        What is left under the prefix that is not the run's, or None if there is more to delete.

    Raises:
        LogError, StoreError: Something was not deleted; call again.
    """
    until = time.monotonic() + BUDGET_SECONDS
    run, store = session.log.refresh(), session.store
    if run.owner != owner.deleted:
        return None
    listed = [info.key for info in store.list()]
    ours = belongings(run, listed)
    foreign = _withdraw_pointers(session, run, listed)
    for snapshot in run.snapshots.values():
        if snapshot.commit.path in ours.held:
            delete_data(store, snapshot.commit, delete=session.delete)
            if time.monotonic() > until:
                return None
    session.delete(key for key in listed if (save := ours.save_of(key)) and save.path not in ours.held)
    for upload in unfinished(store, ours):
        discard(store, upload)
    try:
        _delete_log(session, run)
    except LogReplacedError:
        logger.info("%s: another operator has deleted the run, and the next one has begun", store.url)
        session.forget_log()
        return None
    left = survey(run, [info.key for info in store.list()]).with_pointers(foreign)
    logger.info(
        "%s: the run is deleted; not the run's and left alone: %s", store.url, describe(left.foreign) or "nothing"
    )
    return left


def _withdraw_pointers(session: RunStore, run: Run, listed: Iterable[str]) -> list[int]:
    """Delete the run's stock pointers. Returns the steps whose pointers are not the run's."""
    foreign = []
    for step in {step for key in listed if (step := layout.pointer_step(key)) is not None}:
        # Checked just before each deletion: another operator may have finished, and the next run begun.
        if is_own_pointer(session.store, run, step):
            session.delete([layout.pointer_key(step)])
        else:
            foreign.append(step)
    return foreign


def _delete_log(session: RunStore, run: Run) -> None:
    """Delete all but the last entry, which marks the run as deleted and keeps its numbers from being reused.

    Entries that a writer appended after it, against the protocol, do not count. They stay: the next run's numbers
    continue after them.
    No number is ever reused, so that a writer or an operator that resumes after a long stop never meets the next run's
    entries.
    """
    store = session.store
    numbers = sorted(_numbers(store))
    if not numbers or numbers[-1] != run.head:
        session.log.refresh()
        session.log.prove()
        raise LogError("delete the run log", store.url, "it continues after the run was given up")
    # Compactions first: entries that are gone would look like a loss beside them.
    session.delete(key for key in _keys(store, layout.COMPACTION_FOLDER) if _of_run(key, run))
    marker = [layout.MARKER_KEY] if is_marker(store, run.identity) else []
    session.delete([layout.PROGRESS_KEY, *marker, *filter(layout.is_probe, _keys(store, layout.PROBE_FOLDER))])
    session.delete(layout.log_key(number) for number in numbers if number < run.tombstone)
    session.forget_log()


def _of_run(key: str, run: Run) -> bool:
    """Whether this is a compaction of the deleted run; those of the next one begin after its tombstone."""
    span = span_of(key)
    return span is not None and span.first <= run.head


def _numbers(store: Store) -> Iterable[int]:
    return (number for key in _keys(store, layout.LOG_FOLDER) if (number := layout.log_number(key)))


def _keys(store: Store, folder: str) -> list[str]:
    return [info.key for info in store.list(folder)]
