"""Begins a new run at a snapshot of another one, on all ranks or on none."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import msgspec

from checkpoint_sidecar.attempt.session import AttemptSession, Candidate, interruption
from checkpoint_sidecar.attempt.warm_start import (
    StartFrom,
    choose_warm_start,
    deleted,
    record_warm_start,
    source_candidate,
    source_settings,
)
from checkpoint_sidecar.core.errors import (
    NO_EVIDENCE,
    CheckpointError,
    ConfigurationError,
    CorruptSnapshotError,
    FencedError,
    RunNotFoundError,
    SnapshotNotFoundError,
)
from checkpoint_sidecar.core.failures import INTERRUPTS, portable
from checkpoint_sidecar.core.log import MAX_TEXT, WarmStartChosen, WarmStartFinished
from checkpoint_sidecar.core.warm_start import address_of
from checkpoint_sidecar.engine.compared import ComparedBytes
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.agreement import Agreement, most_telling
from checkpoint_sidecar.training.dcp.restricted import Trust
from checkpoint_sidecar.training.folders import RunFolder
from checkpoint_sidecar.training.loading import MODEL
from checkpoint_sidecar.training.restoring import Restored, SnapshotLoading
from checkpoint_sidecar.training.safetensors_loading import load_published
from checkpoint_sidecar.training.state.application import TrainingState
from checkpoint_sidecar.training.state.leftovers import bounded
from checkpoint_sidecar.training.transfers import Transfers

_TELLING = (ConfigurationError, CorruptSnapshotError, RunNotFoundError, SnapshotNotFoundError)
"""Errors that the same start would meet again, besides those of every restore."""


@dataclass(frozen=True, slots=True)
class WarmStarting:
    """What a start needs to begin elsewhere.

    Attributes:
        start_from: The request of this process, or None: the log may say so as well.
        own: The settings of the new run.
        session: The attempt's session on rank 0, None on the others.
        strict: Whether names that only the snapshot or only the objects have are fatal.
        folder: A trainer's folder, whose files are restored too unless only a part is loaded.
    """

    start_from: StartFrom | None
    own: StoreSettings
    session: AttemptSession | None
    agreement: Agreement
    trust: Trust
    strict: bool
    transfers: Transfers
    folder: RunFolder | None = None

    def begin(self, state: TrainingState) -> Restored | None:
        """Load the snapshot of another run if this attempt begins there. None if it does not.

        Raises:
            RunNotFoundError, SnapshotNotFoundError: The snapshot is gone. No other one takes its place.
            IncompatibleSnapshotError: It does not fit the state, which is unchanged.
            CorruptSnapshotError: Stored bytes are not those that were committed. The state may be partly loaded.
            RestoreInterrupted: Something else stopped it; the next start loads the same snapshot.
            ConfigurationError, FencedError: See ``attempt.warm_start``.
        """
        chosen = self.agreement.from_rank_0(
            lambda: choose_warm_start(self.session, self.start_from, self.own) if self.session else None
        )
        if chosen is None:
            return None
        return self._load(chosen, state) if chosen.snapshot else self._load_weights(chosen, state)

    def _load_weights(self, chosen: WarmStartChosen, state: TrainingState) -> Restored:
        """Load safetensors into one module. All other objects start fresh, at step 0."""
        began = time.monotonic()
        part = chosen.part or MODEL
        attempt = self.session.attempt if self.session else 1
        outcome = WarmStartFinished(attempt, chosen.url, part=part)
        try:
            settings, module = source_settings(chosen, self.start_from, self.own), state.module(part)
            progress = TransferMeter()
            with self.transfers.under_way("restore", 0, progress):
                loaded = load_published(settings, module, self.agreement, strict=self.strict, progress=progress)
        except INTERRUPTS:
            raise
        except Exception as error:
            self.agreement.from_rank_0(partial(self._record, outcome, error, None))
            raise
        outcome = msgspec.structs.replace(
            outcome,
            restored=True,
            seconds=time.monotonic() - began,
            bytes=loaded.bytes,
            missing=bounded({*loaded.missing, *(set(state.names) - {part})}),
            unused=bounded(set(loaded.unused)),
        )
        self.agreement.from_rank_0(partial(self._record, outcome, None, None))
        missing, unused = outcome.missing, outcome.unused
        return Restored("", 0, outcome.seconds, missing=missing, unused=unused, url=chosen.url, part=part)

    def _load(self, chosen: WarmStartChosen, state: TrainingState) -> Restored:
        began = time.monotonic()
        failure: Exception | None = None
        try:
            wanted = state.only(chosen.part) if chosen.part else state
            source = StoredRun(open_store(source_settings(chosen, self.start_from, self.own)))
        except INTERRUPTS:
            raise
        except BaseException as error:  # noqa: BLE001 - raised below, on all ranks
            failure = portable(error, operation="start from", subject=address_of(chosen))
        self.agreement.raise_any(failure)
        candidate = self.agreement.from_rank_0(partial(self._candidate, chosen, source))
        compared = ComparedBytes(candidate.manifest)
        progress = TransferMeter()
        with self.transfers.under_way("restore", candidate.step, progress):
            loading = SnapshotLoading(
                wanted,
                candidate,
                source.store,
                self.agreement,
                self.trust,
                self.strict,
                progress,
                compared,
                None if chosen.part else self.folder,
            )
            errors = loading.run()
        fresh = set(state.names) - set(wanted.names)
        missing = bounded({*loading.leftovers.missing, *loading.leftovers.absent, *fresh})
        outcome = WarmStartFinished(
            attempt=self.session.attempt if self.session else 1,
            url=chosen.url,
            snapshot=chosen.snapshot,
            step=chosen.step,
            part=chosen.part,
            restored=not errors,
            seconds=time.monotonic() - began,
            bytes=candidate.manifest.size,
            missing=() if errors else missing,
            unused=loading.leftovers.not_used,
        )
        self.agreement.from_rank_0(partial(self._record, outcome, most_telling(errors), source))
        step = 0 if chosen.part else chosen.step
        return Restored(
            chosen.snapshot,
            step,
            outcome.seconds,
            missing=outcome.missing,
            unused=outcome.unused,
            url=chosen.url,
            part=chosen.part,
        )

    def _candidate(self, chosen: WarmStartChosen, source: StoredRun) -> Candidate:
        session = self._led
        try:
            return source_candidate(chosen, source, verify=session.log.run.policy.restore.verify)
        except CheckpointError as error:
            step, part = chosen.step, chosen.part
            outcome = WarmStartFinished(session.attempt, chosen.url, chosen.snapshot, step, part)
            raise self._failed(outcome, error) from None

    def _record(self, outcome: WarmStartFinished, error: Exception | None, source: StoredRun | None) -> None:
        if error is None:
            record_warm_start(self._led, outcome)
            return
        gone = deleted(source, outcome.snapshot) if source is not None else None
        raise self._failed(outcome, gone or error)

    def _failed(self, outcome: WarmStartFinished, error: Exception) -> Exception:
        """Record a failure, and return the error to raise."""
        if isinstance(error, FencedError):
            return error
        evidence = error.evidence if isinstance(error, CorruptSnapshotError) else NO_EVIDENCE
        message = str(error)[:MAX_TEXT]
        record_warm_start(self._led, msgspec.structs.replace(outcome, evidence=evidence, message=message))
        return error if isinstance(error, _TELLING) else interruption(error, address_of(outcome))

    @property
    def _led(self) -> AttemptSession:
        assert self.session is not None  # only rank 0 gets here
        return self.session
