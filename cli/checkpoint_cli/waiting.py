"""Waiting for a save or a snapshot, the same through both doors."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import TypeVar

from checkpoint_cli.exits import CommandRefusedError, ExitStatus
from checkpoint_cli.words import parse_duration
from checkpoint_sidecar.core.policy import NOT_CHECKED

Found = TypeVar("Found")


def until(poll: Callable[[], Found | None], *, aim: str, subject: str, timeout: str, poll_seconds: float) -> Found:
    """Call ``poll`` until it returns something, and return that. It is called once more at the end of the timeout.

    Args:
        aim, subject: For the error: ``the next snapshot`` of ``s3://training/llama``.
        timeout: A duration as users write it: ``10m``.

    Raises:
        CommandRefusedError: Nothing was found in time (PROBLEM).
    """
    deadline = time.monotonic() + parse_duration(timeout)
    while True:
        try:
            found = poll()
        except CommandRefusedError as error:
            # A long wait outlasts a restart of the API server.
            if error.status is not ExitStatus.UNREACHABLE:
                raise
            found = None
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise CommandRefusedError(
                f"wait for {aim} of",
                subject,
                f"it did not come within {timeout}",
                "See the verb status.",
                status=ExitStatus.PROBLEM,
            )
        time.sleep(min(poll_seconds, max(deadline - time.monotonic(), 0.1)))


def awaited(step: int | None) -> str:
    """Name the snapshot that ``wait`` waits for: the next one, or one of at least a step."""
    return "the next snapshot" if step is None else f"a snapshot of step {step} or later"


def fits(
    identifier: str, at_step: int, level: str | None, *, known: Collection[str], step: int | None, verified: bool
) -> bool:
    """Return whether ``wait`` may end with a live snapshot.

    Args:
        level: How far it was verified.
        known: Ids of the snapshots that existed before.
        step, verified: The options of ``wait``.
    """
    return identifier not in known and at_step >= (step or 0) and not (verified and level == NOT_CHECKED)
