"""``fork_run``: claims the prefix of a new run that begins at a snapshot of another one. Training comes later."""

from __future__ import annotations

from checkpoint_sidecar.attempt.claiming import claim_prefix
from checkpoint_sidecar.attempt.warm_start import find_start
from checkpoint_sidecar.core.attempt import check_owner
from checkpoint_sidecar.core.errors import ChangeRefusedError
from checkpoint_sidecar.core.log import Owner, WarmStartChosen
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.core.selectors import LATEST
from checkpoint_sidecar.core.warm_start import choose
from checkpoint_sidecar.manage.addressed import open_addressed
from checkpoint_sidecar.manage.changes import RunChange, check_changeable
from checkpoint_sidecar.manage.stored_run import StoredRun, open_run
from checkpoint_sidecar.store.access import StoreSettings

_OPERATION = "begin the run at"


def fork_run(
    source: str | StoredRun,
    target: str | StoreSettings | StoredRun,
    *,
    selector: str | int = "",
    part: str = "",
    run: str | Owner = "",
    dry_run: bool = False,
) -> RunChange:
    """Let a new run begin at a snapshot of another one. Copies no data: the first start loads it from there.

    >>> fork_run("s3://training/llama-7b@best", "s3://training/llama-7b-fork")

    A ``Checkpointer`` at the new URL then needs no ``start_from``. Until its first commit the other run must keep the
    snapshot, so hold it if that run has a retention policy.

    Args:
        source: ``<url>`` or ``<url>@<selector>``; or a run, with a ``selector``.
        target: Where the new run is to be: a URL, settings, or a ``StoredRun`` of it.
        part: Name of the only object to load; empty for all.
        run: Owner of the new run as ``Checkpointer`` takes it; by default the last part of its URL.
        dry_run: Only check whether it is possible.

    Returns:
        ``done`` is False if the new run begins there already.

    Raises:
        RunNotFoundError, SnapshotNotFoundError, AmbiguousSelectorError: See ``StoredRun.find``.
        ChangeRefusedError: The new URL has a run with snapshots.
        RunManagedError: An operator manages that run: set ``spec.restore.startFrom``.
        PrefixClaimedError, LogMissingError: The new URL is not free.
        ConfigurationError: A URL cannot work, or both are the same.
        LogError, StoreError: One of the two stores failed.
    """
    source, selector = open_addressed(source, selector)
    opened = target if isinstance(target, StoredRun) else open_run(target)
    selector = selector or LATEST
    asked = f"{source.url.rstrip('/')}@{selector}"
    chosen = find_start(source, selector, asked=asked, part=part, url=opened.url)
    owner = run if isinstance(run, Owner) else Owner.local(run, opened.url)
    _entry(opened.log.refresh(), chosen, owner, url=opened.url)
    if dry_run:
        return RunChange(None, chosen.snapshot)
    claim_prefix(opened.log, owner)
    entry = opened.log.append(lambda state: _entry(state, chosen, owner, url=opened.url))
    return RunChange(entry, chosen.snapshot)


def _entry(run: Run, chosen: WarmStartChosen, owner: Owner, *, url: str) -> WarmStartChosen | None:
    if not run.free:
        check_changeable(run, _OPERATION, subject=url, without_operator=False)
        check_owner(run, owner, url=url)
    if run.ever_committed:
        raise ChangeRefusedError(
            _OPERATION, url, "it has snapshots of its own", "Choose another URL, or roll it back to one of them."
        )
    return choose(run, chosen)
