"""Changes of a run through its log, under the same rules as the operator's."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from checkpoint_sidecar.core import requests
from checkpoint_sidecar.core.errors import ChangeRefusedError, CheckpointError, RunManagedError
from checkpoint_sidecar.core.log import Body, StoredEntry
from checkpoint_sidecar.core.policy import Policy
from checkpoint_sidecar.core.run import LIBRARY_UID, Run
from checkpoint_sidecar.runs.log import RunLog

APPEND_TIMEOUT_SECONDS = 60.0
"""How long a change whose outcome is unknown is retried."""


@dataclass(frozen=True, slots=True)
class RunChange:
    """The outcome of a change.

    Attributes:
        entry: The log entry that was written; None if the log said so already, or for a dry run.
        snapshot: Id of the snapshot that the change is about, or empty.
        request: Id under which a rollback, a save or a release takes effect once, or empty.
    """

    entry: StoredEntry | None
    snapshot: str = ""
    request: str = ""

    @property
    def done(self) -> bool:
        """Whether this call changed the run."""
        return self.entry is not None


def new_request(kind: str) -> str:
    """Return a request id that was not used before."""
    return f"{kind}-{secrets.token_hex(6)}"


def check_changeable(run: Run, operation: str, *, subject: str, without_operator: bool) -> None:
    """Raise an error if this run must not be changed from here.

    Args:
        operation, subject: For errors: ``roll back to`` and ``s3://training/llama@900-1-abcdefgh``.

    Raises:
        RunManagedError: An operator manages it.
        ChangeRefusedError: It is being deleted, or was.
    """
    if run.owner is None or run.owner.is_deleted:
        raise ChangeRefusedError(operation, subject, "the run was deleted", "Use another prefix.")
    if run.managed and not without_operator:
        raise RunManagedError(
            operation,
            subject,
            f"an operator manages this run for the Checkpoint {run.owner.namespace}/{run.owner.name}",
            "Change it there, for example with kubectl ckpt. If no operator runs, pass without_operator=True "
            "(--without-operator).",
        )


def append(
    log: RunLog,
    operation: str,
    compute: Callable[[Run], Body | None],
    *,
    snapshot: str = "",
    refused: Callable[[Run], str] = lambda _: "",
    without_operator: bool,
    dry_run: bool,
) -> StoredEntry | None:
    """Append an entry, unless the rules refuse it or the log says so already.

    Args:
        operation: Verb phrase for errors: ``roll back to``.
        snapshot: Its object, if that is not the whole run.
        compute: Returns the entry for a state of the run, or None if nothing is to be written.
        refused: Returns why the rules refuse it, or an empty string. Asked again after every lost race.
        dry_run: Only check.

    Raises:
        RunManagedError, ChangeRefusedError: See ``check_changeable``; or the rules refuse the change.
        LogError, StoreError: The log failed; after an ``UnknownOutcomeError`` the entry may have been written.
    """
    subject = f"{log.store.url}@{snapshot}" if snapshot else log.store.url

    def checked(run: Run) -> Body | None:
        check_changeable(run, operation, subject=subject, without_operator=without_operator)
        if cause := refused(run):
            raise ChangeRefusedError(operation, subject, cause)
        return compute(run)

    if dry_run:
        checked(log.refresh())
        return None
    return log.append(checked)


def why_unreadable(run: Run, snapshot: str) -> str:
    """Return why the data of a snapshot cannot be used any more, or an empty string."""
    if requests.readable(run, snapshot):
        return ""
    found = run.snapshots.get(snapshot)
    return "there is no such snapshot" if found is None else f"it is {found.state.value.lower()}"


def why_gone(refresh: Callable[[], Run], snapshot: str) -> str:
    """Return why a snapshot that could not be read was deleted meanwhile; empty if it was not, or the log is silent.

    Args:
        refresh: Reads the log of its run again.
    """
    try:
        return why_unreadable(refresh(), snapshot)
    except CheckpointError:
        return ""  # the error of the read says more


def why_not_given_up(run: Run, snapshot: str) -> str:
    """Return why a user cannot retire a snapshot now, or an empty string."""
    if cause := why_unreadable(run, snapshot):
        return cause
    if run.policy.retention is None:
        return "the run has no retention policy, without which nothing is ever retired"
    return requests.why_not_retired(run, snapshot)


def next_generation(run: Run) -> int:
    """Return the generation of the next policy that the library writes."""
    known = run.configured
    return known[1] + 1 if known and known[0] == LIBRARY_UID else 1


def same_policy(run: Run, policy: Policy) -> bool:
    """Return whether this policy is in force already, as one of the library's."""
    return run.configured is not None and run.configured[0] == LIBRARY_UID and run.policy == policy
