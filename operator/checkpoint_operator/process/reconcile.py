"""One pass over one Checkpoint. The only module that wires observe, plan, execute and report."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from checkpoint_operator.act import execute, pods, rounds
from checkpoint_operator.act.scrubber import Scrubber
from checkpoint_operator.decide import finalizer, mirrors, plan, reschedule
from checkpoint_operator.decide.quota import demand_of
from checkpoint_operator.fairness.decisions import decided
from checkpoint_operator.fairness.slots import NoRoomError, TenantSlot
from checkpoint_operator.fairness.store_threads import AbandonedError
from checkpoint_operator.gather.knowledge import Knowledge
from checkpoint_operator.gather.kube import Kube, KubeError
from checkpoint_operator.gather.memory import Memory
from checkpoint_operator.gather.observer import Observer, checkpoint_from
from checkpoint_operator.gather.redaction import working_on
from checkpoint_operator.gather.run_store import fault_from, timed_out
from checkpoint_operator.model.actions import CreateMirror, MirrorAction, ReportMirror
from checkpoint_operator.model.event_draft import EventDraft
from checkpoint_operator.model.observed import Checkpoint, Key, Observed, StoreFault
from checkpoint_operator.model.outcome import ActionOutcome
from checkpoint_operator.process.work_queue import CallOutcome
from checkpoint_operator.report import events, resources
from checkpoint_operator.report.faults import fault_of
from checkpoint_operator.report.metrics import Metrics
from checkpoint_operator.report.status import status_of, status_with
from checkpoint_sidecar.core.api import ConditionType, Reason
from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.core.log import StoredEntry

CONTINUE_SECONDS = 2.0
"""Delay before the pass that continues, so that one large backlog does not keep the other Checkpoints waiting."""

ACT_SECONDS = 600.0
"""Deadline of a round of actions. Its own budget ends a slow round before that."""

INVALID = 422

REFUSED_STATUS = StoreFault(
    Reason.STATUS_REFUSED,
    "The API server refuses the status: the run log or the object store says something that the CRD does not allow, "
    "or the CRDs are older than the operator. The rest of the status is as of before.",
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Intervals:
    """Seconds between polls of a log.

    Attributes:
        busy: While pods run, or training wrote to the log within the last ``settle`` seconds.
        idle: Otherwise.
    """

    busy: float = 4.0
    idle: float = 30.0
    settle: float = 300.0


class Reconciler:
    """Makes the state of the run match the spec of each Checkpoint; the queue calls ``reconcile``.

    Args:
        scrubber: Reads snapshots back; None if that is off.
        wake: Requests a pass over another Checkpoint.
    """

    def __init__(
        self,
        kube: Kube,
        observer: Observer,
        *,
        knowledge: Knowledge,
        metrics: Metrics,
        scrubber: Scrubber | None,
        wake: Callable[[Key], None],
        intervals: Intervals | None = None,
    ) -> None:
        self._kube = kube
        self._observer = observer
        self._knowledge = knowledge
        self._redactor = knowledge.redactor
        self._metrics = metrics
        self._scrubber = scrubber
        self._wake = wake
        self._intervals = intervals or Intervals()

    async def reconcile(self, key: Key, thorough: bool, slot: TenantSlot) -> CallOutcome:
        """Run one pass; if not ``thorough``, only when a poll of the log finds something new.

        Returns:
            When the next poll is due, or why the pass failed or has to wait; neither when the Checkpoint is gone.
        """
        with working_on(key):
            try:
                return await self._pass(key, thorough, slot)
            except NoRoomError as error:
                return CallOutcome(waits_for=error.target)
            except KubeError as error:
                self._metrics.count_error(key)
                return CallOutcome(failure=str(error))
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a client's panic is not an Exception
                self._metrics.count_error(key)
                logger.exception("%s: the pass failed", key)
                await self._report_error(key, error)
                return CallOutcome(failure=f"the pass failed: {type(error).__name__}")

    async def _pass(self, key: Key, thorough: bool, slot: TenantSlot) -> CallOutcome:
        memory = self._knowledge.memory(key)
        if not thorough and not await self._has_news(key, memory, slot):
            return CallOutcome(self._interval(memory))
        with self._metrics.reconcile_seconds.time():
            observed = await self._observer.observe(key, memory, slot)
            if observed is None:
                self._forget(key)
                return CallOutcome()
            await self._hold(observed)
            observed = await self._act(await self._within_quota(self._with_read_back(observed)), memory, slot)
            observed = await self._within_quota(observed)
            if await self._release(observed):
                self._forget(key)  # the next Checkpoint of this name finds another run, or none
                return CallOutcome(self._intervals.idle)
            await self._read_back(observed, memory)
            observed, entries = await self._unreported(observed, memory, slot)
            await self._report(observed, entries)
            if memory.session is not None:
                memory.session.log.forget_entries()
            await self._reschedule(observed)
            mirrors_wait = await self._mirror(observed)
        for other in self._knowledge.warm_starts.waiting_for(key):
            self._wake(other)
        await self._remember(observed, memory, mirrors_wait=mirrors_wait)
        fault = fault_of(observed)
        if fault is None:
            return CallOutcome(self._interval(memory))
        if fault.stalled:
            return CallOutcome(fault.retry_seconds or self._intervals.idle)
        failure = f"{fault.reason}: {self._redactor.clean(fault.message)}"
        return CallOutcome(fault.retry_seconds, failure=failure)

    async def _hold(self, observed: Observed) -> None:
        """Set our finalizer as soon as the spec asks for it. Remove it when the spec no longer does."""
        checkpoint, wanted = observed.checkpoint, finalizer.finalizers(observed.checkpoint)
        if wanted is not None:
            await self._kube.write_finalizers(checkpoint.key, checkpoint.resource_version, wanted)

    async def _release(self, observed: Observed) -> bool:
        """Remove our finalizer once the run is deleted, or cannot be. Return whether it was removed."""
        checkpoint, released = observed.checkpoint, finalizer.release(observed)
        if released is None:
            return False
        draft = finalizer.last_word(released)
        level = logging.WARNING if draft.warning else logging.INFO
        logger.log(level, "%s: %s: %s", checkpoint.key, draft.reason, self._redactor.clean(draft.message))
        await self._create_event(draft, observed, observed.wall)
        await self._kube.write_finalizers(checkpoint.key, checkpoint.resource_version, finalizer.without(checkpoint))
        return True

    def _with_read_back(self, observed: Observed) -> Observed:
        if self._scrubber is None:
            return observed
        return replace(observed, read_back=self._scrubber.state(observed.checkpoint.key))

    async def _within_quota(self, observed: Observed) -> Observed:
        """Add what the namespace's quota leaves to this run. Wake the Checkpoints whose part changed."""
        key = observed.checkpoint.key
        if not self._knowledge.quotas.limit(key.namespace):
            return observed
        demand = await decided(demand_of, observed)
        for other in self._knowledge.quotas.note(key, demand) if demand is not None else ():
            self._wake(other)
        return replace(observed, quota=self._knowledge.quotas.of(key))

    async def _read_back(self, observed: Observed, memory: Memory) -> None:
        """Request what to read back. A fault changes nothing: reading continues, and findings are kept."""
        read_back = observed.read_back
        if self._scrubber is None or read_back is None or memory.session is None or observed.fault is not None:
            return
        key = observed.checkpoint.key
        self._scrubber.settle(key, read_back.findings)
        session = memory.session
        wanted = await decided(plan.to_read_back, observed)
        self._scrubber.want(key, wanted, session.readable, release=session.reading.free)

    async def _has_news(self, key: Key, memory: Memory, slot: TenantSlot) -> bool:
        if time.monotonic() >= memory.due_at:
            return True
        try:
            return await self._observer.secret_changed(key, memory) or await self._observer.log_grew(memory, slot)
        except (CheckpointError, AbandonedError):
            return True  # the pass that follows finds out what is wrong and reports it

    async def _act(self, observed: Observed, memory: Memory, slot: TenantSlot) -> Observed:
        async def blocking(work: rounds.RoundWork) -> tuple[ActionOutcome, ...]:
            return await self._observer.in_thread(work, memory, slot, seconds=ACT_SECONDS)

        session = memory.session  # a pass that fails ends it
        observed = await rounds.run(observed, memory, blocking=blocking)
        if session is not None:
            counts = session.log.counts.take()
            self._metrics.count_appends(
                observed.checkpoint.key, lost_races=counts.lost_races, unknown_outcomes=counts.unknown_outcomes
            )
        return observed

    async def _unreported(
        self, observed: Observed, memory: Memory, slot: TenantSlot
    ) -> tuple[Observed, tuple[StoredEntry, ...]]:
        """Read the log entries that the status does not reflect yet."""
        run, session = observed.run, memory.session
        if run is None or session is None or not observed.ours:
            return observed, ()
        numbers = events.since_last_report(observed.checkpoint.status, run.head)
        # Another operator reported those that are in the status already.
        appended = (
            range(max(memory.head, run.head - events.MAX_REPORTED) + 1, run.head + 1) if memory.head > 0 else range(0)
        )
        wanted = sorted({*numbers, *appended})
        try:
            session.meter.begin()
            entries = await self._observer.in_thread(lambda: session.log.entries(wanted), memory, slot)
        except CheckpointError as error:
            return replace(observed, fault=fault_from(error)), ()
        except AbandonedError:
            return replace(observed, fault=timed_out(session.settings)), ()
        others = events.for_other_operators((e for e in entries if e.number in appended), self._observer.writer)
        for draft in others:
            self._metrics.count_other_operator(observed.checkpoint.key, 1)
            await self._create_event(draft, observed, observed.wall)
        return observed, tuple(entry for entry in entries if entry.number in numbers)

    async def _report(self, observed: Observed, entries: tuple[StoredEntry, ...]) -> None:
        """Write the status if it changed, and then the Events that explain it."""
        checkpoint = observed.checkpoint
        status = self._redactor.clean_messages(await decided(status_of, observed))
        ready = resources.conditions_of(status).get(ConditionType.READY, {})
        self._metrics.observe(observed, ready=ready.get("status") == "True")
        if status == checkpoint.status:
            return
        try:
            if not await self._kube.write_checkpoint_status(checkpoint.key, checkpoint.uid, status):
                return
        except KubeError as error:
            if error.status != INVALID:
                raise
            logger.warning("%s: %s", checkpoint.key, error)
            await self._report_only(checkpoint, REFUSED_STATUS)
            return
        self._knowledge.warm_starts.note(replace(checkpoint, status=status))
        self._metrics.count(checkpoint.key, entries)
        self._count_losses(checkpoint.key, status)
        drafts = events.for_conditions(checkpoint.status, status)
        if observed.run is not None:
            drafts = (*drafts, *events.for_entries(entries, observed.run))
        for place, draft in enumerate(drafts):
            await self._create_event(draft, observed, observed.wall + dt.timedelta(microseconds=place))

    async def _report_error(self, key: Key, error: BaseException) -> None:
        """Report an unexpected error in the status; the operator's log has the details."""
        message = f"The operator failed at this Checkpoint ({type(error).__name__}); its log says more. It tries again."
        try:
            body = await self._kube.checkpoint(key)
            if body is not None:
                checkpoint, _ = checkpoint_from(key, body)
                await self._report_only(checkpoint, StoreFault(Reason.INTERNAL_ERROR, message))
        except KubeError as refused:
            logger.warning("%s: %s", key, refused)

    async def _report_only(self, checkpoint: Checkpoint, fault: StoreFault) -> None:
        """Write a fault into the status and change nothing else there."""
        status = status_with(checkpoint, fault, wall=dt.datetime.now(dt.UTC))
        if status != checkpoint.status:
            await self._kube.write_checkpoint_status(checkpoint.key, checkpoint.uid, status)

    async def _reschedule(self, observed: Observed) -> None:
        key, spec = observed.checkpoint.key, observed.checkpoint.spec
        if spec is not None and not spec.reschedule.recreate_bare_pods:
            self._knowledge.bare_pods.forget(key)
        planned = reschedule.pod_actions(observed)
        if not planned:
            return
        logger.info("%s: %s", key, ", ".join(f"{type(action).__name__} {action.name}" for action in planned))
        drafts = await pods.carry_out(planned, self._kube, self._knowledge.bare_pods, key, now=observed.wall)
        for draft in drafts:
            await self._create_event(draft, observed, dt.datetime.now(dt.UTC))

    async def _create_event(self, draft: EventDraft, observed: Observed, moment: dt.datetime) -> None:
        event = resources.event(
            observed.checkpoint,
            reason=draft.reason,
            message=self._redactor.clean(draft.message),
            warning=draft.warning,
            identifier=draft.identifier,
            time=moment,
        )
        try:
            await self._kube.create_event(event)
        except KubeError as error:
            # Its entry counts as reported already. One lost Event must not cost the others.
            logger.warning("%s: lost an Event (%s): %s", observed.checkpoint.key, draft.reason, error)

    async def _mirror(self, observed: Observed) -> bool:
        """Make the CheckpointSnapshot objects match the log. Return whether some are left to create."""
        stored = {mirror.name: mirror.status for mirror in observed.cluster.mirrors}
        planned: list[MirrorAction] = []
        for action in await decided(mirrors.mirror_actions, observed):
            if isinstance(action, ReportMirror):
                cleaned = self._redactor.clean_messages(action.status)
                if cleaned != stored[action.name]:
                    planned.append(replace(action, status=cleaned))
            elif isinstance(action, CreateMirror):
                planned.append(replace(action, status=self._redactor.clean_messages(action.status)))
            else:
                planned.append(action)
        await execute.mirror(planned, self._kube, namespace=observed.checkpoint.key.namespace)
        return sum(isinstance(action, CreateMirror) for action in planned) == mirrors.MAX_NEW_MIRRORS

    def _count_losses(self, key: Key, status: Mapping[str, Any]) -> None:
        restore = status.get("lastRestore", {})
        if restore.get("lostSteps") is not None:
            self._metrics.count_loss(
                key,
                attempt=restore["attempt"],
                steps=restore["lostSteps"],
                seconds=restore.get("lostSeconds") or 0,
            )

    async def _remember(self, observed: Observed, memory: Memory, *, mirrors_wait: bool) -> None:
        memory.running = observed.cluster.trains
        head = observed.run.head if observed.run else -1
        if head != memory.head:
            memory.head = head
            memory.heard_at = time.monotonic() - plan.silence(observed)

        moments = (plan.next_pass(observed), reschedule.next_pass(observed))
        due = min((moment for moment in moments if moment is not None), default=None)
        left = await decided(plan.store_actions, observed)
        if mirrors_wait or left:
            due = CONTINUE_SECONDS
        memory.due_at = float("inf") if due is None else time.monotonic() + due

    def _interval(self, memory: Memory) -> float:
        now = time.monotonic()
        active = memory.running or now - memory.heard_at < self._intervals.settle
        interval = self._intervals.busy if active else self._intervals.idle
        return min(interval, max(0.0, memory.due_at - now))

    def _forget(self, key: Key) -> None:
        self._metrics.forget(key)
        if self._scrubber is not None:
            self._scrubber.forget(key)
        for other in self._knowledge.forget(key):
            self._wake(other)
