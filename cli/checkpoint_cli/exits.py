"""Exit statuses, and the one line that explains a failure."""

from __future__ import annotations

from enum import IntEnum

from checkpoint_sidecar.core import errors
from checkpoint_sidecar.core.errors import CheckpointError


class ExitStatus(IntEnum):
    """The exit statuses of both programs; docs/cli.md lists them from here."""

    DONE = 0
    """The verb did what it was asked."""
    PROBLEM = 1
    """A check or a wait found a problem: damage, a difference, a broken promise, a timeout."""
    USAGE = 2
    """The command line, the URL or a setting is wrong."""
    NOT_FOUND = 3
    """The run, the snapshot, the Checkpoint or the bucket does not exist."""
    REFUSED = 4
    """Not allowed: missing rights, the policy, or an operator that owns the run."""
    UNREACHABLE = 5
    """The store or the cluster does not answer."""
    UNREADABLE = 6
    """What is stored is damaged, or of a newer format."""
    DEFECT = 70
    """An error that this program does not know; CHECKPOINT_TRACEBACK=1 shows where it happened."""
    INTERRUPTED = 130
    """Ctrl-C."""
    PIPE_CLOSED = 141
    """The reader of the output has closed it, as `| head` does."""


class CommandRefusedError(CheckpointError):
    """A verb ended with the exit status that the error carries."""

    def __init__(self, operation: str, subject: str, cause: str, hint: str = "", *, status: ExitStatus) -> None:
        super().__init__(operation, subject, cause, hint)
        self.status = status


_STATUS: tuple[tuple[type[CheckpointError], ExitStatus], ...] = (
    (errors.ConfigurationError, ExitStatus.USAGE),
    (errors.ObjectNotFoundError, ExitStatus.NOT_FOUND),
    (errors.BucketNotFoundError, ExitStatus.NOT_FOUND),
    (errors.AccessDeniedError, ExitStatus.REFUSED),
    (errors.RequestRefusedError, ExitStatus.REFUSED),
    (errors.NoConditionalWriteError, ExitStatus.REFUSED),
    (errors.RunNotFoundError, ExitStatus.NOT_FOUND),
    (errors.SnapshotNotFoundError, ExitStatus.NOT_FOUND),
    (errors.AmbiguousSelectorError, ExitStatus.USAGE),
    (errors.RunManagedError, ExitStatus.REFUSED),
    (errors.ChangeRefusedError, ExitStatus.REFUSED),
    (errors.PrefixClaimedError, ExitStatus.REFUSED),
    (errors.CheckpointExistsError, ExitStatus.REFUSED),
    (errors.UntrustedSnapshotError, ExitStatus.REFUSED),
    (errors.ForeignObjectError, ExitStatus.REFUSED),
    (errors.ObjectTooLargeError, ExitStatus.UNREADABLE),
    (errors.TruncatedObjectError, ExitStatus.UNREADABLE),
    (errors.StoreError, ExitStatus.UNREACHABLE),
    (errors.TransferCancelledError, ExitStatus.INTERRUPTED),
)
"""The first class that fits decides; every other error of the library is about what is stored."""


def status_of(error: CheckpointError) -> ExitStatus:
    """Return the exit status for an error."""
    if isinstance(error, CommandRefusedError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), ExitStatus.UNREADABLE)


def one_line(text: str) -> str:
    """Return a message on one line, with control characters escaped: parts of it come out of a bucket."""
    if text.isprintable():
        return text.strip()
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)
