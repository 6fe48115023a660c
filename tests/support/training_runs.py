"""Realistic runs for reports: days of training with evictions, a crash, a rollback, damage and the operator's work."""

from __future__ import annotations

import datetime as dt
import math

from checkpoint_sidecar.core.heartbeat import Heartbeat
from checkpoint_sidecar.core.log import StoredEntry
from checkpoint_sidecar.core.policy import KeepBest, RetentionPolicy, SavePolicy
from checkpoint_sidecar.core.purging import purge_due
from checkpoint_sidecar.core.retention import judge
from checkpoint_sidecar.core.run import Run, SnapshotState
from support.builders import History

GIB = 1024**3
STEP_SECONDS = 6.0
SAVE_EVERY = 100
RETENTION = RetentionPolicy(
    keep_last=3, keep_every_steps=1000, keep_best=(KeepBest("eval/loss", "Min", 2),), grace_seconds=7200.0
)


class TrainingRun:
    """A run that trains, and the operator that verifies, retires and purges after each commit."""

    def __init__(self, retention: RetentionPolicy | None = RETENTION) -> None:
        self.history = History()
        self.history.configured(retention=retention, save=SavePolicy(every_steps=SAVE_EVERY, every_seconds=None))
        self.step = 0

    @property
    def run(self) -> Run:
        return self.history.run

    @property
    def entries(self) -> tuple[StoredEntry, ...]:
        return tuple(self.history.entries)

    def pause(self, seconds: float) -> TrainingRun:
        """Let time pass before the next entry, which ``History`` puts a minute later."""
        self.history.wait(seconds=seconds - 60)
        return self

    def start(self, after: float = 300.0, *, restores: bool = True) -> TrainingRun:
        """Start an attempt ``after`` seconds and restore the candidate."""
        self.pause(after).history.started(world_size=64)
        candidate = self.run.attempt.in_use if self.run.attempt else None
        if restores and candidate is not None:
            self.pause(20).history.restoring(candidate)
            self.pause(95).history.restored(seconds=82.5, bytes=42 * GIB)
            self.step = self.run.snapshots[candidate].step
        return self

    def train(self, steps: int, *, wobble: float = 0.0) -> TrainingRun:
        """Train and save every hundred steps."""
        for _ in range(steps // SAVE_EVERY):
            following = (self.step // SAVE_EVERY + 1) * SAVE_EVERY
            self.pause((following - self.step) * STEP_SECONDS)
            self.step = following
            self.save("Schedule", wobble=wobble)
            self.operate()
        return self

    def save(self, trigger: str, *, wobble: float = 0.0) -> TrainingRun:
        loss = (
            1.9
            + 6.5 * math.exp(-self.step / 1400)
            + 0.03 * math.sin(self.step / 37)
            + wobble * (self.step % 1700) / 500
        )
        metrics = {"train/loss": f"{loss:.4f}", "tokens": str(self.step * 2_097_152)}
        if self.step % 200 == 0:
            metrics["eval/loss"] = f"{loss * 1.04 + 0.02 * math.cos(self.step / 91):.4f}"
        self.history.committed(
            self.step,
            bytes=42 * GIB + self.step * 1000,
            files=66,
            world_size=64,
            seconds=46.0,
            blocked_seconds=46.0 if trigger == "Termination" else 2.4,
            trigger=trigger,
            metrics=metrics,
        )
        return self

    def operate(self) -> TrainingRun:
        """Verify the newest snapshot, retire and purge as the policy says, a second later each."""
        history = self.history
        assert self.run.newest is not None
        self.pause(4).history.verified(self.run.newest, level="Checksums" if self.step % 500 == 0 else "Sizes")
        verdict = judge(self.run, now=history.now)
        for name, reasons in verdict.retire.items():
            if self.run.snapshots[name].state is SnapshotState.LIVE:
                self.pause(1).history.retired(name, reasons=reasons)
        for name in purge_due(judge(self.run, now=history.now)):
            self.pause(1).history.purge_started(name)
            self.pause(1).history.purged(name)
        return self


def eventful_run() -> tuple[TrainingRun, Heartbeat, dt.datetime]:
    """Two days of training: an eviction, a crash, a rollback, a damaged snapshot, a hold, a fenced commit.

    Returns:
        The run, and the heartbeat of its newest attempt with its time.
    """
    run = TrainingRun()
    history = run.history
    run.start(restores=False).train(2400)
    run.step += 40
    run.pause(200).history.evicted("TerminationByKubelet")
    run.pause(50).save("Termination")
    run.start(840).train(3000)
    run.start(4200).train(1800)  # a crash that no entry records
    history.disposed(5000, "Hold")
    run.train(1500, wobble=1.0)
    history.rollback(7000, request="bob-1")
    zombie = run.run.highest_attempt
    run.start(900).train(600)
    history.committed(8800, attempt=zombie, parent=history.id(8700))
    run.train(900)
    history.save_failed(8600, failures=2, message="write part 3 of step-8600: the store answered 503 for 120 s")
    run.train(500)
    run.pause(250).history.evicted("EvictionByEvictionAPI")
    history.found_damaged(run.step)
    run.start(1500, restores=False)
    run.pause(30).history.failed_to_restore()
    run.pause(20).history.restoring(8900)
    run.pause(120).history.restored(seconds=101.0, bytes=42 * GIB)
    run.step = 8900
    run.train(2600)
    return (
        run,
        Heartbeat(run.run.highest_attempt, run.step + 61, history.now.isoformat()),
        history.now + dt.timedelta(seconds=366),
    )
