"""Recovers our errors from torch's ``CheckpointException``.

DCP turns whatever a rank raised into a ``CheckpointException`` on all ranks. That is a ``BaseException``, so it slips
through ``except Exception``, and it hides the caller's next step.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.checkpoint.api import CheckpointException

from checkpoint_sidecar.core.errors import (
    CheckpointError,
    CheckpointExistsError,
    ConfigurationError,
    CorruptSnapshotError,
    FencedError,
    IncompatibleSnapshotError,
    PrefixClaimedError,
    StoreError,
    UnknownOutcomeError,
    UnreliableReadError,
)
from checkpoint_sidecar.core.failures import INTERRUPTS, described, portable

_UPLOAD = "upload"

# When ranks failed differently, the error whose next move makes the others pointless is the one to report.
_MOST_TELLING_FIRST: tuple[type[CheckpointError], ...] = (
    FencedError,
    PrefixClaimedError,
    CheckpointExistsError,
    CorruptSnapshotError,
    IncompatibleSnapshotError,
    ConfigurationError,
    UnreliableReadError,
    UnknownOutcomeError,
    StoreError,
    CheckpointError,
)


def unwrap(failure: CheckpointException, *, operation: str) -> Exception | None:
    """Return our error that explains a failed DCP call, the same on all ranks.

    Args:
        operation: The operation, for failures that are not ours: ``"save step 100"``.

    Returns:
        None when a rank was interrupted (``KeyboardInterrupt``, ``SystemExit``), which no error should replace.
    """
    causes = dict(_causes(failure))
    if any(isinstance(cause, INTERRUPTS) for cause in causes.values()):
        return None
    ours = [cause for cause in causes.values() if isinstance(cause, CheckpointError)]
    for kind in _MOST_TELLING_FIRST:
        for cause in ours:
            if isinstance(cause, kind):
                return cause
    rank, foreign = next(iter(causes.items()))
    return CheckpointError(f"{operation} on", f"rank {rank}", described(foreign))


@contextmanager
def raising_ours(operation: str) -> Iterator[None]:
    """Run a DCP call so that its failure is an ordinary error: ours where there is one, ``CheckpointError`` otherwise.

    Args:
        operation: See ``unwrap``.
    """
    try:
        yield
    except CheckpointException as failure:
        error = unwrap(failure, operation=operation)
        if error is None:
            raise
        # Not from the failure: it prints what it holds, the error, which would print what it came from, and so on.
        raise error from None


def wrapped(step: str, rank: int, cause: BaseException) -> CheckpointException:
    """Our own ``CheckpointException``: it passes DCP's ``except Exception`` and names the rank."""
    if not isinstance(cause, (*INTERRUPTS, CheckpointException)):
        cause = portable(cause, operation=f"{step} on", subject=f"rank {rank}")
    return CheckpointException(step, {rank: (cause, traceback.StackSummary())})


def upload_failed(rank: int, cause: BaseException) -> CheckpointException:
    """A rank's report that its upload failed, from which every rank concludes that nothing was committed."""
    return wrapped(_UPLOAD, rank, cause)


def never_reached_commit(failure: BaseException) -> bool:
    """Whether a failed save certainly stopped before its commit: some rank did not finish uploading."""
    if not isinstance(failure, CheckpointException):
        return False
    return failure.args[0] == _UPLOAD or any(never_reached_commit(cause) for cause, _ in failure.failures.values())


def _causes(failure: CheckpointException) -> Iterator[tuple[int, BaseException]]:
    """Return the innermost failure of each rank: a ``CheckpointException`` may hold others."""
    for rank, (cause, _) in sorted(failure.failures.items()):
        if isinstance(cause, CheckpointException):
            for _, inner in _causes(cause):
                yield rank, inner
        else:
            yield rank, cause
