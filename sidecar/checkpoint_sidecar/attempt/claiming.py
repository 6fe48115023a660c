"""Claims the prefix of a new run, unless the log of an earlier one is lost."""

from __future__ import annotations

from checkpoint_sidecar.conformance.probe import probe
from checkpoint_sidecar.core import attempt as decisions
from checkpoint_sidecar.core.belongings import traces, unaccounted
from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.runs.marker import leave_marker, telling_keys


def claim_prefix(log: RunLog, owner: Owner, *, log_floor: int = 0) -> None:
    """Claim the prefix of a log if it is free; then the store is probed first.

    Args:
        log_floor: Number of an entry known to exist in this log; 0 if unknown.

    Raises:
        LogMissingError: There was a run here, and its log is missing or incomplete.
        PrefixClaimedError: The prefix belongs to another run.
        StoreError, LogError: The store failed, or lacks a guarantee that commits need.
    """
    run, url = log.refresh(), log.store.url
    # The successor of a deleted run begins after its tombstone: nothing has to be accounted for.
    keys = () if run.ever_committed or (run.head and run.free) else telling_keys(log.store)
    found = unaccounted(run, keys) if run.head else traces(keys)
    decisions.check_log(run, url=url, floor=log_floor, traces=found)
    if run.free:
        probe(log.store)
    log.append(lambda run: decisions.claim(run, owner, url=url))
    leave_marker(log.store, log.run)
