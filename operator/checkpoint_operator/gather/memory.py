"""What the passes over one Checkpoint hand on to the next."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from checkpoint_operator.decide.plan import seeded, shown_after
from checkpoint_operator.gather.run_store import RunStore
from checkpoint_operator.model.actions import Action, CollectLast, CollectOrphans, PublishPointer, SurveyPrefix, Verify
from checkpoint_operator.model.observed import Remembered, RunProgress, TakeOver
from checkpoint_operator.model.outcome import ActionOutcome
from checkpoint_sidecar.core.api import CheckpointSpec
from checkpoint_sidecar.core.belongings import Survey
from checkpoint_sidecar.core.errors import DeletionRefusedError
from checkpoint_sidecar.core.run import Run

SURVEY_SECONDS = 3600.0
"""Interval between two surveys of everything under a prefix."""

UNVERIFIABLE_SECONDS = 600.0
"""Delay before the next try at a snapshot that could not be verified."""

REFUSED_SECONDS = 3600.0
"""Delay after a refused deletion: a lock on objects or a missing right lasts longer than a failure."""


@dataclass
class Memory:
    """What is known of one Checkpoint. All of it can be lost without harm.

    Attributes:
        head: The log number the last pass ended with.
        identity: Of the run that all this is about; empty before it was read.
        heard_at: When training last wrote to the log, on this process's steady clock.
        progress, pointers, orphans_collected, orphans_collected_at, last_collected, take_over: See ``Remembered``.
        survey: What was found under the prefix, or None.
        surveyed_at: When the prefix was surveyed last, on the same clock.
        foreign_pointers: Steps whose stock pointer proved not to be the run's.
        wanted: The last ``spec.storage.takeOverFrom`` that was seen, or None.
        generation: Of the spec that it was seen in.
        heartbeat_at: When a new heartbeat was last found, on the same clock.
        due_at: When the passing of time alone makes something due, on the same clock.
        running: Whether the last pass saw active pods.
        refusal, refused_at: Why a deletion was refused last, and when, on the same clock.
        secret: Name of the Secret as last read, and a digest of its values, if the spec names one.
        secret_at: When that was, on the same clock.
        unverifiable: Why snapshots could not be verified, by id, and when that was found, on the same clock.
    """

    session: RunStore | None = None
    head: int = -1
    identity: str = ""
    heard_at: float = field(default_factory=time.monotonic)
    progress: dict[int, RunProgress] = field(default_factory=dict)
    progress_at: float = float("-inf")
    heartbeat_at: float = float("-inf")
    pointers: dict[int, str] = field(default_factory=dict)
    orphans_collected: int = 0
    orphans_collected_at: dt.datetime | None = None
    last_collected: tuple[int, str] = (0, "")
    survey: Survey | None = None
    surveyed_at: float = float("-inf")
    foreign_pointers: set[int] = field(default_factory=set)
    wanted: str | None = None
    generation: int = 0
    take_over: TakeOver = field(default_factory=TakeOver)
    due_at: float = float("inf")
    running: bool = False
    refusal: str = ""
    refused_at: float = float("-inf")
    unverifiable: dict[str, tuple[str, float]] = field(default_factory=dict)
    secret: tuple[str, str] | None = None
    secret_at: float = float("-inf")

    def _unverified(self) -> Mapping[str, str]:
        """Return why some snapshots are not verified for now, by id."""
        since = time.monotonic() - UNVERIFIABLE_SECONDS
        return MappingProxyType({snapshot: why for snapshot, (why, at) in self.unverifiable.items() if at > since})

    def refused(self) -> str:
        """Return why nothing is deleted for now, or an empty string."""
        if self.session is not None and self.session.refusal:
            return self.session.refusal
        return self.refusal if time.monotonic() - self.refused_at < REFUSED_SECONDS else ""

    def note_run(self, run: Run) -> None:
        """Note that the log was read. Forget what was known of another run at this prefix."""
        if not run.identity:
            return
        if self.identity not in ("", run.identity):
            self.progress, self.pointers, self.foreign_pointers = {}, {}, set()
            self.orphans_collected, self.orphans_collected_at, self.last_collected = 0, None, (0, "")
            self.survey, self.surveyed_at = None, float("-inf")
        self.identity = run.identity

    def note_spec(self, spec: CheckpointSpec, generation: int) -> None:
        """Note the spec as it is now. A take-over that is set anew is another request."""
        value = spec.storage.take_over_from
        if self.wanted is None or self.wanted != value:
            self.take_over = TakeOver(generation, unset_at=self.generation if self.wanted is not None else 0)
        self.wanted, self.generation = value, generation

    def note_outcomes(self, outcomes: Sequence[ActionOutcome], now: dt.datetime) -> None:
        """Learn from what was carried out about the store and about what lies under the prefix.

        Args:
            now: The store's clock.
        """
        for outcome in outcomes:
            action = outcome.action
            if isinstance(action, SurveyPrefix):
                # After a failure the survey is not repeated at once either.
                self.surveyed_at = time.monotonic()
            if outcome.survey is not None:
                self.survey = outcome.survey
                self.pointers = seeded(self.pointers, outcome.survey)
                self.foreign_pointers &= outcome.survey.pointers
            if isinstance(action, PublishPointer):
                (self.foreign_pointers.add if outcome.left_alone else self.foreign_pointers.discard)(action.step)
        self._note_unverifiable({o.action.snapshot: o.unverifiable for o in outcomes if isinstance(o.action, Verify)})
        undeleted = next((o.error for o in outcomes if isinstance(o.error, DeletionRefusedError)), None)
        if undeleted is not None:
            self.refusal, self.refused_at = str(undeleted), time.monotonic()
        # A locked pointer counts as published: the next try is when it should show something else.
        settled = [o.action for o in outcomes if o.error is None or o.left_alone or o.refused]
        self.pointers = shown_after(self.pointers, (action for action in settled if isinstance(action, PublishPointer)))
        if not any(outcome.failed or outcome.refused for outcome in outcomes):
            self._note_collections([outcome.action for outcome in outcomes if outcome.error is None], now)

    def _note_unverifiable(self, reasons: Mapping[str, str]) -> None:
        """Note why some snapshots could not be compared with their manifests."""
        now = time.monotonic()
        recent = {
            snapshot: found for snapshot, found in self.unverifiable.items() if now - found[1] < UNVERIFIABLE_SECONDS
        }
        self.unverifiable = recent | {snapshot: (why, now) for snapshot, why in reasons.items() if why}

    def _note_collections(self, done: Iterable[Action], now: dt.datetime) -> None:
        for action in done:
            if isinstance(action, CollectOrphans):
                self.orphans_collected, self.orphans_collected_at = action.attempt, now
            elif isinstance(action, CollectLast):
                self.last_collected = max(self.last_collected, (action.attempt, action.commit))

    def known(self) -> Remembered:
        """Return what decisions may know of all this now."""
        return Remembered(
            progress=MappingProxyType(dict(self.progress)),
            pointers=MappingProxyType(self.pointers),
            orphans_collected=self.orphans_collected,
            orphans_collected_at=self.orphans_collected_at,
            last_collected=self.last_collected,
            survey=self.survey.with_pointers(self.foreign_pointers) if self.survey else None,
            survey_due=time.monotonic() - self.surveyed_at > SURVEY_SECONDS,
            take_over=self.take_over,
            refusal=self.refused(),
            unverifiable=self._unverified(),
            compactions=self.session.log.compactions if self.session else frozenset(),
        )
