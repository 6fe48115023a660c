"""Counts failed saves, decides whether training continues, and reports to the operator. Used on rank 0 only."""

from __future__ import annotations

import logging
import time

from checkpoint_sidecar.attempt.periodic import Periodic
from checkpoint_sidecar.attempt.session import POLL_SECONDS, AttemptSession
from checkpoint_sidecar.core import attempt as decisions
from checkpoint_sidecar.core.errors import CheckpointError, SharedFilesLostError, StateCopyError, StoreError
from checkpoint_sidecar.core.log import MAX_TEXT, SaveFailed, Trigger
from checkpoint_sidecar.core.schedule import given_up, retry_delay

logger = logging.getLogger(__name__)


class Setbacks:
    """Counts failed saves since the last commit.

    Args:
        step: The step at which training begins.
    """

    def __init__(self, session: AttemptSession, *, step: int) -> None:
        self._session = session
        self._failures = 0
        self._failed_at = 0.0
        self._saved_step = step
        self._saved_at = time.monotonic()
        self._report: SaveFailed | None = None
        self._reported = False
        self._reports: Periodic | None = None

    def made_up(self, step: int) -> None:
        """Record that a save of this step is committed."""
        self._failures = 0
        self._saved_step, self._saved_at = step, time.monotonic()
        self._report, self._reported = None, False

    def note(self, error: Exception, step: int, trigger: Trigger | None) -> str:
        """Count a failure. Returns the reason to stop training, or an empty string to continue.

        Args:
            step: The present step.
            trigger: Trigger of the next save, which is tried in any case if it is the last one.
        """
        self._failures += 1
        self._failed_at = time.monotonic()
        reason = self._reason(error, step)
        if not reason or trigger in ("Final", "Termination"):
            self._report_once(SaveFailed(self._session.attempt, step, self._failures, str(error)[:MAX_TEXT]))
            if self._session.save_policy.on_failure == "Continue":
                return ""
        return reason

    def may_retry(self) -> bool:
        """Return whether a requested save that failed may be retried now."""
        return time.monotonic() - self._failed_at >= retry_delay(self._failures)

    def overdue(self, step: int) -> bool:
        """Return whether training has been unsaved for too long because a save hangs."""
        policy = self._session.save_policy
        unsaved = time.monotonic() - self._saved_at
        return bool(given_up(policy, failures=0, unsaved_steps=step - self._saved_step, unsaved_seconds=unsaved))

    def stop(self, *, timeout_seconds: float) -> None:
        """Stop the reports."""
        if self._reports is not None:
            self._reports.stop(timeout_seconds=timeout_seconds)

    def _reason(self, error: Exception, step: int) -> str:
        if isinstance(error, CheckpointError) and not self._may_pass(error):
            return "the next save would fail as well"
        return given_up(
            self._session.save_policy,
            failures=self._failures,
            unsaved_steps=step - self._saved_step,
            unsaved_seconds=time.monotonic() - self._saved_at,
        )

    def _may_pass(self, error: CheckpointError) -> bool:
        """Return whether the next save may succeed without any action."""
        if isinstance(error, StateCopyError):
            # State that was never saved is likely to be state that cannot be saved.
            return self._session.state.last_commit is not None
        return isinstance(error, StoreError | SharedFilesLostError) or type(error) is CheckpointError

    def _report_once(self, report: SaveFailed) -> None:
        """Write the failure into the log as soon as the store allows, once until the next commit."""
        if not self._reported:
            self._report = report
        if self._reports is None:
            self._reports = Periodic(self._write, seconds=POLL_SECONDS, name="report failed saves")
            self._reports.start()

    def _write(self) -> None:
        report = self._report
        if report is None:
            return
        after = self._session.state.last_commit
        self._session.log.append(lambda run: decisions.save_failed(run, report, after=after))
        self._reported, self._report = True, None
