"""Decides when to save, and how to handle failures and the end of training. The same on all ranks.

Rank 0 decides by the run log and broadcasts its decisions; an error of one rank is raised on all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from checkpoint_sidecar.attempt.save_target import Draft, RunTarget, decimal_strings
from checkpoint_sidecar.attempt.session import AttemptSession
from checkpoint_sidecar.attempt.setbacks import Setbacks
from checkpoint_sidecar.core.errors import CheckpointError, FencedError, StateCopyError
from checkpoint_sidecar.core.failures import INTERRUPTS, described
from checkpoint_sidecar.core.log import Trigger
from checkpoint_sidecar.core.schedule import LastSave, due
from checkpoint_sidecar.core.termination import LastAct, Situation, next_act
from checkpoint_sidecar.training.agreement import Agreement, most_telling
from checkpoint_sidecar.training.saving import BackgroundSave
from checkpoint_sidecar.training.signals import Terminated, TerminationWatch
from checkpoint_sidecar.training.state.application import TrainingState
from checkpoint_sidecar.training.vote import Agreed, Vote

logger = logging.getLogger(__name__)

Metrics = Mapping[str, Any]

_QUIET_SECONDS = 30.0
"""Time without a transferred byte after which a save counts as hanging, perhaps in an outage of the store."""

_BORNE: frozenset[Trigger] = frozenset({"Schedule", "Request", "Eviction"})
"""Triggers of saves whose failure training may survive."""


class Saver:
    """Begins saves and handles their results. Methods are collective unless they say otherwise.

    Args:
        session: The attempt's session on rank 0; None on the others.
        step: The step at which training begins.

    Attributes:
        last_staging_seconds: Time for which the latest save blocked training to copy the state to host memory.
    """

    def __init__(
        self,
        state: TrainingState,
        saves: BackgroundSave,
        agreement: Agreement,
        session: AttemptSession | None,
        watch: TerminationWatch,
        *,
        step: int,
    ) -> None:
        self._state = state
        self._saves = saves
        self._agreement = agreement
        self._session = session
        self._setbacks = Setbacks(session, step=step) if session else None
        self._watch = watch
        self._step = step
        self._last = LastSave(step, time.monotonic())
        self._eviction_served = False
        self._stopping = False
        self.last_staging_seconds: float | None = None

    def vote(self, step: int) -> Vote:
        """Return this rank's vote after a step. Not collective."""
        self._step = step
        if self._saves.failed:
            self._unserve()
        failed = self._saves.failed or self._fenced() is not None or self._overdue()
        trigger, running = self._trigger(), self._saves.running
        return Vote(step, trigger=trigger, saving=running, failed=failed, stop=self._watch.stop())

    def save(self, step: int, trigger: Trigger, metrics: Metrics) -> str | None:
        """Start a save after the previous one has ended. Returns the snapshot that makes it unnecessary, or None.

        Raises:
            CheckpointError: It cannot start, or the previous one failed, and training must stop.
        """
        began = time.monotonic()
        error = self._settle()
        if error is not None and self._stopping and trigger in _BORNE:
            self._take_leave_of(error)
            self.terminate(step, metrics)
        self._bear(error, trigger)
        try:
            return self._begin(step, trigger, metrics, began)
        except CheckpointError as error:
            if trigger not in _BORNE:
                raise
            self._bear(error, None)
            return None

    def wait(self) -> None:
        """Wait for the running save, if there is one.

        Raises:
            CheckpointError: It failed, or this attempt is fenced.
        """
        error = self._settle()
        if error is not None:
            self._note(error, None)
            self._saves.settled()
            raise error

    def handle_failure(self, trigger: Trigger | None) -> None:
        """Handle a background save that failed.

        Args:
            trigger: Trigger of the next save.

        Raises:
            CheckpointError: See ``save``.
        """
        self._bear(self._settle(), trigger)

    def saved_as(self, step: int) -> str:
        """Return the id of the snapshot of a saved step."""
        return self._agreement.from_rank_0(lambda: self._found(step))

    def terminate(self, step: int, metrics: Metrics) -> NoReturn:
        """Save as much as the remaining time allows, then raise ``Terminated``."""
        failed = False
        while True:
            agreed = self._agreement.vote(Vote(step, saving=self._saves.running, stop=self._watch.stop()))
            assert agreed.stop is not None  # the ranks that voted to stop still vote so
            self._watch.join(agreed.stop)
            act = self._agreement.from_rank_0(partial(self._next_act, agreed, failed=failed))
            if act is LastAct.STOP:
                break
            try:
                if act is LastAct.SAVE:
                    self.save(step, "Termination", metrics)
                self.wait()
            except Exception as error:  # noqa: BLE001 - whatever it is, this process ends
                self._take_leave_of(error)
                failed = True
        self._saves.settled()
        saved = self._agreement.from_rank_0(self._saved_step)
        if self._session and saved == step:
            logger.warning("terminated after step %d, which is saved", step)
        elif self._session:
            logger.warning("terminated after step %d: the steps after %d are lost", step, saved or 0)
        raise Terminated(step, saved)

    def may_save_last(self, agreed: Agreed) -> bool:
        """Return whether a save before the end is wanted and has enough time."""
        return self._agreement.from_rank_0(lambda: self._may_save_last(agreed))

    def lost(self) -> str:
        """Describe the loss if this process ends now. Not collective."""
        if self._session is None:
            return "what was trained since the last commit is lost"
        return f"the steps after {self._saved_step() or 0} are lost"

    def stop(self, *, timeout_seconds: float) -> None:
        """Stop the reports of failed saves. Not collective."""
        if self._setbacks:
            self._setbacks.stop(timeout_seconds=timeout_seconds)

    def _begin(self, step: int, trigger: Trigger, metrics: Metrics, began: float) -> str | None:
        existing, request, decimals = self._agreement.from_rank_0(lambda: self._admit(step, trigger, metrics))
        self._last = LastSave(step, time.monotonic(), request)
        self._eviction_served |= trigger == "Eviction"
        if existing:
            self._saves.settled()
            return existing
        failure: Exception | None = None
        staging_began = time.monotonic()
        try:
            staged = self._saves.stage(self._state.capture(), self._state.modules)
            self.last_staging_seconds = time.monotonic() - staging_began
            target = None
            if self._session:
                blocked = time.monotonic() - began
                target = RunTarget(self._session, Draft(step, trigger, decimals, request, began, blocked))
            self._saves.prepare(staged, step=step, target=target, began=began)
        except INTERRUPTS:
            raise
        except CheckpointError as error:
            failure = error
        except BaseException as error:  # noqa: BLE001 - no rank may enter the save's collectives without the others
            failure = StateCopyError("copy", f"the state of step {step} to host memory", described(error))
        try:
            self._agreement.raise_any(failure)
        except BaseException:
            self._saves.drop()
            raise
        self._saves.begin()
        return None

    def _settle(self) -> Exception | None:
        """Wait for the running save. Returns its error, the same on all ranks, or None."""
        self._saves.finish()
        ended = self._saves.take()
        said = self._agreement.gather((ended, self._fenced(), self._watch.stop() is not None))
        outcomes, fenced = [outcome for outcome, _, _ in said], said[0][1]
        self._stopping = any(stopping for _, _, stopping in said)
        if any(outcome.broken for outcome in outcomes):
            self._saves.regroup(Agreement.among_all())
        if fenced is not None:
            return fenced
        error = most_telling(outcome.error for outcome in outcomes)
        if error is not None and outcomes[0].committed:
            logger.warning("step %s is saved, although a rank ended its save with an error: %s", ended.step, error)
            self._saves.settled()
            error = None
        if error is None and ended.step is not None and self._setbacks:
            self._setbacks.made_up(ended.step)
        return error

    def _bear(self, error: Exception | None, trigger: Trigger | None) -> None:
        """Let training continue after a failed save, or raise its error."""
        if error is None:
            return
        reason = self._note(error, trigger)
        if reason:
            self._saves.settled()
            logger.error("training stops, because a save failed and %s", reason)
            raise error
        logger.error("a save failed, training continues: %s", error)
        self._saves.record_failure(error)

    def _take_leave_of(self, error: Exception) -> None:
        if isinstance(error, FencedError):
            raise error
        logger.error("the last save before the end failed: %s", error)

    def _unserve(self) -> None:
        """Make the request or eviction due again that a failed save was to serve."""
        self._last = replace(self._last, request="")
        self._eviction_served = False

    def _note(self, error: Exception, trigger: Trigger | None) -> str:
        """Count a failure. Returns the reason to stop training, or an empty string."""
        self._unserve()
        if isinstance(error, FencedError):
            return "a later attempt has started"
        return self._agreement.from_rank_0(lambda: self._counted.note(error, self._step, trigger))

    # On rank 0

    def _admit(self, step: int, trigger: Trigger, metrics: Metrics) -> tuple[str, str, dict[str, str]]:
        """Return the snapshot that makes the save unnecessary, or "", the request to serve, and decimal metrics."""
        decimals = decimal_strings(metrics)
        existing = self._led.admit(step, trigger)
        return existing.id if existing else "", self._led.state.save_request, decimals

    def _next_act(self, agreed: Agreed, *, failed: bool) -> LastAct:
        return next_act(self._situation(agreed, failed=failed))

    def _may_save_last(self, agreed: Agreed) -> bool:
        return next_act(replace(self._situation(agreed, failed=False), saving=False)) is LastAct.SAVE

    def _situation(self, agreed: Agreed, *, failed: bool) -> Situation:
        assert agreed.stop is not None
        wanted = self._led.save_policy.on_termination or agreed.stop.save
        return Situation(
            remaining_seconds=agreed.stop.remaining_seconds,
            saving=agreed.saving,
            saved=self._saved_step() == agreed.last,
            wanted=wanted and not agreed.stop.repeated and not failed,
            expected_seconds=self._saves.last_seconds,
        )

    def _saved_step(self) -> int | None:
        return self._led.saved_step

    def _found(self, step: int) -> str:
        found = self._led.saved(step)
        assert found is not None  # its commit was waited for, without an error
        return found.id

    @property
    def _led(self) -> AttemptSession:
        assert self._session is not None  # only rank 0 gets here
        return self._session

    @property
    def _counted(self) -> Setbacks:
        assert self._setbacks is not None  # only rank 0 gets here
        return self._setbacks

    # Known to rank 0; the others answer None and False

    def _trigger(self) -> Trigger | None:
        """Return the reason for a save, if one is due."""
        if self._session is None or self._step <= self._last.step:
            return None
        attempt, policy = self._session.state, self._session.save_policy
        if self._saves.quiet_seconds >= _QUIET_SECONDS and policy.on_failure == "Continue":
            # The save hangs. Training continues, and a due save stays due until this one has ended.
            return None
        retry = self._counted.may_retry()
        if attempt.eviction and not self._eviction_served and retry:
            return "Eviction"
        request = attempt.save_request if retry else ""
        return due(policy, self._last, step=self._step, now=time.monotonic(), request=request)

    def _overdue(self) -> bool:
        """Return whether the running save has been hanging for so long that training must stop."""
        if self._setbacks is None or self._saves.quiet_seconds < self._saves.stall_seconds:
            return False
        return self._setbacks.overdue(self._step)

    def _fenced(self) -> FencedError | None:
        return self._session.fenced if self._session and self._session.attempt else None
